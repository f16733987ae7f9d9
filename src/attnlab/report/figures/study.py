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
from attnlab.analysis.proportions import says_proportion
from attnlab.analysis.reader import short
from attnlab.analysis.table import typographic
from attnlab.report.figures import forest, style
from attnlab.report.figures.interactions import interactions_figure
from attnlab.report.figures.pareto import pareto_figure
from attnlab.report.figures.style import (
    COLUMN,
    LINE,
    PAGE,
    broken,
    colour,
    legend_above,
    legend_below,
    line_look,
    new_figure,
    plain_log_ticks,
)
from attnlab.report.figures.tuning import tuning_figure
from attnlab.report.page_data import (
    MOST_COLOURS,
    CurveFamily,
    LengthFamily,
    LengthSeries,
    Series,
    band,
    curve_data,
    length_data,
    tuning_data,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
MOST_PANELS = 24  # one a cell, where there are more cells than colours
ACROSS, PANEL = 4, 1.15  # panels of a row, inches of one's height
HEIGHT = 2.4
STEPS = "optimizer steps"
FACTORS = "two factors that vary and a metric that is not 0 or 1 a run"
BEHIND: dict[str, Any] = {"color": colour("line"), "linewidth": 0.8, "zorder": 1}


def write_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes what the study has of differences, effects, interactions, lengths, tuning, curves, curves-by-factor,
    pareto and grid; returns the files. The same comparison gives the same bytes. Raises CannotWrite."""
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
    if figure := KINDS["tuning"].figure(comparison, None):
        yield "tuning", figure
    curves = curve_data(comparison)
    if curves and len(cells) <= MOST_PANELS:
        yield "curves", cell_curves(curves[0], cells)
    by_factor = factor_curves(curves[0], comparison) if curves else None
    if by_factor is not None:
        yield "curves-by-factor", by_factor
    for name in ("pareto", "grid"):
        if figure := KINDS[name].figure(comparison, None):
            yield name, figure


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


def _pareto(comparison: Comparison, _: str | None) -> Figure | None:
    return pareto_figure(comparison)


def _lengths(comparison: Comparison, metric: str | None) -> Figure | None:
    families = {family["name"]: family for family in length_data(comparison)}
    found = _chosen(families, metric and metric.partition("@")[0])
    return length_figure(found, _cells(comparison)) if found else None


def _curves(comparison: Comparison, metric: str | None) -> Figure | None:
    cells, found = _cells(comparison), _chosen({one["name"]: one for one in curve_data(comparison)}, metric)
    if found is None:
        return None
    return cell_curves(found, cells) if len(cells) <= MOST_PANELS else factor_curves(found, comparison)


def _tuning(comparison: Comparison, _: str | None) -> Figure | None:
    cells = _cells(comparison)
    return tuning_figure(tuning_data(comparison), cells) if len(cells) <= MOST_COLOURS else None


def _chosen(families: Mapping[str, T], name: str | None) -> T | None:
    """The family of this name, or the first, if there are any. Raises ValueError for a name that none has."""
    if name is None or not families:
        return next(iter(families.values()), None)
    if name not in families:
        raise ValueError(f"metric must be one of {', '.join(families)}, got {name!r}")
    return families[name]


KINDS = {
    "differences": Kind(partial(_forest, forest.differences), "it takes a baseline and another cell, both with values"),
    "effects": Kind(partial(_forest, forest.effects), f"it takes {FACTORS}; differences has each cell"),
    "interactions": Kind(_interactions, f"it takes {FACTORS}, and a seed with all pairs of their choices"),
    "lengths": Kind(
        _lengths, f"it takes a metric at multiples of the training length, and at most {MOST_PANELS} cells"
    ),
    "curves": Kind(_curves, f"it takes a metric that was logged, and {MOST_PANELS} cells or two factors that vary"),
    "pareto": Kind(_pareto, "it takes two cells with values whose runs do not all cost the same"),
    "tuning": Kind(
        _tuning, f"it takes a study with tune in study.yaml, numbers searched, and at most {MOST_COLOURS} cells"
    ),
    "grid": Kind(_grid, "it takes two to four factors that vary, and values"),
}


def _cells(comparison: Comparison) -> list[str]:
    return [cell.label for cell in comparison.cells if cell.cell.skip is None]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def length_figure(family: LengthFamily, cells: Sequence[str]) -> Figure | None:
    """The metric at multiples of the training length: means, 95% intervals, a cross where a cell cannot go on. None
    where there are no values, or more cells than there is room for."""
    if len(cells) > MOST_PANELS or not any(one["x"] for one in family["series"]):
        return None
    multiples = sorted({k for one in family["series"] for k in (*one["x"], *one["unavailable"])})

    def draw(axes: Axes, one: LengthSeries, look: Mapping[str, Any]) -> None:
        if not one["x"]:
            return
        mean, low, high = map(_numbers, (one["y"], one["low"], one["high"]))
        sizes: dict[str, Any] = {"linewidth": 1.2, "markersize": 3, "capsize": 1.5, "elinewidth": 0.8}
        axes.errorbar(one["x"], mean, np.abs([low - mean, high - mean]), label=one["cell"], **look, **sizes)
        if one["unavailable"]:
            ends: dict[str, Any] = {"marker": "x", "markersize": 7, "markeredgewidth": 1.5, "linestyle": "none"}
            axes.plot(one["x"][-1:], mean[-1:], color=look["color"], **ends)

    def others(axes: Axes, one: LengthSeries) -> None:
        axes.plot(one["x"], _numbers(one["y"]), **BEHIND)

    def finish(axes: Axes) -> None:
        plain_log_ticks(axes, "x", multiples, [f"{k:g}\u00d7" for k in multiples])

    return _by_cell(family["series"], cells, draw, others, finish, ("multiple of the training length", family["unit"]))


def cell_curves(entry: CurveFamily, cells: Sequence[str]) -> Figure:
    """A metric along training, a colour or a panel a cell: seeds thin, their mean thick, its 95% interval as a band."""

    def draw(axes: Axes, one: Series, look: Mapping[str, Any]) -> None:
        seeds = list(map(_numbers, one["seeds"].values()))
        _draw(axes, one["cell"], _numbers(one["step"]), seeds, _band_of(one), look)

    def others(axes: Axes, one: Series) -> None:
        axes.plot(_numbers(one["step"]), _numbers(one["mean"]), **BEHIND)

    values = [values for one in entry["series"] for values in one["seeds"].values()]
    limits = _limits(entry["better"], values, list(map(_band_of, entry["series"])))

    def finish(axes: Axes) -> None:
        axes.set_ylim(limits)

    return _by_cell(entry["series"], cells, draw, others, finish, (STEPS, entry["unit"]))


def _by_cell(
    series: Sequence[Any],
    cells: Sequence[str],
    draw: Callable[[Axes, Any, Mapping[str, Any]], None],
    draw_behind: Callable[[Axes, Any], None],
    finish: Callable[[Axes], None],
    names: tuple[str, str],
) -> Figure:
    """All cells in one picture, a colour each, while there are colours; else a panel each, the other cells behind it.

    names: of the two axes.
    """
    if len(cells) <= MOST_COLOURS:
        figure = new_figure(COLUMN, HEIGHT)
        axes = figure.subplots()
        for one in series:
            draw(axes, one, line_look(cells.index(one["cell"])))
        finish(axes)
        axes.set(xlabel=names[0], ylabel=typographic(names[1]))
        legend_below(figure, axes)
        return figure
    down = math.ceil(len(series) / ACROSS)
    figure = new_figure(PAGE, PANEL * down + 2 * LINE)
    grid = list(figure.subplots(down, ACROSS, squeeze=False, sharex=True, sharey=True).flat)
    for axes, one in zip(grid, series, strict=False):
        for other in series:
            draw_behind(axes, other)
        draw(axes, one, {**line_look(0), "zorder": 3})
        finish(axes)
        axes.set_title(broken(one["cell"], 26), fontsize=7)
    for axes in grid[len(series) :]:
        axes.set_visible(False)
    figure.supxlabel(f"{names[0]}; grey: the other cells", fontsize=7.5)
    figure.supylabel(typographic(names[1]), fontsize=7.5)
    return figure


def _band_of(one: Series) -> tuple[np.ndarray, ...]:
    return tuple(map(_numbers, (one["mean"], one["low"], one["high"])))


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
    figure, above = new_figure(PAGE, HEIGHT), []
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, (name, lines) in zip(grid.flat, panels, strict=False):
        limits = comparison.study.limits(entry["name"])
        bands = [band([], seeds.T, limits) for _, seeds in lines.values()]
        if says_proportion(comparison.study, entry["name"]):
            bands = [(mean, np.full_like(mean, math.nan), np.full_like(mean, math.nan)) for mean, _, _ in bands]
        for index, ((choice, (steps, seeds)), means) in enumerate(zip(lines.items(), bands, strict=True)):
            _draw(axes, choice, steps, list(seeds), means, line_look(index))
        axes.set_ylim(_limits(entry["better"], [row.tolist() for _, seeds in lines.values() for row in seeds], bands))
        axes.set_xlabel(STEPS)
        above.append(legend_above(axes, short(name), PAGE / across - 0.5))
    figure.set_size_inches(PAGE, (2.0 + max(above)) * down)
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
    look: Mapping[str, Any],
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


def _limits(
    better: str, values: Sequence[Sequence[float | None]], bands: Sequence[tuple[np.ndarray, ...]]
) -> tuple[float, float]:
    """Of the axis: the worst 2% may leave the picture (losses of the first steps), the best may not, nor the band of a
    mean that is in it."""
    there = np.sort([v for row in values for v in row if v is not None and math.isfinite(v)])
    if not there.size:
        return 0.0, 1.0
    cut = math.floor(0.98 * (there.size - 1))
    low, high = (there[-1 - cut], there[-1]) if better == "higher" else (there[0], there[cut])
    inside = [(mean >= low) & (mean <= high) for mean, _, _ in bands]
    ends = [row[is_in] for band, is_in in zip(bands, inside, strict=True) for row in band[1:]]
    known = np.concatenate([*ends, [low, high]])
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room
