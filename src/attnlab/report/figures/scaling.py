"""Figures of a fitted law for a paper: loss against size by data, one compute spent in every way, residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis.formatting import quantity
from attnlab.analysis.scaling.fit import OPERATIONS, Law
from attnlab.analysis.scaling.laws import Scaling, cost_of
from attnlab.analysis.scaling.tables import COUNTED
from attnlab.report.figures import style
from attnlab.report.figures.style import PAGE, decade_ticks, new_figure, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = "viridis"  # sizes and budgets have an order, so their colours do
COMPUTES = 5  # curves of one compute each
NEAR = 1.5  # runs whose compute is within this factor of a curve's are drawn on it
DOT = 3.5


def write_figures(scaling: Scaling, folder: Path) -> list[Path]:
    """Writes loss, isoflop and residuals and returns the files. Raises CannotWrite."""
    return style.write_figures(_figures(scaling), folder)


def _figures(scaling: Scaling) -> Iterator[tuple[str, Figure]]:
    for name, draw in (("loss", draw_loss), ("isoflop", draw_isoflop), ("residuals", draw_residuals)):
        yield name, drawn(scaling, draw)


def drawn(scaling: Scaling, draw: Callable[[Scaling, Figure], None]) -> Figure:
    """One of the figures, at the width of a page."""
    figure = new_figure(PAGE, 2.9)
    draw(scaling, figure)
    return figure


def _shades(number: int) -> list[Any]:
    import matplotlib as mpl

    return [mpl.colormaps[SHADES](place) for place in np.linspace(0.05, 0.85, number)]


def _logarithmic(axes: Axes, label: str, values: np.ndarray) -> None:
    kept: list[float] = []
    for value in np.unique(values):
        if not kept or value > 1.9 * kept[-1]:
            kept.append(float(value))
    plain_log_ticks(axes, "x", kept, [quantity(value) for value in kept])
    axes.set_xlabel(label)


def _label_N(scaling: Scaling) -> str:
    return f"parameters N {COUNTED[scaling.count]}"


def draw_loss(scaling: Scaling, figure: Figure) -> None:
    """Left: loss against N, a curve of the law for each D. Right: against D, one for each N. Every run is a dot."""
    left, right = figure.subplots(1, 2, sharey=True)
    N, D = scaling.law.points.parameters, scaling.law.points.tokens
    _family(left, scaling, N, D, "D")
    _logarithmic(left, _label_N(scaling), scaling.law.points.parameters)
    left.set_ylabel(scaling.metric)
    _family(right, scaling, D, N, "N")
    _logarithmic(right, f"training {scaling.unit}s D", scaling.law.points.tokens)


def _family(axes: Axes, scaling: Scaling, across: np.ndarray, by: np.ndarray, name: str) -> None:
    """The runs over `across`, a colour for each value of `by`, with the law's curves."""
    line, law = np.geomspace(across.min() / 1.2, across.max() * 1.2, 200), scaling.law.law
    for value, shade in _dots(axes, across, scaling.law.points.losses, by, name):
        axes.plot(line, law.loss(line, value) if name == "D" else law.loss(value, line), color=shade)
    axes.legend(loc="upper right")


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, by: np.ndarray, name: str) -> list[tuple[float, Any]]:
    values = np.unique(by)
    shades = list(zip(values, _shades(len(values)), strict=True))
    for value, shade in shades:
        look: dict[str, Any] = {"color": shade, "markersize": DOT, "alpha": 0.85}
        axes.plot(x[by == value], y[by == value], "o", label=f"{name} {quantity(float(value))}", **look)
    return shades


def computes_shown(scaling: Scaling) -> np.ndarray:
    """The computes (COMPUTES,) whose curves are drawn: between those that the study spent."""
    spent = [run.six_ND(scaling.count) for run in scaling.runs]
    return np.geomspace(min(spent) * 2, max(spent), COMPUTES)


