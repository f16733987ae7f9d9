"""Power against statsmodels, and by simulation: what is promised is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from attnlab.analysis.statistics import (
    MOST_SEEDS,
    power_of_t,
    seeds_to_equate,
    seeds_to_see,
    smallest_visible_effect,
)

TRIALS = 20_000


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 15])
@pytest.mark.parametrize("n", [3, 4, 6, 10, 20])
@pytest.mark.parametrize("effect", [-0.4, 0.0, 0.9])
def test_power_is_statsmodels(n, effect, alpha):
    reference = TTestPower().power(effect, n, alpha)
    assert power_of_t(effect, n, alpha) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.05), (5, 0.01), (8, 0.05 / 15), (20, 0.05 / 15)])
def test_the_smallest_visible_effect_is_statsmodels(n, alpha):
    reference = TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8)
    assert smallest_visible_effect(n, alpha) == pytest.approx(reference, rel=1e-5)


def test_nothing_is_seen_with_one_seed_or_of_an_unknown_effect():
    assert math.isnan(smallest_visible_effect(1))
    assert math.isnan(power_of_t(1.0, 1))
    assert math.isnan(seeds_to_see(math.nan))
    assert math.isnan(seeds_to_equate(math.nan, 1.0))
    assert seeds_to_see(0.0) == math.inf
    assert seeds_to_equate(0.5, 0.5) == math.inf


@pytest.mark.parametrize("effect", [0.05, 0.3, 0.8, -2.5, 40.0])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_seeds_to_see_are_the_fewest(effect, alpha):
    n = int(seeds_to_see(effect, alpha))
    assert power_of_t(effect, n, alpha) >= 0.8
    assert n == 2 or power_of_t(effect, n - 1, alpha) < 0.8
    assert seeds_to_see(1e-4) == math.inf
    assert n < MOST_SEEDS


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.05 / 5), (4, 0.05), (4, 0.05 / 5), (8, 0.05 / 15)])
def test_the_smallest_visible_effect_is_seen_as_often_as_promised(n, alpha):
    effect = smallest_visible_effect(n, alpha)
    draws = np.random.default_rng(n).normal(effect, 1.0, (TRIALS, n))
    seen = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue <= alpha)
    assert seen == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / TRIALS))


@pytest.mark.parametrize(("effect", "margin", "alpha"), [(0.0, 1.0, 0.05), (0.4, 1.0, 0.05), (-0.2, 0.8, 0.01)])
def test_seeds_to_equate_equate_as_often_as_promised(effect, margin, alpha):
    n = int(seeds_to_equate(effect, margin, alpha))

    def share(seeds):
        draws = np.random.default_rng(seeds).normal(effect, 1.0, (TRIALS, seeds))
        half = stats.t.ppf(1 - alpha / 2, seeds - 1) * draws.std(axis=1, ddof=1) / math.sqrt(seeds)
        return np.mean(np.abs(draws.mean(axis=1)) + half <= margin)

    error = 4 * math.sqrt(0.8 * 0.2 / TRIALS)
    assert share(n) >= 0.8 - error
    assert share(n - 2) < 0.8 + error
