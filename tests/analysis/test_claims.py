"""Verdicts of claims on planted values."""

from __future__ import annotations

import pytest
from tests.analysis.test_costs import falling
from tests.stored_studies import cell, write_plan, write_run, write_task_study

from attnlab.analysis import asked, compare
from attnlab.analysis.claims import check_claims
from attnlab.analysis.differences import Outcomes
from attnlab.analysis.reader import load_study

SPREAD = (-0.01, 0.0, 0.01)  # the 95% interval of three such values has a half-width of 0.0248


def check(tmp_path, values, claim, state="finished", **extra):
    """The verdict of one claim on a study of position encodings; values: {choice: {metric: mean}}."""
    names = list(values)
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"position": n}) for n in names],
        seeds=[0, 1, 2],
        factors={"position": names},
        metric={"name": "m", "better": "lower"},
        claims=[claim],
    )
    for index, (name, metrics) in enumerate(values.items()):
        for seed, noise in enumerate(SPREAD):
            own = noise * (1 + 1e-4 * index)  # nearly the same in all cells, as of runs that share their seed
            final = {metric: value + (own if metric == "m" else 0.0) for metric, value in metrics.items()}
            write_run(root, {"position": name}, seed, final, state=state, **extra)
    return check_claims(Outcomes(load_study(root)))[0]


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [
        ({"within": 1.03}, "met"),
        ({"within": 0.5}, "not met"),
        ({"within": 1.01}, "open"),
        ({"below": 1.03}, "met"),
        ({"below": 0.97}, "not met"),
        ({"below": 1.0}, "open"),
        ({"above": 0.97}, "met"),
        ({"above": 1.03}, "not met"),
        ({"above": 1.0}, "open"),
        ({"between": [0.9, 1.1]}, "met"),
        ({"between": [1.1, 1.2]}, "not met"),
        ({"between": [0.99, 1.2]}, "open"),
    ],
)
@pytest.mark.parametrize("against", [None, {"metric": "n"}])
def test_bounds_are_put_on_the_value_or_its_paired_difference(tmp_path, bound, verdict, against):
    values = {"alibi": {"m": 1.0 if against is None else 3.0, "n": 2.0}}
    claim = {
        "says": "x",
        "cell": {"position": "alibi"},
        "metric": "m",
        **bound,
        **({"against": against} if against else {}),
    }
    found = check(tmp_path, values, claim)
    assert found.verdict == verdict
    assert found.cells[0].interval.mean == pytest.approx(1.0)


def test_noise_that_seeds_share_cancels_against_another_cell(tmp_path):
    claim = {
        "says": "x",
        "cell": {"position": "a"},
        "metric": "m",
        "against": {"cell": {"position": "b"}},
        "between": [0.999, 1.001],
    }
    found = check(tmp_path, {"a": {"m": 3.0}, "b": {"m": 2.0}}, claim)
    assert found.verdict == "met"
    assert found.cells[0].values == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0}, abs=2e-6)


def test_open_says_which_bound_is_straddled(tmp_path):
    found = check(
        tmp_path,
        {"alibi": {"m": 1.0}},
        {"says": "x", "cell": {"position": "alibi"}, "metric": "m", "between": [0.5, 1.01]},
    )
    assert found.verdict == "open"
    assert found.reason == "1.000 (0.975 to 1.025), 3 of 3 seeds inside the bound; the interval straddles 1.01"


def test_unavailable(tmp_path):
    claim = {"says": "x", "cell": {"position": "learned"}, "metric": "m", "unavailable": True}
    assert check(tmp_path, {"learned": {}}, claim, unavailable={"m": "table ends"}).reason == "unavailable: table ends"
    assert check(tmp_path / "b", {"learned": {"m": 1.0}}, claim).verdict == "not met"
    assert check(tmp_path / "c", {"learned": {}}, claim).verdict == "open"
    assert check(tmp_path / "d", {"learned": {}}, claim, state="failed").verdict == "open"


def test_state(tmp_path):
    claim = {"says": "x", "cell": {"position": "none"}, "state": "diverged"}
    assert check(tmp_path, {"none": {}}, claim, state="diverged").verdict == "met"
    assert check(tmp_path / "b", {"none": {"m": 1.0}}, claim).verdict == "not met"


def test_a_claim_about_several_cells_needs_them_all(tmp_path):
    claim = {"says": "x", "metric": "m", "below": 1.5}
    found = check(tmp_path, {"a": {"m": 1.0}, "b": {"m": 2.0}}, claim)
    assert found.verdict == "not met"
    assert found.reason.startswith("not met in 1 of 2 cells; b: ")
    assert check(tmp_path / "b", {"a": {"m": 1.0}, "b": {"m": 1.2}}, claim).verdict == "met"


