"""The sections of the page, in reading order: each is a heading and its markup, None where the study has nothing for it."""

from __future__ import annotations

from typing import Any

from attnlab.analysis import wording
from attnlab.analysis.comparison import MULTIPLE, CellSummary, Comparison, LengthCurve
from attnlab.analysis.groups import split_of
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import Metric
from attnlab.analysis.report import appendix, evidence_section, interaction_section, run_sections
from attnlab.analysis.report.markup import Html, join, prose, table, tag
from attnlab.analysis.report.pictures import ForestRow, forest, grid, verdict_chip


def all_sections(comparison: Comparison, data: dict[str, Any]) -> list[tuple[str, str, Html | None]]:
    """(id, title, markup) of every section."""
    lengths = ("lengths", "Beyond the training length", lengths_section(comparison))
    differences = ("differences", _difference_title(comparison), difference_section(comparison))
    about_length = bool(comparison.metric and MULTIPLE.fullmatch(comparison.metric.name))
    pictures = [
        ("grid", "The grid", grid_section(comparison)),
        ("factors", "What each choice changes", factors_section(comparison)),
        ("interactions", "What depends on what", interaction_section.interactions_section(comparison)),
        differences,
    ]
    pictures.insert(0 if about_length else 4, lengths)
    first = next((picture for picture in pictures if picture[2]), lengths)
    return [
        ("short", "In short", short_section(comparison)),
        first,
        ("trust", "Before you trust it", trust_section(comparison)),
        *(picture for picture in pictures if picture is not first),
        ("claims", "Claims made beforehand", claims_section(comparison)),
        ("curves", "Learning curves", curves_section(data)),
        ("cells", "All cells", appendix.cells_section(comparison, data)),
        ("evidence", "How sure", evidence_section.evidence_section(comparison)),
        ("sentences", "Other test sentences", evidence_section.sentences_section(comparison)),
        ("parallel", "Runs through their choices", run_sections.parallel_section(data)),
        ("samples", "What the models give", run_sections.samples_section(data)),
        ("cost", "What each cell cost", appendix.cost_section(comparison)),
        ("settings", "Settings that differ", appendix.settings_section(comparison)),
        ("pair", "Two runs side by side", run_sections.pair_section(data)),
        ("problems", "Runs missing or failed", appendix.problems_section(comparison)),
        ("runs", "Every run", run_sections.runs_section(comparison, data)),
        ("repeat", "Repeat it", appendix.repeat_section(comparison)),
        ("reading", "How to read this", appendix.reading_section(comparison)),
    ]


def metric_sentence(metric: Metric, term: str) -> Html:
    """What is compared, in words. term: what a term of the loss is."""
    parts: list[Any] = [
        "Compared on ",
        tag("code", metric.name),
        f": {wording.describe(metric.name, term)}; {metric.better} is better.",
    ]
    if metric.margin > 0:
        parts.append(f" A difference of less than {metric.margin:g} does not count.")
    return tag("p", *parts, class_="soft")


def short_section(comparison: Comparison) -> Html:
    """The answer in a few sentences."""
    return tag("ul", *(tag("li", prose(sentence)) for sentence in headline(comparison)), class_="answer")


def trust_section(comparison: Comparison) -> Html | None:
    """What to know before trusting the figures."""
    if not comparison.caveats:
        return None
    return tag("ul", *(tag("li", prose(caveat)) for caveat in comparison.caveats), class_="caveats")


def _difference_title(comparison: Comparison) -> str:
    baseline = comparison.baseline
    return f"Difference to {baseline.label}" if baseline and len(baseline.label) < 24 else "Difference to the baseline"


def difference_section(comparison: Comparison) -> Html | None:
    """The forest of paired differences to the baseline."""
    metric = comparison.metric
    cells = [cell for cell in comparison.measured if cell.difference]
    if metric is None or not cells:
        return None
    rows = [
        ForestRow(
            cell.label,
            cell.difference.interval,
            list(cell.difference.values.values()),
            cell.difference.verdict,
            _difference_note(cell),
            [f"seed {seed}" for seed in cell.difference.values],
        )
        for cell in cells
        if cell.difference
    ]
    baseline = comparison.baseline.label if comparison.baseline else ""
    lead = f"{metric.name} minus that of {baseline} with the same seed. Small dots are the seeds; the bar is the interval of their mean, simultaneous with the others (all hold in 95% of studies); beside it, in how many seeds the cell is better. Rows are sorted by mean, which alone is no ranking."
    if metric.margin > 0:
        lead += f" The shaded strip is the margin of \u00b1{metric.margin:g} within which a difference does not count."
    return join(
        [
            tag("p", lead, class_="lead"),
            forest(rows, metric.margin, metric.better, "Paired differences to the baseline"),
        ]
    )


def _difference_note(cell: CellSummary) -> str:
    found = cell.difference
    assert found is not None
    notes = [f"{wording.wins_text(found)} seeds"]
    if found.contrast.missing:
        notes.append(f"p {wording.p_text(found.p_adjusted)} (sign test)")
    elif found.n > 1:
        notes.append(f"p {wording.p_text(found.p_adjusted)}, sign flip {wording.p_text(found.p_sign_flip_adjusted)}")
    if found.reason:
        notes.append(found.reason)
    return " \u00b7 ".join(notes)


