"""What became of every run that was asked for: a value, a failure, or nothing yet; and what that leaves to compare.

A run failed when it ended without a finite value: by an error, diverged, pruned, or finished with NaN or an infinity.
Which runs fail may depend on how they would have done, so the others alone say nothing sure: see
`statistics.median_interval`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from attnlab.analysis.reader import Run, Study
from attnlab.analysis.statistics import holm, paired

ENDED = ("finished", "diverged", "failed", "pruned")


def outcome_of(run: Run, metric: str | None) -> str:
    """ "value", "failed", "pending" (it has not ended) or "cannot" (have the metric, said beforehand)."""
    if metric is not None and metric in run.cannot and metric not in run.final:
        return "cannot"
    if metric in run.final or (metric is None and run.state == "finished"):
        return "value"
    return "failed" if run.state in ENDED else "pending"


@dataclass(frozen=True)
class Contrast:
    """One value a seed, and how many of the seeds that were asked for have none: `failed` ones never will, `pending`
    ones may.

    `reason` says in words what is missing; `is_partial` that the values rest on a part of the settings that were asked
    for; `beyond_chance` that more runs failed than chance explains (Fisher's exact test against the baseline).
    """

    values: dict[int, float]
    failed: int = 0
    pending: int = 0
    reason: str = ""
    is_partial: bool = False
    beyond_chance: bool = False

    @property
    def missing(self) -> int:
        """Seeds without a value."""
        return self.failed + self.pending

    @property
    def asked(self) -> int:
        """Seeds that were asked for."""
        return len(self.values) + self.missing


class Outcomes:
    """Looks up how the runs of a study ended. alpha: the level at which more failures than by chance are found."""

    def __init__(self, study: Study, alpha: float = 0.05) -> None:
        self.study, self.alpha = study, alpha
        self._found: dict[tuple[str, str | None], dict[int, str]] = {}

    def of(self, cell: str, metric: str | None) -> dict[int, str]:
        """{seed: outcome} of every run of a cell that was asked for."""
        if (cell, metric) not in self._found:
            self._found[cell, metric] = {run.seed: outcome_of(run, metric) for run in self.study.runs_of(cell)}
        return self._found[cell, metric]

    def cannot(self, cell: str, metric: str) -> bool:
        """Whether a cell cannot have the metric: no run has it, and one says that it cannot."""
        found = set(self.of(cell, metric).values())
        return "cannot" in found and "value" not in found

    def counts(self) -> dict[str, tuple[int, int]]:
        """{cell: (failed, ended)} of the primary metric."""
        name = self.study.metric.name if self.study.metric else None
        return {cell.name: count_failures(self.of(cell.name, name).values()) for cell in self.study.cells}

    @cached_property
    def failures(self) -> dict[str, Failures]:
        """Fisher's test of every cell against the baseline on the primary metric; {} without such a baseline."""
        base, metric = self.study.baseline_cell, self.study.metric
        if base is None or metric is None or self.cannot(base.name, metric.name):
            return {}
        return compare_failures(self.counts(), base.name)

    @cached_property
    def beyond_chance(self) -> set[str]:
        """The cells of which more runs fail than chance explains, the baseline among them."""
        sure = {cell: found for cell, found in self.failures.items() if found.p_holm <= self.alpha}
        more = {cell for cell, found in sure.items() if found.excess > 0}
        base = self.study.baseline_cell
        return more | ({base.name} if base and set(sure) - more else set())

    def alone(self, cell: str, metric: str) -> Contrast:
        """The values of a cell's own metric."""
        contrast = contrast_of(self.study.values(cell, metric), {"": self.of(cell, metric)})
        return self.marked(contrast, [cell])

    def against(self, cell: str, metric: str, other: str, other_metric: str, name: str) -> Contrast:
        """A metric of a cell minus a metric of another (or of the same cell), by seed, over the seeds that both were
        asked for.

        name: of the other in the reason ("the baseline"); "" where both are of one cell.
        """
        own, theirs = self.of(cell, metric), self.of(other, other_metric)
        values = paired(self.study.values(cell, metric), self.study.values(other, other_metric))
        both = {seed: together([found, theirs[seed]]) for seed, found in own.items() if seed in theirs}
        parts = {"": {seed: own[seed] for seed in both}, name: {seed: theirs[seed] for seed in both}}
        contrast = contrast_of(values, parts if name else {"": both})
        return self.marked(contrast, [cell, other])

    def marked(self, contrast: Contrast, cells: Iterable[str]) -> Contrast:
        """The contrast, `beyond_chance` where one of its cells is and a run is missing."""
        if not contrast.missing or self.beyond_chance.isdisjoint(cells):
            return contrast
        return replace(contrast, beyond_chance=True, reason=f"{contrast.reason}, beyond chance")


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
        gone = sum(outcome in ("failed", "cannot") for outcome in of.values())
        if gone:
            parts.append(f"{gone} of {len(seeds)} {unit}{f' of {name}' if name else ''} lost")
    if found["pending"]:
        parts.append(f"{len(seeds) - found['pending']} of {len(seeds)} seeds in")
    return Contrast(dict(values), found["failed"], found["pending"], ", ".join(parts), is_partial)


@dataclass(frozen=True)
class Failures:
    """How many ended runs of a cell failed, those of the baseline, and Fisher's exact p that both fail at one rate."""

    failed: int
    ended: int
    baseline_failed: int
    baseline_ended: int
    p: float
    p_holm: float

    @property
    def excess(self) -> int:
        """Above 0 where a larger share failed than of the baseline, below where a smaller one."""
        return self.failed * self.baseline_ended - self.baseline_failed * self.ended


def compare_failures(counts: Mapping[str, tuple[int, int]], baseline: str) -> dict[str, Failures]:
    """Judges the failures of every cell ({cell: (failed, ended)}) against the baseline's, as one family; {} where no
    run failed.

    A cell is left out where no run of it has ended, and where none failed of it or of the baseline: given that, no
    outcome could have been a finding (Tarone 1990). Runs are taken as independent (Fisher's exact test, two-sided).
    """
    base = counts.get(baseline, (0, 0))
    others = {
        cell: (failed, ended)
        for cell, (failed, ended) in counts.items()
        if cell != baseline and ended and base[1] and failed + base[0]
    }
    if not others:
        return {}
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together, and runs seldom fail

    tables = [[[failed, ended - failed] for failed, ended in (pair, base)] for pair in others.values()]
    p_values = [min(1.0, float(fisher_exact(table).pvalue)) for table in tables]
    rows = zip(others.items(), p_values, holm(p_values), strict=True)
    return {cell: Failures(*pair, *base, p, p_holm) for (cell, pair), p, p_holm in rows}


def count_failures(outcomes: Iterable[str]) -> tuple[int, int]:
    """How many runs failed, and how many have ended."""
    found = Counter(outcomes)
    return found["failed"], found["failed"] + found["value"]
