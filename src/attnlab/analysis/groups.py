"""Whether a study's cells fall into two groups that no run bridges, such as those that train and those that plateau."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.analysis.reader import same

FEWEST_CELLS = 6


@dataclass(frozen=True)
class Split:
    """Two groups of cells, `better` and `worse`, each best first; `common` are the choices that all of `worse` share and not all cells do."""

    better: list[CellSummary]
    worse: list[CellSummary]
    common: dict[str, Any]


def split_of(comparison: Comparison) -> Split | None:
    """The two groups, or None where there are none.

    Groups are apart where the widest step between neighbouring means is more than half of the whole range, and every run of the one group is
    better than every run of the other. `worse` is the smaller group or half of the cells.
    """
    cells = comparison.measured
    if len(cells) < FEWEST_CELLS:
        return None
    means = [cell.interval.mean for cell in cells if cell.interval]
    steps = [abs(after - before) for before, after in pairwise(means)]
    at = max(range(len(steps)), key=lambda index: steps[index]) + 1
    better, worse = cells[:at], cells[at:]
    if steps[at - 1] <= sum(steps) / 2 or len(worse) > len(better) or not _apart(better, worse):
        return None
    shared = {
        name: choice
        for name, choice in worse[0].cell.choices.items()
        if all(same(cell.cell.choices.get(name), choice) for cell in worse)
        and not all(same(cell.cell.choices.get(name), choice) for cell in cells)
    }
    return Split(better, worse, shared)


def _apart(first: list[CellSummary], second: list[CellSummary]) -> bool:
    runs = [[value for cell in group for value in cell.values.values()] for group in (first, second)]
    return max(runs[0]) < min(runs[1]) or min(runs[0]) > max(runs[1])
