"""What a study's runs say: cells, paired differences, places, what changes with length, budgets, claims and caveats."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from attnlab.analysis import statistics
from attnlab.analysis.budget import Budget, budget_of
from attnlab.analysis.caveats import caveats_of
from attnlab.analysis.claims import Claim, check_claims
from attnlab.analysis.crossing import Crossing
from attnlab.analysis.differences import ALPHA, Difference, Judged, family_size, judge, judge_differences
from attnlab.analysis.factors import Effect, Interaction, factor_effects, interactions, unmatched
from attnlab.analysis.outcomes import Contrast, LostRuns, Outcomes
from attnlab.analysis.ranking import places
from attnlab.analysis.reader import Cell, Metric, Run, Study
from attnlab.analysis.sentences import SentenceResult
from attnlab.analysis.statistics import Interval, mean_interval
from attnlab.training.measures import better_of

IDENTITY = ("study", "cell", "seed", "run_dir", "runs_dir", "hydra")
MULTIPLE = re.compile(r"(?P<prefix>.+)@(?P<multiple>\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class CellSummary:
    """One cell: its values by seed, its runs' states, and how it stands to the baseline.

    `outcome` is "measured", or why there is no figure: "cannot", "skipped", "missing", "failed", "diverged", "pruned", "not a number".
    `places` are the ranks it may hold (best, worst); None where it is not ranked. `n_lost` counts its runs that ended without a value, `lost`
    judges them where any run was lost, and `probability_better` is the chance that a run of it beats any run of the baseline, lost runs
    being the worst.
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
    places: tuple[int, int] | None
    budget: Budget
    n_lost: int = 0
    lost: LostRuns | None = None
    probability_better: float = math.nan


@dataclass(frozen=True)
class LengthCurve:
    """One cell's metric at multiples of the training length.

    `change` is its paired change from the shortest to the longest, judged as one family with those of the other cells; None without a value.
    `verdict` is that of the change, "cannot" or "missing".
    """

    label: str
    prefix: str
    points: dict[float, Interval]
    values: dict[float, dict[int, float]]
    cannot: dict[float, str]
    change: Judged | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All that the terminal, the tables and the page say about a study.

    `unmatched` are changes of factors that not every setting has a value for; `sentences` is there where it was asked for (see `resampling`).
    """

    study: Study
    metric: Metric | None
    cells: list[CellSummary]
    claims: list[Claim]
    lengths: list[LengthCurve]
    effects: list[Effect]
    settings: dict[str, dict[str, Any]]
    problems: list[Run]
    caveats: list[str]
    interactions: list[Interaction] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    sentences: SentenceResult | None = None

    @property
    def baseline(self) -> CellSummary | None:
        """The baseline's cell."""
        return next((cell for cell in self.cells if cell.is_baseline), None)

    @property
    def measured(self) -> list[CellSummary]:
        """The cells with a value, best mean first, after those the cells that lost runs: an order for reading, no ranking (see `places`)."""
        sign = -1 if self.metric and self.metric.better == "higher" else 1
        found = [cell for cell in self.cells if cell.interval is not None]
        return sorted(found, key=lambda cell: (cell.n_lost > 0, sign * cell.interval.mean if cell.interval else 0.0))

    @property
    def states(self) -> dict[str, int]:
        """How many runs of the plan are in which state."""
        return dict(Counter(run.state for run in self.study.runs.values()))


def compare(study: Study, alpha: float = ALPHA) -> Comparison:
    """Compares the cells of a study on its primary metric. `alpha` is the chance of any false word in a family."""
    outcomes = Outcomes(study, alpha)
    crossing = Crossing(outcomes)
    cross = interactions(crossing)
    found = Comparison(
        study,
        study.metric,
        _cells(outcomes),
        claims=check_claims(outcomes),
        lengths=length_curves(outcomes),
        effects=factor_effects(crossing, cross),
        settings=differing_settings(study),
        problems=[run for run in study.runs.values() if run.state != "finished" or run.non_finite],
        caveats=[],
        interactions=cross,
        unmatched=unmatched(crossing),
    )
    return replace(found, caveats=caveats_of(found, alpha))


def _cells(outcomes: Outcomes) -> list[CellSummary]:
    """Every cell with its figures: differences and ranks are one family (see `ranking.places`)."""
    study, alpha = outcomes.study, outcomes.alpha
    metric = study.metric
    name = metric.name if metric else None
    by_cell = {cell.name: outcomes.of(cell.name, name) for cell in study.cells}
    values = {cell.name: study.values(cell.name, name) if name else {} for cell in study.cells}
    base = study.baseline_cell
    if base and name and outcomes.cannot(base.name, name):
        base = None  # as if there were none: said beforehand, whatever the runs give
    contrasts = _contrasts(study, outcomes, base, metric) if base and metric else {}
    differences = judge_differences(contrasts, metric, alpha) if metric else {}
    ranks = {}
    if metric is not None:
        able = {cell.name for cell in study.cells if cell.skip is None and not outcomes.cannot(cell.name, metric.name)}
        able |= {cell for cell, of in values.items() if of}
        asked = {cell: set(of) for cell, of in by_cell.items() if cell in able}
        verdicts = {cell: found.verdict for cell, found in differences.items()}
        measured = {cell: of for cell, of in values.items() if of}
        first = base.name if base else None
        ranks = places(measured, asked, metric, first, verdicts, family_size(contrasts), alpha)
    cells = [_summary(study, cell, values[cell.name], differences, ranks) for cell in study.cells]
    counts, lost = outcomes.counts(), outcomes.losses if name else {}
    cells = [replace(cell, n_lost=counts[cell.cell.name][0], lost=lost.get(cell.cell.name)) for cell in cells]
    return _with_chances(cells, metric)


