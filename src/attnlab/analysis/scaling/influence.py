"""What speaks against trusting a fitted law: parameters that the runs do not settle, and few runs that it hangs on.

Influence (Broderick, Giordano & Meager 2020, arXiv 2011.14999): to first order, leaving a run out moves the parameters
by H^-1 times its gradient. For each parameter and each direction the runs that move it most are left out together, one
more at a time, and the law is fitted anew; so are those with the most leverage, for far runs that agree with one
another draw the law through themselves and leave no residual. Letters of shapes: R runs, P = 5 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.formatting import listing
from attnlab.analysis.scaling.fit import (
    BOUNDS,
    DELTA,
    MIN_KEPT,
    NAMES,
    Fit,
    Interval,
    Points,
    interval_of,
    refit,
    resample_cells,
)
from attnlab.analysis.scaling.runs import Trained

# Of the runs, at most, rounded up: five of the 245 of Hoffmann et al. that Besiroglu et al. 2024 set apart.
SHARE = 0.02
NOTICED = 0.3  # of an interval's width: smaller moves are not looked into
RESAMPLES = 100

AT_BOUND = 0.01  # of an exponent, or of a logarithm: nearer than this to an end of what is sought
HARDLY = 0.5  # a parameter whose interval is wider than this share of itself, on each side, is hardly determined
# What the parameters mean that are looked into; A and B go with their exponents.
ASKED = {"alpha": "how fast more parameters help", "beta": "how fast more data help", "E": "the floor of the loss"}


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
    if len(set(rest.parameters)) < MIN_KEPT[0] or len(set(rest.tokens)) < MIN_KEPT[1]:
        return None
    fitted = refit(rest, found.ends)
    value, without = float(getattr(found.law, name)), float(getattr(fitted.law, name))
    if not interval.low <= without <= interval.high:
        return without
    if abs(without - value) < NOTICED * (interval.high - interval.low):
        return None
    # Far runs widen the interval that they are part of, so that it may hold both values.
    kept = [cell for cell, weight in zip(cells, weights, strict=True) if weight > 0]
    thetas = resample_cells(rest, kept, fitted, RESAMPLES, 0)[:, NAMES.index(name)]
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
            notes.append(
                f"{name} is at its bound ({end:.2g}), where the search ends: these runs do not settle {meaning}."
            )
        elif max(interval.high - value, value - interval.low) > HARDLY * value:
            notes.append(
                f"{name} is hardly determined ({value:.3g}, 95% interval {interval.low:.2g} to {interval.high:.2g}): "
                f"these runs do not settle {meaning}."
            )
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
    if cells >= 20:
        return []
    return [
        f"{cells} cells are few for five numbers: intervals by resampling them tend to be too narrow below about 20."
    ]
