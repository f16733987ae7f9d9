"""LSTM and GRU in the place of attention: torch's networks, and a state of constant size."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from attnlab.layers import GRU, LSTM, PositionEncoding, Rotary, ShortConvolution, build_scope
from attnlab.models import GPT, measure_size
from attnlab.parts import Choices
from attnlab.testing import contract

KINDS = [(LSTM, torch.nn.LSTM, 4), (GRU, torch.nn.GRU, 3)]


@pytest.mark.parametrize(("mixer", "network", "gates"), KINDS)
@pytest.mark.parametrize("taps", [None, 3])
def test_it_is_torchs_network(mixer, network, gates, taps):
    torch.manual_seed(0)
    ours, theirs = mixer(8, convolution=taps), network(8, 8, batch_first=True)
    ours.recurrence.ahead[0].load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 8)
    read = x if taps is None else F.silu(ours.convolution(x)[0])
    torch.testing.assert_close(ours(x, build_scope(x, PositionEncoding(), causal=True)), theirs(read)[0])
    if taps:
        assert isinstance(ours.convolution, ShortConvolution)


@pytest.mark.parametrize("mixer", [LSTM, GRU])
def test_a_convolution_before_it_keeps_the_contract(mixer):
    for check in contract("attention", partial(mixer, convolution=3)):
        if check.unavailable is None:
            check()


@pytest.mark.parametrize(("mixer", "network", "gates"), KINDS)
def test_parameters_operations_and_the_kept_state_are_those_of_the_closed_form(mixer, network, gates):
    d, d_ff = 16, 24
    model = GPT(13, max_length=64, d_model=d, num_heads=4, num_layers=2, d_ff=d_ff, attention=mixer).eval()
    own = model.stack.layers[0].attention
    assert sum(p.numel() for p in own.parameters()) == gates * (2 * d * d + 2 * d)
    size = measure_size(model, lambda: model(torch.zeros(2, 20, dtype=torch.long)).shape[:2].numel())
    assert size.flops_per_token == 3 * (2 * 2 * (2 * gates * d * d + 2 * d * d_ff) + 2 * 13 * d)
    cache = model.new_cache(64)
    with torch.no_grad():
        for length in (1, 40, 1):
            model(torch.zeros(2, length, dtype=torch.long), cache=cache)
            assert sum(part.numel() for part in cache.layer(0).state[0]) == 2 * d * (2 if mixer is LSTM else 1)


@pytest.mark.parametrize("mixer", [LSTM, GRU])
def test_positions_in_its_scores_are_refused(mixer):
    parts = {"position": Rotary, "model": GPT}
    (reason,) = mixer.incompatible(Choices({}, names={"attention": "mine", "position": "rotary"}, parts=parts))
    assert reason.startswith("position: position=rotary rotates queries and keys, which attention=mine has none of")
