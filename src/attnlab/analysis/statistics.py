"""Statistics for runs paired by seed: few values, stated assumptions, exact tests where they exist; and how many seeds
an effect needs.

Power is that of the paired t test, by the noncentral t distribution: effects are in standard deviations of the paired
differences (Cohen's d_z) there, and `alpha` is the two-sided level of the one test. Letters of shapes: R rows, each of
S seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from scipy.special import bdtr, bdtrik, gammaln, nctdtr, nctdtrinc, stdtr, stdtrit

EXACT_SEEDS = 16
MONTE_CARLO_DRAWS = 2**16
# Values from which a 95% bootstrap interval of a mean covers in at least 92% of cases (simulated under test).
BOOTSTRAP_HOLDS = 20
ROUNDING = 1e-9
POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, infinite where nothing is known of the spread (`unbounded` says why)."""

    mean: float
    low: float
    high: float
    level: float
    n: int
    deviation: float
    unbounded: str = ""
    is_even: ClassVar[bool] = True  # whether it is said as mean and half-width

    @property
    def counted(self) -> str:
        """What stands for the mean where runs are counted: "3 of 4"."""
        return ""

    @property
    def position(self) -> float:
        """Where it stands in an order or a picture."""
        return self.mean

    @property
    def is_beyond(self) -> bool:
        """Whether it may lie anywhere above its position."""
        return False

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def is_open(self) -> bool:
        """Whether it excludes nothing, on neither side."""
        return not (math.isfinite(self.low) or math.isfinite(self.high))

    def excludes(self, value: float) -> bool:
        return self.is_bounded and (self.low > value or self.high < value)

    def within(self, low: float, high: float) -> bool:
        return self.is_bounded and low <= self.low and self.high <= high

    def outside(self, low: float, high: float) -> bool:
        return self.high < low or self.low > high


@dataclass(frozen=True)
class OverLooks(Interval):
    """What the intervals of several looks leave together. All of them hold at once (Bonferroni), so that what one of
    them has excluded stays so, and a word that was found at one look is there at the next."""

    looks: tuple[Interval, Interval] = field(kw_only=True)
    is_even: ClassVar[bool] = False

    @property
    def counted(self) -> str:
        return self.looks[-1].counted

    def excludes(self, value: float) -> bool:
        return not self.is_open and any(look.excludes(value) for look in self.looks)

    def within(self, low: float, high: float) -> bool:
        return not self.is_open and any(look.within(low, high) for look in self.looks)

    def outside(self, low: float, high: float) -> bool:
        return not self.is_open and any(look.outside(low, high) for look in self.looks)


def over_looks(before: Interval, now: Interval) -> Interval:
    """The interval of a look together with those before it; without bounds where they contradict one another."""
    low, high = max(before.low, now.low), min(before.high, now.high)
    if before.is_open:
        return now
    if low > high:
        return replace(now, low=-math.inf, high=math.inf, unbounded="the looks contradict one another")
    if type(now) is Interval and (low, high) == (now.low, now.high):
        return now
    return OverLooks(now.mean, low, high, now.level, now.n, now.deviation, looks=(before, now))


def ended(interval: Interval, low: float, high: float) -> Interval:
    """What of an interval lies between values beyond which there are none; all of it where its mean is beyond, too."""
    if not low <= interval.mean <= high:
        return interval
    low = max(low, interval.low) if math.isfinite(interval.low) else interval.low
    high = min(high, interval.high) if math.isfinite(interval.high) else interval.high
    return replace(interval, low=low, high=high)


@dataclass(frozen=True)
class UnevenInterval(Interval):
    """One whose ends lie at different distances from the mean."""

    is_even: ClassVar[bool] = False

    @classmethod
    def of(cls, interval: Interval, unbounded: str) -> UnevenInterval:
        """The same ends; `unbounded` says why it has none, where nothing else does."""
        found = cls(**vars(interval))
        return found if found.is_bounded or found.unbounded else replace(found, unbounded=unbounded)


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values must be a non-empty list of finite numbers, got {list(values)!r}")
    return array


