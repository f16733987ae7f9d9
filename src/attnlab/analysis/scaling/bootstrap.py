"""Intervals of a fitted law by resampling the cells of a study, each with all of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.analysis.scaling.fit import Fit, Points, refit

MIN_KEPT = (3, 2)  # sizes and budgets that a resample needs for a law to be fitted to it at all


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


def interval_of(values: np.ndarray) -> Interval:
    """The middle 95% of values (K,); none, nan, where more than one in 40 is no number (an optimum that a fit does not have)."""
    known = values[np.isfinite(values)]
    if len(known) < 0.975 * len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))


def resample_cells(points: Points, cells: Sequence[str], best: Fit, resamples: int, seed: int) -> np.ndarray:
    """The theta (K, 5) of `resamples` fits to cells drawn with replacement, started from where the fit to all ended.

    Runs of a cell share their size, data and tuning, so they are drawn together. Draws of fewer than three sizes or two budgets
    are drawn again.
    """
    names = sorted(set(cells))
    index_R = np.array([names.index(cell) for cell in cells])
    random = np.random.default_rng(seed)
    thetas: list[np.ndarray] = []
    while len(thetas) < resamples:
        counts = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        drawn = points.weighted(counts[index_R].astype(float))
        sizes, budgets = len(np.unique(drawn.parameters)), len(np.unique(drawn.tokens))
        if sizes >= MIN_KEPT[0] and budgets >= MIN_KEPT[1] and len(drawn) >= 5:
            thetas.append(refit(drawn, best.ends).theta)
    return np.stack(thetas)
