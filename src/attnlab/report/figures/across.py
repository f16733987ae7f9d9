"""The figures of a study over its tasks: performance profiles, and average ranks with their critical difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attnlab.analysis.across import Aggregate
from attnlab.report.figures import style
from attnlab.report.figures.style import COLUMN, LINE, broken, colour, legend_below, line_look, new_figure, widest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 2.2
ROW = 0.17  # inches of an arm in the picture of ranks
BARS = 0.09  # and of a group that is not told apart


def write_across_figures(found: Aggregate, folder: str | Path) -> list[Path]:
    """Writes what there is of profiles and ranks; returns the files. The same scores give the same bytes. Raises
    CannotWrite."""
    return style.write_figures(across_figures(found), Path(folder), ("pdf", "png"))


def across_figures(found: Aggregate) -> Iterator[tuple[str, Figure]]:
    """(name, figure), to be drawn within `paper_style`."""
    if found.ranked:
        yield "profiles", profiles_figure(found)
    if found.ranks is not None:
        yield "ranks", ranks_figure(found)


def draw_aggregate(found: Aggregate, kind: str) -> Figure:
    """One of the figures of `KINDS`, drawn. Raises ValueError where there is nothing to draw."""
    if not found.ranked or (kind == "ranks" and found.ranks is None):
        why = found.problem or "an arm with a score on every task, and of ranks two"
        raise ValueError(f"the study {found.study.name} has nothing to plot of {kind}: {why}")
    with style.paper_style():
        figure = KINDS[kind](found)
        figure.canvas.draw()  # some of it is made when it is first drawn, and belongs to this style, too
    return figure


def profiles_figure(found: Aggregate) -> Figure:
    """The share of runs of all tasks above each score, with its pointwise 95% bootstrap band (Agarwal et al. 2021)."""
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    for index, (label, (share, low, high)) in enumerate(found.profiles.items()):
        look = {**line_look(index), "marker": ""}
        axes.step(found.points, share, where="post", label=label, linewidth=1.2, **look)
        if np.isfinite(low).all():
            axes.fill_between(found.points, low, high, step="post", color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="normalised score \u03c4", ylabel="share of runs above \u03c4", ylim=(-0.02, 1.02))
    axes.set_xlim(found.points[0], found.points[-1])
    legend_below(figure, axes)
    return figure


def ranks_figure(found: Aggregate) -> Figure:
    """Average ranks, the best first; arms that one bar joins are not told apart by Nemenyi's test (Demsar 2006)."""
    ranks = found.ranks
    assert ranks is not None
    names = [broken(arm.label, 24, 1) for arm in found.ranked]
    order = [int(arm) for arm in np.argsort(ranks.average, kind="stable")]
    rows, bars = len(order), len(ranks.groups)
    figure = new_figure(COLUMN, 0.75 + ROW * rows + BARS * (bars + 1))
    axes = figure.subplots()
    axes.set(xlim=(0.9, rows + 0.1), ylim=(-(rows + 0.5) * ROW - (bars + 1) * BARS, 2.2 * LINE))
    for place, group in enumerate(ranks.groups, start=1):
        ends = [ranks.average[group[0]] - 0.02, ranks.average[group[-1]] + 0.02]
        axes.plot(ends, [-place * BARS] * 2, color=colour("text"), linewidth=2.5, solid_capstyle="butt")
    room = (rows - 0.8) / (COLUMN - 0.2) * max(map(widest, names))  # of a name, in ranks
    for place, arm in enumerate(order):
        rank, height = ranks.average[arm], -(bars + 1) * BARS - (place + 0.5) * ROW
        is_left = rank - room > 0.9
        axes.plot([rank, rank], [0, height], color=colour("soft"), linewidth=0.8)
        axes.plot([rank], [height], marker="o", markersize=3, color=colour("text"))
        side = "right" if is_left else "left"
        axes.text(rank + (-0.06 if is_left else 0.06), height, names[arm], ha=side, va="center", fontsize=7)
    length = min(ranks.critical_difference, rows - 1)
    axes.plot([1, 1 + length], [1.55 * LINE] * 2, color=colour("text"), linewidth=1, marker="|", markersize=5)
    beyond = " (beyond the axis)" if ranks.critical_difference > rows - 1 else ""
    axes.text(1, 1.8 * LINE, f"critical difference {ranks.critical_difference:.2f}{beyond}", va="bottom", fontsize=7)
    axes.xaxis.set_ticks_position("top")
    axes.spines["top"].set_position(("data", 0))
    for side in ("left", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.set_xticks(range(1, rows + 1))
    axes.set_yticks([])
    axes.set_xlabel(f"average rank over {ranks.tasks} tasks, 1 the best")
    return figure


KINDS: dict[str, Callable[[Aggregate], Figure]] = {"profiles": profiles_figure, "ranks": ranks_figure}
