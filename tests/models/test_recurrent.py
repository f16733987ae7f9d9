"""Recurrent models of one text: nothing from the future, nothing from padding, decoding step by step, what torch's layers give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.generation import Sampler, generate
from attnlab.models import RecurrentEncoder, RecurrentLanguageModel

SMALL = {"vocabulary_size": 23, "d_model": 8, "num_layers": 2, "dropout": 0.0}
CELLS = ["lstm", "gru"]


def build(kind, seed=0, **fields):
    """A small model whose weights make a wrong mask or state show."""
    torch.manual_seed(seed)
    model = kind(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def embedded(model, tokens, scaled):
    return model.tables.embedding(tokens) * (8**0.5 if scaled else 1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_language_model_is_torchs_layers_between_two_tables(cell, tied, scaled):
    model, tokens = (
        build(RecurrentLanguageModel, cell=cell, tie_embeddings=tied, scale_embedding=scaled),
        draw(3, 6),
    )
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](8, 8, 2, batch_first=True)
    with torch.no_grad():
        for index, layer in enumerate(model.recurrence.ahead):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(theirs, f"{name}_l{index}").copy_(getattr(layer, f"{name}_l0"))
    output = model.tables.embedding if tied else model.tables.head
    assert_close(model(tokens), theirs(embedded(model, tokens, scaled))[0] @ output.weight.T)


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_language_model_drops_embeddings_what_is_between_layers_and_before_the_output(rate):
    model, tokens = build(RecurrentLanguageModel, dropout=rate).train(), draw(3, 6)
    x = embedded(model, tokens, True)
    for layer in model.recurrence.ahead:
        x, _ = layer(x * (1 + rate))
    assert_close(model(tokens), x * (1 + rate) @ model.tables.embedding.weight.T)


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("scaled", [True, False])
def test_an_encoder_is_a_recurrence_from_each_end_that_drops_embeddings_what_is_between_layers_and_states(rate, scaled):
    model, tokens = build(RecurrentEncoder, dropout=rate, scale_embedding=scaled).train(), draw(3, 6)
    x = embedded(model, tokens, scaled)
    for ahead, back in zip(model.recurrence.ahead, model.recurrence.back, strict=True):
        x = x * (1 + rate)
        x = torch.cat([ahead(x)[0], back(x.flip(1))[0].flip(1)], dim=2)
    assert_close(model.encode(tokens), x * (1 + rate))


@settings(max_examples=20, deadline=None)
@given(cell=st.sampled_from(CELLS), place=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_token_sees_what_follows(cell, place, seed):
    model, tokens = build(RecurrentLanguageModel, seed, cell=cell), draw(2, 6, seed=seed)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % 23
    assert_close(model(changed)[:, :place], model(tokens)[:, :place])
    assert not torch.allclose(model(changed)[:, place:], model(tokens)[:, place:], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_on_the_left_changes_nothing_with_a_cache_or_without(cell, lengths, parts, seed):
    model, longest, more = build(RecurrentLanguageModel, seed, cell=cell), max(lengths) + 1, sum(parts)
    tokens = draw(len(lengths), longest + more, seed=seed)
    is_token = torch.arange(longest + more)[None] >= longest - torch.tensor(lengths)[:, None]
    expected = model(tokens, is_token_BT=is_token)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, longest - length :])
        assert_close(expected[row : row + 1, longest - length :], alone)
    with torch.no_grad():
        cache, start = model.new_cache(longest + more), longest
        logits = [model(tokens[:, :longest], is_token_BT=is_token[:, :longest], cache=cache)]
        for part in parts:
            logits.append(model(tokens[:, start : start + part], cache=cache))
            start += part
    assert_close(torch.cat(logits, dim=1)[is_token], expected[is_token])


@pytest.mark.parametrize("cell", CELLS)
def test_selected_rows_go_on_as_if_they_had_been_alone(cell):
    model, tokens, rows = build(RecurrentLanguageModel, cell=cell), draw(3, 6), torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = model.new_cache(6)
        cache.select(rows)  # nothing yet
        model(tokens[:, :4], cache=cache)
        cache.select(rows)
        again = model(tokens[rows, 4:], cache=cache)
        cache.select(torch.tensor([False, True, True]))
    assert_close(again, model(tokens)[rows, 4:])
    assert [len(part) for layer in cache.states for part in layer] == [2] * (4 if cell == "lstm" else 2)


@pytest.mark.parametrize("cell", CELLS)
def test_prompts_of_unequal_length_are_continued_as_each_alone(cell):
    model = build(RecurrentLanguageModel, cell=cell)
    prompts = [draw(n, seed=n).tolist() for n in (1, 4, 7)]
    together = generate(model, prompts, 8, Sampler(temperature=0))
    assert together == [generate(model, [prompt], 8, Sampler(temperature=0))[0] for prompt in prompts]
    assert together == generate(model, prompts, 8, Sampler(temperature=0), use_cache=False)
    assert model.longest is None


@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(CELLS), lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3), seed=st.integers(0, 99)
)
def test_padding_changes_no_state_of_an_encoder(cell, lengths, seed):
    model, longest = build(RecurrentEncoder, seed, cell=cell), max(lengths) + 2
    tokens = draw(len(lengths), longest, seed=seed)
    together = model.encode(tokens, torch.arange(longest)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1, :length], model.encode(tokens[row : row + 1, :length]))


@pytest.mark.parametrize("cell", CELLS)
def test_every_state_of_an_encoder_depends_on_every_token(cell):
    model, tokens = build(RecurrentEncoder, cell=cell), draw(1, 6)
    for place in range(6):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 23
        assert ((model.encode(changed) - model.encode(tokens)).abs().amax(dim=2) > 1e-6).all()


@pytest.mark.parametrize("kind", [RecurrentLanguageModel, RecurrentEncoder])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_every_parameter_also_in_bf16(kind, cell):
    model, tokens = build(kind, cell=cell, dropout=0.1).train(), draw(4, 9)
    is_token = torch.arange(9)[None] < torch.tensor([[9], [5], [7], [1]])
    run = model.encode if kind is RecurrentEncoder else lambda t, m: model(t, is_token_BT=m)
    for context in (torch.autocast("cpu", torch.bfloat16, enabled=False), torch.autocast("cpu", torch.bfloat16)):
        model.zero_grad()
        with context:
            out = run(tokens, is_token)
        out.float()[is_token].square().sum().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters()
        )


@pytest.mark.parametrize("kind", [RecurrentLanguageModel, RecurrentEncoder])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be .*got 0"),
        ({"d_model": 0}, "d_model must be .*got 0"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
        ({"dropout": 1.5}, "dropout must be .*got 1.5"),
        ({"cell": "elman"}, "cell=elman: there is no such recurrent cell"),
    ],
)
def test_a_size_that_cannot_be_is_named(kind, field, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**SMALL, **field})
