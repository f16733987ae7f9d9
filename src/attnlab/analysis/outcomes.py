"""What became of every run that was asked for: a value, a loss, or nothing yet; and what that leaves to compare.

A run is lost when it ended without a finite value: it failed, diverged or was pruned, or it finished with NaN or an infinity. Which runs are
lost may depend on how they would have done, so the others alone say nothing sure: see `statistics.median_interval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from attnlab.analysis.reader import Run, Study
from attnlab.analysis.statistics import holm, paired

ENDED = ("finished", "diverged", "failed", "pruned")


def outcome_of(run: Run, metric: str | None) -> str:
    """ "value", "lost", "pending" (it has not ended) or "cannot" (it cannot have the metric, which was said beforehand)."""
    if metric is None:
        return "pending" if run.state not in ENDED else "value" if run.state == "finished" else "lost"
    if metric in run.final:
        return "value"
    if metric in run.cannot:
        return "cannot"
    return "lost" if run.state in ENDED else "pending"


@dataclass(frozen=True)
class Contrast:
    """One value a seed, and how many of the seeds that were asked for have none: `lost` ones never will, `pending` ones may.

    `reason` says in words what is missing; `is_partial` that the values rest on a part of the settings that were asked for;
    `beyond_chance` that more runs were lost than chance explains (Fisher's exact test against the baseline).
    """

    values: dict[int, float]
    lost: int = 0
    pending: int = 0
    reason: str = ""
    is_partial: bool = False
    beyond_chance: bool = False

    @property
    def missing(self) -> int:
        """Seeds without a value."""
        return self.lost + self.pending

    @property
    def asked(self) -> int:
        """Seeds that were asked for."""
        return len(self.values) + self.missing


class Outcomes:
    """Looks up how the runs of a study ended. `alpha` is the level at which more losses than chance explains are found."""

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
        """{cell: (lost, ended)} of the primary metric."""
        name = self.study.metric.name if self.study.metric else None
        return {cell.name: count_losses(self.of(cell.name, name).values()) for cell in self.study.cells}

    @cached_property
    def losses(self) -> dict[str, LostRuns]:
        """Fisher's test of every cell against the baseline on the primary metric; {} without a baseline that can have it."""
        base, metric = self.study.baseline_cell, self.study.metric
        if base is None or metric is None or self.cannot(base.name, metric.name):
            return {}
        return compare_losses(self.counts(), base.name)

    @cached_property
    def beyond_chance(self) -> set[str]:
        """The cells that lose more runs than chance explains: more than the baseline, or the baseline more than another."""
        sure = {cell: found for cell, found in self.losses.items() if found.p_holm <= self.alpha}
        more = {
            cell
            for cell, found in sure.items()
            if found.lost * found.baseline_ended > found.baseline_lost * found.ended
        }
        base = self.study.baseline_cell
        return more | ({base.name} if base and set(sure) - more else set())

    def alone(self, cell: str, metric: str) -> Contrast:
        """The values of a cell's own metric."""
        contrast = contrast_of(self.study.values(cell, metric), {"": self.of(cell, metric)})
        return self.marked(contrast, [cell])

    def against(self, cell: str, metric: str, other: str, other_metric: str, name: str) -> Contrast:
        """A metric of a cell minus a metric of another (or of the same cell), by seed, over the seeds that both were asked for.

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
    """The outcome of runs of which all are needed for one value: "pending" while one may still come, else "lost" where one has none."""
    found = set(outcomes)
    return "value" if found <= {"value"} else "pending" if "pending" in found else "lost"


def contrast_of(
    values: Mapping[int, float], outcomes: Mapping[str, Mapping[int, str]], unit: str = "runs", is_partial: bool = False
) -> Contrast:
    """The contrast of {whose: {seed: outcome}}, which all have the same seeds; "" names the cell itself. unit: what is lost, in words."""
    seeds = next(iter(outcomes.values()), {})
    all_of = {seed: together(of[seed] for of in outcomes.values()) for seed in seeds}
    lost, pending = (sum(found == word for found in all_of.values()) for word in ("lost", "pending"))
    parts = []
    for name, of in outcomes.items():
        gone = sum(found in ("lost", "cannot") for found in of.values())
        if gone:
            parts.append(f"{gone} of {len(seeds)} {unit}{f' of {name}' if name else ''} lost")
    if pending:
        parts.append(f"{len(seeds) - pending} of {len(seeds)} seeds in")
    return Contrast(dict(values), lost, pending, ", ".join(parts), is_partial)


@dataclass(frozen=True)
class LostRuns:
    """How many runs of a cell that ended were lost, those of the baseline, and Fisher's exact p that both lose at one rate."""

    lost: int
    ended: int
    baseline_lost: int
    baseline_ended: int
    p: float
    p_holm: float


def compare_losses(counts: Mapping[str, tuple[int, int]], baseline: str) -> dict[str, LostRuns]:
    """Judges the lost runs of every cell ({cell: (lost, ended)}) against the baseline's, as one family; {} where no run was lost.

    A cell is left out where no run of it has ended, and where neither it nor the baseline lost one: given that, no outcome could have been a
    finding (Tarone 1990). Runs are taken as independent (Fisher's exact test, two-sided).
    """
    base = counts.get(baseline, (0, 0))
    others = {
        cell: (lost, ended)
        for cell, (lost, ended) in counts.items()
        if cell != baseline and ended and base[1] and lost + base[0]
    }
    p_values = [_fisher(pair, base) for pair in others.values()]
    rows = zip(others.items(), p_values, holm(p_values), strict=True)
    return {cell: LostRuns(*pair, *base, p, p_holm) for (cell, pair), p, p_holm in rows}


def count_losses(outcomes: Iterable[str]) -> tuple[int, int]:
    """How many runs were lost, and how many have ended."""
    found = list(outcomes)
    lost = found.count("lost")
    return lost, lost + found.count("value")


def _fisher(first: tuple[int, int], second: tuple[int, int]) -> float:
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together, and runs are seldom lost

    table = [[lost, ended - lost] for lost, ended in (first, second)]
    return min(1.0, float(fisher_exact(table).pvalue))
