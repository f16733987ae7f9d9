"""The two groups that the cells of a study may fall into, such as those that train and those that plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.reader import Choice
from attnlab.training.study_fields import same

FEWEST_CELLS = 6  # that may fall into clusters


@dataclass(frozen=True)
class Clusters:
    """Two groups of cells that no run bridges, each best first.

    `common` are the choices that all of `worse` share and not all cells do.
    """

    better: list[CellSummary]
    worse: list[CellSummary]
    common: dict[str, Choice]


def clusters_of(cells: list[CellSummary], alpha: float) -> Clusters | None:
    """The groups that cells, best first, fall into; None where they do not.

    Groups are apart where the widest step between neighbouring means is more than half of the whole range, and every
    run of the one group is better than every run of the other. `worse` is the smaller group or half of the cells. Cells
    that are all alike are parted in at most a share `alpha` of studies (see `_chance`).
    """
    if len(cells) < FEWEST_CELLS:
        return None
    means = [cell.interval.mean for cell in cells if cell.interval]
    steps = [abs(after - before) for before, after in pairwise(means)]
    at = max(range(len(steps)), key=lambda index: steps[index]) + 1
    better, worse = cells[:at], cells[at:]
    is_wide = steps[at - 1] > sum(steps) / 2 and len(worse) <= len(better)
    if not is_wide or not _apart(better, worse) or _chance(cells, len(worse)) > alpha:
        return None
    shared = {
        name: choice
        for name, choice in worse[0].cell.choices.items()
        if all(same(cell.cell.choices.get(name), choice) for cell in worse)
        and not all(same(cell.cell.choices.get(name), choice) for cell in cells)
    }
    return Clusters(better, worse, shared)


def _chance(cells: list[CellSummary], worse: int) -> float:
    """A bound on the chance that some `worse` of cells which are all alike are the worst with every seed, for every
    number of them there may be.

    The cells of a seed are exchangeable then. Seeds that not all cells have may have been chosen in the worst way.
    """
    seeds = len(set.intersection(*(set(cell.values) for cell in cells)))
    asked = max(sum(cell.states.values()) for cell in cells)
    if seeds < 2:
        return 1.0
    chances = [math.comb(len(cells), n) ** (1.0 - seeds) for n in range(1, len(cells) // 2 + 1)]
    # Of every number together, or a share of the 5% for each: which is smaller follows from cells and seeds alone.
    return float(min(sum(chances), len(chances) * chances[worse - 1]) * math.comb(asked, seeds))


def _apart(first: list[CellSummary], second: list[CellSummary]) -> bool:
    runs = [[value for cell in group for value in cell.values.values()] for group in (first, second)]
    return max(runs[0]) < min(runs[1]) or min(runs[0]) > max(runs[1])
