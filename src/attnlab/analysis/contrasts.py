"""What is compared: a value a seed with what is missing, judged by the tests that its kind of values takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from attnlab.analysis import proportions, statistics
from attnlab.analysis.proportions import Count
from attnlab.analysis.regrets import OF_REGRETS
from attnlab.analysis.statistics import Interval, UnevenInterval

UNKNOWN = "the best setting is not known"


@dataclass(frozen=True)
class Contrast:
    """One value a seed, and how many of the seeds that were asked for have none: `failed` ones never will, `pending`
    ones may.

    `reason` says in words what is missing; `is_partial` that the values rest on a part of the settings that were asked
    for; `beyond_chance` that more runs failed than chance explains (Fisher's exact test against the baseline). regrets:
    how far below and above the difference at the settings chosen that at the best settings may lie (see `regrets`);
    None where nothing was tuned.
    """

    values: dict[int, float]
    failed: int = 0
    pending: int = 0
    reason: str = ""
    is_partial: bool = False
    beyond_chance: bool = False
    regrets: tuple[float, float] | None = field(default=None, kw_only=True)
    is_mean: ClassVar[bool] = True  # judged by t, as a mean; with missing runs by signs, as a median
    fewest: ClassVar[int] = 2  # seeds that can decide anything

    @property
    def missing(self) -> int:
        return self.failed + self.pending

    @property
    def asked(self) -> int:
        return len(self.values) + self.missing

    @property
    def counts(self) -> str:
        """The runs that stand behind a difference of shares."""
        return ""

    @property
    def is_test(self) -> bool:
        """Whether so many seeds were asked for that it may be decided, however many failed: it counts in its family."""
        return self.asked >= self.fewest

    def interval(self, level: float) -> Interval:
        """Of what is compared: where settings were tuned, of the difference at the best of them."""
        if self.regrets is None:
            return self.at_choices(level)
        chosen = self.at_choices(1 - (1 - level) * (1 - OF_REGRETS))
        below, above = self.regrets
        return UnevenInterval.of(replace(chosen, low=chosen.low - below, high=chosen.high + above), UNKNOWN)

    @property
    def p(self) -> float:
        """Of the test behind the interval; nan where the values are partial."""
        values = np.array(list(self.values.values()))
        if self.regrets is None or not values.size:
            return self._p(values)
        below, above = self.regrets
        # The difference has to be other than zero also where the regrets speak against it.
        moved = values + above if values.mean() < 0 else values - below
        if not np.isfinite(moved).all() or np.sign(moved.mean()) != np.sign(values.mean()):
            return 1.0
        return float(np.minimum(1.0, self._p(moved) / (1 - OF_REGRETS)))

    def at_choices(self, level: float) -> Interval:
        """The t interval; with missing runs that of the median, which holds whatever they would have given."""
        values = list(self.values.values())
        if self.is_partial:
            unknown = self.reason or "partial"
            return replace(statistics.paired_interval(values, level), low=-math.inf, high=math.inf, unbounded=unknown)
        if not self.missing:
            return statistics.paired_interval(values, level)
        found = statistics.median_interval(values, level, self.missing)
        return found if found.is_bounded else replace(found, unbounded=self.reason)

    def _p(self, values: np.ndarray) -> float:
        if self.is_partial:
            return math.nan
        return statistics.sign_p(values.tolist(), self.missing) if self.missing else statistics.t_p(values.tolist())


@dataclass(frozen=True)
class ShareOfRuns(Contrast):
    """Values that are 0 or 1: their share."""

    is_mean: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def at_choices(self, level: float) -> Interval:
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

    def at_choices(self, level: float) -> Interval:
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

    def at_choices(self, level: float) -> Interval:
        return proportions.change_of(list(self.values.values()), self.missing, level)

    @property
    def counts(self) -> str:
        changes = list(self.values.values())
        return f"{changes.count(1)} of {len(changes)} runs up, {changes.count(-1)} down"

    def _p(self, values: np.ndarray) -> float:
        changes = list(self.values.values())
        return proportions.mcnemar_p(changes.count(1), changes.count(-1), self.missing)


def count_of(values: Mapping[int, float], seeds: Iterable[int]) -> Count:
    """How many of the runs of these seeds succeeded; those without a value are missing."""
    asked = list(seeds)
    found = [values[seed] for seed in asked if seed in values]
    return Count(int(sum(found)), len(found), len(asked) - len(found))


def together(outcomes: Iterable[str]) -> str:
    """The outcome of runs of which all are needed: "pending" while one is, else "failed" where one has no value."""
    found = set(outcomes)
    return "value" if found <= {"value"} else "pending" if "pending" in found else "failed"


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
