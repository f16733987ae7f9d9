"""experiments/complexity: its windows in blocks are those of the oracle, its counts hold, and its fits find what they should."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from attnlab.layers import Eager, Scores

FOLDER = Path(__file__).parents[1] / "experiments" / "complexity"


@pytest.fixture(scope="module")
def scripts():
    """Its three scripts, loaded as when one of them runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        loaded = {}
        for name in ("parts", "counted", "measure"):
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            loaded[name] = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, loaded[name])
            spec.loader.exec_module(loaded[name])
        yield loaded


@pytest.mark.parametrize(("length", "window"), [(32, 8), (24, 24), (16, 1)])
def test_a_window_in_blocks_is_that_of_the_oracle_with_its_gradients(scripts, length, window):
    parts = scripts["parts"]
    size = parts.Size(length, 128, r=window)
    found = []
    for backend in (parts.Blocks(), Eager()):
        torch.manual_seed(0)
        qkv = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]
        out = backend(*qkv, size.scope(True).mask(window), Scores())
        found.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    for ours, oracle in zip(*found, strict=True):
        torch.testing.assert_close(ours, oracle, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["self-attention, whole layer", "recurrence (LSTM), core", "convolution, whole layer"])
def test_torch_counts_what_the_formula_says(scripts, name):
    make, _, formula = scripts["counted"].FLOPS[name]
    size = scripts["parts"].Size(16, 64, k=5, r=8)
    assert scripts["counted"].flops(make, size) == formula(16, 64, 5, 8)


def test_paths_are_as_long_as_their_formulas_say(scripts):
    for counted, expected in scripts["counted"].path_lengths(33).values():
        assert counted == expected


def test_only_a_recurrence_has_a_chain_that_grows(scripts):
    counted, parts = scripts["counted"], scripts["parts"]
    chain = {
        make: [counted.longest_chain(make, parts.Size(n, 64)) for n in (8, 16)]
        for make in (parts.recurrence(whole=True), parts.convolution)
    }
    recurrence, convolution = chain.values()
    assert recurrence[1] > recurrence[0] + 8
    assert convolution[0] == convolution[1]


def test_an_exponent_and_its_interval_are_those_of_ordinary_least_squares(scripts):
    rng = np.random.default_rng(0)
    points = {n: 3e-6 * n**1.7 * float(np.exp(rng.normal(0, 0.05))) for n in (256, 512, 1024, 2048, 4096)}
    slope, half = scripts["measure"].exponent(points)
    fit = linregress(np.log(list(points)), np.log(list(points.values())))
    assert slope == pytest.approx(fit.slope)
    assert half == pytest.approx(3.182446305284263 * fit.stderr)  # t of 3 degrees of freedom, from a table
    assert abs(slope - 1.7) < half
    assert scripts["measure"].exponent({1: 1.0, 2: 2.0}) is None


def test_a_crossing_lies_where_the_lines_meet(scripts):
    lengths = (100, 200, 400, 800)
    own, other = {n: 1e-6 * n**2 for n in lengths}, {n: 3e-4 * n for n in lengths}
    crossing = scripts["measure"].crossing
    assert crossing(own, other) == pytest.approx(300)
    assert crossing(own, dict.fromkeys(lengths, 1.0)) == "above 800"
    assert crossing(own, dict.fromkeys(lengths, 1e-9)) == "below 100"


@pytest.mark.parametrize("need", [1, 2, 3, 7, 8])
def test_the_fewest_layers_are_found(scripts, need):
    assert scripts["counted"].layers_until(lambda layers: layers >= need, 8) == need


def test_too_few_layers_are_told(scripts):
    with pytest.raises(ValueError, match="8 layers do not connect them"):
        scripts["counted"].layers_until(lambda layers: layers > 8, 8)
