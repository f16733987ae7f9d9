"""Forests for a paper: differences to the baseline, effects of factors, interactions of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnlab.analysis import wording
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.figures.style import PAGE, colour, new_figure, words
from attnlab.analysis.reader import Metric
from attnlab.analysis.report.pictures import ForestRow, Scale, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 40
ROW, REST = 0.24, 0.62  # inches of a row, and of the axis below


def difference_rows(comparison: Comparison) -> list[ForestRow]:
    """The paired differences to the baseline, best mean first."""
    rows = []
    for cell in comparison.measured:
        found = cell.difference
        if found:
            rows.append(ForestRow(cell.label, found.interval, list(found.values.values()), found.verdict, found.reason))
    return rows


def effect_rows(comparison: Comparison) -> list[ForestRow]:
    """What each choice of each factor changes on average; the small dots are the settings of the other factors."""
    return [
        ForestRow(one.label, one.interval, list(one.by_setting.values()), one.word, one.reason)
        for one in comparison.effects
    ]


def interaction_rows(comparison: Comparison) -> list[ForestRow]:
    """What two choices change together beyond the sum of what each changes alone, the largest first; the small dots are the seeds."""
    found = sorted(comparison.interactions, key=lambda one: -abs(one.interval.mean))
    return [ForestRow(one.label, one.interval, list(one.values.values()), one.verdict, one.reason) for one in found]


def forest_figure(rows: Sequence[ForestRow], metric: Metric, what: str) -> Figure:
    """Rows from top to bottom: interval, single values and mean, with the figures and the verdict in words beside them; `what` names the axis."""
    shown = rows[:MOST_ROWS]
    figure = new_figure(PAGE, ROW * len(shown) + REST)
    axes = figure.subplots()
    scale, decimals = scale_of(shown, metric.margin), wording.decimals_for(row.interval for row in rows)
    if metric.margin > 0:
        axes.axvspan(-metric.margin, metric.margin, color=colour("strip"), linewidth=0)
    axes.axvline(0, color=colour("soft"), linewidth=0.7)
    for place, row in enumerate(shown):
        _row(axes, place, row, scale)
        axes.text(1.02, place, row_text(row, decimals), va="center", transform=axes.get_yaxis_transform(), fontsize=7)
    axes.set_yticks(range(len(shown)), [row.label for row in shown])
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(scale.low, scale.high))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    sides = ("better", "worse") if metric.better == "lower" else ("worse", "better")
    more = f"\n{len(rows) - len(shown)} more rows are on the page" if len(rows) > len(shown) else ""
    axes.set_xlabel(f"\u2190 {sides[0]}    {what}    {sides[1]} \u2192{more}")
    return figure


def row_text(row: ForestRow, decimals: int) -> str:
    """What stands beside a row: "−0.629 (−0.648 to −0.609)  better"."""
    parts = [
        wording.interval_text(row.interval, decimals, sign=True),
        wording.VERDICTS.get(row.verdict, row.verdict),
        row.note,
    ]
    return words("  ".join(filter(None, parts)))


def _row(axes: Axes, place: int, row: ForestRow, scale: Scale) -> None:
    tone = colour(row.verdict)
    if row.interval.is_bounded:
        axes.plot([row.interval.low, row.interval.high], [place, place], color=tone, linewidth=2, alpha=0.6, zorder=2)
        for end, edge, sign in ((row.interval.low, scale.low, "<"), (row.interval.high, scale.high, ">")):
            if (end < edge) == (sign == "<") and end != edge:  # the interval runs off the picture
                axes.plot([edge], [place], marker=sign, color=tone, markersize=4, clip_on=False, zorder=3)
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgewidth": 0}
    axes.plot(row.values, [place + 0.27] * len(row.values), color=colour("soft"), markersize=2, alpha=0.8, **dots)
    axes.plot([row.interval.mean], [place], color=tone, markersize=4.5, zorder=4, **dots)
