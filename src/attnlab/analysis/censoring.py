"""Statistics of what is known between bounds alone, as the cost to a target of a run that never got there: medians by
the sign test, wins, and tests that do not pair runs by seed.

A difference counts where its sign is sure. All else, ties and pairs in which neither run got there among them, counts
against any finding, so that under no effect the sign test errs in at most its share of studies, however runs are
censored: each sure sign is a sign of the costs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.special import bdtr

from attnlab.analysis.statistics import Interval

DIGITS = 4  # of a bound in words


class Bounds(NamedTuple):
    """What is known of a figure: it lies from `low` to `high`, both infinite for one that there never is."""

    low: float
    high: float

    @property
    def is_exact(self) -> bool:
        return self.low == self.high and math.isfinite(self.low)

    @property
    def is_reached(self) -> bool:
        return math.isfinite(self.high)

    def minus(self, other: Bounds) -> Bounds:
        """Bounds of the difference; what two infinities leave is open."""
        low, high = self.low - other.high, self.high - other.low
        return Bounds(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)

    def over(self, other: Bounds) -> Bounds:
        """Bounds of the ratio of two figures that are not below zero."""
        low = 0.0 if math.isinf(other.high) or not other.high else self.low / other.high
        return Bounds(low, math.inf if math.isinf(self.high) or other.low <= 0 else self.high / other.low)

    def __str__(self) -> str:
        """ "640"; "> 800" where it had not got there by then, "<= 100" where it had by the first look, "never"."""
        if self.low == self.high:
            return "never" if math.isinf(self.low) else in_words(self.low)
        if math.isinf(self.high):
            return f"> {in_words(self.low)}" if self.low > -math.inf else "open"
        return f"<= {in_words(self.high)}"


def in_words(value: float, sign: bool = False) -> str:
    """A bound with so many digits as are read: 640, 1.638M, 2.35e+15, inf."""
    size = abs(value)
    for unit, suffix in ((1e9, "G"), (1e6, "M")):
        if unit <= size < 1e12:
            return f"{value / unit:{'+' if sign else ''}.{DIGITS}g}{suffix}"
    shown = f"{value:{'+' if sign else ''}.{DIGITS}g}"
    return f"{value:{'+' if sign else ''}.0f}" if 1e4 <= size < 1e6 else shown


@dataclass(frozen=True)
class CensoredMedian(Interval):
    """A median that is known between the bounds `between`, with the sign test's interval, of which an end may be
    infinite. `mean` is the median where it is known exactly, else nan."""

    between: Bounds = field(kw_only=True)
    sign: bool = field(kw_only=True)  # whether it is said with one, as a difference is
    is_even: ClassVar[bool] = False

    @property
    def counted(self) -> str:
        return "" if self.between.is_exact else _signed(self.between) if self.sign else str(self.between)

    @property
    def position(self) -> float:
        """Where it stands in an order or a picture: at its upper bound, else at the lower."""
        return self.between.high if math.isfinite(self.between.high) else self.between.low

    @property
    def is_beyond(self) -> bool:
        return math.isinf(self.between.high)

    def excludes(self, value: float) -> bool:
        return self.low > value or self.high < value

    def within(self, low: float, high: float) -> bool:
        return low <= self.low and self.high <= high


def _signed(between: Bounds) -> str:
    low, high = (in_words(end, sign=True) for end in between)
    if math.isinf(between.low) and math.isinf(between.high):
        return "open" if between.low < between.high else low
    return f"> {low}" if math.isinf(between.high) else f"< {high}" if math.isinf(between.low) else f"{low} to {high}"


def median_of(
    known: Sequence[Bounds], level: float, missing: int = 0, reason: str = "", sign: bool = False
) -> CensoredMedian:
    """The median of figures that are known between bounds, with the interval of the sign test (order statistics), which
    holds wherever the figures lie between theirs; `missing` further ones may lie anywhere.

    reason: why figures are missing, or never were, in words. sign: whether it is a difference.
    """
    lows, highs = sorted(one.low for one in known), sorted(one.high for one in known)
    n = len(known) + missing
    rank = int(np.sum(2 * bdtr(np.arange((n + 1) // 2), n, 0.5) <= 1 - level)) - 1 - missing
    low, high = (lows[rank], highs[-1 - rank]) if rank >= 0 else (-math.inf, math.inf)
    between = Bounds(_middle(lows, min), _middle(highs, max))
    mean = between.low if between.is_exact else math.nan
    is_said = reason and (low, high) == between  # no more than the median itself
    ends = (
        ""
        if is_said or (math.isinf(low) and math.isinf(high))
        else " to ".join(in_words(end, sign) for end in (low, high))
    )
    why = ", ".join(filter(None, [ends, reason])) or f"{n} seed{'s' * (n != 1)}"
    unbounded = why if math.isinf(low) or math.isinf(high) else ""
    return CensoredMedian(mean, low, high, level, len(known), math.nan, unbounded, between=between, sign=sign)


def _middle(ordered: Sequence[float], of: Callable[[float, float], float]) -> float:
    """The median of ordered figures; between two of which one is infinite, what is sure `of` the two."""
    first, second = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (first + second) / 2 if math.isfinite(first) and math.isfinite(second) else of(first, second)


def never_of(known: Sequence[Bounds]) -> str:
    """ "2 of 6 never": how many never got there, as far as they went; empty where all did."""
    never = sum(math.isinf(one.high) for one in known)
    return f"{never} of {len(known)} never" if never else ""


def signs(known: Sequence[Bounds]) -> tuple[int, int]:
    """How many are surely below zero, and how many above."""
    return sum(one.high < 0 for one in known), sum(one.low > 0 for one in known)


def sign_p(known: Sequence[Bounds], missing: int = 0) -> float:
    """Two-sided p of the sign test, with all that is not sure, and the missing ones, against the others."""
    n = len(known) + missing
    return min(1.0, 2 * float(bdtr(n - max(signs(known)), n, 0.5))) if n else math.nan


def ahead_of(
    cells: Sequence[Mapping[int, Bounds]], asked: Sequence[set[int]], share: float, regrets: Sequence[float]
) -> np.ndarray:
    """Which cell has surely lower figures than which, (cells, cells): by the sign test over seeds at `share`, of the
    seeds that were `asked` of both; also where the second's figures are less by its regret."""
    seeds = sorted(set().union(*asked))
    nothing = Bounds(math.nan, math.nan)
    bounds_RSE = np.array([[cell.get(seed, nothing) for seed in seeds] for cell in cells], dtype=float)
    low_RS, high_RS = bounds_RSE.reshape(len(cells), -1, 2).transpose(2, 0, 1)
    asked_RS = np.array([[seed in of for seed in seeds] for of in asked])
    ahead = np.zeros((len(cells), len(cells)), dtype=bool)
    for i, is_asked_S in enumerate(asked_RS):
        n_R = (asked_RS & is_asked_S).sum(axis=1)
        less_R = (high_RS[i] < low_RS - np.array(regrets)[:, None]).sum(axis=1)
        ahead[i] = (2 * less_R > n_R) & (2 * bdtr(n_R - less_R, n_R, 0.5) <= share)
    return ahead


