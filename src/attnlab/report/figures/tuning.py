"""The figure of a study's tuning: the tuned metric against each field that was searched, cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis.reader import short
from attnlab.analysis.table import typographic
from attnlab.report.figures.style import COLUMN, MOST_TICKS, PAGE, legend_below, line_look, new_figure, plain_log_ticks
from attnlab.report.page_data import TuningFamily, TuningSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT, MOST_FIELDS = 2.4, 3


def tuning_figure(families: Sequence[TuningFamily], cells: Sequence[str]) -> Figure | None:
    """A panel a field, a line a cell through the means of settings; dots are the tuning seeds, a ring is the choice.
    None without numeric fields."""
    shown = [family for family in families if family["number"]][:MOST_FIELDS]
    if not shown:
        return None
    figure = new_figure(PAGE if len(shown) > 1 else COLUMN, HEIGHT)
    panels = list(figure.subplots(1, len(shown), squeeze=False, sharey=True).flat)
    for axes, family in zip(panels, shown, strict=True):
        for one in family["series"]:
            _draw(axes, one, line_look(cells.index(one["cell"])))
        if family["log"]:
            tried = sorted({float(str(value)) for one in family["series"] for value in one["x"]})
            ticks = tried[:: math.ceil(len(tried) / MOST_TICKS)]
            plain_log_ticks(axes, "x", ticks, [f"{tick:.2g}" for tick in ticks])
        axes.set_xlabel(short(family["name"]))
    panels[0].set_ylabel(typographic(shown[0]["unit"]))
    legend_below(figure, panels[0])
    return figure


def _draw(axes: Axes, one: TuningSeries, look: dict[str, Any]) -> None:
    x = np.array([float(str(value)) for value in one["x"]])
    y = np.array([math.nan if value is None else value for value in one["y"]])
    axes.plot(x, y, **look, linewidth=1.2, markersize=3, label=one["cell"])
    for value, seeds in zip(x, one["seeds"], strict=True):
        known = [seed for seed in seeds if seed is not None]
        if len(known) > 1:
            axes.plot([value] * len(known), known, ".", color=look["color"], markersize=2, alpha=0.5)
    if one["chosen"] in one["x"]:
        at = one["x"].index(one["chosen"])
        axes.plot(x[at], y[at], "o", color=look["color"], markersize=8, markerfacecolor="none", markeredgewidth=1.2)
