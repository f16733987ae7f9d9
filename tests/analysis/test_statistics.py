"""Statistics against scipy, statsmodels, closed forms and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from attnlab.analysis.statistics import (
    BOOTSTRAP_HOLDS,
    bootstrap_interval,
    effect_size,
    equivalence_p,
    has_spread,
    holm,
    mean_interval,
    median_interval,
    paired,
    paired_interval,
    probability_better,
    seeds_to_decide,
    sign_flip_p,
    sign_p,
    signed_sum,
    smallest_sign_flip_p,
    t_p,
    wins,
)

values = st.lists(st.floats(-100, 100), min_size=2, max_size=10)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.9875])
@pytest.mark.parametrize("n", [2, 3, 4, 10])
def test_mean_interval_is_scipys_t_interval(n, level):
    sample = np.random.default_rng(n).normal(3, 2, n)
    ours = mean_interval(sample.tolist(), level)
    low, high = stats.t.interval(level, n - 1, loc=sample.mean(), scale=stats.sem(sample))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-12)
    assert (ours.mean, ours.deviation) == pytest.approx((sample.mean(), sample.std(ddof=1)), rel=1e-12)


def test_one_value_has_no_interval():
    interval = mean_interval([2.5])
    assert interval.mean == 2.5
    assert not interval.is_bounded
    assert not interval.excludes(0)
    assert not interval.within(-10, 10)


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="finite numbers"):
        mean_interval(bad)


def test_paired_t_test_is_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 7), rng.normal(0.5, 1, 7)
    assert t_p((first - second).tolist()) == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-10)


@pytest.mark.parametrize("same", [[0.5, 0.5, 0.5], [0.0, 0.0], [2.1 - 2.0, 2.2 - 2.1, 2.3 - 2.2], [5e-324, 0.0]])
def test_differences_without_spread_are_no_evidence_for_anything(same):
    """A metric of few possible values gives equal differences by chance: a t test would call them certain."""
    assert not has_spread(same)
    for p in (t_p(same), equivalence_p(same, 1.0), effect_size(same)):
        assert math.isnan(p)
    for interval in (paired_interval(same), bootstrap_interval(same)):
        assert not interval.is_bounded
        assert interval.mean == pytest.approx(np.mean(same))
    assert sign_flip_p(same) == (1.0 if not any(same) else pytest.approx(2.0 ** (1 - len(same)), abs=0.76))
    assert math.isnan(t_p([0.5]))


def test_a_test_that_cannot_be_made_still_counts_in_its_family():
    assert holm([0.02, math.nan, 0.5])[::2] == holm([0.02, 1.0, 0.5])[::2]
    assert math.isnan(holm([0.02, math.nan])[1])


@pytest.mark.parametrize("n", [3, 4, 8, 25])
def test_the_effect_size_is_hedges_correction_of_dz(n):
    sample = np.random.default_rng(n).normal(0.4, 1.3, n)
    freedom = n - 1
    correction = math.gamma(freedom / 2) / (math.sqrt(freedom / 2) * math.gamma((freedom - 1) / 2))
    assert effect_size(sample.tolist()) == pytest.approx(correction * sample.mean() / sample.std(ddof=1))
    if n > 7:  # the approximation that books give
        assert correction == pytest.approx(1 - 3 / (4 * freedom - 1), abs=2e-3)
    assert effect_size((-sample).tolist()) == -effect_size(sample.tolist())
    assert math.isnan(effect_size([0.1, 0.2]))


def test_the_effect_size_has_no_bias_with_few_values():
    draws = np.random.default_rng(21).normal(0.8, 1.0, (6000, 6))
    sizes = np.array([effect_size(draw.tolist()) for draw in draws])
    assert sizes.mean() == pytest.approx(0.8, abs=4 * sizes.std() / math.sqrt(len(sizes)))
    assert (draws.mean(axis=1) / draws.std(axis=1, ddof=1)).mean() > 0.9  # without the correction


@settings(max_examples=60, deadline=None)
@given(values)
def test_sign_flip_counts_all_flips(differences):
    observed = abs(sum(differences))
    slack = 1e-9 * sum(map(abs, differences))
    flips = [
        abs(sum(s * abs(d) for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    sure = np.mean([flip >= observed + slack for flip in flips])
    possible = np.mean([flip >= observed - slack for flip in flips])
    assert sure - 1e-12 <= sign_flip_p(differences) <= possible + 1e-12


def test_sign_flip_is_scipys_permutation_test():
    first = np.array([2.1, 2.5, 1.9, 2.8, 2.2, 2.6])
    second = np.array([2.0, 2.2, 2.0, 2.3, 2.1, 2.2])
    reference = stats.permutation_test(
        (first, second), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p((first - second).tolist()) == pytest.approx(reference.pvalue, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "p"), [(1, 1.0), (4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078125), (10, 0.001953125)]
)
def test_sign_flip_cannot_go_below_its_bound(n, p):
    assert sign_flip_p([1.0 + 0.01 * i for i in range(n)]) == p
    assert smallest_sign_flip_p(n) == p


def test_monte_carlo_agrees_with_the_exact_value_beyond_the_limit():
    differences = np.random.default_rng(3).normal(0.3, 1.0, 18)
    signs = np.array(
        list(itertools.product((1.0, -1.0), repeat=17))
    )  # the first sign fixed: the statistic is symmetric
    sums = np.abs(np.abs(differences[0]) + signs @ np.abs(differences[1:]))
    exact = np.mean(sums >= abs(differences.sum()) - 1e-12)
    error = math.sqrt(exact * (1 - exact) / 2**16)
    assert abs(sign_flip_p(differences.tolist()) - exact) < 5 * error
    assert sign_flip_p(differences.tolist(), seed=1) == sign_flip_p(differences.tolist(), seed=1)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (4, 8), (5, 8), (15, 10)])
def test_seeds_to_decide_is_the_first_that_reaches_the_level(comparisons, seeds):
    assert seeds_to_decide(comparisons) == seeds
    assert comparisons * smallest_sign_flip_p(seeds) <= 0.05 < comparisons * smallest_sign_flip_p(seeds - 1)


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_holm_is_statsmodels(m):
    p_values = (np.random.default_rng(m).random(m) ** 3).tolist()
    p_values[-1] = p_values[0]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_equivalence_is_statsmodels_tost():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 0.02, 8), rng.normal(0, 0.02, 8)
    reference = ttost_paired(first, second, -0.03, 0.03)[0]
    assert equivalence_p((first - second).tolist(), 0.03) == pytest.approx(reference, rel=1e-9)
    assert math.isnan(equivalence_p([0.1], 0.03))
    assert math.isnan(equivalence_p([0.01, 0.02, 0.0], 0.0))
    assert equivalence_p([0.04, 0.05, 0.06], 0.03) > 0.5


def test_bootstrap_is_seeded_and_close_to_the_closed_form_for_many_values():
    sample = np.random.default_rng(2).normal(1, 0.5, 200).tolist()
    ours = bootstrap_interval(sample)
    normal = mean_interval(sample)
    assert ours == bootstrap_interval(sample)
    assert (ours.low, ours.high) == pytest.approx((normal.low, normal.high), abs=0.01)


def test_the_bootstrap_is_too_narrow_for_few_values():
    """What its docstring and the page say: 80% at 4 values, 89% at 8, at least 92% from BOOTSTRAP_HOLDS on, instead of 95%."""
    rng = np.random.default_rng(14)
    for n, low, high in ((4, 0.77, 0.83), (8, 0.86, 0.915), (BOOTSTRAP_HOLDS, 0.92, 0.96)):
        held = 0
        for part in rng.normal(size=(10, 200, n)):
            found = stats.bootstrap((part,), np.mean, axis=-1, n_resamples=999, rng=rng, vectorized=True)
            held += int(np.sum((found.confidence_interval.low <= 0) & (found.confidence_interval.high >= 0)))
        assert low < held / 2000 < high
        one = bootstrap_interval(part[0].tolist(), resamples=999)
        assert one.low == pytest.approx(found.confidence_interval.low[0], abs=0.35 * part[0].std())


def test_probability_better_is_mann_whitney():
    rng = np.random.default_rng(5)
    first, second = rng.normal(0, 1, 9), rng.normal(0.4, 1, 6)
    u = stats.mannwhitneyu(first, second).statistic
    assert probability_better(first.tolist(), second.tolist(), "higher") == pytest.approx(u / 54)
    assert probability_better(first.tolist(), second.tolist(), "lower") == pytest.approx(1 - u / 54)


def test_lost_runs_are_the_worst_that_can_happen():
    assert probability_better([1.0, 2.0], [3.0, 4.0], "lower") == 1.0
    assert probability_better([1.0], [3.0, 4.0], "lower", failed_first=1) == 0.5
    assert probability_better([1.0], [0.5], "higher", failed_first=1, failed_second=1) == (1 + 1 + 0 + 0.5) / 4
    assert probability_better([], [1.0], "higher", failed_first=3) == 0.0
    assert probability_better([], [], "lower", 2, 2) == 0.5
    assert math.isnan(probability_better([], [1.0], "lower"))


def test_wins_follow_the_direction_and_split_ties():
    assert wins([-1.0, -2.0, 0.5, 0.0], "lower") == 2.5
    assert wins([-1.0, -2.0, 0.5, 0.0], "higher") == 1.5


def test_pairs_need_both_seeds():
    assert paired({0: 3.0, 1: 5.0, 2: 1.0}, {1: 1.0, 2: 3.0, 7: 0.0}) == {1: 4.0, 2: -2.0}


def test_intervals_cover_at_their_level():
    rng = np.random.default_rng(12)
    covered = sum(not mean_interval(rng.normal(1, 2, 4).tolist()).excludes(1) for _ in range(3000))
    assert covered / 3000 == pytest.approx(0.95, abs=3.5 * math.sqrt(0.05 * 0.95 / 3000))


def test_a_difference_of_rounding_is_none():
    ulp = np.spacing(2.3)
    first = {seed: 2.3 + seed / 10 for seed in range(6)}
    for steps in (1, 2):
        assert set(paired(first, {seed: value + steps * ulp for seed, value in first.items()}).values()) == {0.0}
    assert paired({0: 2.3}, {0: 2.3 + 1e-6}) == {0: pytest.approx(-1e-6, rel=1e-9)}
    assert signed_sum([(1, 0.1), (1, 0.2), (-1, 0.3)]) == 0.0
    assert signed_sum([(1, 0.0), (-1, 0.0)]) == 0.0


@pytest.mark.parametrize("missing", range(4))
@pytest.mark.parametrize("level", [0.95, 0.99, 0.9975])
def test_the_median_lies_between_the_order_statistics_of_the_sign_test(level, missing):
    """The closed form, with missing values below everything for the lower end and above everything for the upper one."""
    for n in range(2, 30):
        rank = 0
        while 2 * stats.binom.cdf(rank, n + missing, 0.5) <= 1 - level:
            rank += 1
        known = np.sort(np.random.default_rng(n).normal(size=n))
        low = np.sort([*known, *[-math.inf] * missing])[rank - 1] if rank else -math.inf
        high = np.sort([*known, *[math.inf] * missing])[-rank] if rank else math.inf
        found = median_interval(known.tolist(), level, missing)
        assert (found.low, found.high) == (low, high)
        assert found.is_bounded == (not found.unbounded)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=25), st.integers(0, 5), st.sampled_from([0.95, 0.99]))
def test_the_median_interval_excludes_zero_exactly_where_the_sign_test_rejects(sample, missing, level):
    assert median_interval(sample, level, missing).excludes(0) == (sign_p(sample, missing) <= 1 - level)


def test_the_sign_test_is_scipys_and_its_worst_whatever_is_missing():
    sample = np.random.default_rng(3).normal(0.8, 1, 12).tolist()
    ahead = sum(value > 0 for value in sample)
    assert sign_p(sample) == pytest.approx(stats.binomtest(ahead, 12).pvalue)
    for gone in range(3):
        worst = max(stats.binomtest(ahead + won, 12 + gone).pvalue for won in range(gone + 1))
        assert sign_p(sample, gone) == pytest.approx(worst)
