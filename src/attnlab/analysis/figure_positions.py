"""Position encodings as a figure: one panel a quantity, beyond the training length shaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnlab.analysis.figure_style import COLUMN, DASHES, PAGE, colour, line_look, new_figure
from attnlab.analysis.position_curves import QUANTITIES, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.2
MOST_KEYED = 8  # heads with a name in the key


def positions_figure(shown: Sequence[tuple[str, Sequence[Curve]]], trained: int, farthest: int) -> Figure:
    """(name, curves) of each encoding; to be drawn within `paper_style`. Distances from `trained` to `farthest` were never seen in training."""
    panels = [
        (name, quantity, [curve for curve in curves if curve.quantity == quantity])
        for name, curves in shown
        for quantity in QUANTITIES
        if any(curve.quantity == quantity for curve in curves)
    ]
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(PAGE if across > 1 else COLUMN, HEIGHT * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, (name, quantity, curves) in zip(grid.flat, panels, strict=False):
        _panel(axes, curves, trained, farthest)
        axes.set_title(name.replace(" (", "\n("))
        axes.set_ylabel(QUANTITIES[quantity])
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, curves: Sequence[Curve], trained: int, farthest: int) -> None:
    both = curves[0].distances[0] < 0
    for place, curve in enumerate(curves):
        look: dict[str, Any] = {**line_look(place), "marker": "", "linestyle": DASHES[place % len(DASHES)]}
        label = None if curve.head is None else f"head {curve.head}"
        axes.plot(curve.distances, curve.mean, **look, linewidth=1, label=label)
        if curve.low != curve.mean:
            axes.fill_between(curve.distances, curve.low, curve.high, color=look["color"], alpha=0.18, linewidth=0)
    for side in (1, -1) if both else (1,):
        axes.axvspan(side * trained, side * max(farthest - 1, trained), color=colour("strip"), linewidth=0, zorder=0)
        if abs(curves[0].distances[-1]) < farthest - 1:
            axes.axvline(side * curves[0].distances[-1], color=colour("soft"), linewidth=0.7, linestyle=":")
    axes.set_xlim(-farthest if both else 0, farthest)
    axes.set_xlabel(f"{'query minus key' if both else 'distance'}; shaded: beyond training")
    if 1 < len(curves) <= MOST_KEYED:
        axes.legend(ncols=2 if len(curves) > 4 else 1, fontsize=6, handlelength=1.5)
