"""Statistics of figures that are known between bounds: published numbers, explicit formulas, and the truth between the bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from attnlab.analysis.censoring import Bounds, ahead_of, logrank_p, median_of, probability_less, sign_p
from attnlab.analysis.statistics import median_interval
from attnlab.analysis.statistics import sign_p as exact_sign_p

# Weeks of remission of children with leukaemia (Freireich et al. 1963), + as published: still in remission then.
TREATED = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"
FIGURES = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def weeks(text):
    return [Bounds(float(w.rstrip("+")), math.inf if w.endswith("+") else float(w)) for w in text.split()]


def logrank_chi2(first, second):
    """(O - E)^2 / V with hypergeometric variances, as Mantel (1966) has it."""
    gap = variance = 0.0
    for time in sorted({one.high for one in (*first, *second) if math.isfinite(one.high)}):
        n1, n2 = (sum(one.low >= time for one in group) for group in (first, second))
        d1, d2 = (sum(one.high == time for one in group) for group in (first, second))
        n, d = n1 + n2, d1 + d2
        gap += d1 - d * n1 / n
        variance += d * (n1 / n) * (n2 / n) * (n - d) / (n - 1) if n > 1 else 0.0
    return gap**2 / variance


def test_log_rank_is_the_published_one_and_that_of_the_formula():
    treated, placebo = weeks(TREATED), weeks(PLACEBO)
    assert logrank_chi2(treated, placebo) == pytest.approx(16.79, abs=0.005)  # Kleinbaum and Klein, Survival Analysis
    assert logrank_p(treated, placebo) == pytest.approx(chi2.sf(logrank_chi2(treated, placebo), 1), rel=1e-6)


def test_what_is_never_reached_stays_at_risk_in_log_rank():
    never = Bounds(math.inf, math.inf)
    late = Bounds(1e6, math.inf)
    others = weeks("3 5 8 9")
    assert logrank_p([never] * 4, others) == pytest.approx(logrank_p([late] * 4, others), rel=1e-9)
    assert math.isnan(logrank_p([never], [late]))


def test_where_all_get_there_at_once_log_rank_finds_nothing():
    assert logrank_p([Bounds(5, 5)] * 3, [Bounds(5, 5)] * 3) == 1.0


@given(st.lists(FIGURES, min_size=1, max_size=30), st.integers(0, 3), st.sampled_from([0.9, 0.95, 0.99]))
def test_of_exact_figures_it_is_the_sign_tests_median(values, missing, level):
    found, known = median_of([Bounds(x, x) for x in values], level, missing), median_interval(values, level, missing)
    assert (found.low, found.high, found.mean) == (known.low, known.high, pytest.approx(known.mean))
    apart = [x for x in values if x]
    if apart:
        assert sign_p([Bounds(x, x) for x in values], missing) == pytest.approx(exact_sign_p(values, missing))


@given(st.lists(st.tuples(FIGURES, st.floats(0, 500), st.floats(0, 500), st.booleans()), min_size=1, max_size=20))
def test_whatever_the_figures_are_between_their_bounds_nothing_is_surer_than_they_are(drawn):
    """An interval by bounds holds that of the figures themselves, and its p is no smaller."""
    truth = [Bounds(x, x) for x, *_ in drawn]
    known = [Bounds(x - below, math.inf if is_open else x + above) for x, below, above, is_open in drawn]
    sure, seen = median_of(truth, 0.95), median_of(known, 0.95)
    assert seen.low <= sure.low
    assert sure.high <= seen.high
    assert seen.between.low <= sure.mean + 1e-9
    assert sure.mean <= seen.between.high + 1e-9
    assert sign_p(known) >= sign_p(truth) or not sure.excludes(0.0)


@given(*[st.tuples(st.floats(0.5, 100), st.floats(0, 50), st.floats(0, 50))] * 2)
def test_differences_and_ratios_hold_those_of_the_figures(first, second):
    (x, *_), (y, *_) = first, second
    own, theirs = (Bounds(max(0.0, at - below), at + above) for at, below, above in (first, second))
    for bounds, truth in ((own.minus(theirs), x - y), (own.over(theirs), x / y)):
        assert bounds.low <= truth + 1e-9
        assert truth <= bounds.high + 1e-9
    never = Bounds(math.inf, math.inf)
    assert never.minus(never) == Bounds(-math.inf, math.inf)
    assert own.minus(never) == Bounds(-math.inf, -math.inf)


def page(rng, shift, ends, seeds):
    """Costs of two cells by seed, with luck that seeds share; a run ends at one of its cell's `ends`."""
    luck = rng.standard_normal(seeds)
    cells = []
    for gain, end in zip((0.0, shift), ends, strict=True):
        costs = 100 * np.exp(0.5 * luck + 0.4 * rng.standard_normal(seeds) - gain)
        cells.append({s: Bounds(c, c) if c <= end else Bounds(end, math.inf) for s, c in enumerate(costs.tolist())})
    return cells


@pytest.mark.parametrize("ends", [(1e9, 1e9), (120, 120), (60, 300), (40, 90)])
def test_no_more_pages_have_a_false_word_than_promised_however_runs_are_censored(ends):
    rng, pages, seeds, share = np.random.default_rng(1), 1500, 9, 0.05
    false = found = 0
    for _ in range(pages):
        ahead = ahead_of(page(rng, 0.0, ends, seeds), [set(range(seeds))] * 2, share, [0.0] * 2)
        false += bool(ahead.any())
        first, second = page(rng, 1.2, (1e9, 300), seeds)
        interval = median_of([second[s].minus(first[s]) for s in first], 1 - share)
        by_interval = interval.excludes(0.0)
        found += by_interval and interval.high < 0
        assert by_interval == (sign_p([second[s].minus(first[s]) for s in first]) <= share)
    assert false / pages <= share + 3 * math.sqrt(share * (1 - share) / pages)
    assert found / pages > 0.5


def test_runs_of_different_length_are_told_apart_only_where_it_is_sure():
    """Censored at 1,000 against one that needs 1,500: open. Against one that needs 900: less."""
    censored, late, soon = (
        {s: Bounds(*ends) for s in range(6)} for ends in ((1e3, math.inf), (1500, 1500), (900, 900))
    )
    ahead = ahead_of([censored, late, soon], [set(range(6))] * 3, 0.05, [0.0] * 3)
    assert ahead.tolist() == [[False, False, False], [False, False, False], [True, True, False]]
    assert probability_less(list(censored.values()), list(late.values())) == 0.5


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([(500, 500), (600, 600), (700, 700)], ""),
        ([(500, 500), (800, math.inf), (800, math.inf)], "> 800"),
        ([(0, 100), (0, 100), (300, 300)], "<= 100"),
        ([(500, 500), (math.inf, math.inf), (math.inf, math.inf)], "never"),
        ([(500, 500), (math.inf, math.inf)], "> 500"),
        ([(2.5e9, math.inf)], "> 2.5G"),
    ],
)
def test_a_median_that_is_known_to_one_side_is_said_so(known, words):
    found = median_of([Bounds(*one) for one in known], 0.95)
    assert found.counted == words
    assert math.isnan(found.mean) == bool(words)
