"""What became of runs, what that leaves to compare, and lost runs against scipy's exact test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.analysis.memory import study_of

from attnlab.analysis.comparison import compare
from attnlab.analysis.differences import Outcomes, together
from attnlab.analysis.failures import compare_failures
from attnlab.analysis.statistics import holm


def test_a_run_is_lost_by_how_it_ended_whatever_lost_it():
    rows = {0: 2.0, 1: None, 2: float("nan"), 3: float("inf"), 4: "failed", 5: "diverged", 6: "pruned", 7: "running"}
    rows |= {8: "missing", 9: "interrupted"}
    outcomes = Outcomes(study_of({("a",): rows}))
    assert list(outcomes.of("norm=a", "m").values()) == ["value", *["failed"] * 6, *["pending"] * 3]
    assert outcomes.counts == {"norm=a": (6, 7)}


def test_a_contrast_counts_what_is_missing_and_says_whose():
    study = study_of(
        {("a",): {0: 1.0, 1: "failed", 2: 1.0, 3: 1.0, 7: 1.0}, ("b",): {0: 2.0, 1: 2.0, 2: None, 3: "running"}}
    )
    found = Outcomes(study).against("norm=b", "m", "norm=a", "m", "the baseline")
    assert (found.values, found.failed, found.pending, found.asked) == ({0: 1.0}, 2, 1, 4)
    assert found.reason == "1 of 4 runs lost, 1 of 4 runs of the baseline lost, 3 of 4 seeds in"
    alone = Outcomes(study).alone("norm=a", "m")
    assert (alone.failed, alone.asked, alone.reason) == (1, 5, "1 of 5 runs lost, other runs are not over")
    assert together(["value", "failed", "pending"]) == "pending"
    assert together(["value", "unavailable"]) == "failed"


def test_the_p_is_fishers_and_adjusted_as_a_family():
    counts = {"base": (0, 8), "bad": (6, 8), "some": (2, 8), "good": (0, 8), "new": (0, 0)}
    found = compare_failures(counts, "base")
    p_values = [stats.fisher_exact([[lost, 8 - lost], [0, 8]]).pvalue for lost in (6, 2)]
    assert list(found) == ["bad", "some"]  # none of the good ones or of the baseline could have shown anything
    assert [one.p for one in found.values()] == pytest.approx(p_values)
    assert [one.p_holm for one in found.values()] == pytest.approx(holm(p_values))
    assert (found["bad"].failed, found["bad"].ended, found["some"].ended) == (6, 8, 8)
    assert found["bad"].p_holm < 0.05 < found["some"].p_holm


def test_false_alarms_stay_within_the_level():
    """Every run is lost with the same chance, 5 cells and a baseline of 8 runs each."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(120):
        counts = {str(i): (int(lost), 8) for i, lost in enumerate(rng.binomial(8, 0.4, 6))}
        alarms += any(found.p_holm <= 0.05 for found in compare_failures(counts, "0").values())
    assert alarms / 120 <= 0.05


def test_where_no_run_is_lost_or_the_baseline_has_not_ended_there_is_nothing_to_judge():
    assert compare_failures({"base": (0, 3), "other": (0, 3)}, "base") == {}
    assert compare_failures({"base": (0, 0), "other": (3, 3)}, "base") == {}
    assert compare_failures({"other": (3, 3)}, "base") == {}


def test_a_baseline_that_is_lost_counts_too():
    (found,) = compare_failures({"base": (4, 4), "other": (0, 4)}, "base").values()
    assert found.p == pytest.approx(2 / 70)
    assert (found.failed, found.baseline_failed) == (0, 4)


def test_more_losses_than_chance_explains_leave_no_word():
    """Thirty seeds of which six are lost: the sign test alone would still be sure, Fisher's test says that the losses are no accident."""
    values = {("a",): {seed: 2.0 - seed / 1000 for seed in range(30)}}
    claim = {"says": "x", "cell": {"norm": "b"}, "metric": "m", "below": 1.5}
    for gone, verdicts in ((6, ["undecided", "open"]), (1, ["better", "met"])):
        kept = {seed: 1.0 + seed / 1000 if seed >= gone else "diverged" for seed in range(30)}
        study = study_of({**values, ("b",): kept})
        study.claims.append(claim)
        comparison = compare(study)
        found = comparison.cells[1].difference
        assert [found.verdict, comparison.claims[0].verdict] == verdicts
        assert found.reason == f"{gone} of 30 runs lost" + (", beyond chance" if gone == 6 else "")
