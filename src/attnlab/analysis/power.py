"""How much so many seeds can see, and how many seeds an effect needs: the power of the paired t test, by the noncentral t distribution.

Effects are in standard deviations of the paired differences (Cohen's d_z) unless they have a unit; `alpha` is the two-sided level of the one test.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import nctdtr, nctdtrinc, stdtrit

POWER = 0.8
MOST_SEEDS = 10_000


def power_of_t(effect: float, n: int, alpha: float = 0.05) -> float:
    """The chance that n differences whose true mean is `effect` give p <= alpha; nan with fewer than two."""
    if n < 2 or not math.isfinite(effect):
        return math.nan
    critical, shift = float(stdtrit(n - 1, 1 - alpha / 2)), abs(effect) * math.sqrt(n)
    # Far from zero scipy gives nan for a tail that is nothing.
    below, beyond = np.nan_to_num([nctdtr(n - 1, shift, critical), nctdtr(n - 1, shift, -critical)])
    return float(1 - below + beyond)


def smallest_visible_effect(n: int, alpha: float = 0.05, power: float = POWER) -> float:
    """The effect that n differences see with chance `power`; nan with fewer than two."""
    if n < 2:
        return math.nan
    return float(nctdtrinc(n - 1, 1 - power, stdtrit(n - 1, 1 - alpha / 2))) / math.sqrt(n)


def seeds_to_see(effect: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The fewest seeds that see `effect` with chance `power`; infinite beyond MOST_SEEDS, nan where the effect is not known."""
    if math.isnan(effect):
        return math.nan
    return _fewest(lambda n: power_of_t(effect, n, alpha) >= power)


def seeds_to_equate(effect: float, margin: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The fewest seeds whose interval at 1 - alpha lies within +-margin with chance `power`, if the true mean is `effect`.

    An upper bound (Bonferroni over the two sides), close where the chance is high. Infinite where the effect is not within the margin.
    """
    if math.isnan(effect) or math.isnan(margin):
        return math.nan
    if abs(effect) >= margin:
        return math.inf
    return _fewest(lambda n: _power_within(effect, margin, n, alpha) >= power)


def _power_within(effect: float, margin: float, n: int, alpha: float) -> float:
    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    shifts = [(margin - abs(effect)) * math.sqrt(n), (margin + abs(effect)) * math.sqrt(n)]
    missed = np.nan_to_num([nctdtr(n - 1, shift, critical) for shift in shifts])
    return float(1 - missed.sum())


def _fewest(enough: Callable[[int], bool]) -> float:
    """The smallest n from 2 on that is enough, by doubling and bisection: more seeds are never worse."""
    low, high = 1, 2
    while not enough(high):
        if high == MOST_SEEDS:
            return math.inf
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)