@dataclass(frozen=True)
class Rows:
    """What every test of a mean rests on, for many rows of values at once (R,); see `rows_of`."""

    n: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    has_spread: np.ndarray

    def t_bounds(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Student's t interval of each mean at `level` (assumes values near normal)."""
        with np.errstate(all="ignore"):
            half = stdtrit(self.n - 1, 0.5 + level / 2) * self.deviation / np.sqrt(self.n)
        return self.mean - half, self.mean + half


def rows_of(values_RS: np.ndarray) -> Rows:
    """Count, mean and deviation of the values of each row; NaN stands where a row has none.

    A row has a spread where its values differ by more than rounding: where they do not, a t test would be certain of
    anything.
    """
    known = np.isfinite(values_RS)
    n = known.sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(known, values_RS, 0.0).sum(axis=1) / n
        deviation = np.sqrt((np.where(known, values_RS - mean[:, None], 0.0) ** 2).sum(axis=1) / (n - 1))
        low, high = np.where(known, values_RS, np.inf).min(axis=1), np.where(known, values_RS, -np.inf).max(axis=1)
        spread = (high - low > ROUNDING * np.maximum(np.abs(low), np.abs(high))) & ((n < 2) | (deviation > 0))
    return Rows(n, mean, deviation, spread)


def has_spread(values: Sequence[float]) -> bool:
    return bool(rows_of(_finite(values)[None]).has_spread[0])


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of `values` with Student's t interval at `level` (assumes values near normal)."""
    rows = rows_of(_finite(values)[None])
    n, mean = int(rows.n[0]), float(rows.mean[0])
    if n < 2:
        return Interval(mean, -math.inf, math.inf, level, n, math.nan, "one seed")
    low, high = rows.t_bounds(level)
    return Interval(mean, float(low[0]), float(high[0]), level, n, float(rows.deviation[0]))


def paired_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """`mean_interval` of paired differences; without bounds where all are the same: no spread was seen."""
    plain = mean_interval(differences, level)
    if has_spread(differences):
        return plain
    return replace(plain, low=-math.inf, high=math.inf, unbounded=plain.unbounded or "no spread")


def median_interval(values: Sequence[float], level: float = 0.95, missing: int = 0) -> Interval:
    """The median of differences of which `missing` are not known, between bounds that hold whatever those were.

    The interval of the sign test (order statistics) of all, with the missing ones below everything for its lower end
    and above everything for its upper one; without bounds where the values are too few for that.
    """
    array = np.sort(_finite(values))
    rank = int(bdtrik((1 - level) / 2, array.size + missing, 0.5)) - missing
    exact = float(bdtr(rank + missing, array.size + missing, 0.5)) * 2 <= 1 - level
    rank = rank if exact else rank - 1
    low, high = (float(array[rank]), float(array[-1 - rank])) if rank >= 0 else (-math.inf, math.inf)
    deviation = float(array.std(ddof=1)) if array.size > 1 else math.nan
    unbounded = "" if rank >= 0 else f"{missing} of {array.size + missing} without a value"
    return Interval(float(np.median(array)), low, high, level, array.size, deviation, unbounded)


def sign_p(values: Sequence[float], missing: int = 0) -> float:
    """Two-sided p of the sign test, with `missing` more differences that speak against the known ones; ties do, too."""
    return float(sign_p_rows(_finite(values)[None], np.array([missing]))[0])


def sign_p_rows(values_RS: np.ndarray, missing_R: np.ndarray) -> np.ndarray:
    """`sign_p` of each row (R,); NaN stands where a row has no value."""
    n = np.isfinite(values_RS).sum(axis=1)
    against = n - np.maximum((values_RS > 0).sum(axis=1), (values_RS < 0).sum(axis=1)) + missing_R
    return np.asarray(np.minimum(1.0, 2 * bdtr(against, n + missing_R, 0.5)))


def bootstrap_interval(values: Sequence[float], level: float = 0.95, resamples: int = 9999) -> Interval:
    """The mean with a seeded bootstrap interval (BCa, Efron 1987), without bounds where nothing varies.

    It is too narrow below BOOTSTRAP_HOLDS values: at 95% it covers the mean of 4 normal values in about 80% of cases,
    of 8 in about 89%.
    """
    from scipy.stats import bootstrap  # costs as much as the rest of this package together

    array = _finite(values)
    plain = paired_interval(array.tolist(), level)
    if not plain.is_bounded:
        return plain
    result = bootstrap((array,), np.mean, confidence_level=level, method="BCa", n_resamples=resamples, rng=0)
    low, high = map(float, result.confidence_interval)
    return replace(plain, low=low, high=high)


def t_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test; nan with fewer than two differences or without spread."""
    return 2 * _t_tail(differences, 0.0) if has_spread(differences) else math.nan


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """p of the two one-sided t tests (TOST, Schuirmann 1987) that the mean difference lies within +-margin.

    nan without a margin, with fewer than two differences or without spread.
    """
    return _t_tail(differences, margin) if margin > 0 and has_spread(differences) else math.nan


def _t_tail(differences: Sequence[float], margin: float) -> float:
    """One-sided p that the mean is as far from zero as it is (margin 0), or within the margin."""
    array = _finite(differences)
    error = array.std(ddof=1) / math.sqrt(array.size)
    apart = margin - abs(array.mean()) if margin else abs(array.mean())
    return float(stdtr(array.size - 1, -apart / error))


def effect_size(differences: Sequence[float]) -> float:
    """Hedges' g_z: the mean paired difference in standard deviations of the differences (d_z, Cohen 1988) times Hedges'
    exact correction for few values, of n - 1 degrees of freedom (Hedges 1981; Lakens 2013).

    nan with fewer than three differences (it has no mean then) or without spread.
    """
    array = _finite(differences)
    freedom = array.size - 1
    if freedom < 2 or not has_spread(differences):
        return math.nan
    correction = math.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(correction * array.mean() / array.std(ddof=1))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip test: exact over all 2^n flips up to 16 differences, Monte Carlo (seeded) above.

    It assumes only that differences are symmetric about zero when there is no effect.
    """
    array = np.abs(_finite(differences))
    observed = abs(float(np.sum(differences)))
    tolerance = 1e-12 * float(array.sum())
    if array.size <= EXACT_SEEDS:
        sums = np.zeros(1)
        for value in array:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed - tolerance))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(MONTE_CARLO_DRAWS, array.size))
    extreme = int(np.sum(np.abs(signs @ array) >= observed - tolerance))
    return (extreme + 1) / (MONTE_CARLO_DRAWS + 1)


