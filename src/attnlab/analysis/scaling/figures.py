"""Figures of a fitted law for a paper: loss against size by data, one compute spent in every way, residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis.budget import quantity
from attnlab.analysis.scaling.law import OPERATIONS, Law
from attnlab.analysis.scaling.report import Scaling, cost_of
from attnlab.analysis.scaling.terminal import COUNTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf")
SHADES = "viridis"
COMPUTES = 5  # curves of one compute each
NEAR = 1.5  # runs whose compute is within this factor of a curve's are drawn on it
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
}


def write_figures(scaling: Scaling, folder: Path) -> list[Path]:
    """Writes loss, isoflop and residuals as PNG and PDF into `folder`, which has to be there; returns the paths."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    paths = []
    with mpl.rc_context(STYLE):
        for name, draw in (("loss", draw_loss), ("isoflop", draw_isoflop), ("residuals", draw_residuals)):
            figure = Figure(figsize=(8.4, 3.6), layout="constrained")
            draw(scaling, figure)
            for suffix in FORMATS:
                paths.append(folder / f"{name}.{suffix}")
                # The dates that matplotlib would write make two figures of the same runs differ.
                figure.savefig(paths[-1], metadata={"CreationDate": None} if suffix == "pdf" else {})
    return paths


def _shades(number: int) -> list[Any]:
    import matplotlib as mpl

    return [mpl.colormaps[SHADES](place) for place in np.linspace(0.05, 0.85, number)]


def _logarithmic(axes: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def _label_N(scaling: Scaling) -> str:
    return f"parameters N {COUNTED[scaling.count]}"


def draw_loss(scaling: Scaling, figure: Figure) -> None:
    """Left: loss against N, a curve of the law for each budget D. Right: against D, one for each N. Every run is a dot."""
    left, right = figure.subplots(1, 2, sharey=True)
    N, D = scaling.law.points.parameters, scaling.law.points.tokens
    _family(left, scaling, N, D, "D")
    _logarithmic(left, _label_N(scaling))
    left.set_ylabel(scaling.metric)
    _family(right, scaling, D, N, "N")
    _logarithmic(right, f"training {scaling.unit}s D")


def _family(axes: Axes, scaling: Scaling, across: np.ndarray, by: np.ndarray, name: str) -> None:
    """The runs over `across`, a colour for each value of `by`, with the law's curves."""
    values = np.unique(by)
    line = np.geomspace(across.min() / 1.2, across.max() * 1.2, 200)
    law, losses = scaling.law.law, scaling.law.points.losses
    for value, shade in zip(values, _shades(len(values)), strict=True):
        here = by == value
        axes.plot(across[here], losses[here], "o", color=shade, label=f"{name} {quantity(float(value))}", alpha=0.85)
        axes.plot(line, law.loss(line, value) if name == "D" else law.loss(value, line), color=shade)
    axes.legend(fontsize=7, loc="upper right")


def computes_shown(scaling: Scaling) -> np.ndarray:
    """The computes (COMPUTES,) whose curves are drawn: between those that the study spent."""
    spent = [run.six_ND(scaling.count) for run in scaling.runs]
    return np.geomspace(min(spent) * 2, max(spent), COMPUTES)


def draw_isoflop(scaling: Scaling, figure: Figure) -> None:
    """Left: loss against N where each curve spends one compute, its least marked. Right: that least, N and D against compute, with bands.

    A dot is a run of about that compute; what the law says it would gain or lose by spending just that much is added to its loss.
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
        left.plot(N, moved, "o", color=shade, alpha=0.6, markersize=3.5)
        best = law.optimum(float(compute))
        if sizes[0] <= best.parameters <= sizes[-1]:
            left.plot(best.parameters, best.loss, "D", color=shade, markeredgecolor="black", markersize=6)
    low, high = points.losses.min(), points.losses.max()
    left.set_ylim(low - 0.08 * (high - low), high + 0.1 * (high - low))
    _logarithmic(left, _label_N(scaling))
    left.set_ylabel(scaling.metric)
    left.legend(
        fontsize=7,
        title="solid 6 N D, dotted exact",
        title_fontsize=7,
        loc="upper right",
        framealpha=0.85,
        frameon=True,
    )
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
    axes.text(max(spent) * 1.1, 0.98, "beyond the runs", transform=axes.get_xaxis_transform(), va="top", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("compute C = 6 N D, operations")
    axes.legend(fontsize=7.5)


def draw_residuals(scaling: Scaling, figure: Figure) -> None:
    """What the law is off each run, in per cent, over its N and over its D; grey: the scatter between seeds."""
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    law = scaling.law
    for axes, across, by, name in (
        (panels[0], law.points.parameters, law.points.tokens, "D"),
        (panels[1], law.points.tokens, law.points.parameters, "N"),
    ):
        values = np.unique(by)
        for value, shade in zip(values, _shades(len(values)), strict=True):
            here = by == value
            axes.plot(
                across[here], 100 * law.residuals[here], "o", color=shade, label=f"{name} {quantity(float(value))}"
            )
        axes.axhline(0, color="0.3", linewidth=0.8)
        if np.isfinite(scaling.seed_scatter):
            axes.axhspan(-200 * scaling.seed_scatter, 200 * scaling.seed_scatter, color="0.5", alpha=0.15, linewidth=0)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[0].set_ylabel("measured less fitted, %")
    _logarithmic(panels[0], _label_N(scaling))
    _logarithmic(panels[1], f"training {scaling.unit}s D")
