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

    A cell is left out where no run of it has ended, and where neither it nor the baseline lost one: given that, no outcome could have been a
    finding (Tarone 1990). Runs are taken as independent (Fisher's exact test, two-sided).
    """
    counts = {cell: _count(of) for cell, of in states.items()}
    base = counts.pop(baseline, (0, 0))
    counts = {cell: (lost, ended) for cell, (lost, ended) in counts.items() if ended and base[1] and lost + base[0]}
    p_values = [_fisher(pair, base) for pair in counts.values()]
    rows = zip(counts.items(), p_values, holm(p_values), strict=True)
    return {cell: Losses(*pair, *base, p, p_holm) for (cell, pair), p, p_holm in rows}


def _count(states: Mapping[str, int]) -> tuple[int, int]:
    """How many runs were lost, and how many have ended."""
    lost = sum(states.get(state, 0) for state in LOST)
    return lost, lost + states.get("finished", 0)


def _fisher(first: tuple[int, int], second: tuple[int, int]) -> float:
    from scipy.stats import fisher_exact  # costs as much as the rest of this package together, and runs are seldom lost

    table = [[lost, ended - lost] for lost, ended in (first, second)]
    return min(1.0, float(fisher_exact(table).pvalue))
