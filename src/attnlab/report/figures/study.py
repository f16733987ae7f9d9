"""The figures of a study for a paper, from the same comparison as the page: forests, curves, the grid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.reader import short
from attnlab.analysis.table import typographic
from attnlab.report.figures import forest, style
from attnlab.report.figures.interactions import interactions_figure
from attnlab.report.figures.style import COLUMN, PAGE, line_look, new_figure, plain_log_ticks
from attnlab.report.page_data import MOST_COLOURS, CurveFamily, LengthFamily, Series, band, curve_data, length_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
MOST_LINES = 16  # of the metric against length; more cannot be told apart
HEIGHT = 2.4


def write_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes what the study has of differences, effects, interactions, lengths, curves and curves-by-factor, and grid;
    returns the files. The same comparison gives the same bytes. Raises CannotWrite."""
    return style.write_figures(study_figures(comparison), Path(folder), ("pdf", "png"))


def study_figures(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of all that the study has, to be drawn within `paper_style`."""
    for name in ("differences", "effects", "interactions"):
        if figure := KINDS[name].figure(comparison, None):
            yield name, figure
    cells = _cells(comparison)
    for index, family in enumerate(length_data(comparison)):
        if figure := length_figure(family, cells):
            yield "lengths" if index == 0 else f"lengths-{slug(family['name'])}", figure
    curves = curve_data(comparison)
    if curves and len(cells) <= MOST_COLOURS:
        yield "curves", cell_curves(curves[0], cells)
    by_factor = factor_curves(curves[0], comparison) if curves else None
    if by_factor is not None:
        yield "curves-by-factor", by_factor
    if figure := KINDS["grid"].figure(comparison, None):
        yield "grid", figure


class Kind(NamedTuple):
    """A figure by comparison and metric, None where the study has nothing for it; `needs` is what it lacks then."""

    figure: Callable[[Comparison, str | None], Figure | None]
    needs: str


def draw(comparison: Comparison, kind: str, metric: str | None = None) -> Figure:
    """One of the figures of `KINDS`, drawn. metric: of "lengths" and "curves", which have others than the one that is
    compared. Raises ValueError for another kind or metric, and where the study has nothing to draw."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    with style.paper_style():
        figure = KINDS[kind].figure(comparison, metric)
        if figure is None:
            raise ValueError(f"the study {comparison.study.name} has nothing to plot of {kind}: {KINDS[kind].needs}")
        figure.canvas.draw()  # some of it is made when it is first drawn, and belongs to this style, too
    return figure


def _forest(of: Callable[[Comparison], forest.Forest | None], comparison: Comparison, _: str | None) -> Figure | None:
    drawn = of(comparison)
    return drawn.figure(forest.MOST_ROWS) if drawn else None


def _interactions(comparison: Comparison, _: str | None) -> Figure | None:
    return interactions_figure(comparison)


def _grid(comparison: Comparison, _: str | None) -> Figure | None:
    grid = forest.Grid.of(comparison)
    return grid.figure() if grid else None


def _lengths(comparison: Comparison, metric: str | None) -> Figure | None:
    families = {family["name"]: family for family in length_data(comparison)}
    found = _chosen(families, metric and metric.partition("@")[0])
    return length_figure(found, _cells(comparison)) if found else None


def _curves(comparison: Comparison, metric: str | None) -> Figure | None:
    cells, found = _cells(comparison), _chosen({one["name"]: one for one in curve_data(comparison)}, metric)
    if found is None:
        return None
    return cell_curves(found, cells) if len(cells) <= MOST_COLOURS else factor_curves(found, comparison)


def _chosen(families: Mapping[str, T], name: str | None) -> T | None:
    """The family of this name, or the first, if there are any. Raises ValueError for a name that none has."""
    if name is None or not families:
        return next(iter(families.values()), None)
    if name not in families:
        raise ValueError(f"metric must be one of {', '.join(families)}, got {name!r}")
    return families[name]


KINDS = {
    "differences": Kind(partial(_forest, forest.differences), "it takes a baseline and another cell, both with values"),
    "effects": Kind(partial(_forest, forest.effects), "it takes two factors that vary; differences has each cell"),
    "interactions": Kind(_interactions, "it takes two factors that vary, and a seed with all pairs of their choices"),
    "lengths": Kind(_lengths, f"it takes a metric at multiples of the training length, and at most {MOST_LINES} cells"),
    "curves": Kind(_curves, f"it takes a metric that was logged, and {MOST_COLOURS} cells or two factors that vary"),
    "grid": Kind(_grid, "it takes two to four factors that vary, and values"),
}


def _cells(comparison: Comparison) -> list[str]:
    return [cell.label for cell in comparison.cells if cell.cell.skip is None]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def length_figure(family: LengthFamily, cells: Sequence[str]) -> Figure | None:
    """The metric at multiples of the training length: means, 95% intervals, a cross where a cell cannot go on. None
    where there are no values, or more cells than can be told apart."""
    if len(cells) > MOST_LINES or not any(one["x"] for one in family["series"]):
        return None
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    multiples = sorted({k for one in family["series"] for k in (*one["x"], *one["unavailable"])})
    for one in family["series"]:
        look = line_look(cells.index(one["cell"]))
        if not one["x"]:
            continue
        mean, low, high = map(_numbers, (one["y"], one["low"], one["high"]))
        sizes: dict[str, Any] = {"linewidth": 1.2, "markersize": 3, "capsize": 1.5, "elinewidth": 0.8}
        axes.errorbar(one["x"], mean, np.abs([low - mean, high - mean]), label=one["cell"], **look, **sizes)
        if one["unavailable"]:
            ends: dict[str, Any] = {"marker": "x", "markersize": 7, "markeredgewidth": 1.5, "linestyle": "none"}
            axes.plot(one["x"][-1:], mean[-1:], color=look["color"], **ends)
    plain_log_ticks(axes, "x", multiples, [f"{k:g}\u00d7" for k in multiples])
    axes.set(xlabel="multiple of the training length", ylabel=typographic(family["unit"]))
    _legend(figure, axes)
    return figure


def cell_curves(entry: CurveFamily, cells: Sequence[str]) -> Figure:
    """A metric along training, a colour a cell: seeds thin, their mean thick, its 95% interval as a band."""
    figure = new_figure(COLUMN, HEIGHT)
    axes = figure.subplots()
    for one in entry["series"]:
        means = tuple(map(_numbers, (one["mean"], one["low"], one["high"])))
        seeds = list(map(_numbers, one["seeds"].values()))
        _draw(axes, one["cell"], _numbers(one["step"]), seeds, means, line_look(cells.index(one["cell"])))
    _finish(axes, entry, [values for one in entry["series"] for values in one["seeds"].values()])
    axes.set_ylabel(typographic(entry["unit"]))
    _legend(figure, axes)
    return figure


def factor_curves(entry: CurveFamily, comparison: Comparison) -> Figure | None:
    """One panel a factor, one line a choice of it: a seed's thin line is its mean over all cells with that choice, the
    thick one the mean of these, the band its 95% interval over seeds. None where fewer than two factors vary."""
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
            _draw(axes, choice, steps, list(seeds), band([], seeds.T), line_look(index))
        _finish(axes, entry, [row.tolist() for _, seeds in lines.values() for row in seeds])
        axes.set_title(short(name))
        axes.legend(handlelength=2.2)
    for axes in grid[:, 0]:
        axes.set_ylabel(typographic(entry["unit"]))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    return figure


def _by_choice(entry: CurveFamily, comparison: Comparison, factor: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{choice: (steps, one row a seed)}, means over the cells with the choice; only what all of these have."""
    choice_of = {cell.label: str(cell.cell.choices.get(factor, "-")) for cell in comparison.cells}
    groups: dict[str, list[Series]] = {choice: [] for choice in choice_of.values()}
    for one in entry["series"]:
        groups[choice_of[one["cell"]]].append(one)
    found = {}
    for choice, members in ((choice, members) for choice, members in groups.items() if members):
        steps = sorted(set.intersection(*({step for step in one["step"] if step is not None} for one in members)))
        seeds = [seed for seed in members[0]["seeds"] if all(seed in one["seeds"] for one in members)]
        if steps and seeds:
            rows = [np.mean([_at(one, seed, steps) for one in members], axis=0) for seed in seeds]
            found[choice] = (np.array(steps), np.array(rows))
    return found


def _at(one: Series, seed: str, steps: Sequence[float]) -> np.ndarray:
    by_step = dict(zip(one["step"], one["seeds"][seed], strict=True))
    return _numbers([by_step[step] for step in steps])


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _draw(
    axes: Axes,
    label: str,
    steps: np.ndarray,
    seeds: Sequence[np.ndarray],
    means: tuple[np.ndarray, ...],
    look: dict[str, Any],
) -> None:
    """Seeds thin, their mean thick, its band; means: (mean, low, high)."""
    mean, low, high = means
    tone = look["color"]
    axes.fill_between(steps, low, high, color=tone, alpha=0.15, linewidth=0)
    if len(seeds) > 1:
        for values in seeds:
            axes.plot(steps, values, color=tone, linewidth=0.4, alpha=0.5)
    every: dict[str, Any] = {"markevery": max(1, len(mean) // 5), "markersize": 3}
    axes.plot(steps, mean, **look, **every, linewidth=1.4, label=label)


def _finish(axes: Axes, entry: CurveFamily, values: Sequence[Sequence[float | None]]) -> None:
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
