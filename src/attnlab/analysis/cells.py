"""The cells of a study: values, intervals, differences to the baseline, ranks, failures and cost."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from attnlab.analysis.differences import Difference, family_size, judge_differences, rank_intervals
from attnlab.analysis.outcomes import Contrast, Failures, Outcomes
from attnlab.analysis.reader import Cell, Metric, Run, Study, is_number
from attnlab.analysis.statistics import Interval, mean_interval, probability_better


@dataclass(frozen=True)
class Budget:
    """Means over a cell's finished runs; nan where unknown. `flops` are those of the whole training."""

    steps: float
    tokens: float
    seconds: float
    parameters: float
    flops: float


@dataclass(frozen=True)
class CellSummary:
    """One cell: its values by seed, its runs' states, and how it stands to the baseline.

    `outcome` is "measured", or why there is no figure: "cannot", "skipped", "missing", "failed", "diverged", "pruned",
    "not a number". `rank_interval` has the ranks it may hold (best, worst); None where it is not ranked. `n_failed`
    counts its runs that ended without a value, `failures` judges them where any run failed, and `probability_better` is
    the chance that a run of it beats any run of the baseline, failed runs being the worst.
    """

    cell: Cell
    label: str
    is_baseline: bool
    values: dict[int, float]
    interval: Interval | None
    states: dict[str, int]
    outcome: str
    reason: str
    difference: Difference | None
    rank_interval: tuple[int, int] | None
    budget: Budget
    n_failed: int = 0
    failures: Failures | None = None
    probability_better: float = math.nan


def summarize(outcomes: Outcomes) -> list[CellSummary]:
    """Every cell with its figures: differences and ranks are one family (see `differences.rank_intervals`)."""
    study, metric = outcomes.study, outcomes.study.metric
    values = {cell.name: study.values(cell.name, metric.name) if metric else {} for cell in study.cells}
    base = study.baseline_cell
    if base and metric and outcomes.cannot(base.name, metric.name):
        base = None  # as if there were none: said beforehand, whatever the runs give
    contrasts = _contrasts(outcomes, base, metric) if base and metric else {}
    differences = judge_differences(contrasts, metric, outcomes.alpha) if metric else {}
    ranks: dict[str, tuple[int, int]] = {}
    if metric is not None:
        able = [cell.name for cell in study.cells if values[cell.name] or _is_able(outcomes, cell, metric)]
        asked = {cell: set(outcomes.of(cell, metric.name)) for cell in able}
        verdicts = {cell: found.verdict for cell, found in differences.items()}
        measured = {cell: of for cell, of in values.items() if of}
        first = base.name if base else None
        ranks = rank_intervals(measured, asked, metric, first, verdicts, family_size(contrasts), outcomes.alpha)
    counts, failures = outcomes.counts(), outcomes.failures if metric else {}
    cells = []
    for cell in study.cells:
        runs, own = study.runs_of(cell.name), values[cell.name]
        outcome, reason = _outcome(study, cell, runs, own)
        cells.append(
            CellSummary(
                cell=cell,
                label=study.label(cell),
                is_baseline=cell is study.baseline_cell,
                values=own,
                interval=mean_interval(list(own.values())) if own else None,
                states=dict(Counter(run.state for run in runs)),
                outcome=outcome,
                reason=reason,
                difference=differences.get(cell.name),
                rank_interval=ranks.get(cell.name) if len(ranks) > 1 else None,
                budget=budget_of(runs),
                n_failed=counts[cell.name][0],
                failures=failures.get(cell.name),
            )
        )
    return _with_chances(cells, metric)


def _is_able(outcomes: Outcomes, cell: Cell, metric: Metric) -> bool:
    """Whether the plan asks for the cell, and it can have the metric."""
    return cell.skip is None and not outcomes.cannot(cell.name, metric.name)


def _contrasts(outcomes: Outcomes, base: Cell, metric: Metric) -> dict[str, Contrast]:
    """Every cell against the baseline: the family of the differences, those without a value, too."""
    return {
        cell.name: outcomes.against(cell.name, metric.name, base.name, metric.name, "the baseline")
        for cell in outcomes.study.cells
        if cell is not base and _is_able(outcomes, cell, metric)
    }


def _with_chances(cells: list[CellSummary], metric: Metric | None) -> list[CellSummary]:
    """The cells with the chance that a run of theirs beats one of the baseline, over all runs and not by seed."""
    base = next((cell for cell in cells if cell.is_baseline), None)
    if base is None or metric is None:
        return cells

    def chance(cell: CellSummary) -> float:
        own, theirs = list(cell.values.values()), list(base.values.values())
        return probability_better(own, theirs, metric.better, cell.n_failed, base.n_failed)

    return [cell if cell is base else replace(cell, probability_better=chance(cell)) for cell in cells]


def _outcome(study: Study, cell: Cell, runs: list[Run], values: dict[int, float]) -> tuple[str, str]:
    if cell.skip is not None:
        return "skipped", cell.skip
    if values:
        return "measured", ""
    name = study.metric.name if study.metric else ""
    for run in runs:
        if name in run.cannot:
            return "cannot", run.cannot[name]
    for state in ("diverged", "failed", "pruned"):
        for run in runs:
            if run.state == state:
                return state, run.error or ""
    if any(name in run.non_finite for run in runs):
        return "not a number", f"{name} came out as NaN or infinite"
    finished = any(run.state == "finished" for run in runs)
    return "missing", f"finished, but without {name or 'a metric'}" if finished else "no run has finished"


def budget_of(runs: list[Run]) -> Budget:
    """The budget of a cell's finished runs."""
    finished = [run for run in runs if run.state == "finished"]
    steps, tokens, seconds = (_mean([run.status.get(key) for run in finished]) for key in ("step", "tokens", "seconds"))
    parameters = _mean([(run.record.get("parameters") or {}).get("total") for run in finished])
    flops = _mean([run.record.get("flops_per_token") for run in finished]) * tokens
    return Budget(steps, tokens, seconds, parameters, flops)


def _mean(values: list[object]) -> float:
    numbers = [float(value) for value in values if isinstance(value, int | float) and is_number(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan
