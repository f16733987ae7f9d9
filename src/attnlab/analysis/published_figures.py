"""The figures that a paper published, beside those of a study's runs.

Figures of unlike units are only shown beside each other. What is compared is the direction: the sign of a cell's
difference to the baseline, where the paper has the baseline's figure of the same metric and data, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import DECIDED, Outcomes, family_size, verdict_of
from attnlab.analysis.formatting import decimals_for, interval_text
from attnlab.analysis.proportions import described
from attnlab.analysis.reader import Cell, Metric, Study, choices_of
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import Column, Contents, Entry, Table
from attnlab.training.published import PublishedFigure

DIRECTIONS = {"as published": "met", "opposite": "not met", "not sure here": "open", "": ""}


@dataclass(frozen=True)
class Beside:
    """A published figure and what came out here.

    ours: the mean of the cell's runs, None where there is none; difference: to the baseline, with an interval that is
    simultaneous with those of the other figures; published_difference: None where the paper has no baseline's figure;
    direction: a key of DIRECTIONS.
    """

    figure: PublishedFigure
    label: str
    metric: str
    ours: Interval | None
    published_difference: float | None
    difference: Interval | None
    direction: str


def beside_published(comparison: Comparison) -> list[Beside]:
    """The published figures of the study, in its order; [] without any, or without a metric."""
    study, primary = comparison.study, comparison.metric
    if study.published is None or primary is None:
        return []
    outcomes = Outcomes(study)
    pairs = [(figure, _cell(study, figure)) for figure in study.published.figures]
    contrasts = {}
    for at, (figure, cell) in enumerate(pairs):
        base, name = _reference(study, cell), figure.beside or primary.name
        if cell and base and cell is not base:
            contrasts[at] = outcomes.against(cell.name, name, base.name, name, study.label(base))
    level = 1 - outcomes.alpha / family_size(contrasts)
    found = []
    for at, (figure, cell) in enumerate(pairs):
        name = figure.beside or primary.name
        contrast = contrasts.get(at)
        interval = contrast.interval(level) if contrast and contrast.values else None
        sure = interval is not None and contrast is not None and not contrast.beyond_chance
        verdict = verdict_of(interval, Metric(name, study.better(name))) if interval and sure else "undecided"
        apart = _published_difference(study, figure)
        ours = described(study, cell.name, name) if cell else None
        label = study.label(cell) if cell else ", ".join(f"{key}={value}" for key, value in figure.cell.items())
        better = figure.better or primary.better
        found.append(Beside(figure, label, name, ours, apart, interval, _direction(apart, better, interval, verdict)))
    return found


def _cell(study: Study, figure: PublishedFigure) -> Cell | None:
    """The one cell that a figure belongs to: the choices that it leaves out are the baseline's."""
    wanted = {**study.baseline, **choices_of(figure.cell)}
    found = study.matching(wanted) or study.matching(choices_of(figure.cell))
    return found[0] if found else None


def _reference(study: Study, cell: Cell | None) -> Cell | None:
    """What a cell is held against: the baseline, at the size that the cell has."""
    size = study.published.size if study.published else ""
    if cell is None or not size or study.baseline_cell is None:
        return study.baseline_cell
    found = study.matching({**study.baseline_cell.choices, size: cell.choices.get(size)})
    return found[0] if found else None


def _published_difference(study: Study, figure: PublishedFigure) -> float | None:
    """The figure minus the baseline's of the same metric and data; None where there is none, or this is it."""
    base, figures = _reference(study, _cell(study, figure)), study.published.figures if study.published else ()
    alike = [one for one in figures if base and (one.metric, one.of) == (figure.metric, figure.of)]
    of_baseline = next((one for one in alike if _cell(study, one) is base), None)
    return figure.value - of_baseline.value if of_baseline is not None and of_baseline is not figure else None


def _direction(apart: float | None, better: str, interval: Interval | None, verdict: str) -> str:
    if not apart or interval is None:
        return ""
    if verdict not in DECIDED:
        return "not sure here"
    is_better = (apart < 0) == (better == "lower")
    return "as published" if is_better == (verdict == "better") else "opposite"


def published_table(found: Sequence[Beside]) -> Table | None:
    """Published figures beside ours; None without any."""
    if not found:
        return None
    decimals = decimals_for(one.ours for one in found)
    apart = decimals_for(one.difference for one in found)

    def difference(one: Beside) -> str:
        return "" if one.published_difference is None else f"{one.published_difference:+.4g}"

    def direction(one: Beside) -> Contents:
        return Entry(one.direction, mood=DIRECTIONS[one.direction])

    columns: list[Column[Beside]] = [
        Column("cell", lambda one: one.label, "l"),
        Column("published", lambda one: f"{one.figure.value:g}"),
        Column("of", lambda one: f"{one.figure.metric}, {one.figure.of}", "l"),
        Column("difference", difference),
        Column("here", lambda one: interval_text(one.ours, decimals)),
        Column("of", lambda one: one.metric, "l"),
        Column(
            "difference (interval)",
            lambda one: interval_text(one.difference, apart, sign=True) if one.difference else "",
        ),
        Column("direction", direction, "l"),
    ]
    note = (
        "difference: to the baseline, of the same size. Published figures and ours are of other data and sizes; what "
        "can agree is the direction. The intervals of differences hold together (Bonferroni)."
    )
    return Table.of(columns, found, "Published figures beside ours", [note])