def probability_less(first: Sequence[Bounds], second: Sequence[Bounds]) -> float:
    """The chance that one of the first is below an independent one of the second; what is not sure counts half. nan
    without figures."""
    if not first or not second:
        return math.nan
    less, more = (sum(one.high < other.low for one in a for other in b) for a, b in ((first, second), (second, first)))
    return 0.5 + (less - more) / (2 * len(first) * len(second))


def logrank_p(first: Sequence[Bounds], second: Sequence[Bounds]) -> float:
    """Two-sided p of the log-rank test (Mantel 1966) that runs of both reach the target at one rate, unpaired: of what
    has an upper bound that is when it was reached, the others leave at their lower bound. It is approximate, by the
    chi-square distribution. nan where none was reached."""
    reached = [one.high for one in (*first, *second) if math.isfinite(one.high)]
    if not reached or not first or not second:
        return math.nan
    from scipy.stats import CensoredData, logrank  # costs as much as the rest of this package together

    beyond = 2 * max([*reached, *(one.low for one in (*first, *second) if math.isfinite(one.low))]) + 1.0

    def data(known: Sequence[Bounds]) -> CensoredData:
        got = [one.high for one in known if math.isfinite(one.high)]
        return CensoredData(got, right=[min(one.low, beyond) for one in known if math.isinf(one.high)])

    with np.errstate(invalid="ignore"):  # nobody left to compare at any time: nothing speaks against one rate
        p = float(logrank(data(first), data(second)).pvalue)
    return p if math.isfinite(p) else 1.0
