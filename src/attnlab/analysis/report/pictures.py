"""Pictures made of HTML alone: the forest of differences, the grid of a factorial sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnlab.analysis import wording
from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.analysis.groups import split_of
from attnlab.analysis.reader import same, short
from attnlab.analysis.report.markup import Html, prose, tag
from attnlab.analysis.statistics import Interval


@dataclass(frozen=True)
class ForestRow:
    """One row of a forest: a mean difference with its interval, the single values behind it with their names, and a verdict."""

    label: str
    interval: Interval
    values: Sequence[float]
    verdict: str
    note: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Scale:
    """Maps values to per cent of a track's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Per cent from the left, kept inside the track."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def ticks(self) -> list[float]:
        """Three to six round values inside the scale."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step *= next(k for k in (1, 2, 5, 10) if (self.high - self.low) / (k * step) <= 5)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def scale_of(rows: Sequence[ForestRow], margin: float) -> Scale:
    """A scale on which zero, the margin and every value are seen; an interval far wider than its values runs off the edge."""
    values = [0.0, -margin, margin, *(value for row in rows for value in (*row.values, row.interval.mean))]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    ends = [end for row in rows if row.interval.is_bounded for end in (row.interval.low, row.interval.high)]
    low = min([low, *(max(end, low - 0.5 * room) for end in ends)])
    high = max([high, *(min(end, high + 0.5 * room) for end in ends)])
    return Scale(low - 0.04 * room, high + 0.04 * room)


def forest(rows: Sequence[ForestRow], margin: float, better: str, name: str) -> Html:
    """The forest as a table: label, picture, figures, verdict. `name` says what is drawn, for who cannot see it."""
    scale = scale_of(rows, margin)
    decimals = wording.decimals_for(row.interval for row in rows)
    body = [_forest_row(row, scale, margin, decimals) for row in rows]
    sides = ("better", "worse") if better == "lower" else ("worse", "better")
    arrows = tag("div", tag("span", f"\u2190 {sides[0]}"), tag("span", f"{sides[1]} \u2192"), class_="sides")
    ticks = [
        tag("span", prose(f"{tick:+.10g}" if tick else "0"), style=f"left:{scale.at(tick)}%", class_="tick")
        for tick in scale.ticks()
    ]
    axis = tag("tr", tag("td"), tag("td", tag("div", *ticks, class_="axis"), arrows), tag("td"), class_="axis-row")
    return tag("table", tag("tbody", *body, axis), class_="forest", aria_label=name)


def _forest_row(row: ForestRow, scale: Scale, margin: float, decimals: int) -> Html:
    text = wording.interval_text(row.interval, decimals, sign=True)
    marks = []
    if margin > 0:
        left, right = scale.at(-margin), scale.at(margin)
        marks.append(tag("i", class_="margin", style=f"left:{left}%;width:{right - left:.2f}%"))
    marks.append(tag("i", class_="zero", style=f"left:{scale.at(0)}%"))
    interval = row.interval
    if interval.is_bounded:
        left, right = scale.at(interval.low), scale.at(interval.high)
        off = "".join([" off-left" * (interval.low < scale.low), " off-right" * (interval.high > scale.high)])
        marks.append(tag("i", class_=f"bar {row.verdict}{off}", style=f"left:{left}%;width:{right - left:.2f}%"))
    marks += [
        tag("i", class_="seed", style=f"left:{scale.at(value)}%", title=_value_title(name, value, decimals))
        for value, name in itertools.zip_longest(row.values, row.names)
    ]
    marks.append(tag("i", class_=f"dot {row.verdict}", style=f"left:{scale.at(interval.mean)}%"))
    track = tag("div", *marks, class_="track", role="img", aria_label=f"{row.label}: {text}")
    mean, _, bounds = text.partition(" ")
    line = tag("div", tag("b", prose(mean)), " ", tag("span", prose(bounds), class_="soft"))
    figures = tag("td", line, tag("div", prose(row.note), class_="note") if row.note else None, class_="figures")
    label = tag("th", tag("span", _breakable(row.label)), " ", verdict_chip(row.verdict), scope="row")
    return tag("tr", label, tag("td", track, class_="picture"), figures)


def _value_title(name: str | None, value: float, decimals: int) -> str:
    return (
        f"{name}: {wording.number(value, decimals, sign=True)}" if name else wording.number(value, decimals, sign=True)
    )


def _breakable(label: str) -> list[Html | str]:
    """A label that breaks between its choices and never within one."""
    parts = label.split(", ")
    return [
        piece
        for i, part in enumerate(parts)
        for piece in (" " if i else "", tag("span", part + "," * (i < len(parts) - 1), class_="whole"))
    ]


def verdict_chip(verdict: str) -> Html:
    """A verdict as a small coloured word, with a sign that needs no colour."""
    signs = {
        "better": "\u25b2",
        "worse": "\u25bc",
        "same": "=",
        "undecided": "?",
        "met": "\u2713",
        "not met": "\u2717",
        "open": "?",
        "depends": "\u2195",
    }
    words = {"same": "no difference"}
    sign = tag("span", signs.get(verdict, ""), aria_hidden="true")
    return tag("span", sign, " ", words.get(verdict, verdict), class_=f"chip {wording.slug(verdict)}")


def grid(comparison: Comparison) -> Html | None:
    """The cells of a factorial sweep as a coloured table, for two to four varying factors; None otherwise."""
    study = comparison.study
    factors = [name for name in study.factors if name in study.varying]
    cells = [cell for cell in comparison.cells if all(name in cell.cell.choices for name in factors)]
    measured = [cell.interval.mean for cell in cells if cell.interval]
    if not 2 <= len(factors) <= 4 or not measured or comparison.metric is None:
        return None
    across = factors[len(factors) - len(factors) // 2 :]
    down = factors[: len(factors) - len(factors) // 2]
    columns = list(itertools.product(*(study.factors[name] for name in across)))
    decimals = wording.decimals_for(cell.interval for cell in cells)
    worst, best = (max, min) if comparison.metric.better == "lower" else (min, max)
    ends = (best(measured), worst(measured))
    head = [_grid_head(study.factors[name], name, index, across, study.factors) for index, name in enumerate(across)]
    split = split_of(comparison)
    behind = split.worse if split else []
    rows = []
    for choices in itertools.product(*(study.factors[name] for name in down)):
        names = [_factor_choice(name, choice) for name, choice in zip(down, choices, strict=True)]
        wanted = dict(zip(down, choices, strict=True))
        found = [_find(cells, {**wanted, **dict(zip(across, column, strict=True))}) for column in columns]
        rows.append(
            tag(
                "tr",
                tag("th", *names, scope="row"),
                *(_grid_cell(cell, ends, decimals, cell in behind) for cell in found),
            )
        )
    return tag("table", tag("thead", *head), tag("tbody", *rows), class_="grid")


def _grid_head(
    choices: Sequence[Any],
    name: str,
    index: int,
    across: Sequence[str],
    factors: dict[str, list[Any]],
) -> Html:
    width = math.prod(len(factors[other]) for other in across[index + 1 :])
    repeats = math.prod(len(factors[other]) for other in across[:index])
    labels = [tag("th", str(choice), colspan=width, scope="col") for choice in choices]
    return tag("tr", tag("td", short(name), class_="soft corner"), *(labels * repeats))


def _factor_choice(name: str, choice: Any) -> Html:
    return tag("div", tag("span", short(name), class_="soft"), " ", str(choice), class_="choice")


def _find(cells: Sequence[CellSummary], wanted: dict[str, Any]) -> CellSummary | None:
    return next((c for c in cells if all(same(c.cell.choices[key], value) for key, value in wanted.items())), None)


def _grid_cell(cell: CellSummary | None, ends: tuple[float, float], decimals: int, behind: bool) -> Html:
    if cell is None:
        return tag("td", "\u2013", class_="none")
    if cell.interval is None:
        return tag("td", cell.outcome, class_="none", title=cell.reason)
    best, worst = ends
    share = 0.0 if best == worst else (cell.interval.mean - best) / (worst - best)
    spread = (
        f"\u00b1{cell.interval.high - cell.interval.mean:.{decimals}f}"
        if cell.interval.is_bounded
        else cell.interval.unbounded
    )
    lost = tag("div", f"{cell.n_lost} of {sum(cell.states.values())} lost", class_="lost") if cell.n_lost else None
    mark = tag("span", "baseline", class_="mark") if cell.is_baseline else None
    value = tag("b", wording.number(cell.interval.mean, decimals))
    return tag(
        "td",
        value,
        tag("div", spread, class_="soft"),
        lost,
        mark,
        class_="heat behind" if behind else "heat",
        style=f"--share:{100 * share:.0f}%",
    )
