"""attnlab and Hugging Face transformers compute the same, for every architecture: the checks of the parity table, within their bounds."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "experiments" / "parity" / "measure.py"


def load():
    """The script as a module, which no package holds."""
    spec = importlib.util.spec_from_file_location("parity_measure", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


parity = load()
CASES = [pytest.param(case, id=case.name) for case in parity.CASES]
# Those that search take seconds.
WHOLE = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.kind in ("seq2seq", "speech")))
    for case in parity.CASES
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models of this size take longer with two
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", WHOLE)
def test_every_check_is_within_its_bound(case):
    found = parity.measure(case)
    assert parity.within(found) == [], found
    applies = {
        "greedy": case.kind in ("decoder", "seq2seq", "speech"),
        "beam": case.kind == "seq2seq",
        "left": case.kind not in ("image", "image_text", "speech"),
    }
    for name in parity.BOUNDS:
        assert (found[name] is not None) == applies.get(name, True)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_same(case, tmp_path):
    compare = parity.KINDS[case.kind](parity.Pair(case, tmp_path))
    with torch.no_grad():
        here, there = compare.logits(left=False)
    assert here.shape == there.shape
    assert there.std() > 0.01  # logits that hardly differ would agree whatever computes them
    assert parity.gap((here, there)) <= parity.BOUNDS["logits"]


def test_every_architecture_is_measured(tmp_path):
    import transformers

    from attnlab.interop import ARCHITECTURES

    measured = {getattr(transformers, case.config).model_type for case in parity.CASES}
    assert measured == {*ARCHITECTURES}


@pytest.mark.parametrize(
    ("found", "beyond"),
    [
        ({"logits": 9e-6}, []),
        ({"logits": 1.1e-5}, ["logits"]),
        ({"logits": float("nan")}, ["logits"]),
        ({"greedy": 1}, ["greedy"]),
    ],
)
def test_a_difference_beyond_its_bound_is_named(found, beyond):
    assert parity.within({**dict.fromkeys(parity.BOUNDS), **found}) == beyond
