"""Outputs on an encoder: chosen positions are those of all, segments reach the encoder, hidden tokens act in training alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.models import Bert
from attnlab.models.heads import SequenceClassifier, SpanFinder, TokenClassifier

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def encoder(**fields):
    torch.manual_seed(0)
    return Bert(23, 16, d_model=16, num_heads=4, num_layers=2, dropout=0.0, **fields)


def draw(*shape, seed=0):
    return torch.randint(5, 23, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths, seed):
    longest = max(lengths) + 2
    return draw(len(lengths), longest, seed=seed), torch.arange(longest)[None] < torch.tensor(lengths)[:, None]


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_tags_of_chosen_tokens_are_those_of_each_text_alone(lengths, seed):
    model = TokenClassifier(encoder(), num_outputs=5).eval()
    tokens, is_token = padded(lengths, seed)
    chosen = is_token & (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.6)
    found = model(tokens, chosen.flatten().nonzero()[:, 0], is_token)
    assert found.shape == (int(chosen.sum()), 5)
    alone = [model(tokens[row : row + 1, :n], torch.arange(n))[chosen[row, :n]] for row, n in enumerate(lengths)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_starts_and_ends_are_those_of_each_text_alone(lengths, seed):
    model = SpanFinder(encoder(num_segments=2)).eval()
    tokens, is_token = padded(lengths, seed)
    segments = (torch.arange(tokens.shape[1])[None] > 1).long().expand(len(lengths), -1)
    together = model(tokens, is_token, segments)
    for row, n in enumerate(lengths):
        alone = model(tokens[row : row + 1, :n], None, segments[row : row + 1, :n])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1, :n], other, rtol=1e-5, atol=1e-5)


def test_segments_reach_the_encoder():
    model, tokens = SpanFinder(encoder(num_segments=2)).eval(), draw(2, 6)
    with torch.no_grad():
        model.encoder.segments.weight.copy_(torch.randn(2, 16))
    one, other = (model(tokens, None, torch.full_like(tokens, segment))[0] for segment in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_hidden_tokens_act_in_training_alone(kind):
    model, tokens = kind(encoder(), 3, dropout=0.0, token_dropout=0.9, mask=3), draw(4, 8)
    given = (tokens, torch.arange(tokens.numel())) if kind is TokenClassifier else (tokens,)
    torch.manual_seed(1)
    trained = model(*given)
    torch.manual_seed(1)
    hidden = tokens.masked_fill(torch.rand(tokens.shape) < 0.9, 3)
    model.eval()
    torch.testing.assert_close(trained, model(hidden, *given[1:]))
    assert not torch.allclose(trained, model(*given), atol=1e-4)