def smallest_sign_flip_p(n: int) -> float:
    """The smallest two-sided p that the sign-flip test of n differences can give: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - n))


def seeds_to_decide(comparisons: int = 1, alpha: float = 0.05) -> int:
    """The fewest seeds with which the sign-flip test can reach `alpha` after Holm over `comparisons`."""
    return math.ceil(math.log2(2 * max(comparisons, 1) / alpha))


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Holm-adjusted p values (Holm 1979), in the order given; controls the chance of any false alarm in the family.

    A test that could not be made (nan) stays nan and counts as one of the family: leaving it out would make the others
    look surer.
    """
    known = np.asarray(p_values, dtype=float)
    order = np.argsort(np.nan_to_num(known, nan=1.0), kind="stable")
    stepped = np.minimum(1.0, np.arange(known.size, 0, -1) * np.nan_to_num(known, nan=1.0)[order])
    adjusted = np.empty(known.size)
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(p) for p in np.where(np.isnan(known), np.nan, adjusted)]


def bonferroni(p: float, tests: float) -> float:
    return p if math.isnan(p) else min(1.0, tests * p)


def wins(differences: Sequence[float], better: str) -> float:
    """In how many pairs the first is better (ties count half); `differences` are first minus second."""
    array = np.asarray(differences, dtype=float) * (-1 if better == "lower" else 1)
    return float(np.sum(array > 0) + 0.5 * np.sum(array == 0))


