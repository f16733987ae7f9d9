"""Fits the law to runs as Hoffmann et al. 2022 (section 3.3, appendix D.2) did, with what Besiroglu et al. 2024 mended.

theta = (a, b, e, alpha, beta) with A = exp(a), B = exp(b), E = exp(e). The objective is the sum over runs of Huber's loss of
log L - log-sum-exp(a - alpha log N, b - beta log D, e). Letters of shapes: R runs, S starts, P = 5 parameters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.scaling.law import Law

DELTA = 1e-3  # where Huber's loss turns from a square to a line, in log loss
NAMES = ("A", "B", "E", "alpha", "beta")
GRID = (
    np.arange(0.0, 25.1, 5.0),  # a
    np.arange(0.0, 25.1, 5.0),  # b
    np.arange(-1.0, 1.1, 0.5),  # e
    np.arange(0.0, 2.1, 0.5),  # alpha
    np.arange(0.0, 2.1, 0.5),  # beta
)
# a, b and e are wide enough for any unit; an exponent below zero would say that more parameters or tokens harm.
BOUNDS = ((-60.0, 120.0), (-60.0, 120.0), (-12.0, 20.0), (0.0, 5.0), (0.0, 5.0))
CHOSEN = 24  # starts of the grid that are followed, besides the best of each pair of exponents
NEAR, MOST_ENDS = 1.05, 3  # ends within this factor of the best objective may be the best ones of a resample
STEPS = 1000  # at most; a law whose parameters the runs do not settle creeps along a flat valley
# L-BFGS is shown the sum in units of DELTA^2: its tolerances are made for figures about 1, and a sum is 1e-4 here, a mean 1e-6.
SHOWN = DELTA**-2


@dataclass(frozen=True)
class Points:
    """What is fitted, an entry a run (R,): parameters N, training tokens D, final loss L, and how often each counts."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, parameters: object, tokens: object, losses: object, weights: object = None) -> Points:
        """From sequences of numbers; without `weights` each counts once."""
        N, D, L = (np.asarray(values, float) for values in (parameters, tokens, losses))
        return cls(N, D, L, np.ones_like(L) if weights is None else np.asarray(weights, float))

    def __len__(self) -> int:
        return len(self.losses)

    def weighted(self, weights: np.ndarray) -> Points:
        """The runs that `weights` does not leave out, counted as often as it says."""
        kept = weights > 0
        return Points(self.parameters[kept], self.tokens[kept], self.losses[kept], weights[kept])


@dataclass(frozen=True)
class Fit:
    """A fitted law, its `theta` (P,), the objective reached, and the distinct ends that came near it, best first."""

    law: Law
    theta: np.ndarray
    objective: float
    ends: tuple[np.ndarray, ...]

    def log_residuals(self, points: Points) -> np.ndarray:
        """log(measured) - log(fitted), an entry a run."""
        return np.asarray(np.log(points.losses) - np.log(self.law.loss(points.parameters, points.tokens)))


