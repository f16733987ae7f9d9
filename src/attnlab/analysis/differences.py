"""What became of the runs that were asked for, and what is compared by seed, judged as one family: one rule for
pictures, tables, words and ranks.

A run failed when it ended without a finite value: by an error, diverged, pruned, or finished with NaN or an infinity.
One that never reached a target has not failed: its cost is censored, which is known of it (`costs`).
Which runs fail may depend on how they would have done, so the others alone say nothing sure (`median_interval`).

The intervals of a family are simultaneous (Bonferroni): under the test's assumptions all of them hold in at least 95%
of studies. Every word follows from where its interval lies, so that a family has a false word in at most 5% of studies,
whatever is true and whatever the words. That is so over all looks at a study (`training.looks`): an interval is what
those of the looks so far leave together, each at its own part of the 5%, which is Jennison and Turnbull's repeated
confidence interval (1989, J. R. Stat. Soc. B 51).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, TypeVar

from attnlab.analysis import statistics
from attnlab.analysis.contrasts import (
    ChangeOfShare,
    Contrast,
    DifferenceOfShares,
    OfCosts,
    ShareOfRuns,
    contrast_of,
    count_of,
    together,
)
from attnlab.analysis.failures import Failures, compare_failures
from attnlab.analysis.file_cache import mapping
from attnlab.analysis.proportions import is_proportion
from attnlab.analysis.reader import Metric, Run, Study
from attnlab.analysis.regrets import OF_REGRETS, regret_bounds
from attnlab.analysis.statistics import Interval, bonferroni, bootstrap_interval, paired
from attnlab.training.run_directory import ENDED
from attnlab.training.targets import target_of

ALPHA = 0.05
DECIDED = ("better", "worse")  # the verdicts that part two cells
Name = TypeVar("Name", bound=Hashable)
Kind = TypeVar("Kind", bound=Contrast)


def outcome_of(run: Run, metric: str | None) -> str:
    """ "value", "censored" (of a cost to a target a bound is known), "failed", "pending" (it has not ended) or
    "unavailable" (said beforehand)."""
    if metric is not None and metric in run.unavailable and metric not in run.final:
        return "unavailable"
    if metric in run.final or (metric is None and run.state == "finished"):
        return "value"
    if metric in run.costs:
        return "censored"
    return "failed" if run.state in ENDED else "pending"


class Outcomes:
    """Looks up how the runs of a study ended. alpha: the chance of a false word in a family at this look, `spent` times
    what it is over all looks; before: the outcomes at the look before."""

    def __init__(self, study: Study, alpha: float = ALPHA, spent: float = 1.0, before: Outcomes | None = None) -> None:
        self.study, self.alpha, self.spent, self.before = study, alpha * spent, spent, before
        self._found: dict[tuple[str, str | None], dict[int, str]] = {}
        self._regrets: dict[str, Mapping[str, float]] = {}
        self.is_proportion = cache(partial(is_proportion, study))

    def of(self, cell: str, metric: str | None) -> dict[int, str]:
        if (cell, metric) not in self._found:
            self._found[cell, metric] = {run.seed: outcome_of(run, metric) for run in self.study.runs_of(cell)}
        return self._found[cell, metric]

    def known(self, cell: str, metric: str) -> Mapping[int, Any]:
        """{seed: value} of a cell; of the cost to a target {seed: bounds}."""
        return (self.study.costs if target_of(metric) else self.study.values)(cell, metric)

    def unavailable(self, cell: str, metric: str) -> bool:
        """Whether a cell cannot have the metric: no run has it, and one says that it cannot."""
        found = set(self.of(cell, metric).values())
        return "unavailable" in found and not found & {"value", "censored"}

    @cached_property
    def is_over(self) -> bool:
        """Whether every run that is planned has ended."""
        return all(run.state in ENDED for run in self.study.runs.values())

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """{cell: (failed, ended)} of the primary metric."""
        name = self.study.metric.name if self.study.metric else None
        found = {cell.name: Counter(self.of(cell.name, name).values()) for cell in self.study.cells}
        return {cell: (of["failed"], of["failed"] + of["value"] + of["censored"]) for cell, of in found.items()}

    @cached_property
    def failures(self) -> dict[str, Failures]:
        """Fisher's test of every cell against the baseline on the primary metric; {} without such a baseline, and while
        runs are not over."""
        base, metric = self.study.baseline_cell, self.study.metric
        if base is None or metric is None or self.unavailable(base.name, metric.name) or not self.is_over:
            return {}
        return compare_failures(self.counts, base.name)

    @cached_property
    def beyond_chance(self) -> set[str]:
        """The cells of which more runs fail than chance explains, the baseline among them."""
        sure = {cell: found for cell, found in self.failures.items() if found.p_holm <= self.alpha}
        more = {cell for cell, found in sure.items() if found.excess > 0}
        base = self.study.baseline_cell
        return more | ({base.name} if base and set(sure) - more else set())

    def regrets(self, metric: str) -> Mapping[str, float] | None:
        """By how much each cell's setting may be worse on a metric than its best; None where the study was not tuned.
        Of what is 0 or 1 a run that is not known."""
        study = self.study
        if metric not in self._regrets and study.tuned:
            compared = {cell.name: [*study.values(cell.name, metric).values()] for cell in study.cells}
            alpha = self.alpha * OF_REGRETS / len(self._judged_by)
            found = regret_bounds(study.tuned, metric, self._better(metric), compared, alpha)
            self._regrets[metric] = dict.fromkeys(found, math.inf) if self.is_proportion(metric) else found
        return self._regrets.get(metric)

    @cached_property
    def _judged_by(self) -> set[str]:
        """The metrics on which cells are held against one another, by the study or its claims: bounds hold on all."""
        own = self.study.metric.name if self.study.metric else ""
        found = {own}
        for claim in map(mapping, self.study.claims):
            against = mapping(claim.get("against"))
            if against.get("cell"):
                metric = str(claim.get("metric") or own)
                found |= {metric, str(against.get("metric") or metric)}
        return found

    def _better(self, metric: str) -> str:
        own = self.study.metric
        return own.better if own and own.name == metric else self.study.better(metric)

    def between(self, metric: str, weights: Iterable[tuple[float, str]]) -> tuple[float, float] | None:
        """How far below and above a weighted sum of cells that at their best settings may lie; None without tuning."""
        known = self.regrets(metric)
        if known is None:
            return None
        parts = [(weight, abs(weight) * known.get(cell, math.inf)) for weight, cell in weights]
        plus, minus = (sum(part for weight, part in parts if weight * side > 0) for side in (1, -1))
        return (plus, minus) if self._better(metric) == "lower" else (minus, plus)

    def alone(self, cell: str, metric: str) -> Contrast:
        contrast = contrast_of(self.study.values(cell, metric), {"": self.of(cell, metric)})
        contrast = replace(contrast, limits=self.study.limits(metric))
        contrast = ShareOfRuns(**vars(contrast)) if self.is_proportion(metric) else contrast
        if target_of(metric):
            contrast = OfCosts.of(contrast, self.study.costs(cell, metric), is_difference=False)
        return self.marked(contrast, [cell], lambda before: before.alone(cell, metric))

    def against(self, cell: str, metric: str, other: str, other_metric: str, name: str) -> Contrast:
        """A metric of a cell minus a metric of another (or of the same cell), by seed, over the seeds that both were
        asked for.

        name: of the other in the reason ("the baseline"); "" where both are of one cell.
        """
        own, theirs = self.of(cell, metric), self.of(other, other_metric)
        values = paired(self.study.values(cell, metric), self.study.values(other, other_metric))
        both = [seed for seed in own if seed in theirs]
        parts = {"": {seed: own[seed] for seed in both}, name: {seed: theirs[seed] for seed in both}}
        if not name:
            parts = {"": {seed: together([own[seed], theirs[seed]]) for seed in both}}
        (low, high), (least, most) = self.study.limits(metric), self.study.limits(other_metric)
        contrast = replace(contrast_of(values, parts), limits=(low - most, high - least))
        if self.is_proportion(metric) and self.is_proportion(other_metric):
            contrast = self._of_shares(contrast, (cell, metric), (other, other_metric), both)
        if target_of(metric) and target_of(other_metric):
            first, second = self.study.costs(cell, metric), self.study.costs(other, other_metric)
            bounds = {seed: first[seed].minus(second[seed]) for seed in first if seed in second}
            contrast = OfCosts.of(contrast, bounds, is_difference=True)
        if cell != other:  # runs of one cell have one setting
            contrast = replace(contrast, regrets=self.of_pair((cell, metric), (other, other_metric)))
        return self.marked(
            contrast, [cell, other], lambda before: before.against(cell, metric, other, other_metric, name)
        )

    def of_pair(self, first: tuple[str, str], second: tuple[str, str]) -> tuple[float, float] | None:
        """`between` of one cell's metric minus that of another."""
        own, other = self.between(first[1], [(1, first[0])]), self.between(second[1], [(-1, second[0])])
        return (own[0] + other[0], own[1] + other[1]) if own and other else None

    def _of_shares(
        self, contrast: Contrast, first: tuple[str, str], second: tuple[str, str], seeds: list[int]
    ) -> Contrast:
        if first[0] == second[0]:
            return ChangeOfShare(**vars(contrast))
        counts = [count_of(self.study.values(*one), seeds) for one in (first, second)]
        return DifferenceOfShares(**vars(contrast), first=counts[0], second=counts[1])

    def marked(self, contrast: Kind, cells: Iterable[str], at: Callable[[Outcomes], Contrast]) -> Kind:
        """The contrast with what it was at the look before, `at` whose outcomes it has another value; `beyond_chance`
        where one of its cells is and a run is lost; waiting where that cannot be told yet."""
        earlier = at(self.before) if self.before else None
        if self.before and earlier and type(earlier) is type(contrast) and earlier.n:
            contrast = replace(contrast, before=earlier, ratio=self.before.spent / self.spent)
        if not contrast.missing:
            return contrast
        if not self.is_over:
            others = "" if contrast.pending else ", other runs are not over"
            return replace(contrast, waits=True, reason=f"{contrast.reason}{others}")
        if self.beyond_chance.isdisjoint(cells):
            return contrast
        return replace(contrast, beyond_chance=True, reason=f"{contrast.reason}, beyond chance")


