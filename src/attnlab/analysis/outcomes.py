"""Runs that were lost (diverged or failed) are outcomes: whether a cell loses more of them than the baseline does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.statistics import holm

LOST = ("diverged", "failed")


@dataclass(frozen=True)
class Losses:
    """How many runs of a cell that ended were lost, those of the baseline, and Fisher's exact p that both lose at one rate."""

    lost: int
    ended: int
    baseline_lost: int
    baseline_ended: int
    p: float
    p_holm: float


def losses(states: Mapping[str, Mapping[str, int]], baseline: str) -> dict[str, Losses]:
    """Judges the lost runs of every cell ({cell: {state: runs}}) against the baseline's, as one family; {} where no run was lost.

    A cell of which no run has ended is left out. Runs are taken as independent (Fisher's exact test, two-sided).
    """
    counts = {
        cell: (sum(of.get(s, 0) for s in LOST), sum(of.get(s, 0) for s in (*LOST, "finished")))
        for cell, of in states.items()
    }
    counts = {cell: pair for cell, pair in counts.items() if pair[1]}
    if baseline not in counts or not any(lost for lost, _ in counts.values()):
        return {}
    base = counts.pop(baseline)
    p_values = [_fisher(pair, base) for pair in counts.values()]
    rows = zip(counts.items(), p_values, holm(p_values), strict=True)
    return {cell: Losses(*pair, *base, p, p_holm) for (cell, pair), p, p_holm in rows}


def _fisher(first: tuple[int, int], second: tuple[int, int]) -> float:
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together, and runs are seldom lost

    table = [[lost, ended - lost] for lost, ended in (first, second)]
    return min(1.0, float(fisher_exact(table).pvalue))
