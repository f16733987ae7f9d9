"""The law, fitted to runs as Hoffmann et al. 2022 (section 3.3, appendix D.2) did, with what Besiroglu et al. 2024
mended.

L(N, D) = E + A / N^alpha + B / D^beta (equation 2): the loss, in nats a token, that N parameters reach on D tokens.
theta = (a, b, e, alpha, beta) with A = exp(a), B = exp(b), E = exp(e). The objective is the sum over runs of Huber's
loss of log L - log-sum-exp(a - alpha log N, b - beta log D, e). Intervals come of resampling the cells of a study, each
with all of its seeds. Letters of shapes: R runs, S starts, K resamples, P = 5 parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import huber
from threadpoolctl import ThreadpoolController

OPERATIONS = 6.0  # floating-point operations to train one parameter on one token (Kaplan et al. 2020, section 2.1)
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
# L-BFGS is shown the sum in units of DELTA^2: its tolerances are made for figures about 1, and a sum is 1e-4 here.
SHOWN = DELTA**-2
MIN_KEPT = (3, 2)  # sizes and budgets of a resample


@dataclass(frozen=True)
class Optimum:
    """How a compute C is spent best: `parameters` on `tokens`, and the `loss` that the law then says."""

    compute: float
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """L = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @classmethod
    def of(cls, theta: np.ndarray) -> Law:
        """From (log A, log B, log E, alpha, beta), the parameters that are fitted."""
        a, b, e, alpha, beta = (float(value) for value in theta)
        return cls(math.exp(e), math.exp(min(a, 700.0)), math.exp(min(b, 700.0)), alpha, beta)

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """The loss of `parameters` trained on `tokens`; arrays are broadcast."""
        N, D = np.asarray(parameters, float), np.asarray(tokens, float)
        return np.asarray(self.E + self.A * N**-self.alpha + self.B * D**-self.beta)

    def optimum(self, compute: float) -> Optimum:
        """The N and D of least loss with 6 N D = `compute` (Hoffmann et al. 2022, equation 4).

        N = G (C/6)^(beta / (alpha + beta)), D = (C/6) / N, with G = (alpha A / (beta B))^(1 / (alpha + beta)); infinite
        or zero where an exponent is zero, for then one of them brings nothing.
        """
        total = self.alpha + self.beta
        if min(self.alpha, self.beta, self.A, self.B) <= 0:
            return Optimum(compute, math.nan, math.nan, math.nan)
        log_G = math.log(self.alpha * self.A / (self.beta * self.B)) / total
        N = math.exp(log_G + self.beta / total * math.log(compute / OPERATIONS))
        D = compute / OPERATIONS / N
        return Optimum(compute, N, D, float(self.loss(N, D)))

    @property
    def exponents(self) -> tuple[float, float]:
        total = self.alpha + self.beta
        return (self.beta / total, self.alpha / total) if total > 0 else (math.nan, math.nan)

    def optimum_of_cost(
        self, compute: float, cost: Callable[[np.ndarray], np.ndarray], smallest: float, largest: float
    ) -> Optimum:
        """The same where a token costs `cost(N)` operations instead of 6 N, with `smallest` <= N <= `largest`."""
        from scipy.optimize import minimize_scalar

        def loss(log_N: float) -> float:
            N = np.exp(log_N)
            return float(self.loss(N, compute / cost(N)))

        # The loss along one compute has a single valley in log N as long as the cost grows with N.
        found = minimize_scalar(loss, bounds=(math.log(smallest), math.log(largest)), options={"xatol": 1e-6})
        N = math.exp(float(found.x))
        return Optimum(compute, N, compute / float(cost(np.asarray(N))), float(found.fun))


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

    @property
    def has_enough(self) -> bool:
        """Whether there are sizes and budgets enough for a law to be fitted to them at all."""
        return len(np.unique(self.parameters)) >= MIN_KEPT[0] and len(np.unique(self.tokens)) >= MIN_KEPT[1]

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

    There a and alpha hardly pull at one another, which spares L-BFGS most of its steps; `to_centre` and `from_centre`
    translate.
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
        return np.asarray((self.weights_R * huber(DELTA, residuals)).sum(1))

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
        clipped = np.minimum(np.maximum(residuals, -DELTA), DELTA)
        shares *= -self.weights_R * clipped
        gradient = np.empty(5)
        shares.sum(1, out=gradient[:3])
        gradient[3], gradient[4] = -shares[0] @ self.log_N_R, -shares[1] @ self.log_D_R
        # Huber's loss is r^2 / 2 within DELTA and DELTA (|r| - DELTA / 2) outside: c (r - c / 2) with r clipped to c.
        return float(self.weights_R @ (clipped * (residuals - 0.5 * clipped))), gradient