def probability_better(
    first: Sequence[float], second: Sequence[float], better: str, failed_first: int = 0, failed_second: int = 0
) -> float:
    """P(A > B): the chance that a run of the first beats an independent run of the second, ties half (Mann-Whitney).

    Runs that failed (or diverged) count as worse than every value and tie with one another. nan without runs.
    """
    worst = math.inf if better == "lower" else -math.inf
    own, other = (
        np.asarray([*values, *[worst] * failed], dtype=float)
        for values, failed in ((first, failed_first), (second, failed_second))
    )
    if own.size == 0 or other.size == 0:
        return math.nan
    ahead = own[:, None] < other if better == "lower" else own[:, None] > other
    return float(ahead.mean() + 0.5 * (own[:, None] == other).mean())


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """Differences first - second over the seeds that both have; see `signed_sum`."""
    return {seed: signed_sum([(1, first[seed]), (-1, second[seed])]) for seed in sorted(first) if seed in second}


def signed_sum(terms: Sequence[tuple[int, float]]) -> float:
    """The sum of sign * value; zero where it is no more than rounding of the values."""
    total = math.fsum(sign * value for sign, value in terms)
    return total if abs(total) > ROUNDING * max(abs(value) for _, value in terms) else 0.0


def power_of_t(effect: float, n: int, alpha: float = 0.05) -> float:
    """The chance that n differences whose true mean is `effect` give p <= alpha; nan with fewer than two."""
    if n < 2 or not math.isfinite(effect):
        return math.nan
    critical, shift = float(stdtrit(n - 1, 1 - alpha / 2)), abs(effect) * math.sqrt(n)
    # Far from zero scipy gives nan for a tail that is nothing.
    below, beyond = np.nan_to_num([nctdtr(n - 1, shift, critical), nctdtr(n - 1, shift, -critical)])
    return float(1 - below + beyond)


def smallest_visible_effect(n: int, alpha: float = 0.05) -> float:
    """The effect that n differences see with chance POWER; nan with fewer than two."""
    if n < 2:
        return math.nan
    return float(nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 1 - alpha / 2))) / math.sqrt(n)


def seeds_to_see(effect: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The fewest seeds that see `effect` with chance `power`; inf beyond MOST_SEEDS, nan where it is not known."""
    if math.isnan(effect):
        return math.nan
    return _fewest(lambda n: power_of_t(effect, n, alpha) >= power)


def seeds_to_equate(effect: float, margin: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The fewest seeds whose interval at 1 - alpha lies within +-margin with chance `power`, if the mean is `effect`.

    An upper bound (Bonferroni over the two sides), close where the chance is high; inf outside the margin.
    """
    if math.isnan(effect) or math.isnan(margin):
        return math.nan
    if abs(effect) >= margin:
        return math.inf
    return _fewest(lambda n: _power_within(effect, margin, n, alpha) >= power)


def _power_within(effect: float, margin: float, n: int, alpha: float) -> float:
    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    shifts = [(margin - abs(effect)) * math.sqrt(n), (margin + abs(effect)) * math.sqrt(n)]
    missed = np.nan_to_num([nctdtr(n - 1, shift, critical) for shift in shifts])
    return float(1 - missed.sum())


def _fewest(enough: Callable[[int], bool]) -> float:
    """The smallest n from 2 on that is enough: more seeds are never worse."""
    fewest = 2 + bisect_left(range(2, MOST_SEEDS + 1), True, key=enough)
    return float(fewest) if fewest <= MOST_SEEDS else math.inf
