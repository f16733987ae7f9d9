"""Receptive fields as a figure: a row a layer, coloured where a position reaches the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attnlab.analysis.figure_style import COLUMN, colour, new_figure
from attnlab.analysis.receptive_fields import Field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW, REST = 0.16, 0.85  # inches of a layer, and of what stands around them


def fields_figure(shown: Sequence[tuple[str, Field]]) -> Figure:
    """(name, field) of each stack, the first layer below; to be drawn within `paper_style`."""
    from matplotlib.colors import ListedColormap

    heights = [ROW * len(field.reached) + REST for _, field in shown]
    figure = new_figure(COLUMN, sum(heights))
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    shades = ListedColormap([colour("strip"), colour("c0")])
    for axes, (name, field) in zip(panels, shown, strict=True):
        layers, length = np.shape(field.reached)
        axes.pcolormesh(
            np.arange(length + 1) - 0.5,
            np.arange(layers + 1) + 0.5,
            np.array(field.reached, dtype=float),
            cmap=shades,
            vmin=0,
            vmax=1,
            edgecolor=colour("surface"),
            linewidth=0.3 if length <= 64 else 0,
            rasterized=length > 64,
        )
        axes.plot([field.at], [layers + 0.5], marker="v", color=colour("c1"), clip_on=False, markersize=5)
        axes.set_yticks(range(1, layers + 1, max(1, layers // 6)))
        axes.set(ylabel="layers", xlabel="position", title=f"{name}: {field.kind}")
        for count, at in zip(field.counted, range(1, layers + 1), strict=True):
            axes.text(1.01, at, str(count), transform=axes.get_yaxis_transform(), va="center", fontsize=6)
    return figure
