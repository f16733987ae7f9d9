"""What a study says about scale: a law for each count of parameters, how sure it is, advice, predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.reader import Study
from attnlab.analysis.scaling.fit import (
    NAMES,
    OPERATIONS,
    Fit,
    Interval,
    Law,
    Optimum,
    Points,
    fit,
    interval_of,
    resample_cells,
)
from attnlab.analysis.scaling.influence import few_cells, hangs_on_few, hardly_determined
from attnlab.analysis.scaling.runs import COUNTS, Trained, usable_runs

RESAMPLES = 500
HELD_OUT = 0.1  # share of the cells that are held out and predicted, those of most compute; at least one


@dataclass(frozen=True)
class Advice:
    """The best use of a compute: by the closed form, by measured operations, with intervals of the former."""

    compute: float
    best: Optimum
    parameters: Interval
    tokens: Interval
    measured: Optimum
    is_beyond: bool


@dataclass(frozen=True)
class Prediction:
    """One cell of most compute, by a law fitted without any of these: its runs' mean loss, with an interval."""

    cell: str
    parameters: int
    tokens: float
    runs: int
    measured: float
    predicted: float
    interval: Interval

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0

    @property
    def is_inside(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True)
class CountedLaw:
    """The law in one count of parameters.

    `residuals` are log(measured) - log(fitted), an entry a run; `thetas` (K, 5) the resampled fits.
    """

    count: str
    points: Points
    fit: Fit
    thetas: np.ndarray
    intervals: dict[str, Interval]
    residuals: np.ndarray
    r_squared: float
    advice: list[Advice]
    predictions: list[Prediction]

    @property
    def law(self) -> Law:
        """The fitted law."""
        return self.fit.law

    @property
    def scatter(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals**2)))


@dataclass(frozen=True)
class Scaling:
    """What a study's runs say about scale; `laws` has one for each count, `count` names the first to be read."""

    study: str
    question: str
    metric: str
    unit: str
    count: str
    runs: list[Trained]
    laws: dict[str, CountedLaw]
    seed_scatter: float
    notes: list[str]

    @property
    def law(self) -> CountedLaw:
        """The law in the count that was asked for."""
        return self.laws[self.count]


