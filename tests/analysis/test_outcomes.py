"""Lost runs against scipy's exact test, and in words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attnlab.analysis.outcomes import losses
from attnlab.analysis.statistics import holm


def test_the_p_is_fishers_and_adjusted_as_a_family():
    states = {
        "base": {"finished": 8},
        "bad": {"diverged": 5, "failed": 1, "finished": 2},
        "some": {"finished": 6, "failed": 2, "running": 3},
        "good": {"finished": 8},
        "new": {"running": 8, "missing": 1},
    }
    found = losses(states, "base")
    p_values = [stats.fisher_exact([[lost, 8 - lost], [0, 8]]).pvalue for lost in (6, 2)]
    assert list(found) == ["bad", "some"]  # none of the good ones or of the baseline could have shown anything
    assert [one.p for one in found.values()] == pytest.approx(p_values)
    assert [one.p_holm for one in found.values()] == pytest.approx(holm(p_values))
    assert (found["bad"].lost, found["bad"].ended, found["some"].ended) == (6, 8, 8)
    assert found["bad"].p_holm < 0.05 < found["some"].p_holm


def test_false_alarms_stay_within_the_level():
    """Every run is lost with the same chance, 5 cells and a baseline of 8 runs each."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(120):
        counts = rng.binomial(8, 0.4, 6)
        states = {str(i): {"failed": int(lost), "finished": int(8 - lost)} for i, lost in enumerate(counts)}
        alarms += any(found.p_holm <= 0.05 for found in losses(states, "0").values())
    assert alarms / 120 <= 0.05


def test_where_no_run_is_lost_or_the_baseline_has_not_ended_there_is_nothing_to_judge():
    assert losses({"base": {"finished": 3}, "other": {"finished": 3}}, "base") == {}
    assert losses({"base": {"running": 3}, "other": {"failed": 3}}, "base") == {}
    assert losses({"other": {"failed": 3}}, "base") == {}


def test_a_baseline_that_is_lost_counts_too():
    (found,) = losses({"base": {"diverged": 4}, "other": {"finished": 4}}, "base").values()
    assert found.p == pytest.approx(2 / 70)
    assert (found.lost, found.baseline_lost) == (0, 4)
