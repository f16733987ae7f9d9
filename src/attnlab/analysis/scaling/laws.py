"""What a study says about scale: a law for each count of parameters, how sure it is, advice, predictions; and what
speaks against trusting it: parameters that the runs do not settle, and few runs that it hangs on.

Influence (Broderick, Giordano & Meager 2020, arXiv 2011.14999): to first order, leaving a run out moves the parameters
by H^-1 times its gradient. For each parameter and each direction the runs that move it most are left out together, one
more at a time, and the law is fitted anew; so are those with the most leverage, for far runs that agree with one
another draw the law through themselves and leave no residual. Letters of shapes: R runs, K resamples, P = 5 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.formatting import listing
from attnlab.analysis.reader import Study
from attnlab.analysis.scaling.fit import (
    BOUNDS,
    DELTA,
    NAMES,
    OPERATIONS,
    Fit,
    Interval,
    Law,
    Optimum,
    Points,
    fit,
    interval_of,
    refit,
    resample_cells,
)
from attnlab.analysis.scaling.runs import COUNTS, Trained, usable_runs
from attnlab.training.targets import target_of

RESAMPLES = 500
HELD_OUT = 0.1  # share of the cells that are held out and predicted, those of most compute; at least one
# Of the runs, at most, rounded up: five of the 245 of Hoffmann et al. that Besiroglu et al. 2024 set apart.
SHARE = 0.02
NOTICED = 0.3  # of an interval's width: smaller moves are not looked into
RESAMPLES_WITHOUT = 100
AT_BOUND = 0.01  # of an exponent, or of a logarithm: nearer than this to an end of what is sought
HARDLY = 0.5  # a parameter whose interval is wider than this share of itself, on each side, is hardly determined
# What the parameters mean that are looked into; A and B go with their exponents.
ASKED = {"alpha": "how fast more parameters help", "beta": "how fast more data help", "E": "the floor of the loss"}


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
        return self.predicted / self.measured - 1.0

    @property
    def is_inside(self) -> bool:
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True)
class CountedLaw:
    """The law in one count of parameters.

    `residuals` are log(measured) - log(fitted), an entry a run; `thetas` (K, P) the resampled fits.
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

    `metric` is by default the study's, of the cost to a target the one that has to reach it; `computes` are training
    operations that advice is wanted for. Raises ValueError where the runs cannot carry a law (see `usable_runs`) or an
    argument is out of range.
    """
    if count not in COUNTS:
        raise ValueError(f"count={count!r}: accepted are {', '.join(COUNTS)}")
    if resamples < 100:
        raise ValueError(f"resamples={resamples}: an interval of 95% needs at least 100")
    if any(not (np.isfinite(compute) and compute > 0) for compute in computes):
        raise ValueError(f"compute={list(computes)}: accepted are numbers of operations above 0, as in 1e15")
    own = study.metric.name if study.metric else "val/loss"
    metric = metric or (target.metric if (target := target_of(own)) else own)
    runs, notes = usable_runs(study, metric)
    laws = {name: counted_law(runs, name, computes, resamples, seed) for name in COUNTS}
    chosen = laws[count]
    notes = [
        *notes,
        *hardly_determined(chosen.fit, chosen.intervals),
        *hangs_on_few(chosen.points, chosen.fit, chosen.intervals, runs),
        *few_cells(runs),
    ]
    return Scaling(study.name, study.question, metric, study.unit, count, runs, laws, _seed_scatter(runs), notes)


def points_of(runs: Sequence[Trained], count: str) -> Points:
    return Points.of([r.parameters[count] for r in runs], [r.tokens for r in runs], [r.loss for r in runs])


def counted_law(
    runs: Sequence[Trained], count: str, computes: Sequence[float], resamples: int, seed: int
) -> CountedLaw:
    points = points_of(runs, count)
    found = fit(points)
    thetas = resample_cells(points, [run.cell for run in runs], found, resamples, seed)
    spent = [run.six_ND(count) for run in runs]
    low, high = min(spent), max(spent)
    computes = computes or [low, float(np.sqrt(low * high)), high, 10 * high]
    residuals, logs = found.log_residuals(points), np.log(points.losses)
    spread = float(((logs - logs.mean()) ** 2).sum())
    scaled = np.column_stack([np.exp(thetas[:, :3]), thetas[:, 3:]])
    return CountedLaw(
        count,
        points,
        found,
        thetas,
        intervals={name: interval_of(scaled[:, i]) for i, name in enumerate(NAMES)},
        residuals=residuals,
        r_squared=1.0 - float((residuals**2).sum()) / spread if spread > 0 else math.nan,
        advice=[advise(runs, count, found.law, thetas, compute) for compute in computes],
        predictions=predict_held_out(runs, count, resamples, seed),
    )


def advise(runs: Sequence[Trained], count: str, law: Law, thetas: np.ndarray, compute: float) -> Advice:
    best = law.optimum(compute)
    others = [Law.of(theta).optimum(compute) for theta in thetas]
    sizes, spent = [run.parameters[count] for run in runs], [run.six_ND(count) for run in runs]
    within = min(spent) <= compute * (1 + 1e-9) and compute <= max(spent) * (1 + 1e-9)
    inside = bool(min(sizes) <= best.parameters <= max(sizes) and best.tokens <= max(run.tokens for run in runs))
    return Advice(
        compute,
        best,
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
    # What is left of a fit of five numbers is smaller than what runs scatter by, by this factor.
    widened = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - len(NAMES)))
    of_cells = [[run for run in runs if run.cell == cell] for cell in held]
    return [_prediction(of, count, found.law, thetas, random.choice(widened, size=len(thetas))) for of in of_cells]


def _prediction(runs: Sequence[Trained], count: str, law: Law, thetas: np.ndarray, scatter_K: np.ndarray) -> Prediction:
    """A cell's figures; its interval is that of the law and of what runs scatter about it."""
    N, D = runs[0].parameters[count], runs[0].tokens
    laws_K = np.array([float(Law.of(theta).loss(N, D)) for theta in thetas])
    measured = float(np.mean([run.loss for run in runs]))
    interval = interval_of(laws_K * np.exp(scatter_K))
    return Prediction(runs[0].cell, N, D, len(runs), measured, float(law.loss(N, D)), interval)


