"""Translation by convolutions: the paper's formulas in loops, who sees whom, decoding step by step."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.generation.beam import BeamSearch, decode
from attnlab.layers.baselines import HALF
from attnlab.models import ConvolutionalSeq2Seq
from attnlab.models.convolutional import ConvolutionDecoding

D, V = 8, 23
SMALL = {"vocabulary_size": V, "max_length": 24, "d_model": D, "num_layers": 2, "dropout": 0.0}


def build(seed=0, **fields):
    """A small model whose weights make a wrong mask or window show."""
    torch.manual_seed(seed)
    model = ConvolutionalSeq2Seq(**{**SMALL, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def convolved(layer, x_TD, place, first, drop):
    """A gated sum over the window that starts `first` tokens from `place`; drop: what dropout makes of its input."""
    weight, sums = layer.windows.weight.view(2 * D, layer.kernel_size, D), layer.windows.bias
    for tap in range(layer.kernel_size):
        if 0 <= place + first + tap < len(x_TD):
            sums = sums + weight[:, tap] @ (x_TD[place + first + tap] * drop)
    return sums[:D] * torch.sigmoid(sums[D:])


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_every_decoder_layer_attends_as_in_the_paper(rate):
    model, source, target = build(dropout=rate).train(), draw(1, 6), draw(1, 5, seed=1)
    table, half, drop = model.tables.embedding.weight, math.sqrt(0.5), 1 + rate
    e = (table[source[0]] + model.placed_source.position.table.weight[:6]) * drop
    z = e
    for layer in model.encoder.layers:
        z = torch.stack([(z[i] + convolved(layer, z, i, -1, drop)) * half for i in range(6)])
    g = (table[target[0]] + model.placed_target.position.table.weight[:5]) * drop
    h = g
    for layer, query in zip(model.decoder.layers, model.queries, strict=True):
        after = []
        for i in range(5):
            y = convolved(layer, h, i, -2, drop)
            d = (query.weight @ y + query.bias + g[i]) * half
            powers = [torch.exp(d @ key) for key in z]
            c = sum(p / sum(powers) * (key + embedded) * half for p, key, embedded in zip(powers, z, e, strict=True))
            after.append((h[i] + (y + c * math.sqrt(6)) * half) * half)
        h = torch.stack(after)
    assert_close(model(source, target)[0], h * drop @ table.T)


@pytest.mark.parametrize("num_decoder_layers", [1, 3])
def test_gradients_into_the_encoders_layers_are_divided_by_twice_the_number_of_attentions(num_decoder_layers):
    model = build(num_decoder_layers=num_decoder_layers, share_embeddings=False)
    source, target = draw(1, 6), draw(1, 5, seed=1)
    model(source, target).square().sum().backward()

    e = model.placed_source(model.tables.embed(source, model.tables.source_embedding)).detach().requires_grad_()
    z = model.encoder(e)
    keys, embedded = (stream.detach().requires_grad_() for stream in (z, e))
    g, attended = (
        model.placed_target(model.tables.embed(target)),
        ConvolutionDecoding(keys, (keys + embedded) * HALF, None),
    )
    logits = model.tables.logits(model.decoder(g, between=partial(model._attend, attended, g)))
    query = model.queries[0].weight
    into_keys, into_embedded, into_query = torch.autograd.grad(logits.square().sum(), [keys, embedded, query])

    parameters = list(model.encoder.parameters())
    through, *expected = torch.autograd.grad(z, [e, *parameters], into_keys / (2 * num_decoder_layers))
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert_close(parameter.grad, gradient)
    assert_close(model.placed_source.position.table.weight.grad[:6], (into_embedded + through)[0])
    assert_close(query.grad, into_query)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3), seed=st.integers(0, 99))
def test_padding_of_the_source_changes_nothing(lengths, seed):
    model, longest = build(seed), max(lengths) + 2
    target, source = draw(len(lengths), 4, seed=seed), draw(len(lengths), longest, seed=seed + 1)
    together = model(source, target, torch.arange(longest)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1], model(source[row : row + 1, :length], target[row : row + 1]))


@settings(max_examples=20, deadline=None)
@given(place=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_target_sees_what_follows(place, seed):
    model = build(seed)
    source, target = draw(2, 5, seed=seed), draw(2, 6, seed=seed + 1)
    changed = target.clone()
    changed[:, place:] = (changed[:, place:] + 1) % V
    assert_close(model(source, changed)[:, :place], model(source, target)[:, :place])


def test_every_target_depends_on_every_source_token():
    model, source, target = build(num_layers=1), draw(1, 9), draw(1, 3, seed=1)
    for place in range(9):
        changed = source.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        assert ((model(changed, target) - model(source, target)).abs().amax(dim=2) > 1e-6).all()


def test_decoding_step_by_step_gives_the_same_logits():
    model = build(num_decoder_layers=3)
    source, target = draw(3, 6), draw(3, 9, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    expected = model(source, target, is_source)
    with torch.no_grad():
        state = model.start(source, is_source, capacity=9)
        for place in range(9):
            assert_close(model.step(target[:, place], state), expected[:, place])


def test_selected_rows_go_on_as_if_they_had_been_alone():
    model = build()
    source, target = draw(3, 6), draw(3, 5, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    rows, kept = torch.tensor([2, 0, 0, 1]), torch.tensor([True, False, True, True])
    with torch.no_grad():
        state = model.start(source, is_source, capacity=5)
        for place in range(3):
            model.step(target[:, place], state)
        state.select(rows)
        again = model.step(target[rows, 3], state)
        state.select(kept)
        last = model.step(target[rows[kept], 4], state)
    expected = model(source, target, is_source)
    assert_close(again, expected[rows, 3])
    assert_close(last, expected[rows[kept], 4])


def test_a_search_finds_the_same_with_states_and_without():
    model, source = build(), draw(3, 6)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    search = BeamSearch(num_beams=3, max_extra_length=4)
    kept, anew = (decode(model, source, is_source, search, use_cache=use) for use in (True, False))
    assert [[h.tokens for h in found] for found in kept] == [[h.tokens for h in found] for found in anew]


def test_a_source_of_padding_alone_gives_finite_logits_and_gradients():
    model = build()
    is_source = torch.tensor([[True, True, True], [False, False, False]])
    sources = draw(2, 3), draw(2, 3, seed=5)
    logits = model(sources[0], draw(2, 4), is_source)
    logits.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert_close(logits[1], model(sources[1], draw(2, 4), is_source)[1])


def test_gradients_reach_every_parameter_also_in_bf16():
    fields = {"tie_embeddings": False, "share_embeddings": False, "source_vocabulary_size": 31, "max_length": 6}
    model = build(**fields, dropout=0.1).train()
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    for context in (torch.autocast("cpu", torch.bfloat16, enabled=False), torch.autocast("cpu", torch.bfloat16)):
        model.zero_grad()
        with context:
            logits = model(draw(3, 6), draw(3, 6, seed=1), is_source)
        logits.float().square().sum().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters()
        )


def test_the_tables_end_and_decoding_ends_before_them():
    model = build(max_length=7)
    assert model.longest == 7
    for source, target in ((8, 3), (3, 8)):
        with pytest.raises(ValueError, match="Learned ends at 7 positions"):
            model(draw(1, source), draw(1, target))
    (found,) = decode(model, draw(1, 6), search=BeamSearch(num_beams=1))
    assert len(found[0].tokens) <= 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd where it lies around its token, got 4"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
        ({"max_length": 0}, "max_length must be .*got 0"),
        ({"dropout": -0.1}, "dropout must be .*got -0.1"),
        ({"source_vocabulary_size": 31}, "share_embeddings=true needs one vocabulary; the source has 31 tokens"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalSeq2Seq(**{**SMALL, **fields})
