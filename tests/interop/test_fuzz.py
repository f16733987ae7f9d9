"""Random settings of every architecture, out to transformers and in from it: the draws of experiments/parity/fuzz.py, of which a few are taken here."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from experiments.parity import fuzz

from attnlab.interop import ARCHITECTURES

FIRST, DRAWS = 124, 110  # draws among which every architecture is the same on both sides at least once


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_architecture_is_the_same_on_both_sides_or_refused():
    found = list(fuzz.outcomes(range(FIRST, FIRST + DRAWS)))
    wrong = [one for one in found if one.kind == fuzz.WRONG]
    assert not wrong, wrong
    same = Counter((one.architecture, one.number % 2) for one in found if one.kind == fuzz.SAME)
    assert {name for name, _ in same} == {*ARCHITECTURES} - {"clip", "siglip"}
    assert sum(same.values()) > DRAWS / 4
    refused = [one for one in found if one.kind == fuzz.REFUSED]
    assert refused
    for one in refused:  # each with what it is that differs
        assert re.search(
            r" here, .* there$|no counterpart here|without a counterpart|cannot be built|is not what|here they are one",
            one.why,
        ), one


def test_a_draw_depends_on_its_number_alone(tmp_path):
    first, second = (fuzz.outcome(7, tmp_path / name) for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    "spoil", [lambda config: {**config, "rms_norm_eps": 1.0}, lambda config: {**config, "head_dim": 5}]
)
def test_a_wrong_export_is_seen(spoil, tmp_path, monkeypatch):
    """What it is for: a field that is written and does not mean there what it means here."""
    right = fuzz.to_folder
    monkeypatch.setattr(fuzz, "to_folder", lambda folder, *more: _spoilt(right(folder, *more), folder, spoil))
    monkeypatch.setattr(fuzz, "_settings", lambda name, draw: {**fuzz.SIZES, **fuzz.BASES["llama"]})
    assert fuzz.outcome(0, tmp_path / "out").kind == fuzz.WRONG


def _spoilt(known, folder, spoil):

    path = folder / "config.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    return SimpleNamespace(name=known.name, classes=known.classes)