def outcomes_of(study: Study, alpha: float) -> Outcomes:
    """The outcomes at a study's present look, with those before: each planned look again, on the seeds that it had."""
    seeds, outcomes = len(study.seeds), None
    for stage in study.looks.until(seeds) or [seeds]:
        part = study
        if stage < seeds:
            first = set(study.seeds[:stage])
            runs = {key: run for key, run in study.runs.items() if run.seed in first}
            part = replace(study, seeds=study.seeds[:stage], runs=runs)
        outcomes = Outcomes(part, alpha, study.looks.spent(stage), outcomes)
    assert outcomes is not None
    return outcomes


@dataclass(frozen=True)
class Judged:
    """A contrast with its simultaneous interval, p of the test behind it (t; with lost runs the sign test at its worst,
    as of costs; of proportions Fisher's, or McNemar's where they are of the same runs) and the verdict.

    `verdict` is better, worse, same (the whole interval within the margin) or undecided; `reason` says what is missing,
    "" where nothing is. `tests` is the size of its family, `share` the family's alpha at this look over that, `spent`
    how much of its whole alpha the look has.
    """

    contrast: Contrast
    metric: Metric
    interval: Interval
    p: float
    verdict: str
    tests: int
    share: float
    spent: float

    @property
    def p_adjusted(self) -> float:
        """For the tests of its family at all looks."""
        return bonferroni(self.p, self.tests / self.spent)

    @property
    def values(self) -> dict[int, float]:
        return self.contrast.values

    @property
    def reason(self) -> str:
        return self.contrast.reason

    @property
    def n(self) -> int:
        return self.contrast.n

    @cached_property
    def has_spread(self) -> bool:
        """Whether there is a spread to judge by: two seeds or more whose values are not all the same."""
        return self.contrast.is_mean and self.n > 1 and statistics.has_spread(list(self.values.values()))


