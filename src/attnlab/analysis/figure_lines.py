"""Curves for a paper: the metric against length, and along training by cell and by factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.figure_style import COLUMN, PAGE, line_look, new_figure, plain_log_ticks, words
from attnlab.analysis.reader import short
from attnlab.analysis.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.4


def length_figure(family: dict[str, Any], cells: Sequence[str]) -> Figure:
    """The metric at multiples of the training length (an entry of `charts.length_data`): means, 95% intervals, and a cross where a cell cannot go on."""
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    multiples = sorted({k for one in family["series"] for k in (*one["x"], *one["cannot"])})
    for one in family["series"]:
        look = line_look(cells.index(one["cell"]))
        if not one["x"]:
            continue
        low, high = (np.abs(np.subtract(one[end], one["y"])) for end in ("low", "high"))
        sizes: dict[str, Any] = {"linewidth": 1.2, "markersize": 3, "capsize": 1.5, "elinewidth": 0.8}
        axes.errorbar(one["x"], one["y"], [low, high], label=one["cell"], **look, **sizes)
        if one["cannot"]:
            ends: dict[str, Any] = {"marker": "x", "markersize": 7, "markeredgewidth": 1.5, "linestyle": "none"}
            axes.plot(one["x"][-1:], one["y"][-1:], color=look["color"], **ends)
    plain_log_ticks(axes, "x", multiples, [f"{k:g}\u00d7" for k in multiples])
    axes.set(xlabel="multiple of the training length", ylabel=words(family["unit"]))
    _legend(figure, axes)
    return figure


def cell_curves(entry: dict[str, Any], cells: Sequence[str], unit: str) -> Figure:
    """One entry of `charts.curve_data`, a colour a cell: seeds thin, their mean thick, its 95% interval as a band."""
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    for one in entry["series"]:
        seeds = [_numbers(values) for values in one["seeds"].values()]
        mean, low, high = (_numbers(one[name]) for name in ("mean", "low", "high"))
        _draw(axes, one["cell"], one["step"], seeds, (mean, low, high), line_look(cells.index(one["cell"])))
    _finish(axes, entry, [values for one in entry["series"] for values in one["seeds"].values()])
    axes.set_ylabel(words(unit))
    _legend(figure, axes)
    return figure


def factor_curves(entry: dict[str, Any], comparison: Comparison) -> Figure | None:
    """
    One panel a factor, one line a choice of it: a seed's thin line is its mean over all cells with that choice, the thick one the mean of these, the
    band its 95% interval over seeds. None where fewer than two factors vary.
    """
    names = [name for name in comparison.study.factors if name in comparison.study.varying]
    if len(names) < 2:
        return None
    panels = [(name, _by_choice(entry, comparison, name)) for name in names]
    panels = [(name, lines) for name, lines in panels if len(lines) > 1]
    if not panels:
        return None
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(PAGE, 2.2 * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, (name, lines) in zip(grid.flat, panels, strict=False):
        for index, (choice, (steps, seeds)) in enumerate(lines.items()):
            _draw(axes, choice, steps, list(seeds), _band(seeds), line_look(index))
        _finish(axes, entry, [row.tolist() for _, seeds in lines.values() for row in seeds])
        axes.set_title(short(name))
        axes.legend(handlelength=2.2)
    for axes in grid[:, 0]:
        axes.set_ylabel(words(entry["unit"]))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    return figure


def _by_choice(entry: dict[str, Any], comparison: Comparison, factor: str) -> dict[str, tuple[list[float], np.ndarray]]:
    """{choice: (steps, one row a seed)}, each seed's mean over the cells with the choice; only steps and seeds that all of these have."""
    choice_of = {cell.label: str(cell.cell.choices.get(factor, "-")) for cell in comparison.cells}
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in entry["series"]:
        groups.setdefault(choice_of[one["cell"]], []).append(one)
    found = {}
    for choice in dict.fromkeys(choice_of.values()):
        members = groups.get(choice, [])
        steps = sorted(set.intersection(*(set(one["step"]) for one in members))) if members else []
        seeds = (
            [seed for seed in members[0]["seeds"] if all(seed in one["seeds"] for one in members)] if members else []
        )
        if steps and seeds:
            rows = [np.mean([_at(one, seed, steps) for one in members], axis=0) for seed in seeds]
            found[choice] = (steps, np.array(rows))
    return found


def _at(one: dict[str, Any], seed: str, steps: Sequence[float]) -> np.ndarray:
    by_step = dict(zip(one["step"], one["seeds"][seed], strict=True))
    return _numbers([by_step[step] for step in steps])


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _band(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95% interval at each step over the seeds; NaN where a seed has no figure, as a mean over fewer would jump."""
    nothing = (math.nan, math.nan, math.nan)
    found = [mean_interval(column.tolist()) if np.isfinite(column).all() else None for column in seeds.T]
    rows = [(one.mean, one.low, one.high) if one else nothing for one in found]
    mean, low, high = np.array(rows).T
    return mean, np.where(np.isfinite(low), low, math.nan), np.where(np.isfinite(high), high, math.nan)


def _draw(
    axes: Axes,
    label: str,
    steps: Sequence[float],
    seeds: Sequence[np.ndarray],
    band: tuple[np.ndarray, np.ndarray, np.ndarray],
    look: dict[str, Any],
) -> None:
    mean, low, high = band
    tone = look["color"]
    axes.fill_between(steps, low, high, color=tone, alpha=0.15, linewidth=0)
    if len(seeds) > 1:
        for values in seeds:
            axes.plot(steps, values, color=tone, linewidth=0.4, alpha=0.5)
    every: dict[str, Any] = {"markevery": max(1, len(mean) // 5), "markersize": 3}
    axes.plot(steps, mean, **look, **every, linewidth=1.4, label=label)


def _finish(axes: Axes, entry: dict[str, Any], values: Sequence[Sequence[float | None]]) -> None:
    """Axis names and limits: the worst 2% may leave the picture (losses of the first steps), the best may not."""
    there = np.sort([v for row in values for v in row if v is not None and math.isfinite(v)])
    if there.size:
        cut = math.floor(0.98 * (there.size - 1))
        low, high = (there[-1 - cut], there[-1]) if entry["better"] == "higher" else (there[0], there[cut])
        room = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - room, high + room)
    axes.set_xlabel("optimizer steps")


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=2.2, columnspacing=1
    )