def test_against_changes_choices_of_the_same_cell(tmp_path):
    cells = [{"residual": r, "depth": d} for r in ("post_ln", "pre_ln") for d in (6, 12)]
    claim = {
        "says": "x",
        "cell": {"residual": "post_ln"},
        "metric": "m",
        "against": {"cell": {"residual": "pre_ln"}},
        "above": 0.5,
    }
    root = write_plan(
        tmp_path / "s",
        cells=[cell(c) for c in cells],
        seeds=[0, 1],
        metric={"name": "m", "better": "lower"},
        claims=[claim],
    )
    for choices in cells:
        for seed in (0, 1):
            change = (1 + 1e-6 * seed) * (choices["residual"] == "post_ln")
            write_run(root, choices, seed, {"m": choices["depth"] + change + 0.001 * seed})
    found = check_claims(Outcomes(load_study(root)))[0]
    assert found.verdict == "met"
    assert [round(verdict.interval.mean, 5) for verdict in found.cells] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"says": "x"}, "exactly one of"),
        ({"says": "x", "within": 1, "below": 2}, "exactly one of"),
        ({"says": "x", "cell": {"position": "nonsense"}, "below": 1}, "no cell with"),
        ({"says": "x", "cell": {"position": "alibi"}, "metric": "unknown", "below": 1}, "no finished run has unknown"),
        ({"says": "x", "cell": {"position": "alibi"}, "below": "low"}, "below must be a finite number, got 'low'"),
        ({"says": "x", "cell": {"position": "alibi"}, "between": [1]}, "between must be two finite numbers"),
        (
            {"says": "x", "cell": {"position": "alibi"}, "below": 1, "against": {"cell": {"position": "zzz"}}},
            "to hold it against",
        ),
        (
            {"says": "x", "cell": {"position": "alibi"}, "below": 1, "against": {"metric": "zzz"}},
            "no finished run of position=alibi has zzz",
        ),
        ({"says": "__import__('os').system('false')", "below": "1 + 1"}, "below must be a finite number"),
        ({"says": "x", "cell": {"position": "alibi"}, "state": "finshed"}, "Did you mean finished?"),
    ],
)
def test_a_claim_that_cannot_be_checked_is_open(tmp_path, claim, reason):
    found = check(tmp_path, {"alibi": {"m": 1.0}}, claim)
    assert found.verdict == "open"
    assert reason in found.reason


def test_one_seed_leaves_a_claim_open(tmp_path):
    claim = {"says": "x", "cell": {"position": "a"}, "metric": "m", "below": 2}
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"position": "a"})],
        seeds=[0],
        metric={"name": "m", "better": "lower"},
        claims=[claim],
    )
    write_run(root, {"position": "a"}, 0, {"m": 1.0})
    assert check_claims(Outcomes(load_study(root)))[0].reason == "1, one seed: no interval"


@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_a_difference_that_is_the_same_in_every_seed_decides_nothing(tmp_path, shift):
    """No spread was seen, which is not none: coarse metrics agree by chance."""
    claim = {
        "says": "x",
        "cell": {"position": "rotary"},
        "metric": "n",
        "against": {"cell": {"position": "alibi"}},
        "within": 1.0,
    }
    found = check(tmp_path, {"alibi": {"n": 2.0}, "rotary": {"n": 2.0 + shift}}, claim)
    assert found.verdict == "open"
    assert found.reason == f"{shift:+.4g}, the same in 3 seeds: no interval"


def test_a_claim_keeps_its_metric_where_the_study_is_compared_on_another(tmp_path):
    """300 steps are below 600, and their FLOPs are not; the loss at the end, 2.1, would be."""
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"position": name}) for name in ("a", "b")],
        seeds=list(range(9)),
        metric={"name": "steps to val/loss 2.0", "better": "lower"},
        claims=[{"says": "below 600", "below": 600}, {"says": "not reached", "above": 600}],
    )
    for name in ("a", "b"):
        for seed in range(9):
            write_run(root, {"position": name}, seed, {"val/loss": 2.1}, curve=falling(300 + seed))
    study = load_study(root)
    own = compare(study).claims
    assert [(claim.verdict, claim.test.partition(":")[0]) for claim in own] == [
        ("met", "steps to val/loss 2.0 of every cell"),
        ("not met", "steps to val/loss 2.0 of every cell"),
    ]
    for metric in ("flops_to val/loss 2.0", "val/loss", "steps to val/loss 2.0"):
        other = compare(asked(study, metric)[0])
        assert other.claims == own


def test_of_tasks_with_a_metric_of_their_own_each_claim_keeps_that_of_its_task(tmp_path):
    claims = [{"says": "apart", "cell": {"position": "rotary"}, "against": {"cell": {"position": "none"}}, "above": 0}]
    study = load_study(write_task_study(tmp_path / "s", claims=claims))
    verdicts = [compare(part).claims[0].verdict for part in asked(study)]
    assert verdicts == ["met", "met", "not met"]  # bits fall
    assert [claim.verdict for claim in compare(asked(study, "test/bits_per_byte@1x")[0]).claims] == ["not met"]
    assert [compare(part).claims[0].verdict for part in asked(study, "test/chance@1x")] == ["met", "met"]
