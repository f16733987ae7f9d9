"""Translation by recurrences: the papers' formulas in loops, who sees whom, decoding step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layers.cells import by_hand

from attnlab.generation.beam import BeamSearch, decode
from attnlab.models import RecurrentSeq2Seq

D, V = 8, 23
SMALL = {"vocabulary_size": V, "d_model": D, "num_layers": 2, "dropout": 0.0}
KINDS = {
    "none": {"attention": "none"},
    "none both ends": {"attention": "none", "bidirectional": True},
    "luong": {"attention": "luong"},
    "luong dot": {"attention": "luong", "score": "dot", "bidirectional": True},
    "luong fed": {"attention": "luong", "input_feeding": True},
    "bahdanau": {"attention": "bahdanau"},
}
CELLS = ["lstm", "gru"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_cell = pytest.mark.parametrize("cell", CELLS)
with_dropout = pytest.mark.parametrize("rate", [0.0, 0.5])


def build(kind, cell, seed=0, **fields):
    """A small model whose weights make a wrong mask or state show."""
    torch.manual_seed(seed)
    model = RecurrentSeq2Seq(**{**SMALL, **KINDS[kind], "cell": cell, **fields}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def draw(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def read(recurrence, x_TI, drop, states=None):
    """Every layer of one direction on one row: outputs of the top, last states."""
    last = []
    for index, layer in enumerate(recurrence.ahead):
        zeros = (torch.zeros(layer.hidden_size),) * 2
        x_TI = x_TI * (drop if index else 1)
        x_TI, state = by_hand(x_TI, layer, zeros if states is None else states[index])
        last.append(state)
    return x_TI, last


def read_from_both_ends(recurrence, x_TI, drop):
    """The states of the top layer on one row, of both directions side by side."""
    for index, (ahead, back) in enumerate(zip(recurrence.ahead, recurrence.back, strict=True)):
        x_TI, zeros = x_TI * (drop if index else 1), (torch.zeros(ahead.hidden_size),) * 2
        x_TI = torch.cat([by_hand(x_TI, ahead, zeros)[0], by_hand(x_TI.flip(0), back, zeros)[0].flip(0)], dim=1)
    return x_TI


def embedded(model, tokens, drop):
    return model.tables.embedding.weight[tokens] * D**0.5 * drop


def softmax(scores):
    powers = [torch.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def mean(weights, states):
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


@pytest.mark.usefixtures("dropout_shows")
@with_dropout
@every_cell
def test_without_attention_the_last_state_is_all_that_the_decoder_has(cell, rate):
    model, source, target = build("none", cell, dropout=rate).train(), draw(1, 6), draw(1, 5, seed=1)
    table, drop = model.tables.embedding.weight, 1 + rate
    _, last = read(model.encoder, embedded(model, source[0], drop), drop)
    hidden, _ = read(model.decoder.recurrence, embedded(model, target[0], drop), drop, last)
    assert_close(model(source, target)[0], hidden * drop @ table.T)


@pytest.mark.usefixtures("dropout_shows")
@with_dropout
@every_cell
@pytest.mark.parametrize("kind", ["luong", "luong fed"])
def test_luongs_attention_is_the_papers(cell, kind, rate):
    model, source, target = build(kind, cell, dropout=rate).train(), draw(1, 6), draw(1, 5, seed=1)
    table, decoder, drop = model.tables.embedding.weight, model.decoder, 1 + rate
    encoded, states = read(model.encoder, embedded(model, source[0], drop), drop)
    encoded = encoded * drop
    fed, expected = torch.zeros(D), []
    for token in target[0]:
        x = embedded(model, token, drop)
        x = torch.cat([x, fed]) if kind == "luong fed" else x
        hidden, states = read(decoder.recurrence, x[None], drop, states)
        weights = softmax([hidden[0] @ decoder.attention.key.weight @ h for h in encoded])
        fed = torch.tanh(decoder.combine.weight @ torch.cat([mean(weights, encoded), hidden[0]]))
        expected.append(table @ (fed * drop))
    assert_close(model(source, target)[0], torch.stack(expected))


@pytest.mark.usefixtures("dropout_shows")
@with_dropout
@every_cell
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_bahdanaus_attention_is_the_papers(cell, num_layers, rate):
    model = build("bahdanau", cell, num_layers=num_layers, dropout=rate).train()
    source, target, drop = draw(1, 6), draw(1, 5, seed=1), 1 + rate
    table, decoder = model.tables.embedding.weight, model.decoder
    w, u, v = decoder.attention.query.weight, decoder.attention.key.weight, decoder.attention.score.weight[0]
    encoded = read_from_both_ends(model.encoder, embedded(model, source[0], drop), drop)
    begins = torch.tanh(decoder.begin.weight @ encoded[0, D // 2 :] + decoder.begin.bias).split(D)
    state, *above = [(s, torch.zeros(D)) for s in begins]
    encoded, expected = encoded * drop, []
    for token in embedded(model, target[0], drop):
        context = mean(softmax([v @ torch.tanh(w @ state[0] + u @ h) for h in encoded]), encoded)
        inputs = torch.cat([token, context])[None]
        after = decoder.first.cell(inputs, tuple(p[None] for p in state) if cell == "lstm" else state[0][None])
        state = tuple(part[0] for part in (after if cell == "lstm" else (after,)))
        top = state[0]
        if above:
            [top], above = read(decoder.above, top[None] * drop, drop, above)
        both = decoder.readout.weight @ torch.cat([top, token, context]) + decoder.readout.bias
        expected.append(table @ (torch.maximum(both[0::2], both[1::2]) * drop))
    assert_close(model(source, target)[0], torch.stack(expected))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    cell=st.sampled_from(CELLS),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_of_the_source_changes_nothing(kind, cell, lengths, seed):
    model = build(kind, cell, seed)
    target, longest = draw(len(lengths), 4, seed=seed), max(lengths) + 2
    source = draw(len(lengths), longest, seed=seed + 1)
    together = model(source, target, torch.arange(longest)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1], model(source[row : row + 1, :length], target[row : row + 1]))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)), cell=st.sampled_from(CELLS), place=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_no_target_sees_what_follows(kind, cell, place, seed):
    model = build(kind, cell, seed)
    source, target = draw(2, 5, seed=seed), draw(2, 6, seed=seed + 1)
    changed = target.clone()
    changed[:, place:] = (changed[:, place:] + 1) % V
    assert_close(model(source, changed)[:, :place], model(source, target)[:, :place])


@every_kind
@every_cell
def test_every_target_depends_on_every_source_token(kind, cell):
    model, source, target = build(kind, cell), draw(1, 5), draw(1, 3, seed=1)
    for place in range(5):
        changed = source.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        assert ((model(changed, target) - model(source, target)).abs().amax(dim=2) > 1e-6).all()


@every_kind
@every_cell
def test_decoding_step_by_step_gives_the_same_logits(kind, cell):
    model = build(kind, cell)
    source, target = draw(3, 6), draw(3, 7, seed=1)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    expected = model(source, target, is_source)
    with torch.no_grad():
        state = model.start(source, is_source, capacity=7)
        for place in range(7):
            assert_close(model.step(target[:, place], state), expected[:, place])


@every_kind
@every_cell
def test_selected_rows_go_on_as_if_they_had_been_alone(kind, cell):
    model = build(kind, cell)
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


@every_kind
def test_a_search_finds_the_same_with_states_and_without(kind):
    model, source = build(kind, "lstm"), draw(3, 6)
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    search = BeamSearch(num_beams=3, max_extra_length=4)
    kept, anew = (decode(model, source, is_source, search, use_cache=use) for use in (True, False))
    assert [[h.tokens for h in found] for found in kept] == [[h.tokens for h in found] for found in anew]


@every_kind
@every_cell
def test_a_source_of_padding_alone_gives_finite_logits_and_gradients(kind, cell):
    model = build(kind, cell)
    is_source = torch.tensor([[True, True, True], [False, False, False]])
    sources = draw(2, 3), draw(2, 3, seed=5)
    logits = model(sources[0], draw(2, 4), is_source)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert_close(logits[1], model(sources[1], draw(2, 4), is_source)[1])


@every_kind
@every_cell
def test_gradients_reach_every_parameter_also_in_bf16(kind, cell):
    model = build(
        kind, cell, dropout=0.1, tie_embeddings=False, share_embeddings=False, source_vocabulary_size=31
    ).train()
    is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
    for context in (torch.autocast("cpu", torch.bfloat16, enabled=False), torch.autocast("cpu", torch.bfloat16)):
        model.zero_grad()
        with context:
            logits = model(draw(3, 6), draw(3, 5, seed=1), is_source)
        logits.float().square().sum().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters()
        )


def test_models_that_differ_in_the_attention_share_all_other_weights():
    torch.manual_seed(0)
    plain = RecurrentSeq2Seq(**SMALL, attention="none")
    torch.manual_seed(0)
    luong = RecurrentSeq2Seq(**SMALL, attention="luong")
    own = dict(luong.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, own[name]), name
    assert set(own) - {name for name, _ in plain.named_parameters()} == {
        "decoder.attention.key.weight",
        "decoder.combine.weight",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "local"}, "attention=local: there is no such attention; accepted: none, bahdanau, luong"),
        ({"attention": "bahdanau", "bidirectional": False}, "bidirectional=false has none"),
        ({"score": "concat"}, "score=concat"),
        ({"cell": "elman"}, "cell=elman"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
        ({"dropout": -0.1}, "dropout must be .*got -0.1"),
        ({"d_model": 7, "bidirectional": True}, "d_model=7 does not divide into two directions"),
        ({"source_vocabulary_size": 31}, "share_embeddings=true needs one vocabulary; the source has 31 tokens"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RecurrentSeq2Seq(**{**SMALL, **fields})