class Objective:
    """The sum of Huber's losses and its gradient, computed about the middle of log N and log D.

    There a and alpha hardly pull at one another, which spares L-BFGS most of its steps; `to_centre` and `from_centre` translate.
    """

    def __init__(self, points: Points) -> None:
        log_N, log_D = np.log(points.parameters), np.log(points.tokens)
        self.middle_N, self.middle_D = float(log_N.mean()), float(log_D.mean())
        self.log_N_R, self.log_D_R = log_N - self.middle_N, log_D - self.middle_D
        self.log_L_R, self.weights_R = np.log(points.losses), points.weights

    def to_centre(self, theta: np.ndarray) -> np.ndarray:
        """The same law with a and b taken at the middle; theta (..., P)."""
        moved = np.array(theta, float)
        moved[..., 0] -= moved[..., 3] * self.middle_N
        moved[..., 1] -= moved[..., 4] * self.middle_D
        return moved

    def from_centre(self, centred: np.ndarray) -> np.ndarray:
        """The way back of `to_centre`."""
        moved = np.array(centred, float)
        moved[..., 0] += moved[..., 3] * self.middle_N
        moved[..., 1] += moved[..., 4] * self.middle_D
        return moved

    def values(self, centred_SP: np.ndarray) -> np.ndarray:
        """The objective (S,) of many parameters at once."""
        a, b, e, alpha, beta = (centred_SP[:, i, None] for i in range(5))
        terms = np.stack(np.broadcast_arrays(a - alpha * self.log_N_R, b - beta * self.log_D_R, e))
        top = terms.max(0)
        residuals = self.log_L_R - (top + np.log(np.exp(terms - top).sum(0)))
        return np.asarray((self.weights_R * huber(residuals)).sum(1))

    def value_and_gradient(self, centred_P: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient (P,)."""
        a, b, e, alpha, beta = centred_P
        terms = np.empty((3, len(self.log_L_R)))
        terms[0], terms[1], terms[2] = a - alpha * self.log_N_R, b - beta * self.log_D_R, e
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        shares /= total
        residuals = self.log_L_R - (top + np.log(total))
        slope = -self.weights_R * np.clip(residuals, -DELTA, DELTA)
        by_a, by_b, by_e = shares * slope
        gradient = np.array([by_a.sum(), by_b.sum(), by_e.sum(), -by_a @ self.log_N_R, -by_b @ self.log_D_R])
        return float(self.weights_R @ huber(residuals)), gradient


def huber(residuals: np.ndarray) -> np.ndarray:
    """r^2 / 2 up to DELTA, DELTA (|r| - DELTA / 2) beyond."""
    inside = np.minimum(np.abs(residuals), DELTA)
    return np.asarray(inside * (np.abs(residuals) - 0.5 * inside))


def fit(points: Points) -> Fit:
    """The law of least objective that the grid of starts leads to.

    Of the 4,500 starts the CHOSEN best are followed to their end, and the best of each pair of exponents. Raises ValueError for
    fewer than five runs.
    """
    if len(points) < len(NAMES):
        raise ValueError(f"{len(points)} runs cannot fit {len(NAMES)} parameters; accepted are {len(NAMES)} and more")
    objective = Objective(points)
    starts_SP = objective.to_centre(np.array(list(itertools.product(*GRID))))
    return _best(objective, starts_SP[_promising(objective, starts_SP)])


def refit(points: Points, starts: tuple[np.ndarray, ...]) -> Fit:
    """The fit from `starts` alone, (P,) each, as a bootstrap does it."""
    objective = Objective(points)
    return _best(objective, objective.to_centre(np.stack(starts)))


def _promising(objective: Objective, starts_SP: np.ndarray) -> np.ndarray:
    """Which starts are followed."""
    values = objective.values(starts_SP)
    order = np.argsort(values, kind="stable")
    _, first = np.unique(starts_SP[order][:, 3:], axis=0, return_index=True)
    return order[np.unique(np.concatenate([np.arange(CHOSEN), first]))]


def _best(objective: Objective, starts_SP: np.ndarray) -> Fit:
    ends = sorted((follow(objective, start) for start in starts_SP), key=lambda end: end[1])
    theta, value = ends[0]
    distinct = [theta]
    for other, reached in ends[1:]:
        apart = all(np.abs(other - known).max() > 0.05 for known in distinct)
        if apart and reached < NEAR * value and len(distinct) < MOST_ENDS:
            distinct.append(other)
    back = [objective.from_centre(one) for one in distinct]
    return Fit(Law.of(back[0]), back[0], value, tuple(back))


def follow(
    objective: Objective, start_P: np.ndarray, share: float = SHOWN, **options: float
) -> tuple[np.ndarray, float]:
    """Where L-BFGS-B ends from a start, and the objective there; it sees `share` times the objective."""
    from scipy.optimize import minimize

    def seen(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective.value_and_gradient(theta)
        return share * value, share * gradient

    options = {"maxiter": STEPS, **options}
    end = minimize(seen, start_P, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options)
    return end.x, float(end.fun) / share
