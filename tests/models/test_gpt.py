"""GPT: its output, positions, who sees whom, and that padding changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import (
    ALiBi,
    DeepNorm,
    Learned,
    Parallel,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReZero,
    Rotary,
    Sandwich,
    Sinusoidal,
)
from attnlab.models import GPT

POSITIONS = [PositionEncoding, Sinusoidal, Learned, Rotary, ALiBi, RelativeBias]
RESIDUALS = [PostNorm, PreNorm, Sandwich, DeepNorm, ReZero, Parallel]

TOKENS = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))


def test_tied_logits_are_products_with_the_embedding():
    torch.manual_seed(0)
    model = GPT(11, 8, d_model=16, num_heads=2, num_layers=1)
    hidden = model.stack(model.embedding(TOKENS))
    torch.testing.assert_close(model(TOKENS), torch.einsum("btd,vd->btv", hidden, model.embedding.weight))
    assert not hasattr(model.head, "weight")


def test_untied_logits_have_weights_of_their_own():
    model = GPT(11, 8, d_model=16, num_heads=2, num_layers=1, tie_embeddings=False)
    hidden = model.stack(model.embedding(TOKENS))
    torch.testing.assert_close(model(TOKENS), torch.einsum("btd,vd->btv", hidden, model.head.weight))
    assert model.head.weight.shape == (11, 16)


def test_scaled_embedding_is_multiplied_by_the_root_of_the_width():
    torch.manual_seed(0)
    plain = GPT(11, 8, d_model=16, num_heads=2, num_layers=1)
    torch.manual_seed(0)
    scaled = GPT(11, 8, d_model=16, num_heads=2, num_layers=1, scale_embedding=True)
    hidden = plain.stack(plain.embedding(TOKENS) * 4.0)
    torch.testing.assert_close(scaled(TOKENS), torch.einsum("btd,vd->btv", hidden, plain.embedding.weight))


def test_embedding_norm_stands_between_embedding_and_layers():
    torch.manual_seed(0)
    model = GPT(11, 8, d_model=16, num_heads=2, num_layers=1, embedding_norm=True, position=PositionEncoding)
    with torch.no_grad():
        model.stack.embedding_norm.weight.normal_()
        model.stack.embedding_norm.bias.normal_()
    x = model.embedding(TOKENS)
    centred = x - x.mean(-1, keepdim=True)
    norm = model.stack.embedding_norm
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    entered = []
    model.stack.layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(TOKENS)
    torch.testing.assert_close(entered[0], expected, atol=1e-5, rtol=1e-5)
    assert isinstance(GPT(11, 8, d_model=16, num_heads=2, num_layers=1).stack.embedding_norm, torch.nn.Identity)


@pytest.mark.parametrize(
    ("position", "longest"), [(Learned, 8), (Rotary, None), (ALiBi, None), (PositionEncoding, None)]
)
def test_longest_is_the_encodings(position, longest):
    model = GPT(11, 8, d_model=16, num_heads=2, num_layers=1, position=position)
    assert model.longest == longest
    long = torch.zeros(1, 9, dtype=torch.long)
    if longest is None:
        assert model(long).shape == (1, 9, 11)
    else:
        with pytest.raises(ValueError, match="8 positions"):
            model(long)


def test_logits_keep_the_models_type_and_start_near_uniform():
    torch.manual_seed(0)
    model = GPT(65, 64)
    tokens = torch.randint(0, 65, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(4.174, abs=0.15)  # ln 65
    assert model.bfloat16()(tokens).dtype == torch.bfloat16


def test_packed_positions_are_taken_as_they_are():
    # Two sequences that start at position 0 in one batch, given explicitly, equal the default.
    model = GPT(11, 8, d_model=16, num_heads=2, num_layers=2, position=Sinusoidal).eval()
    torch.testing.assert_close(model(TOKENS, positions_BT=torch.arange(6)[None]), model(TOKENS))
    shifted = model(TOKENS, positions_BT=torch.arange(6)[None] + 1)
    assert not torch.allclose(shifted, model(TOKENS), atol=1e-3)


def build(seed, **fields):
    """A small model whose weights make a wrong mask or position show."""
    torch.manual_seed(seed)
    model = GPT(11, 12, d_model=16, num_heads=2, num_layers=2, **fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    place=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_no_token_sees_what_follows(position, residual, place, seed):
    model, tokens = build(seed, position=position, residual=residual), draw(2, 8, seed=seed)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % 11
    assert_close(model(changed)[:, :place], model(tokens)[:, :place])
    assert not torch.allclose(model(changed)[:, place:], model(tokens)[:, place:], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    position=st.sampled_from(POSITIONS),
    residual=st.sampled_from(RESIDUALS),
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    left=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padding_on_either_side_changes_nothing(position, residual, lengths, left, seed):
    model, longest = build(seed, position=position, residual=residual), max(lengths) + 2
    tokens = draw(len(lengths), longest, seed=seed)
    places = torch.arange(longest)[None]
    is_token = places >= longest - torch.tensor(lengths)[:, None] if left else places < torch.tensor(lengths)[:, None]
    together = model(tokens, is_token_BT=is_token)
    for row in range(len(lengths)):
        alone = model(tokens[row : row + 1, is_token[row]])
        assert_close(together[row : row + 1, is_token[row]], alone)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"num_heads": 7}, r"num_heads=7 does not divide d_model=16; accepted: 1, 2, 4, 8, 16"),
        ({"num_layers": 0}, r"num_layers must be .*got 0"),
        ({"vocabulary_size": 0}, r"vocabulary_size must be .*got 0"),
        ({"d_ff": -1}, r"d_ff must be .*got -1"),
        ({"dropout": 1.5}, r"dropout must be .*got 1.5"),
    ],
)
def test_a_size_that_cannot_be_is_named(field, message):
    with pytest.raises(ValueError, match=message):
        GPT(**{"vocabulary_size": 11, "max_length": 8, "d_model": 16, "num_heads": 2, **field})


def test_capped_logits_are_a_tanh_of_the_others():
    torch.manual_seed(0)
    capped = GPT(13, 8, d_model=16, num_heads=4, num_layers=1, logit_soft_cap=0.02)
    plain = GPT(13, 8, d_model=16, num_heads=4, num_layers=1)
    plain.load_state_dict(capped.state_dict())
    tokens = torch.randint(13, (2, 8))
    torch.testing.assert_close(capped(tokens), 0.02 * torch.tanh(plain(tokens) / 0.02), atol=1e-6, rtol=1e-6)
    assert plain(tokens).abs().max() > 0.02
