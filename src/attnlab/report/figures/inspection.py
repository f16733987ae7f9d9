"""Receptive fields, position encodings, embeddings and images that were found as figures, all to be drawn within
`paper_style`.

Legend: N texts, D width; of images C channels, Y and X rows and columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis.formatting import number
from attnlab.inspection.positions import QUANTITIES, Curve, Field
from attnlab.report.figures.style import (
    COLUMN,
    DASHES,
    PAGE,
    colour,
    decade_ticks,
    line_look,
    luminance,
    new_figure,
    plain_log_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, REST = 0.16, 0.85  # inches of a layer of a receptive field, and of what stands around them
HEIGHT = 2.2
MOST_KEYED = 8  # heads with a name in the key
MOST_ROWS = 30  # texts of a heat map
MOST_FIGURES = 15  # texts of a heat map with figures in it
MOST_LABELS = 60  # texts of a map with words on it
LETTERS, ELLIPSIS = 24, "\u2026"
ACROSS = 5  # images of a row
SAME_CONTRAST = 0.179  # the luminance on which black and white are read as well as each other


def fields_figure(shown: Sequence[tuple[str, Field]]) -> Figure:
    """(name, field) of each stack, the first layer below."""
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


def positions_figure(shown: Sequence[tuple[str, Sequence[Curve]]], trained: int, farthest: int) -> Figure:
    """(name, curves) of each encoding. Distances from `trained` to `farthest` were never seen in training."""
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


def coordinates_figure(widths: Sequence[int], sizes: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Root mean squares of activations by width, a panel for each place and a line for each step."""
    figure = new_figure(PAGE, HEIGHT * math.ceil(len(sizes) / 3))
    grid = figure.subplots(math.ceil(len(sizes) / 3), 3, squeeze=False)
    for axes, (place, of_steps) in zip(grid.flat, sizes.items(), strict=False):
        for step, of_widths in enumerate(of_steps):
            alpha = 0.25 + 0.75 * step / max(1, len(of_steps) - 1)
            axes.plot(widths, of_widths, color=colour("c0"), alpha=alpha, linewidth=1, label=f"step {step}")
        axes.set(xlabel="d_model", title=place)
        axes.set_yscale("log", nonpositive="mask")
        decade_ticks(axes, "y")
        plain_log_ticks(axes, "x", [*map(float, widths)], [str(width) for width in widths])
    grid.flat[0].set_ylabel("root mean square, darker by step")
    for axes in list(grid.flat)[len(sizes) :]:
        axes.set_visible(False)
    return figure


def rates_figure(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], steepest: float | None
) -> Figure:
    """Losses of a range test by the rate, each step's and smoothed, with a line at the rate of the steepest descent."""
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    axes.plot(rates, losses, color=colour("c0"), alpha=0.35, linewidth=0.7, label="of a step")
    axes.plot(rates, smoothed, color=colour("c0"), linewidth=1.2, label="smoothed")
    if steepest is not None:
        axes.axvline(steepest, color=colour("soft"), linewidth=0.8, linestyle=":", label=f"steepest, {steepest:.2g}")
    low, high = min(losses), max(losses[0], smoothed[0], *smoothed[: 1 + int(np.argmin(smoothed))])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))  # not as far as a divergence goes
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    decade_ticks(axes, "x")
    axes.legend(fontsize=6)
    return figure


def embeddings_figure(embeddings_ND: np.ndarray, texts: Sequence[str]) -> Figure:
    """The heat map of cosines for up to 30 texts, else the map. Rows have length 1."""
    cut = [text if len(text) <= LETTERS else f"{text[:LETTERS]}{ELLIPSIS}" for text in texts]
    names = [f"{place} {text}" for place, text in enumerate(cut, start=1)]
    return _alike_figure(embeddings_ND, names) if len(texts) <= MOST_ROWS else _map_figure(embeddings_ND, names)


