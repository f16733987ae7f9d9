"""The page's section on two-factor interactions."""

from __future__ import annotations

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.factors import Interaction
from attnlab.analysis.reader import Metric
from attnlab.analysis.report.markup import Html, details, join, tag
from attnlab.analysis.report.pictures import ForestRow, forest
from attnlab.analysis.wording import p_text

MOST_ROWS = 10


def interactions_section(comparison: Comparison) -> Html | None:
    """The forest of interactions, the largest first; beyond MOST_ROWS they are folded away."""
    metric = comparison.metric
    if metric is None or not comparison.interactions:
        return None
    found = sorted(comparison.interactions, key=lambda one: -abs(one.interval.mean))
    lead = (
        f"What two choices together change in {metric.name}, minus the sum of what each changes alone, by seed and averaged over the settings of "
        "the other factors. Zero: the effects simply add up. Small dots are the seeds; the bar is the interval of their mean, simultaneous "
        f"over all {found[0].tests} interaction{'s' * (found[0].tests > 1)} (all hold in 95% of studies). Better: the two do better together than their single changes would let expect."
    )
    rows = [_row(one) for one in found]
    parts = [tag("p", lead, class_="lead"), _forest(rows[:MOST_ROWS], metric, "Interactions of two factors")]
    if rows[MOST_ROWS:]:
        rest = _forest(rows[MOST_ROWS:], metric, "Smaller interactions of two factors")
        parts.append(details(f"{len(rows) - MOST_ROWS} smaller interactions", rest))
    return join(parts)


def _forest(rows: list[ForestRow], metric: Metric, name: str) -> Html:
    return forest(rows, metric.margin, metric.better, name)


def _row(one: Interaction) -> ForestRow:
    used = len(one.by_setting)
    settings = f"{used} settings" if used == one.planned else f"{used} of {one.planned} settings"
    notes = [f"{len(one.values)} seed{'s' * (len(one.values) != 1)}", *([settings] if one.planned > 1 else [])]
    notes.append(f"p {p_text(one.p_adjusted)}")
    notes += [one.reason] * bool(one.reason)
    return ForestRow(
        one.label.replace(" x ", " \u00d7 "),
        one.interval,
        list(one.values.values()),
        one.verdict,
        " \u00b7 ".join(notes),
    )
