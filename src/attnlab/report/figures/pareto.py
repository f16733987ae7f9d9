"""What results cost: a point a cell, the final metric over FLOPs, parameters and seconds, with the front marked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.formatting import quantity, unit
from attnlab.analysis.pareto import AXES, Pareto, pareto
from attnlab.analysis.table import typographic
from attnlab.report.figures.style import (
    LINE,
    PAGE,
    broken,
    colour,
    legend_below,
    line_look,
    new_figure,
    plain_log_ticks,
)
from attnlab.report.page_data import MOST_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.4
FAR = 1.9  # from one tick to the next, as a ratio


def pareto_figure(comparison: Comparison) -> Figure | None:
    """A panel a kind of cost in which cells differ; to be drawn within `paper_style`. Bars are 95% intervals; cells on
    the front are filled and joined, and, where there are more cells than colours, named. None without anything to
    draw."""
    found = pareto(comparison)
    if found is None:
        return None
    figure = new_figure(PAGE, HEIGHT + LINE)
    panels: list[Axes] = list(figure.subplots(1, len(found.axes), sharey=True, squeeze=False).flat)
    for axes, axis in zip(panels, found.axes, strict=True):
        _draw(axes, found, axis)
        costs = [point.cost[axis] for point in found.on(axis)]
        ticks = _ticks(costs)
        plain_log_ticks(axes, "x", ticks, [quantity(tick) for tick in ticks])
        axes.set_xlabel(AXES[axis])
    panels[0].set_ylabel(typographic(unit(found.metric, comparison.study)))
    if len(found.points) <= MOST_COLOURS:
        legend_below(figure, panels[0])
    return figure


def _draw(axes: Axes, found: Pareto, axis: str) -> None:
    front = found.front(axis)
    across, up = [point.cost[axis] for point in front], [point.interval.mean for point in front]
    axes.plot(across, up, drawstyle="steps-post", color=colour("soft"), linewidth=0.9, zorder=1)
    has_colours = len(found.points) <= MOST_COLOURS
    for index, point in enumerate(found.points):
        if axis not in point.cost:
            continue
        look: dict[str, Any] = line_look(index) if has_colours else {"color": colour("soft"), "marker": "o"}
        look |= {"linestyle": "none", "markersize": 4.5, "elinewidth": 0.8, "capsize": 1.5}
        look |= {"label": point.label, "markerfacecolor": look["color"] if point in front else colour("surface")}
        ends = [point.interval.mean - point.interval.low, point.interval.high - point.interval.mean]
        bars = [[end] for end in ends] if all(map(math.isfinite, ends)) else None
        axes.errorbar([point.cost[axis]], [point.interval.mean], bars, **look)
        if point in front and not has_colours:
            place: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 6}
            axes.annotate(broken(point.label, 20), (point.cost[axis], point.interval.mean), **place)


def _ticks(costs: list[float]) -> list[float]:
    """Some of the costs, far enough apart to be read."""
    kept: list[float] = []
    for cost in sorted(costs):
        if not kept or cost > FAR * kept[-1]:
            kept.append(cost)
    last = max(costs)
    return kept if kept[-1] == last or last < 1.2 * kept[-1] else [*[k for k in kept if FAR * k <= last], last]
