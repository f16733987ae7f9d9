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
from attnlab.analysis.differences import ALPHA, Difference, judge_family, verdict_of
from attnlab.analysis.factors import FactorEffect, factor_effects
from attnlab.analysis.interactions import Interaction, interactions, unmatched
from attnlab.analysis.outcomes import LOST, Losses, losses
from attnlab.analysis.reader import Cell, Metric, Run, Study
from attnlab.analysis.sentences import SentenceResult
from attnlab.analysis.statistics import Interval, mean_interval, paired
from attnlab.training.measures import better_of

IDENTITY = ("study", "cell", "seed", "run_dir", "runs_dir", "hydra")
MULTIPLE = re.compile(r"(?P<prefix>.+)@(?P<multiple>\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class CellSummary:
    """One cell: its values by seed, its runs' states, and how it stands to the baseline.

    `outcome` is "measured", or why there is no figure: "cannot", "skipped", "missing", "failed", "diverged", "pruned", "not a number".
    `places` are the places it may hold (best, worst); None where it is not ranked. `losses` judges its lost runs where any run was lost, and
    `probability_better` is the chance that a run of it beats any run of the baseline, lost runs being the worst.
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
    losses: Losses | None = None
    probability_better: float = math.nan

    @property
    def n_lost(self) -> int:
        """Runs that ended without a value: diverged or failed. They are outcomes and keep the cell from being ranked."""
        return sum(self.states.get(state, 0) for state in LOST)


@dataclass(frozen=True)
class LengthCurve:
    """One cell's metric at multiples of the training length; `change` is its paired change from the shortest to the longest."""

    label: str
    prefix: str
    points: dict[float, Interval]
    values: dict[float, dict[int, float]]
    cannot: dict[float, str]
    change: Interval | None
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
    effects: list[FactorEffect]
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
        """The cells with a value, best mean first; an order for reading, no ranking (see `places`)."""
        sign = -1 if self.metric and self.metric.better == "higher" else 1
        found = [cell for cell in self.cells if cell.interval is not None]
        return sorted(found, key=lambda cell: sign * cell.interval.mean if cell.interval else 0.0)

    @property
    def states(self) -> dict[str, int]:
        """How many runs of the plan are in which state."""
        return dict(Counter(run.state for run in self.study.runs.values()))


def compare(study: Study, alpha: float = ALPHA) -> Comparison:
    """Compares the cells of a study on its primary metric. `alpha` is the chance of any false alarm in a family."""
    metric = study.metric
    values = {cell.name: study.values(cell.name, metric.name) if metric else {} for cell in study.cells}
    ranked = {name: v for name, v in values.items() if v and not _lost(study, name)}
    places = statistics.places(ranked, metric.better, alpha) if metric and len(ranked) > 1 else {}
    differences = _differences(values, study.baseline_cell, metric, alpha)
    cells = [_summary(study, cell, values[cell.name], differences, places) for cell in study.cells]
    cells = _against_baseline(cells, metric)
    found = Comparison(
        study,
        metric,
        cells,
        claims=check_claims(study),
        lengths=length_curves(study),
        effects=factor_effects(study, values, alpha),
        settings=differing_settings(study),
        problems=[run for run in study.runs.values() if run.state != "finished" or run.non_finite],
        caveats=[],
        interactions=interactions(study, values, alpha),
        unmatched=unmatched(study, values),
    )
    return replace(found, caveats=caveats_of(found, alpha))


def _lost(study: Study, cell: str) -> bool:
    return any(run.state in LOST for run in study.runs_of(cell))


def _against_baseline(cells: list[CellSummary], metric: Metric | None) -> list[CellSummary]:
    """The cells with what is judged over all of their runs and not by seed: how many were lost, and the chance to beat the baseline."""
    base = next((cell for cell in cells if cell.is_baseline), None)
    if base is None or metric is None:
        return cells
    rates = losses({cell.cell.name: cell.states for cell in cells}, base.cell.name)
    runs = {cell.cell.name: list(cell.values.values()) for cell in cells}
    return [
        cell
        if cell is base
        else replace(
            cell,
            losses=rates.get(cell.cell.name),
            probability_better=statistics.probability_better(
                runs[cell.cell.name], runs[base.cell.name], metric.better, cell.n_lost, base.n_lost
            ),
        )
        for cell in cells
    ]


def _differences(
    values: Mapping[str, Mapping[int, float]], baseline: Cell | None, metric: Metric | None, alpha: float
) -> dict[str, Difference]:
    """The difference of every cell to the baseline; the family of tests are those with two seeds or more."""
    if baseline is None or metric is None:
        return {}
    base = values[baseline.name]
    pairs = {name: paired(own, base) for name, own in values.items() if name != baseline.name}
    return judge_family({name: pair for name, pair in pairs.items() if pair}, metric, alpha)


def _summary(
    study: Study,
    cell: Cell,
    values: dict[int, float],
    differences: Mapping[str, Difference],
    places: Mapping[str, tuple[int, int]],
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
        places=places.get(cell.name),
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


def length_curves(study: Study) -> list[LengthCurve]:
    """The metrics named <prefix>@<k>x of every cell, by prefix; those of the primary metric first."""
    multiples: dict[str, list[float]] = {}
    for name in study.metrics:
        found = MULTIPLE.fullmatch(name)
        if found:
            multiples.setdefault(found["prefix"], []).append(float(found["multiple"]))
    cells = [cell for cell in study.cells if cell.skip is None]
    series = [(prefix, sorted(found)) for prefix, found in multiples.items() if len(found) > 1]
    return [_length_curve(study, cell, prefix, found) for prefix, found in series for cell in cells]


def _length_curve(study: Study, cell: Cell, prefix: str, multiples: list[float]) -> LengthCurve:
    values = {k: study.values(cell.name, f"{prefix}@{k:g}x") for k in multiples}
    cannot: dict[float, str] = {}
    for run in study.runs_of(cell.name):
        cannot |= {k: run.cannot[f"{prefix}@{k:g}x"] for k in multiples if f"{prefix}@{k:g}x" in run.cannot}
    points = {k: mean_interval(list(by_seed.values())) for k, by_seed in values.items() if by_seed}
    pairs = paired(values[multiples[-1]], values[multiples[0]])
    change = mean_interval(list(pairs.values())) if pairs else None
    own = study.metric or Metric("")
    direction = own.better if own.name.startswith(f"{prefix}@") else better_of(prefix)
    verdict = verdict_of(change, Metric("", direction, own.margin)) if change else "cannot" if cannot else "missing"
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
