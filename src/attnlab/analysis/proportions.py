"""Statistics of outcomes that are 0 or 1 a run: intervals of a share and of the difference of two, and exact tests.

Runs are independent here, not paired by seed: a seed says little about whether another model's run succeeds. Two
outcomes of one and the same run are paired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

from scipy.special import bdtr, betaincinv, ndtri

from attnlab.analysis.censoring import median_of, never_of
from attnlab.analysis.reader import Study
from attnlab.analysis.statistics import Interval, ended, mean_interval
from attnlab.training.targets import target_of


@dataclass(frozen=True)
class Count:
    """How many of n runs succeeded, and of how many more nobody knows it."""

    successes: int
    n: int
    missing: int = 0

    @property
    def worst(self) -> tuple[int, int]:
        """(successes, runs), had all the missing ones failed."""
        return self.successes, self.n + self.missing

    @property
    def best(self) -> tuple[int, int]:
        """(successes, runs), had all the missing ones succeeded."""
        return self.successes + self.missing, self.n + self.missing

    @property
    def share(self) -> float:
        return self.successes / self.n

    def __str__(self) -> str:
        return f"{self.successes} of {self.n}"


@dataclass(frozen=True)
class Share(Interval):
    """A share of runs with its exact interval (Clopper and Pearson 1934), which holds whatever the missing ones would
    have given."""

    count: Count = field(kw_only=True)
    is_even: ClassVar[bool] = False

    @property
    def counted(self) -> str:
        return str(self.count)


@dataclass(frozen=True)
class ShareDifference(Interval):
    """A difference of shares. `low` and `high` are what is shown, `p` is of the exact test that there is none, and
    `sure` are bounds that hold at `level` at least, whatever the shares are.

    A word takes both: that it is not zero, the interval and the test; that it lies on one side of another bound, or
    within some, the interval and the sure bounds.
    """

    p: float = field(kw_only=True)
    sure: tuple[float, float] = field(kw_only=True)
    is_even: ClassVar[bool] = False

    def excludes(self, value: float) -> bool:
        return self._is_above(value) or self._is_below(value)

    def within(self, low: float, high: float) -> bool:
        return self._is_above(low, or_at=True) and self._is_below(high, or_at=True)

    def outside(self, low: float, high: float) -> bool:
        return self._is_above(high) or self._is_below(low)

    def _is_above(self, value: float, or_at: bool = False) -> bool:
        if value == 0.0:
            return self.low > 0.0 and self.p <= 1 - self.level
        nearest = min(self.low, self.sure[0])
        return nearest > value or (or_at and nearest == value)

    def _is_below(self, value: float, or_at: bool = False) -> bool:
        return replace(self, low=-self.high, sure=(-self.sure[1], -self.sure[0]))._is_above(-value, or_at)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: it covers the true one in at least `level` of cases, whatever that is."""
    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    z, share = float(ndtri(0.5 + level / 2)), successes / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return low if successes else 0.0, high if successes < n else 1.0


