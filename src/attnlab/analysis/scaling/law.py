"""The law itself: what loss N parameters reach on D tokens, and how to spend a given compute.

L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2). N parameters, D tokens, losses in nats a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

OPERATIONS = 6.0  # floating-point operations to train one parameter on one token (Kaplan et al. 2020, section 2.1)


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

        N = G (C/6)^(beta / (alpha + beta)), D = (C/6) / N, with G = (alpha A / (beta B))^(1 / (alpha + beta)); infinite or zero
        where an exponent is zero, for then one of them brings nothing.
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
        """(of N, of D): the compute-optimal N grows as C^(beta / (alpha + beta)), D as C^(alpha / (alpha + beta))."""
        total = self.alpha + self.beta
        return (self.beta / total, self.alpha / total) if total > 0 else (math.nan, math.nan)

    def optimum_of_cost(
        self, compute: float, cost: Callable[[np.ndarray], np.ndarray], smallest: float, largest: float
    ) -> Optimum:
        """The same where a token costs `cost(N)` operations instead of 6 N, sought among `smallest` <= N <= `largest`."""
        from scipy.optimize import minimize_scalar

        def loss(log_N: float) -> float:
            N = np.exp(log_N)
            return float(self.loss(N, compute / cost(N)))

        # The loss along one compute has a single valley in log N as long as the cost grows with N.
        found = minimize_scalar(loss, bounds=(math.log(smallest), math.log(largest)), options={"xatol": 1e-6})
        N = math.exp(float(found.x))
        return Optimum(compute, N, compute / float(cost(np.asarray(N))), float(found.fun))