def _seed_scatter(runs: Sequence[Trained]) -> float:
    """Standard deviation of log loss between seeds of a cell, pooled; nan where each has one."""
    by_cell: dict[str, list[float]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).append(float(np.log(run.loss)))
    several = [np.array(values) for values in by_cell.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    total = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return float(np.sqrt(total / freedom)) if freedom else math.nan


@dataclass(frozen=True)
class Influence:
    """Runs (by position) without which `parameter` is `without`: outside its interval, or that of the rest parts."""

    parameter: str
    runs: tuple[int, ...]
    without: float


def influential(points: Points, cells: Sequence[str], found: Fit, intervals: Mapping[str, Interval]) -> list[Influence]:
    """For each parameter that hangs on few runs the smallest set that was found."""
    moves_RP, leverage_R = _moves_and_leverage(points, found.theta)
    most = math.ceil(SHARE * len(points))
    sets = []
    for name in ("E", "alpha", "beta"):
        moves_R = moves_RP[:, NAMES.index(name)]
        orders = [np.argsort(by, kind="stable") for by in (-leverage_R, moves_R, -moves_R)]
        for left_out in (order[:count] for count in range(1, most + 1) for order in orders):
            without = _moved_to(name, left_out, points, cells, found, intervals[name])
            if without is not None:
                sets.append(Influence(name, tuple(sorted(map(int, left_out))), without))
                break
    return sets


def _moves_and_leverage(points: Points, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How leaving each run out moves theta, up to a common factor (R, P); how far each draws the law to it (R,)."""
    a, b, e, alpha, beta = theta
    log_N, log_D = np.log(points.parameters), np.log(points.tokens)
    terms = np.stack([a - alpha * log_N, b - beta * log_D, np.full_like(log_N, e)])
    top = terms.max(0)
    shares = np.exp(terms - top)
    fitted = top + np.log(shares.sum(0))
    by_a, by_b, by_e = shares / shares.sum(0)
    slopes_RP = np.column_stack([by_a, by_b, by_e, -by_a * log_N, -by_b * log_D])
    pulls_R = np.clip(np.log(points.losses) - fitted, -DELTA, DELTA)
    solved_RP = slopes_RP @ np.linalg.pinv(slopes_RP.T @ slopes_RP)
    return -pulls_R[:, None] * solved_RP, (solved_RP * slopes_RP).sum(1)


def _moved_to(
    name: str, left_out: np.ndarray, points: Points, cells: Sequence[str], found: Fit, interval: Interval
) -> float | None:
    """A parameter's value without these runs, where it leaves its interval or the rest's leaves its value out."""
    weights = points.weights.copy()
    weights[left_out] = 0.0
    rest = points.weighted(weights)
    if not rest.has_enough:
        return None
    fitted = refit(rest, found.ends)
    value, without = float(getattr(found.law, name)), float(getattr(fitted.law, name))
    if not interval.low <= without <= interval.high:
        return without
    if abs(without - value) < NOTICED * (interval.high - interval.low):
        return None
    # Far runs widen the interval that they are part of, so that it may hold both values.
    kept = [cell for cell, weight in zip(cells, weights, strict=True) if weight > 0]
    thetas = resample_cells(rest, kept, fitted, RESAMPLES_WITHOUT, 0)[:, NAMES.index(name)]
    others = interval_of(np.exp(thetas) if name == "E" else thetas)
    return None if others.low <= value <= others.high else without


def hardly_determined(found: Fit, intervals: Mapping[str, Interval]) -> list[str]:
    """A sentence for what the runs do not settle: exponents and the floor."""
    notes = []
    for name, meaning in ASKED.items():
        i, interval, value = NAMES.index(name), intervals[name], float(getattr(found.law, name))
        ends = [end for end in BOUNDS[i] if abs(found.theta[i] - end) < AT_BOUND]
        if ends:
            end = math.exp(ends[0]) if name == "E" else ends[0]
            said = f"is at its bound ({end:.2g}), where the search ends"
        elif max(interval.high - value, value - interval.low) > HARDLY * value:
            said = f"is hardly determined ({value:.3g}, 95% interval {interval.low:.2g} to {interval.high:.2g})"
        else:
            continue
        notes.append(f"{name} {said}: these runs do not settle {meaning}.")
    return notes


def hangs_on_few(points: Points, found: Fit, intervals: Mapping[str, Interval], runs: Sequence[Trained]) -> list[str]:
    """A sentence for each few runs without which a parameter leaves its interval."""
    together: dict[tuple[int, ...], list[str]] = {}
    for one in influential(points, [run.cell for run in runs], found, intervals):
        interval = intervals[one.parameter]
        moved = f"{one.parameter} would be {one.without:.3g} instead of {getattr(found.law, one.parameter):.3g}"
        together.setdefault(one.runs, []).append(f"{moved} (interval {interval.low:.3g} to {interval.high:.3g})")
    return [
        f"Without {len(few)} of {len(runs)} runs, {listing([f'{runs[i].cell} seed={runs[i].seed}' for i in few])}, "
        f"{listing(moved)}: look at {'it' if len(few) == 1 else 'them'} before trusting the law."
        for few, moved in together.items()
    ]


def few_cells(runs: Sequence[Trained]) -> list[str]:
    """A sentence where resampling has too little to draw from."""
    cells = len({run.cell for run in runs})
    said = f"{cells} cells are few for five numbers: intervals by resampling them tend to be too narrow below about 20."
    return [said] if cells < 20 else []