def _contrasts(study: Study, outcomes: Outcomes, base: Cell, metric: Metric) -> dict[str, Contrast]:
    """Every cell against the baseline: the family of the differences, those without a value, too."""
    return {
        cell.name: outcomes.against(cell.name, metric.name, base.name, metric.name, "the baseline")
        for cell in study.cells
        if cell is not base and cell.skip is None and not outcomes.cannot(cell.name, metric.name)
    }


def _with_chances(cells: list[CellSummary], metric: Metric | None) -> list[CellSummary]:
    """The cells with the chance that a run of theirs beats one of the baseline, over all of their runs and not by seed."""
    base = next((cell for cell in cells if cell.is_baseline), None)
    if base is None or metric is None:
        return cells

    def chance(cell: CellSummary) -> float:
        own, theirs = list(cell.values.values()), list(base.values.values())
        return statistics.probability_better(own, theirs, metric.better, cell.n_lost, base.n_lost)

    return [cell if cell is base else replace(cell, probability_better=chance(cell)) for cell in cells]


def _summary(
    study: Study,
    cell: Cell,
    values: dict[int, float],
    differences: Mapping[str, Difference],
    ranks: Mapping[str, tuple[int, int]],
) -> CellSummary:
    runs = study.runs_of(cell.name)
    outcome, reason = _outcome(study, cell, runs, values)
    return CellSummary(
        cell=cell,
        label=study.label(cell),
        is_baseline=cell is study.baseline_cell,
        values=values,
        interval=mean_interval(list(values.values())) if values else None,
        states=dict(Counter(run.state for run in runs)),
        outcome=outcome,
        reason=reason,
        difference=differences.get(cell.name),
        places=ranks.get(cell.name) if len(ranks) > 1 else None,
        budget=budget_of(runs),
    )


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


def length_curves(outcomes: Outcomes) -> list[LengthCurve]:
    """The metrics named <prefix>@<k>x of every cell, by prefix; those of the primary metric first. The changes of a prefix are a family."""
    multiples: dict[str, list[float]] = {}
    for name in outcomes.study.metrics:
        found = MULTIPLE.fullmatch(name)
        if found:
            multiples.setdefault(found["prefix"], []).append(float(found["multiple"]))
    series = [(prefix, sorted(found)) for prefix, found in multiples.items() if len(found) > 1]
    return [curve for prefix, found in series for curve in _length_curves(outcomes, prefix, found)]


def _length_curves(outcomes: Outcomes, prefix: str, multiples: list[float]) -> list[LengthCurve]:
    study = outcomes.study
    own = study.metric or Metric("")
    is_own = own.name.startswith(f"{prefix}@")
    metric = Metric(prefix, own.better if is_own else better_of(prefix), own.margin if is_own else 0.0)
    near, far = (f"{prefix}@{k:g}x" for k in (multiples[0], multiples[-1]))
    cells = [cell for cell in study.cells if cell.skip is None]
    able = [cell.name for cell in cells if not any(outcomes.cannot(cell.name, end) for end in (near, far))]
    changes = judge({cell: outcomes.against(cell, far, cell, near, "") for cell in able}, metric, outcomes.alpha)
    return [_length_curve(study, cell, prefix, multiples, changes.get(cell.name)) for cell in cells]


def _length_curve(study: Study, cell: Cell, prefix: str, multiples: list[float], change: Judged | None) -> LengthCurve:
    values = {k: study.values(cell.name, f"{prefix}@{k:g}x") for k in multiples}
    cannot: dict[float, str] = {}
    for run in study.runs_of(cell.name):
        cannot |= {k: run.cannot[f"{prefix}@{k:g}x"] for k in multiples if f"{prefix}@{k:g}x" in run.cannot}
    points = {k: mean_interval(list(by_seed.values())) for k, by_seed in values.items() if by_seed}
    verdict = change.verdict if change else "cannot" if cannot else "missing"
    return LengthCurve(study.label(cell), prefix, points, values, cannot, change, verdict)


def differing_settings(study: Study) -> dict[str, dict[str, Any]]:
    """{configuration key: {cell label: value}} of the keys that differ between cells; those that differ between a cell's seeds are left out."""
    configs: dict[str, dict[str, Any]] = {}
    varying: set[str] = set()
    for cell in study.cells:
        of_runs = [run.config for run in study.runs_of(cell.name) if run.record]
        for key in {key for config in of_runs for key in config}:
            found = [config.get(key) for config in of_runs]
            if key.split(".")[0] in IDENTITY:
                continue
            configs.setdefault(key, {})[study.label(cell)] = found[0]
            if any(value != found[0] for value in found):
                varying.add(key)
    cells = {label for of_cells in configs.values() for label in of_cells}
    apart = {
        key: of_cells
        for key, of_cells in configs.items()
        if key not in varying and (len({repr(v) for v in of_cells.values()}) > 1 or set(of_cells) != cells)
    }
    return {key: of_cells for key, of_cells in apart.items() if not _is_copy(key, apart)}


def _is_copy(key: str, settings: Mapping[str, dict[str, Any]]) -> bool:
    """Whether model.position.base only repeats position.base."""
    tails = (key.split(".", i)[-1] for i in range(1, key.count(".") + 1))
    return any(settings.get(tail) == settings[key] for tail in tails)