def _alike_figure(embeddings_ND: np.ndarray, names: Sequence[str]) -> Figure:
    import seaborn

    count = len(names)
    side = min(PAGE - 1.8, max(1.2, 0.32 * count))
    figure = new_figure(1.8 + side, 0.4 + side)
    axes = figure.subplots()
    alike_NN = embeddings_ND @ embeddings_ND.T
    figures = np.array([[number(value, 2) for value in row] for row in alike_NN]) if count <= MOST_FIGURES else None
    shades = seaborn.light_palette(colour("c0"), as_cmap=True)
    low = min(0.0, float(alike_NN.min()))
    seaborn.heatmap(
        alike_NN,
        ax=axes,
        cmap=shades,
        vmin=low,
        vmax=1,
        annot=False if figures is None else figures,
        fmt="",
        annot_kws={"fontsize": 6},
        linewidths=0.5,
        cbar=figures is None,
        xticklabels=[name.partition(" ")[0] for name in names],
        yticklabels=list(names),
    )
    _make_readable(axes, count)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0)
    axes.set_xlabel("cosine of the embeddings")
    return figure


def _map_figure(embeddings_ND: np.ndarray, names: Sequence[str]) -> Figure:
    """The texts on their two main directions (PCA), which show the share of the variance that the axes name."""
    from sklearn.decomposition import PCA

    kept = PCA(n_components=2, svd_solver="full")
    places_N2 = kept.fit_transform(embeddings_ND.astype(np.float64))
    few = len(names) <= MOST_LABELS
    figure = new_figure(PAGE if few else COLUMN, 5.0 if few else COLUMN)
    axes = figure.subplots()
    axes.scatter(places_N2[:, 0], places_N2[:, 1], s=10 if few else 4, color=colour("c0"), linewidth=0)
    for (x, y), name in zip(places_N2, names, strict=True):
        label = name if few else name.partition(" ")[0]
        axes.annotate(label, (x, y), (2, 2), textcoords="offset points", fontsize=5.5 if few else 4)
    shares = [f"{100 * share:.0f}% of the variance" for share in kept.explained_variance_ratio_]
    axes.set(xlabel=f"first direction ({shares[0]})", ylabel=f"second direction ({shares[1]})")
    return figure


def found_figure(phrase: str, found: Sequence[tuple[np.ndarray, str, float]]) -> Figure:
    """(pixels (C, Y, X) in uint8, caption, score) of each image that was found for a phrase, row by row, best first."""
    across = min(ACROSS, len(found))
    down = math.ceil(len(found) / across)
    height = 0.6 + down * PAGE / ACROSS * 1.15
    figure = new_figure(PAGE * across / ACROSS, height)
    figure.set_layout_engine("none")  # one that fits them in would take seconds where many images stand
    edges = {"left": 0.02, "right": 0.98, "bottom": 0.05 / height, "top": 1 - 0.7 / height}
    grid = figure.add_gridspec(down, across, hspace=0.5, wspace=0.35, **edges)
    for place, (pixels_CYX, caption, score) in enumerate(found):
        axes = figure.add_subplot(grid[place // across, place % across])
        axes.set_axis_off()
        shown = pixels_CYX[0] if len(pixels_CYX) == 1 else np.moveaxis(pixels_CYX[:3], 0, -1)
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"{fill(caption, LETTERS, max_lines=2, placeholder=ELLIPSIS)}\n{score:.3f}", fontsize=6)
    line = LETTERS * across * 3 // 4  # larger letters than the captions'
    figure.suptitle(fill(phrase, line, max_lines=2, placeholder=ELLIPSIS), fontsize=8)
    return figure


def _make_readable(axes: Axes, columns: int) -> None:
    """Writes what stands in the cells of a heat map in black or white, whichever can be read better there."""
    (mesh,) = axes.collections[:1]
    mesh.update_scalarmappable()
    shades = mesh.get_facecolors()  # type: ignore[attr-defined]
    for text in axes.texts:
        x, y = text.get_position()
        shade = shades[int(y) * columns + int(x)]
        dark = shade[3] == 0 or luminance(shade) > SAME_CONTRAST
        text.set_color("#000000" if dark else "#ffffff")