def draw_isoflop(scaling: Scaling, figure: Figure) -> None:
    """Left: loss against N, each curve of one compute, its least marked. Right: that least, N and D against compute.

    A dot is a run of about that compute; what the law says it would gain or lose by spending just that much is added to
    its loss.
    """
    left, right = figure.subplots(1, 2)
    law, points = scaling.law.law, scaling.law.points
    sizes = np.geomspace(points.parameters.min() / 1.5, points.parameters.max() * 1.5, 300)
    cost = cost_of(scaling.runs, scaling.count)
    computes = computes_shown(scaling)
    spent = OPERATIONS * points.parameters * points.tokens
    nearest = np.abs(np.log(spent[:, None] / computes)).argmin(1)
    for index, (compute, shade) in enumerate(zip(computes, _shades(COMPUTES), strict=True)):
        left.plot(sizes, law.loss(sizes, compute / (OPERATIONS * sizes)), color=shade, label=f"C {compute:.1e}")
        left.plot(sizes, law.loss(sizes, compute / cost(sizes)), color=shade, linestyle=":")
        near = (nearest == index) & (np.abs(np.log(spent / compute)) < np.log(NEAR))
        N, D = points.parameters[near], points.tokens[near]
        moved = points.losses[near] + law.loss(N, compute / (OPERATIONS * N)) - law.loss(N, D)
        left.plot(N, moved, "o", color=shade, alpha=0.6, markersize=DOT)
        best = law.optimum(float(compute))
        if sizes[0] <= best.parameters <= sizes[-1]:
            left.plot(best.parameters, best.loss, "D", color=shade, markeredgecolor="black", markersize=5)
    low, high = np.nanmin([*points.losses, law.optimum(float(computes[-1])).loss]), points.losses.max()
    left.set_ylim(low - 0.08 * (high - low), high + 0.1 * (high - low))
    _logarithmic(left, _label_N(scaling), scaling.law.points.parameters)
    left.set_ylabel(scaling.metric)
    left.legend(title="solid: 6 N D\ndotted: exact", title_fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _draw_frontier(right, scaling)


def _draw_frontier(axes: Axes, scaling: Scaling) -> None:
    spent = [run.six_ND(scaling.count) for run in scaling.runs]
    computes = np.geomspace(min(spent), 10 * max(spent), 40)
    for name, shade, label in (("parameters", "C0", "best N"), ("tokens", "C1", "best D")):
        best = [getattr(scaling.law.law.optimum(float(c)), name) for c in computes]
        drawn = np.array(
            [[getattr(Law.of(t).optimum(float(c)), name) for c in computes] for t in scaling.law.thetas[:200]]
        )
        low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
        axes.plot(computes, best, color=shade, label=label)
        axes.fill_between(computes, low, high, color=shade, alpha=0.2, linewidth=0)
    axes.axvspan(max(spent), 10 * max(spent), color="0.5", alpha=0.12, linewidth=0)
    axes.text(0.98, 0.02, "grey: beyond the runs", transform=axes.transAxes, ha="right", fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="compute C = 6 N D, operations")
    for which in ("x", "y"):
        decade_ticks(axes, which)
    axes.legend()


def draw_residuals(scaling: Scaling, figure: Figure) -> None:
    """What the law is off each run, in per cent, over its N and over its D; grey: the scatter between seeds."""
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    law = scaling.law
    N, D = law.points.parameters, law.points.tokens
    for axes, across, by, name in ((panels[0], N, D, "D"), (panels[1], D, N, "N")):
        _dots(axes, across, 100 * law.residuals, by, name)
        axes.axhline(0, color="0.3", linewidth=0.8)
        if np.isfinite(scaling.seed_scatter):
            axes.axhspan(-200 * scaling.seed_scatter, 200 * scaling.seed_scatter, color="0.5", alpha=0.15, linewidth=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[0].set_ylabel("measured less fitted, %")
    _logarithmic(panels[0], _label_N(scaling), N)
    _logarithmic(panels[1], f"training {scaling.unit}s D", D)