def scaling_of(
    study: Study,
    metric: str | None = None,
    count: str = "non_embedding",
    computes: Sequence[float] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scaling:
    """Fits the law to the finished runs of a study, in both counts of parameters.

    `metric` is by default the study's; `computes` are training operations that advice is wanted for. Raises ValueError
    where the runs cannot carry a law (see `usable_runs`) or an argument is out of range.
    """
    if count not in COUNTS:
        raise ValueError(f"count={count!r}: accepted are {', '.join(COUNTS)}")
    if resamples < 100:
        raise ValueError(f"resamples={resamples}: an interval of 95% needs at least 100")
    if any(not (np.isfinite(compute) and compute > 0) for compute in computes):
        raise ValueError(f"compute={list(computes)}: accepted are numbers of operations above 0, as in 1e15")
    metric = metric or (study.metric.name if study.metric else "val/nats")
    usable = usable_runs(study, metric)
    runs = usable.runs
    laws = {name: counted_law(runs, name, computes, resamples, seed) for name in COUNTS}
    chosen = laws[count]
    notes = [
        *usable.notes,
        *hardly_determined(chosen.fit, chosen.intervals),
        *hangs_on_few(chosen.points, chosen.fit, chosen.intervals, runs),
        *few_cells(runs),
    ]
    return Scaling(study.name, study.question, metric, study.unit, count, runs, laws, _seed_scatter(runs), notes)


def points_of(runs: Sequence[Trained], count: str) -> Points:
    """The runs as arrays."""
    return Points.of([r.parameters[count] for r in runs], [r.tokens for r in runs], [r.loss for r in runs])


def counted_law(
    runs: Sequence[Trained], count: str, computes: Sequence[float], resamples: int, seed: int
) -> CountedLaw:
    """Fit, intervals, advice and prediction in one count."""
    points = points_of(runs, count)
    found = fit(points)
    thetas = resample_cells(points, [run.cell for run in runs], found, resamples, seed)
    spent = [run.six_ND(count) for run in runs]
    low, high = min(spent), max(spent)
    residuals = found.log_residuals(points)
    logs = np.log(points.losses)
    spread = float(((logs - logs.mean()) ** 2).sum())
    scaled = np.column_stack([np.exp(thetas[:, :3]), thetas[:, 3:]])
    return CountedLaw(
        count=count,
        points=points,
        fit=found,
        thetas=thetas,
        intervals={name: interval_of(scaled[:, i]) for i, name in enumerate(NAMES)},
        residuals=residuals,
        r_squared=1.0 - float((residuals**2).sum()) / spread if spread > 0 else float("nan"),
        advice=[
            advise(runs, count, found.law, thetas, compute)
            for compute in computes or [low, float(np.sqrt(low * high)), high, 10 * high]
        ],
        predictions=predict_held_out(runs, count, resamples, seed),
    )


def advise(runs: Sequence[Trained], count: str, law: Law, thetas: np.ndarray, compute: float) -> Advice:
    """What the law and its resampled fits say of one compute."""
    best = law.optimum(compute)
    others = [Law.of(theta).optimum(compute) for theta in thetas]
    sizes = [run.parameters[count] for run in runs]
    spent = [run.six_ND(count) for run in runs]
    within = min(spent) <= compute * (1 + 1e-9) and compute <= max(spent) * (1 + 1e-9)
    inside = bool(min(sizes) <= best.parameters <= max(sizes) and best.tokens <= max(run.tokens for run in runs))
    return Advice(
        compute=compute,
        best=best,
        parameters=interval_of(np.array([other.parameters for other in others])),
        tokens=interval_of(np.array([other.tokens for other in others])),
        measured=law.optimum_of_cost(compute, cost_of(runs, count), min(sizes) / 100, max(sizes) * 100),
        is_beyond=not (within and inside),
    )


def cost_of(runs: Sequence[Trained], count: str) -> Callable[[np.ndarray], np.ndarray]:
    """Operations a token of a model of N parameters, attention's products and the output matrix included.

    By straight lines between the study's sizes in log-log; beyond them as 6 N grows.
    """
    by_size = {run.parameters[count]: run.operations / run.tokens for run in runs}
    sizes = np.array(sorted(by_size), float)
    log_ratios = np.log(np.array([by_size[int(size)] for size in sizes]) / (OPERATIONS * sizes))

    def cost(parameters: np.ndarray) -> np.ndarray:
        N = np.asarray(parameters, float)
        return np.asarray(OPERATIONS * N * np.exp(np.interp(np.log(N), np.log(sizes), log_ratios)))

    return cost


def predict_held_out(runs: Sequence[Trained], count: str, resamples: int, seed: int) -> list[Prediction]:
    """Fits all but the cells of most compute, and predicts each of these; [] where too little would be left."""
    spent: dict[str, float] = {}
    for run in runs:
        spent[run.cell] = max(spent.get(run.cell, 0.0), run.six_ND(count))
    held = sorted(spent, key=lambda cell: -spent[cell])[: max(1, round(HELD_OUT * len(spent)))]
    rest = [run for run in runs if run.cell not in held]
    if len({run.cell for run in rest}) < 2 * len(NAMES):
        return []
    points = points_of(rest, count)
    found = fit(points)
    thetas = resample_cells(points, [run.cell for run in rest], found, resamples, seed)
    residuals, random = found.log_residuals(points), np.random.default_rng([seed, 1])
    return [
        _prediction([run for run in runs if run.cell == cell], count, found.law, thetas, residuals, random)
        for cell in held
    ]


def _prediction(
    runs: Sequence[Trained],
    count: str,
    law: Law,
    thetas: np.ndarray,
    residuals: np.ndarray,
    random: np.random.Generator,
) -> Prediction:
    """A cell's figures; its interval is that of the law and of what runs scatter about it."""
    N, D = runs[0].parameters[count], runs[0].tokens
    laws = np.array([float(Law.of(theta).loss(N, D)) for theta in thetas])
    # What is left of a fit of five numbers is smaller than what runs scatter by, by this factor.
    widened = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - len(NAMES)))
    scatter = random.choice(widened, size=len(laws))
    return Prediction(
        cell=runs[0].cell,
        parameters=N,
        tokens=D,
        runs=len(runs),
        measured=float(np.mean([run.loss for run in runs])),
        predicted=float(law.loss(N, D)),
        interval=interval_of(laws * np.exp(scatter)),
    )


def _seed_scatter(runs: Sequence[Trained]) -> float:
    """Standard deviation of log loss between seeds of a cell, pooled; nan where each has one."""
    by_cell: dict[str, list[float]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).append(float(np.log(run.loss)))
    several = [np.array(values) for values in by_cell.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    total = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return float(np.sqrt(total / freedom)) if freedom else float("nan")
