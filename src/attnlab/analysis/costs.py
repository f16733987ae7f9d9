"""What it cost each run to reach a target, read from its learning curve.

The validations of a run are joined by straight lines, on the axis that is asked for, between the last one before the
target is reached and the first that reaches it. A target that the first validation has reached cost at most that much.
A run that finished without reaching it costs more than its last validation, and one that diverged first an infinity;
of other runs that ended without reaching it, by an error or given up, nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from attnlab.analysis.censoring import Bounds
from attnlab.training.run_directory import ENDED
from attnlab.training.study_fields import is_finite
from attnlab.training.targets import Target, target_of

COLUMNS = {"steps": "step", "tokens": "tokens", "flops": "tokens", "seconds": "seconds"}  # of a learning curve

Key = tuple[str, int]  # a run's cell and seed


def targets_in(names: Iterable[str], claims: Iterable[Mapping[str, object]]) -> dict[str, Target]:
    """The targets of the costs among metrics, and among those that claims are about, by the names of the costs."""
    return {str(target): target for name in (*names, *metrics_of(claims)) if (target := target_of(name))}


def metrics_of(claims: Iterable[Mapping[str, object]]) -> list[str]:
    """The metrics that claims name, of cells and of what these are held against."""
    claims = list(claims)
    against = [other for claim in claims if isinstance(other := claim.get("against"), Mapping)]
    return [name for one in (*claims, *against) if (name := str(one.get("metric") or ""))]


def costs_to(
    target: Target, curves: pl.DataFrame, is_lower: bool, runs: Mapping[Key, tuple[str, object]]
) -> dict[Key, Bounds]:
    """What is known of the cost of each of `runs`, {(cell, seed): (state, FLOPs per token)}; is_lower: whether the
    target is reached from above."""
    validated = {}
    if target.metric in curves.columns:
        rows = curves.select("cell", "seed", x=COLUMNS[target.axis], y=pl.col(target.metric)).drop_nulls(["x", "y"])
        for (cell, seed), of in rows.group_by(["cell", "seed"], maintain_order=True):
            validated[str(cell), int(seed)] = of["x"].to_numpy(), of["y"].to_numpy()
    found = {}
    for key, (state, per_token) in runs.items():
        x, y = validated.get(key, (np.empty(0), np.empty(0)))
        if target.axis == "flops":
            x = x * float(per_token) if is_finite(per_token) and per_token > 0 else x[:0]
        left = (y[: x.size] - target.value) * (1.0 if is_lower else -1.0)
        if cost := cost_of(state, x, left):
            found[key] = cost
    return found


def cost_of(state: str, x: np.ndarray, left: np.ndarray) -> Bounds | None:
    """The cost of a run that ended so, None where nothing is known of it. x: where it was validated, on the axis of the
    cost; left: how far from the target it was there, at most 0 where it had reached it."""
    if state not in ENDED:
        return None
    reached = np.flatnonzero(left <= 0)
    if reached.size:
        at = int(reached[0])
        if at == 0:
            return Bounds(0.0, float(x[0]))
        share = left[at - 1] / (left[at - 1] - left[at])
        cost = float(x[at - 1] + share * (x[at] - x[at - 1]))
        return Bounds(cost, cost)
    if state == "diverged":
        return Bounds(math.inf, math.inf)
    return Bounds(float(x[-1]), math.inf) if state == "finished" and x.size else None
