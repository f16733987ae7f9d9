"""Aggregates over tasks against the figures of rliable and autorank, the explicit formulas and published numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu, trim_mean

from attnlab.analysis import aggregates
from attnlab.analysis.aggregates import AGGREGATES, average_ranks, bootstrap, critical_difference

# Five seeds of four tasks, and what rliable 1.2.0 makes of them: with `numpy.random.seed(0)` before each arm, and 2,000
# resamples. (Its library part needs arch below 8, which cannot be imported beside the pinned pandas.)
SCORES = {
    "a": [
        [0.2, 0.54, 0.76, 0.82],
        [0.13, 0.35, 0.81, 1.15],
        [0.13, 0.41, 0.87, 1.0],
        [0.22, 0.36, 0.8, 1.05],
        [-0.0, 0.43, 0.51, 0.76],
    ],
    "b": [
        [0.02, 0.56, 0.71, 1.09],
        [0.32, 0.57, 0.52, 0.97],
        [0.29, 0.62, 0.67, 0.98],
        [0.15, 0.48, 1.06, 0.93],
        [0.3, 0.73, 0.81, 1.03],
    ],
    "c": [
        [0.17, 0.46, 0.57, 0.91],
        [0.35, 0.22, 0.88, 0.92],
        [0.05, 0.75, 0.86, 0.72],
        [0.16, 0.54, 0.72, 1.0],
        [0.14, 0.55, 0.97, 0.8],
    ],
}
POINTS = {
    "a": [0.573, 0.565, 0.584, 0.445],
    "b": [0.66, 0.6405, 0.673, 0.3685],
    "c": [0.632, 0.587, 0.652, 0.413],
}
INTERVALS = {
    "a": [[0.507, 0.5145, 0.515, 0.4034875], [0.631, 0.6130125, 0.641, 0.4895]],
    "b": [[0.593, 0.5914875, 0.593, 0.3225], [0.736, 0.6915, 0.759025, 0.4130125]],
    "c": [[0.539975, 0.5269875, 0.555, 0.3595], [0.712025, 0.6405, 0.733, 0.4730125]],
}
ABOVE = np.linspace(0, 1.2, 7)
PROFILES = {
    "a": [0.95, 0.85, 0.65, 0.45, 0.35, 0.15, 0.0],
    "b": [1.0, 0.9, 0.75, 0.55, 0.35, 0.15, 0.0],
    "c": [1.0, 0.8, 0.7, 0.5, 0.35, 0.05, 0.0],
}
BANDS = {
    "a": [[0.85, 0.75, 0.55, 0.35, 0.2, 0.05, 0.0], [1.0, 0.95, 0.75, 0.5, 0.5, 0.25, 0.0]],
    "b": [[1.0, 0.8, 0.75, 0.4, 0.25, 0.05, 0.0], [1.0, 1.0, 0.75, 0.7, 0.45, 0.3, 0.0]],
    "c": [[1.0, 0.75, 0.6, 0.4, 0.2, 0.0, 0.0], [1.0, 0.9, 0.75, 0.6, 0.5, 0.15, 0.0]],
}
B_OVER_A, B_OVER_A_INTERVAL = 0.675, (0.51, 0.83)


@pytest.mark.parametrize("arm", SCORES)
def test_aggregates_intervals_and_profiles_are_those_of_rliable(arm):
    scores_ST = np.array(SCORES[arm])
    assert [float(of(scores_ST)) for of in AGGREGATES.values()] == pytest.approx(POINTS[arm], abs=1e-9)

    def together(scores_RST):
        return np.stack([of(scores_RST) for of in AGGREGATES.values()], axis=-1)

    def profiles(scores_RST):
        return np.stack([aggregates.profile(one_ST, ABOVE) for one_ST in scores_RST])

    drawn = bootstrap(together, [scores_ST], np.random.RandomState(0), 2000)
    np.testing.assert_allclose(drawn, INTERVALS[arm], atol=1e-9)
    np.testing.assert_allclose(aggregates.profile(scores_ST, ABOVE), PROFILES[arm], atol=1e-9)
    band = bootstrap(profiles, [scores_ST], np.random.RandomState(0), 2000)
    np.testing.assert_allclose(band, BANDS[arm], atol=1e-9)


def test_probability_of_improvement_is_that_of_rliable():
    """Its draws of two arms alternate, so its interval is met but for the resampling."""
    found = aggregates.improvement(np.array(SCORES["b"]), np.array(SCORES["a"]))
    assert found.mean == pytest.approx(B_OVER_A, abs=1e-9)
    assert (found.low, found.high) == pytest.approx(B_OVER_A_INTERVAL, abs=0.02)


@settings(max_examples=30)
@given(arrays(float, (3, 2, 4), elements=st.integers(0, 5).map(float)))
def test_aggregates_follow_their_formulas_with_ties(scores_AST):
    own_ST, other_ST = scores_AST[0], scores_AST[1]
    assert aggregates.interquartile_mean(own_ST) == pytest.approx(trim_mean(own_ST, 0.25, axis=None), abs=1e-12)
    by_task = [
        mannwhitneyu(own, other, method="asymptotic").statistic / 4
        for own, other in zip(own_ST.T, other_ST.T, strict=True)
    ]
    assert aggregates.probability_of_improvement(own_ST, other_ST) == pytest.approx(np.mean(by_task), abs=1e-12)
    assert aggregates.probability_of_improvement(own_ST, own_ST) == pytest.approx(0.5)
    area = np.trapezoid(aggregates.profile(own_ST / 5, points := np.linspace(0, 1, 5001)), points)
    assert area == pytest.approx(own_ST.mean() / 5, abs=1e-3)  # the area below a profile is the mean


def test_one_seed_has_no_interval_and_resamples_in_pieces_are_the_same(monkeypatch):
    assert not aggregates.aggregate(aggregates.mean, np.array([[0.2, 0.4]])).is_bounded
    scores_ST = np.array(SCORES["a"])
    whole = bootstrap(aggregates.mean, [scores_ST], np.random.RandomState(0), 300)
    monkeypatch.setattr(aggregates, "AT_ONCE", 7 * scores_ST.size)
    assert bootstrap(aggregates.mean, [scores_ST], np.random.RandomState(0), 300) == whole


def test_critical_differences_are_those_published():
    """Demsar 2006: table 5(a), and the example of section 3.2.2, four classifiers on 14 data sets."""
    published = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for arms, q in published.items():
        assert critical_difference(arms, 1) / math.sqrt(arms * (arms + 1) / 6) == pytest.approx(q, abs=1.1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, alpha=0.1) == pytest.approx(1.12, abs=5e-3)


@pytest.mark.slow  # it is slow to load
def test_ranks_are_those_of_autorank():
    autorank = pytest.importorskip("autorank")
    import pandas as pd

    means_AT = np.random.default_rng(3).random((4, 12)).round(1) + np.array([[0.0], [0.3], [0.1], [0.6]])
    found = average_ranks(means_AT)
    theirs = autorank.autorank(pd.DataFrame(means_AT.T), alpha=0.05, verbose=False, force_mode="nonparametric")
    by_arm = theirs.rankdf["meanrank"].sort_index()
    assert found.average == pytest.approx(by_arm.tolist(), abs=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, abs=1e-9)
    assert found.critical_difference == pytest.approx(theirs.cd, abs=2e-5)  # by statsmodels' approximation


def test_ranks_of_ties_few_tasks_and_groups():
    alike = average_ranks(np.ones((3, 5)))
    assert (alike.average, alike.p, alike.groups) == ([2, 2, 2], 1.0, [[0, 1, 2]])
    # The best on every one of 30 tasks, two in the middle that take turns, the worst on every one.
    turns = np.tile([[3.0] * 2, [2, 1], [1, 2], [0.0] * 2], 15)
    found = average_ranks(turns)
    assert found.average == [1, 2.5, 2.5, 4]
    assert found.groups == [[1, 2]]
    assert found.p < 1e-9
    for arms in range(2, 8):  # as many tasks as are said to be needed can tell the first from the last, fewer cannot
        fewest = average_ranks(np.arange(arms)[:, None] * np.ones((1, 4))).fewest_tasks
        assert critical_difference(arms, fewest) <= arms - 1 < critical_difference(arms, fewest - 1)
    with pytest.raises(ValueError, match="at least 2 arms, got 1"):
        average_ranks(np.ones((1, 3)))


@pytest.mark.slow
def test_bootstrap_intervals_hold_as_often_as_the_page_says():
    """Normal scores of six tasks: about 87% with 4 seeds, 93% with 8."""
    rng, levels = np.random.default_rng(0), np.linspace(0.1, 0.9, 6)
    for seeds, promised in ((4, 0.87), (8, 0.93)):
        pages = levels + 0.15 * rng.standard_normal((500, seeds, 6))
        truth = float(aggregates.interquartile_mean(levels + 0.15 * rng.standard_normal((20_000, seeds, 6))).mean())
        ends = [bootstrap(aggregates.interquartile_mean, [page_ST], rng, 600) for page_ST in pages]
        held = np.mean([low <= truth <= high for low, high in ends])
        assert held == pytest.approx(promised, abs=0.045)
