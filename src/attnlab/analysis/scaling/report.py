"""The whole of what a study says about scale: a law for each count of parameters, how sure it is, what it advises, what it foretold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.listing import listing
from attnlab.analysis.reader import Study
from attnlab.analysis.scaling.bootstrap import Interval, interval_of, resample_cells
from attnlab.analysis.scaling.fit import BOUNDS, NAMES, Fit, Points, fit
from attnlab.analysis.scaling.influence import influential
from attnlab.analysis.scaling.law import OPERATIONS, Law, Optimum
from attnlab.analysis.scaling.runs import COUNTS, Trained, usable_runs

RESAMPLES = 500
HELD_OUT = 0.1  # share of the cells that are left out and foretold, those of most compute; at least one
AT_BOUND = 0.01  # of an exponent, or of a logarithm: nearer than this to an end of what is sought
HARDLY = 0.5  # a parameter whose interval is wider than this share of itself, on each side, is hardly determined


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
class Foretold:
    """One cell of most compute, foretold by a law fitted without any of these: the mean loss of its runs, and an interval for it."""

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
    """The law in one count of parameters. `residuals` are log(measured) - log(fitted), an entry a run; `thetas` (K, 5) the resampled fits."""

    count: str
    points: Points
    fit: Fit
    thetas: np.ndarray
    intervals: dict[str, Interval]
    residuals: np.ndarray
    r_squared: float
    advice: list[Advice]
    foretold: list[Foretold]

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

    `metric` is by default the study's; `computes` are training operations that advice is wanted for. Raises ValueError where the
    runs cannot carry a law (see `usable_runs`) or an argument is out of range.
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
    seed_scatter = _seed_scatter(runs)
    notes = [*usable.notes, *hardly_determined(chosen), *hangs_on_few(chosen, runs), *few_cells(runs)]
    return Scaling(study.name, study.question, metric, study.unit, count, runs, laws, seed_scatter, notes)


def points_of(runs: Sequence[Trained], count: str) -> Points:
    """The runs as arrays."""
    return Points.of([r.parameters[count] for r in runs], [r.tokens for r in runs], [r.loss for r in runs])


def counted_law(
    runs: Sequence[Trained], count: str, computes: Sequence[float], resamples: int, seed: int
) -> CountedLaw:
    """Fit, intervals, advice and prediction in one count."""
    points = points_of(runs, count)
    found = fit(points)
    cells = [run.cell for run in runs]
    thetas = resample_cells(points, cells, found, resamples, seed)
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
        advice=[advise(runs, count, found.law, thetas, compute) for compute in computes or _computes(runs, count)],
        foretold=foretell(runs, count, resamples, seed),
    )


def _computes(runs: Sequence[Trained], count: str) -> list[float]:
    """The least, the middle and the most compute of the study, and ten times the most."""
    spent = [run.six_ND(count) for run in runs]
    low, high = min(spent), max(spent)
    return [low, float(np.sqrt(low * high)), high, 10 * high]


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


class Cost:
    """Operations a token of a model of N parameters, by straight lines between the study's sizes in log-log; beyond them as 6 N grows."""

    def __init__(self, log_N: np.ndarray, log_ratio: np.ndarray) -> None:
        self.log_N, self.log_ratio = log_N, log_ratio

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        """Of `parameters`, of any shape."""
        N = np.asarray(parameters, float)
        return np.asarray(OPERATIONS * N * np.exp(np.interp(np.log(N), self.log_N, self.log_ratio)))


def cost_of(runs: Sequence[Trained], count: str) -> Cost:
    """What the study's runs measured, attention's products and the output matrix included."""
    by_size = {run.parameters[count]: run.operations / run.tokens for run in runs}
    sizes = np.array(sorted(by_size), float)
    measured = np.array([by_size[int(size)] for size in sizes])
    return Cost(np.log(sizes), np.log(measured / (OPERATIONS * sizes)))


def foretell(runs: Sequence[Trained], count: str, resamples: int, seed: int) -> list[Foretold]:
    """Leaves the cells of most compute out, fits the rest, and says what it foretold of each; [] where too little would be left."""
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
        _foretold([run for run in runs if run.cell == cell], count, found.law, thetas, residuals, random)
        for cell in held
    ]


def _foretold(
    runs: Sequence[Trained],
    count: str,
    law: Law,
    thetas: np.ndarray,
    residuals: np.ndarray,
    random: np.random.Generator,
) -> Foretold:
    """A cell's figures; its interval is that of the law and of what runs scatter about it."""
    N, D = runs[0].parameters[count], runs[0].tokens
    laws = np.array([float(Law.of(theta).loss(N, D)) for theta in thetas])
    # What is left of a fit of five numbers is smaller than what runs scatter by, by this factor.
    widened = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - len(NAMES)))
    scatter = random.choice(widened, size=len(laws))
    return Foretold(
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


def hardly_determined(law: CountedLaw) -> list[str]:
    """A sentence for what the runs do not settle: exponents and the floor; A and B go with their exponents."""
    values = dict(zip(NAMES, (law.law.A, law.law.B, law.law.E, law.law.alpha, law.law.beta), strict=True))
    what = {"alpha": "how fast more parameters help", "beta": "how fast more data help", "E": "the floor of the loss"}
    notes = []
    for name, meaning in what.items():
        interval, value = law.intervals[name], values[name]
        if (bound := bound_of(name, law.fit.theta)) is not None:
            notes.append(
                f"{name} is at its bound ({bound:.2g}), where the search ends: these runs do not settle {meaning}."
            )
        elif max(interval.high - value, value - interval.low) > HARDLY * value:
            notes.append(
                f"{name} is hardly determined ({value:.3g}, 95% interval {interval.low:.2g} to {interval.high:.2g}): "
                f"these runs do not settle {meaning}."
            )
    return notes


def bound_of(name: str, theta: np.ndarray) -> float | None:
    """The end of what is sought for a parameter, where the fit has gone there."""
    place = NAMES.index(name)
    near = [end for end in BOUNDS[place] if abs(theta[place] - end) < AT_BOUND]
    return (math.exp(near[0]) if name in ("A", "B", "E") else near[0]) if near else None


def hangs_on_few(law: CountedLaw, runs: Sequence[Trained]) -> list[str]:
    """A sentence for each few runs without which a parameter leaves its interval."""
    together: dict[tuple[int, ...], list[str]] = {}
    for one in influential(law.points, [run.cell for run in runs], law.fit, law.intervals):
        interval = law.intervals[one.parameter]
        moved = f"{one.parameter} would be {one.without:.3g} instead of {getattr(law.law, one.parameter):.3g}"
        together.setdefault(one.runs, []).append(f"{moved} (interval {interval.low:.3g} to {interval.high:.3g})")
    return [
        f"Without {len(few)} of {len(runs)} runs, {listing([f'{runs[i].cell} seed={runs[i].seed}' for i in few])}, "
        f"{listing(moved)}: look at {'it' if len(few) == 1 else 'them'} before trusting the law."
        for few, moved in together.items()
    ]


def few_cells(runs: Sequence[Trained]) -> list[str]:
    """A sentence where resampling has too little to draw from."""
    cells = len({run.cell for run in runs})
    if cells >= 20:
        return []
    return [
        f"{cells} cells are few for five numbers: intervals by resampling them tend to be too narrow below about 20."
    ]
