"""Paired differences to a reference, judged as one family: one rule for pictures, tables and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from attnlab.analysis import power, statistics
from attnlab.analysis.reader import Metric
from attnlab.analysis.statistics import Interval, bootstrap_interval, paired_interval

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A paired difference to a reference, cell minus reference by seed, with its interval at the Holm-adjusted level.

    `verdict` is better, worse, same (the whole interval within the margin) or undecided; `wins` counts the seeds in which the cell is better.
    `effect_size` is Hedges' g_z; `p_equivalence` is of TOST with the study's margin. `smallest_effect` is the difference, in the metric's
    unit, that so many seeds would see with a chance of 80% at the family's strictest level (`alpha` over the number of comparisons), and
    `seeds_to_see` and `seeds_to_equate` are the seeds that would show the measured mean to be a difference, or one within the margin; all
    three from the spread of these seeds. nan where a figure cannot be had.
    """

    values: dict[int, float]
    interval: Interval
    p_t: float
    p_t_holm: float
    p_sign_flip: float
    p_sign_flip_holm: float
    wins: float
    verdict: str
    effect_size: float = math.nan
    p_equivalence: float = math.nan
    p_equivalence_holm: float = math.nan
    smallest_effect: float = math.nan
    seeds_to_see: float = math.nan
    seeds_to_equate: float = math.nan

    @property
    def n(self) -> int:
        """How many seeds were paired."""
        return len(self.values)

    @property
    def has_spread(self) -> bool:
        """Whether there is a spread to judge by: two seeds or more whose differences are not all the same."""
        return self.n > 1 and statistics.has_spread(list(self.values.values()))

    @property
    def seeds_to_settle(self) -> float:
        """The fewest seeds that would decide it one way or the other."""
        return min(self.seeds_to_see, self.seeds_to_equate) if self.has_spread else math.nan

    @cached_property
    def bootstrap(self) -> Interval:
        """The bootstrap interval (BCa) at the level of `interval`; too narrow below statistics.BOOTSTRAP_HOLDS seeds."""
        return bootstrap_interval(list(self.values.values()), self.interval.level)


def judge_family(
    pairs: Mapping[str, Mapping[int, float]], metric: Metric, alpha: float = ALPHA
) -> dict[str, Difference]:
    """Judges paired differences ({name: {seed: difference}}) as one family: Holm-adjusted p values and intervals at the same level.

    The family are those with two seeds or more. The chance of calling any difference better or worse that is zero is at most `alpha`; that
    of calling any of m the same that is as large as the margin, alpha / 2 (1 + 1/2 + ... + 1/m), and alpha / 2 of a single one.
    """
    tested = [name for name, pair in pairs.items() if len(pair) >= 2]
    lists = {name: list(pair.values()) for name, pair in pairs.items()}
    p_t = [statistics.t_p(lists[name]) for name in tested]
    p_flip = [statistics.sign_flip_p(lists[name]) for name in tested]
    p_same = [statistics.equivalence_p(lists[name], metric.margin) for name in tested]
    columns = [p_t, statistics.holm(p_t), p_flip, statistics.holm(p_flip), p_same, statistics.holm(p_same)]
    rows = dict(zip(tested, zip(*columns, statistics.holm_levels(p_t, alpha), strict=True), strict=True))
    untested = (*[math.nan] * len(columns), 1 - alpha)
    share = alpha / max(1, len(tested))
    return {name: _judged(pair, rows.get(name, untested), metric, share) for name, pair in pairs.items()}


def _judged(pair: Mapping[int, float], row: tuple[float, ...], metric: Metric, alpha: float) -> Difference:
    p_t, p_t_holm, p_flip, p_flip_holm, p_same, p_same_holm, level = row
    values = list(pair.values())
    interval = paired_interval(values, level)
    smallest, to_see, to_equate = _power(interval, metric.margin, alpha)
    return Difference(
        dict(pair),
        interval,
        p_t,
        p_t_holm,
        p_flip,
        p_flip_holm,
        wins=statistics.wins(values, metric.better),
        verdict=verdict_of(interval, metric),
        effect_size=statistics.effect_size(values),
        p_equivalence=p_same,
        p_equivalence_holm=p_same_holm,
        smallest_effect=smallest,
        seeds_to_see=to_see,
        seeds_to_equate=to_equate,
    )


def _power(interval: Interval, margin: float, alpha: float) -> tuple[float, float, float]:
    """The smallest effect that these seeds can see, and the seeds that would see the effect or equate it; nan without a spread."""
    if not interval.is_bounded or not math.isfinite(interval.deviation):
        return math.nan, math.nan, math.nan
    effect, within = interval.mean / interval.deviation, margin / interval.deviation
    smallest = interval.deviation * power.smallest_visible_effect(interval.n, alpha)
    return smallest, power.seeds_to_see(effect, alpha), power.seeds_to_equate(effect, within, alpha)


def verdict_of(interval: Interval, metric: Metric) -> str:
    """better, worse, same or undecided: what an interval of a difference says."""
    if interval.within(-metric.margin, metric.margin) and metric.margin > 0:
        return "same"
    if not interval.excludes(0.0):
        return "undecided"
    return "better" if (interval.mean < 0) == (metric.better == "lower") else "worse"
