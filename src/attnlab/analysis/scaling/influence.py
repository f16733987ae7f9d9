"""Which few runs a fitted law hangs on: those without which a parameter leaves its interval (Broderick, Giordano & Meager 2020, arXiv 2011.14999).

To first order, leaving a run out moves the parameters by H^-1 times its gradient. For each parameter and each direction the runs that move it
most are left out together, one more at a time, and the law is fitted anew; so are those with the most leverage, for far runs that agree with
one another draw the law through themselves and leave no residual. Letters of shapes: R runs, P = 5 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.scaling.bootstrap import MIN_KEPT, Interval, interval_of, resample_cells
from attnlab.analysis.scaling.fit import DELTA, NAMES, Fit, Points, refit

SHARE = (
    0.02  # of the runs, at most, rounded up: five of the 245 of Hoffmann et al. that Besiroglu et al. 2024 set apart
)
NOTICED = 0.3  # of an interval's width: smaller moves are not looked into
RESAMPLES = 100

ASKED = ("E", "alpha", "beta")  # A and B go with their exponents


@dataclass(frozen=True)
class Influence:
    """Runs (their places in the list) without which `parameter` is `without`: outside of its interval, or in one that leaves its value out."""

    parameter: str
    runs: tuple[int, ...]
    without: float


def influential(points: Points, cells: Sequence[str], found: Fit, intervals: Mapping[str, Interval]) -> list[Influence]:
    """For each parameter that hangs on few runs the smallest set that was found."""
    moves_RP, leverage_R = _moves_and_leverage(points, found.theta)
    most = math.ceil(SHARE * len(points))
    orders = {
        name: [np.argsort(by, kind="stable") for by in (-leverage_R, moves_RP[:, place], -moves_RP[:, place])]
        for place, name in enumerate(NAMES)
    }
    sets = [_smallest(name, orders[name], most, points, cells, found, intervals[name]) for name in ASKED]
    return [each for each in sets if each is not None]


def _moves_and_leverage(points: Points, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How leaving each run out moves log A, log B, log E, alpha and beta, up to a common factor (R, P); how much each draws the law to it (R,)."""
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


def _smallest(
    name: str,
    orders: Sequence[np.ndarray],
    most: int,
    points: Points,
    cells: Sequence[str],
    found: Fit,
    interval: Interval,
) -> Influence | None:
    for count in range(1, most + 1):
        for left_out in (order[:count] for order in orders):
            without = _moved_to(name, left_out, points, cells, found, interval)
            if without is not None:
                return Influence(name, tuple(sorted(map(int, left_out))), without)
    return None


def _moved_to(
    name: str, left_out: np.ndarray, points: Points, cells: Sequence[str], found: Fit, interval: Interval
) -> float | None:
    """A parameter's value without these runs, where it lies outside of the interval, or the interval without them leaves its value out."""
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