def newcombe(first: Count, second: Count, level: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two independent shares from Wilson's of each (Newcombe 1998, method 10), with
    the missing runs as they are worst for either end: both ends grow with the first share and fall with the second."""
    return _square_and_add(first.worst, second.best, level)[0], _square_and_add(first.best, second.worst, level)[1]


def _square_and_add(first: tuple[int, int], second: tuple[int, int], level: float) -> tuple[float, float]:
    (low, high), (other_low, other_high) = wilson(*first, level), wilson(*second, level)
    share, other = first[0] / first[1], second[0] / second[1]
    down, up = math.hypot(share - low, other_high - other), math.hypot(high - share, other - other_low)
    return max(-1.0, share - other - down), min(1.0, share - other + up)


def sure_bounds(first: Count, second: Count, level: float) -> tuple[float, float]:
    """Bounds of the difference of two shares that hold in at least `level` of cases: from the exact interval of each at
    half the error (Bonferroni), the missing runs as they are worst."""
    each = (1 + level) / 2
    low = clopper_pearson(*first.worst, each)[0] - clopper_pearson(*second.best, each)[1]
    return low, clopper_pearson(*first.best, each)[1] - clopper_pearson(*second.worst, each)[0]


@lru_cache(maxsize=1 << 16)
def fisher_p(successes: int, n: int, other_successes: int, other_n: int) -> float:
    """Two-sided p of Fisher's exact test that two shares are the same."""
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together

    table = [[successes, n - successes], [other_successes, other_n - other_successes]]
    return min(1.0, float(fisher_exact(table).pvalue))


def largest_fisher_p(first: Count, second: Count) -> float:
    """The largest p that Fisher's test can give, whatever the missing runs would have given."""
    (low, n), (other_high, other_n) = first.worst, second.best
    high, other_low = first.best[0], second.worst[0]
    if low * other_n <= other_high * n and high * other_n >= other_low * n:
        return 1.0  # they may be the same, as nearly as so many runs can be
    outcomes = itertools.product(range(low, high + 1), range(other_low, other_high + 1))
    return max(fisher_p(successes, n, other, other_n) for successes, other in outcomes)


def smallest_fisher_p(n: int, other_n: int) -> float:
    """The smallest p that Fisher's test of so many runs can give."""
    return min(1.0, float(1 / math.comb(n + other_n, n)) * (2 if n == other_n else 1))


def runs_to_decide(tests: int = 1, alpha: float = 0.05) -> int:
    """The fewest runs of each of two cells with which Fisher's test can reach `alpha` over so many tests
    (Bonferroni)."""
    return next(n for n in itertools.count(1) if smallest_fisher_p(n, n) * tests <= alpha)


def mcnemar_p(up: int, down: int, missing: int = 0) -> float:
    """Two-sided p of McNemar's exact test that as many runs change up as down, with the missing ones against it."""
    fewer, changed = min(up, down) + missing, up + down + missing
    return min(1.0, 2 * float(bdtr(fewer, changed, 0.5)))


def paired_bounds(up: int, down: int, n: int, missing: int, level: float) -> tuple[float, float]:
    """Bounds of the share of n runs that change up, minus that which change down, that hold in at least `level` of
    cases: from the exact interval of each at half the error (Bonferroni), the missing runs as they are worst."""
    each = (1 + level) / 2
    rises, falls = (Count(changed, n, missing) for changed in (up, down))
    low = clopper_pearson(*rises.worst, each)[0] - clopper_pearson(*falls.best, each)[1]
    high = clopper_pearson(*rises.best, each)[1] - clopper_pearson(*falls.worst, each)[0]
    return low, high


def share_of(count: Count, level: float = 0.95) -> Share:
    low, high = clopper_pearson(*count.worst, level)[0], clopper_pearson(*count.best, level)[1]
    return Share(count.share, low, high, level, count.n, math.nan, count=count)


@lru_cache(maxsize=1 << 16)
def difference_of(first: Count, second: Count, level: float) -> ShareDifference:
    """The first share minus the second, of independent runs."""
    low, high = newcombe(first, second, level)
    p, sure = largest_fisher_p(first, second), sure_bounds(first, second, level)
    n = min(first.n, second.n)
    return ShareDifference(first.share - second.share, low, high, level, n, math.nan, p=p, sure=sure)


def change_of(changes: Sequence[float], missing: int, level: float) -> ShareDifference:
    """The mean of changes of 1, 0 or -1, each of one run."""
    up, down = (sum(change == sign for change in changes) for sign in (1, -1))
    low, high = paired_bounds(up, down, len(changes), missing, level)
    p, mean = mcnemar_p(up, down, missing), (up - down) / len(changes)
    return ShareDifference(mean, low, high, level, len(changes), math.nan, p=p, sure=(low, high))


def says_proportion(study: Study, metric: str) -> bool:
    """Whether the runs say of a metric that it is 0 or 1 a run."""
    known = study.known_metric(metric)
    return known is not None and known.is_proportion


def is_proportion(study: Study, metric: str) -> bool:
    """Whether the runs say of a metric that it is 0 or 1 a run, and so it is."""
    return says_proportion(study, metric) and all(run.final.get(metric, 0) in (0, 1) for run in study.runs.values())


def described(study: Study, cell: str, metric: str) -> Interval | None:
    """What describes the values of a cell at 95%, each by itself: the share where they are 0 or 1, the median where
    they are costs to a target, else the mean with Student's t interval, which ends where the metric does; None without
    a value."""
    if target_of(metric):
        costs = list(study.costs(cell, metric).values())
        return median_of(costs, 0.95, reason=never_of(costs)) if costs else None
    values = list(study.values(cell, metric).values())
    if not values:
        return None
    if is_proportion(study, metric):
        return share_of(Count(int(sum(values)), len(values)))
    return ended(mean_interval(values), *study.limits(metric))
