"""What is compared by seed, judged as one family: one rule for pictures, tables, words and ranks.

The intervals of a family are simultaneous (Bonferroni): under the test's assumptions all of them hold in at least 95%
of studies. Every word follows from where its interval lies, so that a family has a false word in at most 5% of studies,
whatever is true and whatever the words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from attnlab.analysis import statistics
from attnlab.analysis.outcomes import Contrast
from attnlab.analysis.reader import Metric
from attnlab.analysis.statistics import ROUNDING, Interval, bootstrap_interval, median_interval, paired_interval

ALPHA = 0.05
DECIDED = ("better", "worse")  # the verdicts that part two cells
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Judged:
    """A contrast with its simultaneous interval, p of the test behind it (t; with missing runs the sign test at its
    worst) and the verdict.

    `verdict` is better, worse, same (the whole interval within the margin) or undecided; `reason` says what is missing,
    "" where nothing is. `tests` is the size of its family, `share` the family's alpha over that.
    """

    contrast: Contrast
    interval: Interval
    p: float
    p_adjusted: float
    verdict: str
    tests: int
    share: float

    @property
    def values(self) -> dict[int, float]:
        """{seed: value}."""
        return self.contrast.values

    @property
    def reason(self) -> str:
        """Which runs are missing, in words."""
        return self.contrast.reason

    @property
    def n(self) -> int:
        """How many seeds have a value."""
        return len(self.values)

    @cached_property
    def has_spread(self) -> bool:
        """Whether there is a spread to judge by: two seeds or more whose values are not all the same."""
        return self.n > 1 and statistics.has_spread(list(self.values.values()))

    @property
    def is_whole(self) -> bool:
        """Whether all seeds are in, with a spread to go by."""
        return self.has_spread and not self.contrast.missing


def family_size(contrasts: Mapping[Name, Contrast]) -> int:
    """How many tests a family has: those that were asked of two seeds or more, however many of their runs failed."""
    return max(1, sum(contrast.asked > 1 for contrast in contrasts.values()))


def judge(contrasts: Mapping[Name, Contrast], metric: Metric, alpha: float = ALPHA) -> dict[Name, Judged]:
    """Judges contrasts as one family (see `family_size`). Those without a value are left out, and still count."""
    size = family_size(contrasts)
    return {name: _judged(one, metric, alpha / size, size) for name, one in contrasts.items() if one.values}


def _judged(contrast: Contrast, metric: Metric, share: float, size: int) -> Judged:
    interval = interval_of(contrast, 1 - share)
    values = list(contrast.values.values())
    p = statistics.sign_p(values, contrast.missing) if contrast.missing else statistics.t_p(values)
    p = math.nan if contrast.is_partial else p
    verdict = "undecided" if contrast.beyond_chance else verdict_of(interval, metric)
    return Judged(contrast, interval, p, statistics.bonferroni([p], size)[0], verdict, size, share)


def interval_of(contrast: Contrast, level: float) -> Interval:
    """The t interval; with missing runs that of the median, which holds whatever they would have given."""
    values = list(contrast.values.values())
    if contrast.is_partial:
        unknown = contrast.reason or "partial"
        return replace(paired_interval(values, level), low=-math.inf, high=math.inf, unbounded=unknown)
    if not contrast.missing:
        return paired_interval(values, level)
    found = median_interval(values, level, contrast.missing)
    return found if found.is_bounded else replace(found, unbounded=contrast.reason)


def verdict_of(interval: Interval, metric: Metric) -> str:
    """better, worse, same or undecided: what an interval of a difference says."""
    if interval.within(-metric.margin, metric.margin) and metric.margin > 0:
        return "same"
    if not interval.excludes(0.0):
        return "undecided"
    return "better" if (interval.high < 0) == (metric.better == "lower") else "worse"


@dataclass(frozen=True)
class Difference(Judged):
    """A paired difference to the baseline, cell minus baseline by seed.

    `wins` counts the seeds in which the cell is better. `effect_size` is Hedges' g_z; `p_equivalence` is of TOST with
    the study's `margin`. Adjusted p values are for the whole family. nan where a figure cannot be had, as where runs
    are missing.
    """

    p_sign_flip: float
    p_sign_flip_adjusted: float
    wins: float
    effect_size: float
    p_equivalence: float
    p_equivalence_adjusted: float
    margin: float

    @property
    def smallest_effect(self) -> float:
        """The difference that so many seeds would see in 80% of cases at the level `share`, with this spread."""
        seen = statistics.smallest_visible_effect(self.n, self.share)
        return self.interval.deviation * seen if self.has_spread else math.nan

    @cached_property
    def seeds_to_see(self) -> float:
        """The seeds that would find the measured mean to be a difference, with this spread."""
        return statistics.seeds_to_see(self._in_deviations(self.interval.mean), self.share)

    @cached_property
    def seeds_to_equate(self) -> float:
        """The seeds that would find the measured mean to be within the margin, with this spread."""
        mean, margin = self._in_deviations(self.interval.mean), self._in_deviations(self.margin)
        return statistics.seeds_to_equate(mean, margin, self.share)

    @property
    def seeds_to_settle(self) -> float:
        """The fewest seeds that would decide it one way or the other."""
        return min(self.seeds_to_see, self.seeds_to_equate) if self.has_spread else math.nan

    def _in_deviations(self, value: float) -> float:
        return value / self.interval.deviation if self.has_spread else math.nan

    @cached_property
    def bootstrap(self) -> Interval:
        """The bootstrap interval (BCa) at the level of `interval`; without bounds where runs are missing."""
        if self.contrast.missing:
            return Interval(self.interval.mean, -math.inf, math.inf, self.interval.level, self.n, math.nan, self.reason)
        return bootstrap_interval(list(self.values.values()), self.interval.level)


def judge_differences(
    contrasts: Mapping[Name, Contrast], metric: Metric, alpha: float = ALPHA
) -> dict[Name, Difference]:
    """`judge` for differences to the baseline, with the figures that stand beside the verdict."""
    return {name: _difference(found, metric) for name, found in judge(contrasts, metric, alpha).items()}


def _difference(judged: Judged, metric: Metric) -> Difference:
    values = list(judged.values.values())
    whole = not judged.contrast.missing and len(values) > 1
    p_flip = statistics.sign_flip_p(values) if whole else math.nan
    p_same = statistics.equivalence_p(values, metric.margin) if whole else math.nan
    flip, same = statistics.bonferroni([p_flip, p_same], judged.tests)
    return Difference(
        **vars(judged),
        p_sign_flip=p_flip,
        p_sign_flip_adjusted=flip,
        wins=statistics.wins(values, metric.better),
        effect_size=statistics.effect_size(values) if whole else math.nan,
        p_equivalence=p_same,
        p_equivalence_adjusted=same,
        margin=metric.margin,
    )


def rank_intervals(
    values: Mapping[str, Mapping[int, float]],
    asked: Mapping[str, set[int]],
    metric: Metric,
    baseline: str | None = None,
    verdicts: Mapping[str, str] | None = None,
    size: int = 0,
    alpha: float = ALPHA,
) -> dict[str, tuple[int, int]]:
    """The ranks that each of `values` ({cell: {seed: value}}) may hold, (best, worst): behind those surely better,
    before those surely worse.

    Differences to the baseline and ranks are one family: together they hold a false word in at most a share `alpha` of
    studies. A pair with the baseline is what `verdicts` say of it ({cell: verdict}, `size` tests at alpha / size each).
    The other pairs are tested at what these leave: alpha times the share of the baseline's tests that were decided,
    over the number of pairs. (If m0 of the m differences to the baseline are truly none, a false one is found there
    with a chance of at most alpha m0 / m; and where none is found, the other pairs have at most alpha (m - m0) / m.)
    Without a baseline the pairs have alpha whole. asked: the seeds that were asked of each cell; those without a value
    count against every finding.
    """
    names = list(values)
    ahead = np.zeros((len(names), len(names)), dtype=bool)
    rest = [i for i, name in enumerate(names) if name != baseline]
    others = sum(cell != baseline for cell in asked)
    pairs = others * (others - 1) / 2
    decided = {name: verdict for name, verdict in (verdicts or {}).items() if verdict in DECIDED}
    left = alpha * len(decided) / max(1, size) if baseline is not None else alpha
    if left and pairs:
        tables = [values[names[i]] for i in rest], [asked[names[i]] for i in rest]
        ahead[np.ix_(rest, rest)] = _ahead(*tables, metric, left / pairs)
    if baseline in names:
        base = names.index(baseline)
        for name, verdict in decided.items():
            first, second = (names.index(name), base) if verdict == "better" else (base, names.index(name))
            ahead[first, second] = True
    before, behind = ahead.sum(axis=0), ahead.sum(axis=1)
    return {name: (1 + int(before[i]), len(names) - int(behind[i])) for i, name in enumerate(names)}


def _ahead(cells: list[Mapping[int, float]], asked: list[set[int]], metric: Metric, share: float) -> np.ndarray:
    """Which cell is surely better than which, (cells, cells): by the tests of `_judged` at the level `share`."""
    seeds = sorted(set().union(*asked, *cells))
    sign = 1.0 if metric.better == "lower" else -1.0
    values_RS = np.array([[sign * cell.get(seed, np.nan) for seed in seeds] for cell in cells]).reshape(len(cells), -1)
    asked_RS = np.array([[seed in of or seed in cell for seed in seeds] for of, cell in zip(asked, cells, strict=True)])
    ahead = np.zeros((len(cells), len(cells)), dtype=bool)
    for i, (own_S, asked_S) in enumerate(zip(values_RS, asked_RS.reshape(values_RS.shape), strict=True)):
        scale = np.maximum(np.abs(own_S), np.abs(values_RS))
        differences_RS = np.where(np.abs(own_S - values_RS) <= ROUNDING * scale, 0.0, own_S - values_RS)
        missing_R = (asked_S & asked_RS & ~np.isfinite(differences_RS)).sum(axis=1)
        rows = statistics.rows_of(differences_RS)
        low, high = rows.t_bounds(1 - share)
        by_t = (rows.n > 1) & rows.has_spread & (high < 0) & (low < -metric.margin)
        is_less = (differences_RS < 0).sum(axis=1) > (differences_RS > 0).sum(axis=1)
        by_sign = is_less & (statistics.sign_p_rows(differences_RS, missing_R) <= share)
        ahead[i] = np.where(missing_R > 0, by_sign, by_t)
    return ahead