def fit(points: Points) -> Fit:
    """The law of least objective that the grid of starts leads to.

    Of the 4,500 starts the CHOSEN best are followed to their end, and the best of each pair of exponents. Raises
    ValueError for fewer than five runs.
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
    return np.asarray(order[np.unique(np.concatenate([np.arange(CHOSEN), first]))])


def _best(objective: Objective, starts_SP: np.ndarray) -> Fit:
    with _threads_of_blas().limit(limits=1, user_api="blas"):
        ends = sorted((follow(objective, start) for start in starts_SP), key=lambda end: end[1])
    theta, value = ends[0]
    distinct = [theta]
    for other, reached in ends[1:]:
        apart = all(np.abs(other - known).max() > 0.05 for known in distinct)
        if apart and reached < NEAR * value and len(distinct) < MOST_ENDS:
            distinct.append(other)
    back = [objective.from_centre(one) for one in distinct]
    return Fit(Law.of(back[0]), back[0], value, tuple(back))


@cache
def _threads_of_blas() -> ThreadpoolController:
    """L-BFGS hands matrices of a few numbers to BLAS, whose threads take ten times as long for them as one does."""
    import scipy.optimize  # noqa: F401  loads the BLAS that it uses

    return ThreadpoolController()


def follow(
    objective: Objective, start_P: np.ndarray, share: float = SHOWN, **options: float
) -> tuple[np.ndarray, float]:
    """Where L-BFGS-B ends from a start, and the objective there; it sees `share` times the objective."""
    from scipy.optimize import minimize

    gradient = np.empty_like(start_P)

    def seen(theta: np.ndarray) -> float:
        nonlocal gradient
        value, gradient = objective.value_and_gradient(theta)
        return share * value

    options = {"maxiter": STEPS, **options}
    # It asks for the gradient where it has just asked for the value; with jac=True scipy compares the places each time.
    end = minimize(seen, start_P, jac=lambda _: share * gradient, method="L-BFGS-B", bounds=BOUNDS, options=options)
    return end.x, float(end.fun) / share


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


def interval_of(values: np.ndarray) -> Interval:
    known = values[np.isfinite(values)]
    if len(known) < 0.975 * len(values):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))


def resample_cells(points: Points, cells: Sequence[str], best: Fit, resamples: int, seed: int) -> np.ndarray:
    """The theta (K, 5) of `resamples` fits to cells drawn with replacement, started from where the fit to all ended.

    Runs of a cell share their size, data and tuning, so they are drawn together. Draws of fewer than three sizes or two
    budgets are drawn again.
    """
    names = sorted(set(cells))
    index_R = np.array([names.index(cell) for cell in cells])
    random = np.random.default_rng(seed)
    thetas: list[np.ndarray] = []
    while len(thetas) < resamples:
        counts = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        drawn = points.weighted(counts[index_R].astype(float))
        if drawn.has_enough and len(drawn) >= len(NAMES):
            thetas.append(refit(drawn, best.ends).theta)
    return np.stack(thetas)
