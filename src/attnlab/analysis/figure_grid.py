"""The grid of a factorial sweep for a paper, as a heat map."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis import wording
from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.analysis.figure_style import PAGE, colour, new_figure, readable, words
from attnlab.analysis.reader import same, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, HIGH = 0.95, 0.36  # inches of a cell at the most, and its height


def grid_figure(comparison: Comparison) -> Figure | None:
    """The mean of every cell with the half-width of its interval, more colour being worse; for two to four varying factors, None otherwise."""
    import seaborn

    study, metric = comparison.study, comparison.metric
    factors = [name for name in study.factors if name in study.varying]
    cells = [cell for cell in comparison.cells if all(name in cell.cell.choices for name in factors)]
    if metric is None or not 2 <= len(factors) <= 4 or not any(cell.interval for cell in cells):
        return None
    half = len(factors) - len(factors) // 2
    down, across = (
        list(itertools.product(*(study.factors[n] for n in names))) for names in (factors[:half], factors[half:])
    )
    found = [[_find(cells, dict(zip(factors, (*row, *column), strict=True))) for column in across] for row in down]
    decimals = wording.decimals_for(cell.interval for cell in cells)
    means = np.array([[cell.interval.mean if cell and cell.interval else np.nan for cell in row] for row in found])
    texts = np.array([[_text(cell, decimals) for cell in row] for row in found])
    figure = new_figure(min(PAGE, 1.6 + WIDE * len(across)), 0.75 + HIGH * len(down))
    axes = figure.subplots()
    shades = seaborn.light_palette(colour("heat"), as_cmap=True, reverse=metric.better == "higher")
    seaborn.heatmap(
        means, ax=axes, cmap=shades, annot=texts, fmt="", annot_kws={"fontsize": 6.5}, linewidths=1.5, cbar=False
    )
    for place in np.argwhere(np.isnan(means)):  # seaborn leaves out what stands where there is no figure
        axes.text(place[1] + 0.5, place[0] + 0.5, texts[tuple(place)], ha="center", va="center", fontsize=6.5)
    readable(axes, len(across))
    axes.set_xticks(np.arange(len(across)) + 0.5, [_names(factors[half:], column) for column in across], rotation=0)
    axes.set_yticks(np.arange(len(down)) + 0.5, [_names(factors[:half], row) for row in down], rotation=0)
    axes.tick_params(length=0)
    axes.set_xlabel(f"{metric.name}: mean and half-width of its 95% interval; more colour is worse")
    return figure


def _names(factors: list[str], choices: tuple[Any, ...]) -> str:
    return "\n".join(f"{short(name)} {choice}" for name, choice in zip(factors, choices, strict=True))


def _text(cell: CellSummary | None, decimals: int) -> str:
    if cell is None:
        return "\u2013"
    if cell.interval is None:
        return cell.outcome
    lost = f"\n{cell.n_lost} of {sum(cell.states.values())} lost" if cell.n_lost else ""
    return words(wording.spread_text(cell.interval, decimals)) + lost


def _find(cells: list[CellSummary], wanted: dict[str, Any]) -> CellSummary | None:
    return next((c for c in cells if all(same(c.cell.choices[key], value) for key, value in wanted.items())), None)
