"""What is compared: a value a seed with what is missing, judged by the tests that its kind of values takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from attnlab.analysis import censoring, proportions, statistics
from attnlab.analysis.censoring import Bounds
from attnlab.analysis.proportions import Count
from attnlab.analysis.regrets import OF_REGRETS
from attnlab.analysis.statistics import Interval, UnevenInterval, ended, over_looks

UNKNOWN = "the best setting is not known"


@dataclass(frozen=True)
class Contrast:
    """One value a seed, and how many of the seeds that were asked for have none: `failed` ones never will, `pending`
    ones may.

    `reason` says in words what is missing; `is_partial` that the values rest on a part of the settings that were asked
    for; `beyond_chance` that more runs failed than chance explains (Fisher's exact test against the baseline); `waits`
    that this cannot be said before other runs are over. `before` is the contrast at the look before this one, which had
    `ratio` times as much of alpha. regrets: how far below and above the difference at the settings chosen that at the
    best settings may lie (see `regrets`); None where nothing was tuned. limits: beyond which there are no values.
    """

    values: dict[int, float]
    failed: int = 0
    pending: int = 0
    reason: str = ""
    is_partial: bool = False
    beyond_chance: bool = False
    waits: bool = False
    before: Contrast | None = None
    ratio: float = 1.0
    regrets: tuple[float, float] | None = field(default=None, kw_only=True)
    limits: tuple[float, float] = field(default=(-math.inf, math.inf), kw_only=True)
    is_mean: ClassVar[bool] = True  # judged by t, as a mean; with missing runs by signs, as a median
    fewest: ClassVar[int] = 2  # seeds that can decide anything

    @property
    def missing(self) -> int:
        return self.failed + self.pending

    @property
    def n(self) -> int:
        """The seeds of which something is known."""
        return len(self.values)

    @property
    def asked(self) -> int:
        return self.n + self.missing

    def wins(self, better: str) -> float:
        """In how many seeds it is on the better side of zero; see `statistics.wins`."""
        return statistics.wins(list(self.values.values()), better)

    def inside(self, low: float, high: float) -> str:
        """How the seeds lie to a bound, in words."""
        inside = sum(low <= value <= high for value in self.values.values())
        return f"{inside} of {len(self.values)} seeds inside the bound" if self.is_mean else self.counts

    @property
    def counts(self) -> str:
        """The runs that stand behind a difference of shares, or the seeds behind one of costs."""
        return ""

    @property
    def is_test(self) -> bool:
        """Whether so many seeds were asked for that it may be decided, however many failed: it counts in its family."""
        return self.asked >= self.fewest

    @property
    def is_open(self) -> bool:
        """Whether nothing may be said of these values yet: to stop as soon as some look sure would find too much."""
        return self.is_partial or self.waits or self.pending > 0

    @property
    def earlier(self) -> Contrast | None:
        """What it was at the look before, where that still counts."""
        return None if self.before is None or self.before.beyond_chance else self.before

    def interval(self, level: float) -> Interval:
        """Of what is compared: where settings were tuned, of the difference at the best of them. What the looks before
        have excluded stays so."""
        own = self.at_choices(level) if self.regrets is None else self._at_best(level, *self.regrets)
        found = over_looks(self.earlier.interval(1 - (1 - level) * self.ratio), own) if self.earlier else own
        return ended(found, *self.limits)

    def _at_best(self, level: float, below: float, above: float) -> Interval:
        chosen = self.at_choices(1 - (1 - level) * (1 - OF_REGRETS))
        moved = replace(chosen, low=chosen.low - below, high=chosen.high + above)
        if self.is_mean:
            return UnevenInterval.of(moved, UNKNOWN)
        return moved if moved.is_bounded else replace(moved, unbounded=moved.unbounded or UNKNOWN)

    def at_choices(self, level: float) -> Interval:
        """The t interval; with lost runs that of the median, which holds whatever they would have given; without bounds
        while runs are planned that are not over."""
        own = self._interval(level)
        if self.is_open:
            return replace(own, low=-math.inf, high=math.inf, unbounded=self.reason or "partial")
        return own

    @property
    def p(self) -> float:
        """Of the test behind the interval, or of a look before, as at this one; nan where nothing may be said."""
        own = math.nan if self.is_open else self._p_at_best()
        return float(np.fmin(own, self.earlier.p / self.ratio)) if self.earlier else own

    def _p_at_best(self) -> float:
        values = np.array(list(self.values.values()))
        if self.regrets is None or not values.size:
            return self._p(values)
        below, above = self.regrets
        # The difference has to be other than zero also where the regrets speak against it.
        moved = values + above if values.mean() < 0 else values - below
        if not np.isfinite(moved).all() or np.sign(moved.mean()) != np.sign(values.mean()):
            return 1.0
        return float(np.minimum(1.0, self._p(moved) / (1 - OF_REGRETS)))

    def _interval(self, level: float) -> Interval:
        values = list(self.values.values())
        if self.is_open or not self.failed:
            return statistics.paired_interval(values, level)
        found = statistics.median_interval(values, level, self.failed)
        return found if found.is_bounded else replace(found, unbounded=self.reason)

    def _p(self, values: np.ndarray) -> float:
        return statistics.sign_p(values.tolist(), self.failed) if self.failed else statistics.t_p(values.tolist())


@dataclass(frozen=True)
class ShareOfRuns(Contrast):
    """Values that are 0 or 1: their share."""

    is_mean: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def _interval(self, level: float) -> Interval:
        return proportions.share_of(Count(int(sum(self.values.values())), len(self.values), self.missing), level)

    def _p(self, values: np.ndarray) -> float:
        return math.nan


@dataclass(frozen=True)
class DifferenceOfShares(Contrast):
    """The share of one cell's runs minus that of another's; the runs are independent. `values` are differences by seed,
    for who asks for them: nothing is judged by them."""

    first: Count = field(kw_only=True)
    second: Count = field(kw_only=True)
    is_mean: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def _interval(self, level: float) -> Interval:
        return proportions.difference_of(self.first, self.second, level)

    @property
    def counts(self) -> str:
        return f"{self.first} against {self.second}"

    def _p(self, values: np.ndarray) -> float:
        return proportions.largest_fisher_p(self.first, self.second)


@dataclass(frozen=True)
class ChangeOfShare(Contrast):
    """The share of runs with one outcome minus that of the same runs with another; values are 1, 0 or -1."""

    is_mean: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def _interval(self, level: float) -> Interval:
        return proportions.change_of(list(self.values.values()), self.missing, level)

    @property
    def counts(self) -> str:
        changes = list(self.values.values())
        return f"{changes.count(1)} of {len(changes)} runs up, {changes.count(-1)} down"

    def _p(self, values: np.ndarray) -> float:
        changes = list(self.values.values())
        return proportions.mcnemar_p(changes.count(1), changes.count(-1), self.missing)


@dataclass(frozen=True)
class OfCosts(Contrast):
    """Costs to a target, or differences of two, which are known between `bounds` alone; `values` are those that are
    known exactly. Judged by the sign test, as a median, however complete they are: one rule, whatever came out."""

    bounds: Mapping[int, Bounds] = field(kw_only=True)
    is_difference: bool = field(kw_only=True)
    is_mean: ClassVar[bool] = False

    @classmethod
    def of(cls, contrast: Contrast, bounds: Mapping[int, Bounds], is_difference: bool) -> OfCosts:
        exact = {seed: one.low for seed, one in bounds.items() if one.is_exact}
        return cls(**{**vars(contrast), "values": exact}, bounds=bounds, is_difference=is_difference)

    @property
    def known(self) -> list[Bounds]:
        return list(self.bounds.values())

    @property
    def n(self) -> int:
        return len(self.bounds)

    @property
    def counts(self) -> str:
        less, more = censoring.signs(self.known)
        rest = [f"{self.asked - less - more} open"] if less + more < self.asked else []
        return ", ".join([f"less in {less} of {self.asked} seeds", f"more in {more}", *rest])

    def wins(self, better: str) -> float:
        return float(censoring.signs(self.known)[better == "higher"])

    def inside(self, low: float, high: float) -> str:
        sure = sum(low <= one.low and one.high <= high for one in self.known)
        return f"{sure} of {self.asked} seeds surely inside the bound"

    def _interval(self, level: float) -> Interval:
        never = "" if self.is_difference else censoring.never_of(self.known)
        reason = ", ".join(filter(None, [never, self.reason]))
        return censoring.median_of(self.known, level, self.missing, reason, self.is_difference)

    def _p_at_best(self) -> float:
        if self.regrets is None:
            return censoring.sign_p(self.known, self.missing)
        below, above = self.regrets
        less, more = censoring.signs(self.known)
        shift = above if less > more else -below
        moved = [Bounds(one.low + shift, one.high + shift) for one in self.known]
        fewer, others = censoring.signs(moved)
        if not math.isfinite(shift) or (less > more) != (fewer > others):
            return 1.0
        return float(min(1.0, censoring.sign_p(moved, self.missing) / (1 - OF_REGRETS)))


def count_of(values: Mapping[int, float], seeds: Iterable[int]) -> Count:
    """How many of the runs of these seeds succeeded; those without a value are missing."""
    asked = list(seeds)
    found = [values[seed] for seed in asked if seed in values]
    return Count(int(sum(found)), len(found), len(asked) - len(found))


def together(outcomes: Iterable[str]) -> str:
    """The outcome of runs of which all are needed: "pending" while one is, else "failed" where of one nothing is known,
    neither its value nor that it was censored."""
    found = set(outcomes)
    return "value" if found <= {"value", "censored"} else "pending" if "pending" in found else "failed"


def contrast_of(
    values: Mapping[int, float], outcomes: Mapping[str, Mapping[int, str]], unit: str = "runs", is_partial: bool = False
) -> Contrast:
    """The contrast of {whose: {seed: outcome}}, all of the same seeds; "" names the cell itself.

    unit: what failed, in words.
    """
    seeds = next(iter(outcomes.values()), {})
    found = Counter(together(of[seed] for of in outcomes.values()) for seed in seeds)
    parts = []
    for name, of in outcomes.items():
        gone = sum(outcome in ("failed", "unavailable") for outcome in of.values())
        if gone:
            parts.append(f"{gone} of {len(seeds)} {unit}{f' of {name}' if name else ''} lost")
    if found["pending"]:
        parts.append(f"{len(seeds) - found['pending']} of {len(seeds)} seeds in")
    return Contrast(dict(values), found["failed"], found["pending"], ", ".join(parts), is_partial)