def lengths_section(comparison: Comparison) -> Html | None:
    """The metric against length: the chart, and the figures with a word for each cell."""
    curves = wording.primary_lengths(comparison)
    if not curves:
        return None
    multiples = sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})
    decimals = wording.decimals_for(point for curve in curves for point in curve.points.values())
    figures = max(0, decimals - 1)
    head = ["cell", *(f"{k:g}\u00d7" for k in multiples), f"change {multiples[0]:g}\u00d7 to {multiples[-1]:g}\u00d7"]
    rows = []
    for curve in curves:
        values = [
            prose(wording.number(curve.points[k].mean, figures))
            if k in curve.points
            else tag("span", "cannot" if k in curve.cannot else "-", class_="soft")
            for k in multiples
        ]
        change = prose(wording.interval_text(curve.change.interval if curve.change else None, decimals, sign=True))
        rows.append([join([curve.label, " ", _length_chip(curve)]), *values, change])
    reasons = dict.fromkeys(f"{curve.label}: {reason}" for curve in curves for reason in curve.cannot.values())
    notes = [tag("p", prose(reason), class_="lead") for reason in reasons]
    lead = f"{_capital(wording.unit(curves[0].prefix, comparison.study.unit))} on the same text, cut into windows of {multiples[0]:g}x to {multiples[-1]:g}x the training length. Flat is good: what was learnt holds at that length. Bars are 95% intervals over seeds; those of the changes are simultaneous, and the words follow from them."
    return join(
        [
            tag("p", prose(lead), class_="lead"),
            _chart("lengths"),
            table(head, rows, "The metric at each length"),
            *notes,
        ]
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _length_chip(curve: LengthCurve) -> Html:
    words = wording.LENGTH_WORDS
    text = wording.verdict_text(curve.change, words) if curve.change else words[curve.verdict]
    kind = "better" if curve.verdict == "same" else wording.slug(curve.verdict)
    return tag("span", text, class_=f"chip {kind}")


def _chart(kind: str) -> Html:
    return tag(
        "div",
        tag("div", class_="controls"),
        tag("div", class_="panels"),
        tag("div", class_="key"),
        class_="chart",
        data_chart=kind,
    )


def grid_section(comparison: Comparison) -> Html | None:
    """The grid of a factorial sweep."""
    drawn = grid(comparison)
    metric = comparison.metric
    if drawn is None or metric is None:
        return None
    lead = (
        f"{metric.name} of every cell: mean over seeds with the half-width of its 95% interval. More colour is worse."
    )
    split = split_of(comparison)
    if split:
        lead += f" Outlined: the {len(split.worse)} that are far behind; every run of theirs is worse than every run of the others."
    return join(
        [
            tag("p", lead, class_="lead"),
            tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label="The grid"),
        ]
    )


def factors_section(comparison: Comparison) -> Html | None:
    """The average effect of every factor, and how far it depends on the others."""
    metric, effects = comparison.metric, comparison.effects
    if metric is None or not effects:
        return None
    decimals = wording.decimals_for(effect.interval for effect in effects)
    rows = []
    for effect in effects:
        low, high = (wording.number(value, decimals, sign=True) for _, value in (effect.lowest, effect.highest))
        note = f"{low} to {high} over {len(effect.by_setting)} settings"
        note = " \u00b7 ".join(filter(None, [note, effect.reason]))
        rows.append(ForestRow(effect.label, effect.interval, list(effect.by_setting.values()), effect.word, note))
    lead = (
        f"The change in {metric.name} when one choice changes and nothing else does, averaged over the settings of the other factors. "
        "Small dots are the single settings. \u201cDepends\u201d: an interaction with another factor is sure, so the average says little. "
        "The bars are simultaneous: all of them hold in 95% of studies."
    )
    return join(
        [tag("p", lead, class_="lead"), forest(rows, metric.margin, metric.better, "Average effects of the factors")]
    )


def claims_section(comparison: Comparison) -> Html | None:
    """Every claim with its verdict, what was measured, and who said so."""
    if not comparison.claims:
        return None
    items = []
    for claim in comparison.claims:
        about = ", ".join(filter(None, [claim.strength, claim.source]))
        checked = tag("div", tag("code", claim.test), class_="soft") if claim.test else None
        words = [
            tag("b", claim.says or "a claim without words"),
            tag("span", f" {about}", class_="soft") if about else None,
        ]
        items.append(
            tag(
                "li",
                verdict_chip(claim.verdict),
                tag("div", tag("div", *words), tag("div", prose(claim.reason)), checked),
            )
        )
    return tag("ul", *items, class_="claims")


def curves_section(data: dict[str, Any]) -> Html | None:
    """The learning curves."""
    if not data["curves"]:
        return None
    lead = "Thick lines are means over seeds, thin lines the seeds, bands 95% intervals."
    return join([tag("p", lead, class_="lead"), _chart("curves")])
