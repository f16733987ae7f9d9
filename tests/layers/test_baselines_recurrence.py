"""Recurrences against torch's packed layers and the formulas of the cells, one step after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layers.cells import by_hand
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attnlab.layers.baselines import Recurrence, Step

CELLS = ["lstm", "gru"]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_are_the_cells_equations_over_the_real_tokens(cell, rate):
    torch.manual_seed(0)
    model = Recurrence(6, num_layers=3, cell=cell, dropout=rate, bidirectional=True, d_input=4)
    x, lengths = torch.randn(3, 7, 4), [7, 4, 1]
    outputs, states = model(x, torch.arange(7)[None] < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        stream = x[row, :length]
        for layer, (ahead, back) in enumerate(zip(model.ahead, model.back, strict=True)):
            stream, zeros = stream * (1 + rate if layer else 1), (torch.zeros(3),) * 2
            forwards, last = by_hand(stream, ahead, zeros)
            backwards, other = by_hand(stream.flip(0), back, zeros)
            stream = torch.cat([forwards, backwards.flip(0)], dim=1)
            for part, (one, two) in enumerate(zip(last, other, strict=True)):
                assert_close(states[layer][part][row], torch.cat([one, two]))
        assert_close(outputs[row, :length], stream)


@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_torchs_layers_on_packed_sequences(cell):
    torch.manual_seed(0)
    model = Recurrence(8, num_layers=2, cell=cell, bidirectional=True)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](8, 4, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for index, directions in enumerate(zip(model.ahead, model.back, strict=True)):
            for layer, suffix in zip(directions, ("", "_reverse"), strict=True):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(theirs, f"{name}_l{index}{suffix}").copy_(getattr(layer, f"{name}_l0"))
    x, lengths = torch.randn(3, 6, 8), torch.tensor([2, 6, 5])
    is_token = torch.arange(6)[None] < lengths[:, None]
    packed, last = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    last_h = last[0] if cell == "lstm" else last
    for whole_state in (True, False):
        outputs, states = model(x, is_token, whole_state=whole_state)
        assert_close(outputs.masked_fill(~is_token[:, :, None], 0.0), expected)
        assert_close(torch.stack([s[0] for s in states]), last_h.view(2, 2, 3, 4).transpose(1, 2).flatten(2))
    if cell == "lstm":
        states = model(x, is_token)[1]
        assert_close(torch.stack([s[1] for s in states]), last[1].view(2, 2, 3, 4).transpose(1, 2).flatten(2))


@settings(max_examples=40, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    whole_state=st.booleans(),
    is_token=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_is_passed_over_wherever_it_stands(cell, bidirectional, whole_state, is_token, seed):
    torch.manual_seed(seed)
    model = Recurrence(4, 2, cell, bidirectional=bidirectional)
    mask = torch.tensor(is_token)
    x = torch.randn(len(mask), 5, 4)
    outputs, states = model(x, mask, whole_state=whole_state)
    for row, real in enumerate(mask):
        if real.any():
            alone, alone_states = model(x[row : row + 1, real])
            assert_close(outputs[row : row + 1, real], alone)
            for state, alone_state in zip(states, alone_states, strict=True):
                for part, alone_part in zip(state, alone_state, strict=False):
                    assert_close(part[row : row + 1], alone_part)
        else:
            assert all(not part[row].any() for state in states for part in state)


@settings(max_examples=20, deadline=None)
@given(cell=st.sampled_from(CELLS), place=st.integers(1, 5), seed=st.integers(0, 99))
def test_it_goes_on_from_a_state(cell, place, seed):
    torch.manual_seed(seed)
    model, x = Recurrence(4, 2, cell), torch.randn(2, 6, 4)
    whole, last = model(x)
    first, states = model(x[:, :place])
    second, again = model(x[:, place:], torch.tensor([[True], [False]]).expand(2, 6 - place), before=states)
    assert_close(first, whole[:, :place])
    assert_close(second[0], whole[0, place:])
    for layer in range(2):
        for part in range(len(last[layer])):
            assert_close(again[layer][part][0], last[layer][part][0])
            assert torch.equal(again[layer][part][1], states[layer][part][1])  # a row that read nothing


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_torchs_cell_on_input_and_context_side_by_side(cell):
    torch.manual_seed(0)
    step = Step(3, 5, 4, cell)
    x, context, state = torch.randn(2, 6, 3), torch.randn(2, 5), tuple(torch.randn(2, 2, 4))
    given_state = state if cell == "lstm" else state[0]
    expected = step.cell(torch.cat([x[:, 2], context], dim=1), given_state)
    actual = step(step.inputs(x)[:, 2], context, state[:2] if cell == "lstm" else state[:1])
    for one, other in zip(actual, expected if cell == "lstm" else (expected,), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "rnn"}, "cell=rnn: there is no such recurrent cell; accepted: lstm, gru"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
        ({"d_model": 5, "bidirectional": True}, "d_model=5 does not divide into two directions"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Recurrence(**{"d_model": 4, **fields})