def family_size(contrasts: Mapping[Name, Contrast]) -> int:
    """How many tests a family has, at least one; see `Contrast.is_test`."""
    return max(1, sum(contrast.is_test for contrast in contrasts.values()))


def judge(
    contrasts: Mapping[Name, Contrast], metric: Metric, alpha: float = ALPHA, spent: float = 1.0
) -> dict[Name, Judged]:
    """Judges contrasts as one family (see `family_size`). Those without a value are left out, and still count. alpha:
    at this look, `spent` times what it is over all looks."""
    size = family_size(contrasts)
    return {name: _judged(one, metric, alpha / size, size, spent) for name, one in contrasts.items() if one.n}


def _judged(contrast: Contrast, metric: Metric, share: float, size: int, spent: float) -> Judged:
    interval = contrast.interval(1 - share)
    verdict = _word(contrast, metric, share)
    return Judged(contrast, metric, interval, contrast.p, verdict, size, share, spent)


def _word(contrast: Contrast, metric: Metric, share: float) -> str:
    """The word of the first look that had one, while no later one contradicts it: better stays so where later seeds
    show that it is within the margin."""
    interval = contrast.interval(1 - share)
    if contrast.beyond_chance or interval.is_open:
        return "undecided"
    before = _word(contrast.earlier, metric, share * contrast.ratio) if contrast.earlier else "undecided"
    return verdict_of(interval, metric) if before == "undecided" else before


