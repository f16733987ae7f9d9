"""The figures of a study for a paper, as PDF and PNG, from the same comparison as the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.analysis import wording
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.figures.forest import difference_rows, effect_rows, forest_figure
from attnlab.analysis.figures.grid import grid_figure
from attnlab.analysis.figures.lines import cell_curves, factor_curves, length_figure
from attnlab.analysis.figures.style import paper_style, write_figure
from attnlab.analysis.report.charts import MOST_COLOURS, curve_data, length_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = 16  # of the metric against length; more cannot be told apart
ENDINGS = ("pdf", "png")
MOST_LETTERS = 24  # of a baseline in the name of an axis


def write_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """
    Writes what the study has of differences, effects, lengths, curves and curves_by_factor, and grid, as .pdf and .png; returns the files.

    The same comparison gives the same bytes. A study without figures leaves no folder. Raises CannotWrite.
    """
    folder, written = Path(folder), []
    with paper_style():
        for name, figure in study_figures(comparison):
            folder.mkdir(parents=True, exist_ok=True)
            for ending in ENDINGS:
                path = folder / f"{name}.{ending}"
                write_figure(figure, path)
                written.append(path)
    return written


def study_figures(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of all that the study has, to be drawn within `paper_style`."""
    yield from _forests(comparison)
    yield from _lengths(comparison)
    yield from _curves(comparison)
    grid = grid_figure(comparison)
    if grid is not None:
        yield "grid", grid


def _forests(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    metric = comparison.metric
    if metric is None:
        return
    unit = wording.unit(metric.name, comparison.study.unit)
    baseline = comparison.baseline.label if comparison.baseline else ""
    to = baseline if len(baseline) < MOST_LETTERS else "the baseline"
    for name, rows, what in (
        ("differences", difference_rows(comparison), f"difference to {to} in {unit}"),
        ("effects", effect_rows(comparison), f"change in {unit}"),
    ):
        if rows:
            yield name, forest_figure(rows, metric, what)


def _labels(comparison: Comparison) -> list[str]:
    return [cell.label for cell in comparison.cells if cell.cell.skip is None]


def _lengths(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    cells = _labels(comparison)
    for index, family in enumerate(length_data(comparison)):
        if len(cells) <= MOST_LINES and any(one["x"] for one in family["series"]):
            name = "lengths" if index == 0 else f"lengths-{wording.slug(family['name'])}"
            yield name, length_figure(family, cells)


def _curves(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    entries, cells = curve_data(comparison), _labels(comparison)
    if not entries:
        return
    if len(cells) <= MOST_COLOURS:
        yield "curves", cell_curves(entries[0], cells, entries[0]["unit"])
    by_factor = factor_curves(entries[0], comparison)
    if by_factor is not None:
        yield "curves-by-factor", by_factor
