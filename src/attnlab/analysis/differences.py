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
    `effect_size` is Hedges' g_z; `p_equivalence` is of TOST with the study's `margin`; `share` is the family's alpha over its size, the
    strictest level that Holm may ask for. nan where a figure cannot be had.
    """

    values: dict[int, float]
    interval: Interval
    p_t: float
    p_t_holm: float
    p_sign_flip: float
    p_sign_flip_holm: float
    wins: float
    verdict: str
    effect_size: float
    p_equivalence: float
    p_equivalence_holm: float
    margin: float
    share: float

    @property
    def n(self) -> int:
        """How many seeds were paired."""
        return len(self.values)

    @cached_property
    def has_spread(self) -> bool:
        """Whether there is a spread to judge by: two seeds or more whose differences are not all the same."""
        return self.n > 1 and statistics.has_spread(list(self.values.values()))

    @property
    def smallest_effect(self) -> float:
        """The difference that so many seeds would see in 80% of cases at the level `share`, if the spread is that of these seeds."""
        return (
            self.interval.deviation * power.smallest_visible_effect(self.n, self.share) if self.has_spread else math.nan
        )

    @cached_property
    def seeds_to_see(self) -> float:
        """The seeds that would find the measured mean to be a difference, by the spread of these seeds; see power.seeds_to_see."""
        return power.seeds_to_see(self._in_deviations(self.interval.mean), self.share)

    @cached_property
    def seeds_to_equate(self) -> float:
        """The seeds that would find the measured mean to be within the margin, by the spread of these seeds; see power.seeds_to_equate."""
        mean, margin = self._in_deviations(self.interval.mean), self._in_deviations(self.margin)
        return power.seeds_to_equate(mean, margin, self.share)

    @property
    def seeds_to_settle(self) -> float:
        """The fewest seeds that would decide it one way or the other."""
        return min(self.seeds_to_see, self.seeds_to_equate) if self.has_spread else math.nan

    def _in_deviations(self, value: float) -> float:
        return value / self.interval.deviation if self.has_spread else math.nan

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


def _judged(pair: Mapping[int, float], row: tuple[float, ...], metric: Metric, share: float) -> Difference:
    p_t, p_t_holm, p_flip, p_flip_holm, p_same, p_same_holm, level = row
    values = list(pair.values())
    interval = paired_interval(values, level)
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
        margin=metric.margin,
        share=share,
    )


def verdict_of(interval: Interval, metric: Metric) -> str:
    """better, worse, same or undecided: what an interval of a difference says."""
    if interval.within(-metric.margin, metric.margin) and metric.margin > 0:
        return "same"
    if not interval.excludes(0.0):
        return "undecided"
    return "better" if (interval.mean < 0) == (metric.better == "lower") else "worse"
