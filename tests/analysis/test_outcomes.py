"""Lost runs against scipy's exact test, and in words."""

from __future__ import annotations

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
    p_values = [stats.fisher_exact([[lost, 8 - lost], [0, 8]]).pvalue for lost in (6, 2, 0)]
    assert list(found) == ["bad", "some", "good"]
    assert [one.p for one in found.values()] == pytest.approx(p_values)
    assert [one.p_holm for one in found.values()] == pytest.approx(holm(p_values))
    assert (found["bad"].lost, found["bad"].ended, found["some"].ended) == (6, 8, 8)
    assert found["bad"].p_holm < 0.05 < found["some"].p_holm


def test_where_no_run_is_lost_or_the_baseline_has_not_ended_there_is_nothing_to_judge():
    assert losses({"base": {"finished": 3}, "other": {"finished": 3}}, "base") == {}
    assert losses({"base": {"running": 3}, "other": {"failed": 3}}, "base") == {}
    assert losses({"other": {"failed": 3}}, "base") == {}


def test_a_baseline_that_is_lost_counts_too():
    (found,) = losses({"base": {"diverged": 4}, "other": {"finished": 4}}, "base").values()
    assert found.p == pytest.approx(2 / 70)
    assert (found.lost, found.baseline_lost) == (0, 4)
