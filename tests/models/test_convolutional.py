"""Convolutional models of one text: nothing from the future, nothing from padding, decoding step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.generation import Sampler, generate
from attnlab.models import ConvolutionalEncoder, ConvolutionalLanguageModel

SMALL = {"vocabulary_size": 23, "d_model": 8, "num_layers": 3, "kernel_size": 3, "dropout": 0.0}


def build(kind, seed=0, **fields):
    """A small model whose weights make a wrong mask or window show."""
    torch.manual_seed(seed)
    model = kind(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def by_torch(stack, x_BTD, causal, drop=1.0):
    """The stream after every layer, by torch's convolution, gate and sum; drop: what dropout makes of the inputs."""
    for layer in stack.layers:
        width, taps = x_BTD.shape[2], layer.kernel_size
        theirs = nn.Conv1d(width, 2 * width, taps, padding=taps - 1 if causal else taps // 2)
        theirs.weight = nn.Parameter(layer.windows.weight.view(2 * width, taps, width).transpose(1, 2))
        theirs.bias = layer.windows.bias
        sums, gates = theirs(x_BTD.transpose(1, 2) * drop)[:, :, : x_BTD.shape[1]].transpose(1, 2).chunk(2, dim=2)
        x_BTD = (x_BTD + sums * gates.sigmoid()) / 2**0.5
    return x_BTD


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_causal_convolutions_between_two_tables(tied):
    model, tokens = build(ConvolutionalLanguageModel, tie_embeddings=tied), draw(3, 9)
    output = model.tables.embedding if tied else model.tables.head
    expected = by_torch(model.stack, model.tables.embedding(tokens), causal=True) @ output.weight.T
    assert_close(model(tokens), expected)


def test_an_encoder_is_convolutions_over_tokens_with_their_positions():
    model, tokens = build(ConvolutionalEncoder, max_length=9), draw(3, 9)
    x = model.embedding(tokens) + model.placed.position.table.weight
    assert_close(model.encode(tokens), by_torch(model.stack, x, causal=False))


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_acts_on_the_input_of_every_convolution_and_at_both_ends(rate):
    tokens, drop = draw(3, 9), 1 + rate
    model = build(ConvolutionalLanguageModel, dropout=rate).train()
    table = model.tables.embedding
    assert_close(model(tokens), by_torch(model.stack, table(tokens), True, drop) * drop @ table.weight.T)
    encoder = build(ConvolutionalEncoder, max_length=9, dropout=rate).train()
    x = (encoder.embedding(tokens) + encoder.placed.position.table.weight) * drop
    assert_close(encoder.encode(tokens), by_torch(encoder.stack, x, False, drop) * drop)


@settings(max_examples=20, deadline=None)
@given(kernel_size=st.integers(1, 4), place=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_token_sees_as_far_back_as_the_windows_reach_and_nothing_ahead(kernel_size, place, seed):
    model, tokens = build(ConvolutionalLanguageModel, seed, kernel_size=kernel_size), draw(1, 16, seed=seed)
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % 23
    moved = (model(changed) - model(tokens)).abs().amax(dim=2)[0]
    reach = 3 * (kernel_size - 1)
    assert not moved[:place].any()
    assert (moved[place : place + reach + 1] > 1e-7).all()
    assert (moved[place + reach + 1 :] < 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    parts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kernel_size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_padding_on_the_left_changes_nothing_with_a_cache_or_without(lengths, parts, kernel_size, seed):
    model, longest, more = (
        build(ConvolutionalLanguageModel, seed, kernel_size=kernel_size),
        max(lengths) + 1,
        sum(parts),
    )
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


def test_selected_rows_go_on_as_if_they_had_been_alone():
    model, tokens, rows = build(ConvolutionalLanguageModel), draw(3, 6), torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = model.new_cache(6)
        cache.select(rows)  # nothing yet
        model(tokens[:, :4], cache=cache)
        cache.select(rows)
        again = model(tokens[rows, 4:5], cache=cache)
        kept = torch.tensor([False, True, True])
        cache.select(kept)
        last = model(tokens[rows[kept], 5:], cache=cache)
    assert_close(again, model(tokens)[rows, 4:5])
    assert_close(last, model(tokens)[rows[kept], 5:])


def test_prompts_of_unequal_length_are_continued_as_each_alone():
    model = build(ConvolutionalLanguageModel)
    prompts = [draw(n, seed=n).tolist() for n in (1, 4, 7)]
    together = generate(model, prompts, 8, Sampler(temperature=0))
    assert together == [generate(model, [prompt], 8, Sampler(temperature=0))[0] for prompt in prompts]
    assert together == generate(model, prompts, 8, Sampler(temperature=0), use_cache=False)
    assert model.longest is None


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3), seed=st.integers(0, 99))
def test_padding_changes_no_state_of_an_encoder(lengths, seed):
    model, longest = build(ConvolutionalEncoder, seed), max(lengths) + 2
    tokens = draw(len(lengths), longest, seed=seed)
    together = model.encode(tokens, torch.arange(longest)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1, :length], model.encode(tokens[row : row + 1, :length]))


@pytest.mark.parametrize("kind", [ConvolutionalLanguageModel, ConvolutionalEncoder])
def test_gradients_reach_every_parameter_also_in_bf16(kind):
    fields = {"max_length": 9} if kind is ConvolutionalEncoder else {}
    model, tokens = build(kind, dropout=0.1, **fields).train(), draw(4, 9)
    is_token = torch.arange(9)[None] < torch.tensor([[9], [5], [7], [1]])
    run = model.encode if kind is ConvolutionalEncoder else lambda t, m: model(t, is_token_BT=m)
    for context in (torch.autocast("cpu", torch.bfloat16, enabled=False), torch.autocast("cpu", torch.bfloat16)):
        model.zero_grad()
        with context:
            out = run(tokens, is_token)
        out.float()[is_token].square().sum().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters()
        )


def test_past_the_table_is_refused():
    model = build(ConvolutionalEncoder, max_length=8)
    assert model.longest == 8
    with pytest.raises(ValueError, match="Learned ends at 8 positions"):
        model.encode(draw(1, 9))


@pytest.mark.parametrize("kind", [ConvolutionalLanguageModel, ConvolutionalEncoder])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be .*got 0"),
        ({"d_model": 0}, "d_model must be .*got 0"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout must be .*got 1.5"),
    ],
)
def test_a_size_that_cannot_be_is_named(kind, field, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**SMALL, **field})