def verdict_of(interval: Interval, metric: Metric) -> str:
    """better, worse, same or undecided: what an interval of a difference says."""
    if interval.within(-metric.margin, metric.margin) and metric.margin > 0:
        return "same"
    if not interval.excludes(0.0):
        return "undecided"
    return "better" if (interval.high < 0) == (metric.better == "lower") else "worse"


@dataclass(frozen=True)
class Difference(Judged):
    """A paired difference to the baseline, cell minus baseline by seed, with what stands beside the verdict.

    `effect_size` is Hedges' g_z; `p_equivalence` is of TOST with the study's margin. nan where a figure cannot be had,
    as where runs are missing, and of proportions.
    """

    p_sign_flip: float
    p_equivalence: float
    effect_size: float

    @classmethod
    def of(cls, judged: Judged) -> Difference:
        values = list(judged.values.values())
        if not judged.contrast.is_mean or judged.contrast.missing or len(values) < 2:
            return cls(**vars(judged), p_sign_flip=math.nan, p_equivalence=math.nan, effect_size=math.nan)
        return cls(
            **vars(judged),
            p_sign_flip=statistics.sign_flip_p(values),
            p_equivalence=statistics.equivalence_p(values, judged.metric.margin),
            effect_size=statistics.effect_size(values),
        )

    @property
    def p_sign_flip_adjusted(self) -> float:
        return bonferroni(self.p_sign_flip, self.tests / self.spent)

    @property
    def p_equivalence_adjusted(self) -> float:
        return bonferroni(self.p_equivalence, self.tests / self.spent)

    @property
    def wins(self) -> float:
        return self.contrast.wins(self.metric.better)

    @property
    def smallest_effect(self) -> float:
        """The difference that so many seeds would see in 80% of cases at the level `share`, with this spread."""
        seen = statistics.smallest_visible_effect(self.n, self._level)
        return self.interval.deviation * seen + max(self._regrets) if self.has_spread else math.nan

    @property
    def _regrets(self) -> tuple[float, float]:
        return self.contrast.regrets or (0.0, 0.0)

    @property
    def _level(self) -> float:
        """What is left of `share` for the difference itself."""
        return self.share * (1.0 if self.contrast.regrets is None else 1 - OF_REGRETS)

    @cached_property
    def seeds_to_see(self) -> float:
        """The seeds that would find the measured mean to be a difference, with this spread."""
        mean = self.interval.mean
        left = max(0.0, abs(mean) - self._regrets[mean < 0])  # of the difference, whatever the regrets
        return statistics.seeds_to_see(self._in_deviations(left), self._level)

    @cached_property
    def seeds_to_equate(self) -> float:
        """The seeds that would find the measured mean to be within the margin, with this spread."""
        margin = self.metric.margin - max(self._regrets)
        mean = self._in_deviations(self.interval.mean)
        return statistics.seeds_to_equate(mean, self._in_deviations(margin), self._level) if margin >= 0 else math.inf

    @property
    def seeds_to_settle(self) -> float:
        """The fewest seeds that would decide it one way or the other."""
        return min(self.seeds_to_see, self.seeds_to_equate) if self.has_spread else math.nan

    def _in_deviations(self, value: float) -> float:
        return value / self.interval.deviation if self.has_spread else math.nan

    @cached_property
    def bootstrap(self) -> Interval:
        """The bootstrap interval (BCa) at the level of `interval`; without bounds where runs are missing, and of
        proportions."""
        if self.contrast.missing or not self.contrast.is_mean:
            why = self.reason or "0 or 1 a run"
            return Interval(self.interval.mean, -math.inf, math.inf, self.interval.level, self.n, math.nan, why)
        return bootstrap_interval(list(self.values.values()), self.interval.level)
