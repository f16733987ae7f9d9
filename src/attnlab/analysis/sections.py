"""The sections of the page, in reading order: each is a heading and its markup, None where the study has nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlab.analysis import wording
from attnlab.analysis.budget import quantity
from attnlab.analysis.comparison import CellSummary, Comparison, verdict_of
from attnlab.analysis.markup import Html, join, prose, tag
from attnlab.analysis.pictures import ForestRow, forest, grid, verdict_chip
from attnlab.analysis.reader import Metric, short
from attnlab.analysis.statistics import Interval, mean_interval

LENGTH_WORDS = {
    "same": "holds",
    "better": "improves",
    "worse": "degrades",
    "undecided": "undecided",
    "cannot": "cannot",
    "missing": "no figure",
}
MOST_COMMANDS = 400


def all_sections(comparison: Comparison, data: dict[str, Any]) -> list[tuple[str, str, Html | None]]:
    """(id, title, markup) of every section."""
    lengths = ("lengths", "Beyond the training length", lengths_section(comparison))
    differences = ("differences", _difference_title(comparison), difference_section(comparison))
    about_length = bool(comparison.metric and "@" in comparison.metric.name)
    return [
        ("short", "In short", short_section(comparison)),
        ("grid", "The grid", grid_section(comparison)),
        ("factors", "What each choice changes", factors_section(comparison)),
        *((lengths, differences) if about_length else (differences, lengths)),
        ("claims", "Claims made beforehand", claims_section(comparison)),
        ("curves", "Learning curves", curves_section(data)),
        ("cells", "All cells", cells_section(comparison)),
        ("cost", "What each cell cost", cost_section(comparison)),
        ("settings", "Settings that differ", settings_section(comparison)),
        ("runs", "Runs missing or failed", problems_section(comparison)),
        ("repeat", "Repeat it", repeat_section(comparison)),
        ("reading", "How to read this", reading_section(comparison)),
    ]


def metric_sentence(metric: Metric) -> Html:
    """What is compared, in words."""
    parts: list[Any] = [
        "Compared on ",
        tag("code", metric.name),
        f" ({wording.describe(metric.name)}); {metric.better} is better.",
    ]
    if metric.margin > 0:
        parts.append(f" A difference of less than {metric.margin:g} does not count.")
    return tag("p", *parts, class_="soft")


def short_section(comparison: Comparison) -> Html:
    """The answer in a few sentences, and what to know before trusting it."""
    answer = tag("ul", *(tag("li", prose(sentence)) for sentence in wording.headline(comparison)), class_="answer")
    if not comparison.caveats:
        return answer
    caveats = tag("ul", *(tag("li", prose(caveat)) for caveat in comparison.caveats))
    return join([answer, tag("aside", tag("h3", "Before you trust it"), caveats, class_="caveats")])


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
        )
        for cell in cells
        if cell.difference
    ]
    baseline = comparison.baseline.label if comparison.baseline else ""
    lead = f"{metric.name} minus that of {baseline} with the same seed. Small dots are the seeds; the bar is the interval of their mean; beside it, in how many seeds the cell is better. Rows are sorted by mean, which alone is no ranking."
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
    if found.n > 1:
        notes.append(f"p {wording.p_text(found.p_t_holm)}, sign flip {wording.p_text(found.p_sign_flip_holm)}")
    if cell.n_lost:
        notes.append(f"{cell.n_lost} of {sum(cell.states.values())} runs lost")
    return " \u00b7 ".join(notes)


def lengths_section(comparison: Comparison) -> Html | None:
    """The metric against length: the chart, and the figures with a word for each cell."""
    curves = wording.primary_lengths(comparison)
    if not curves:
        return None
    multiples = sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})
    decimals = wording.decimals_for(point for curve in curves for point in curve.points.values())
    head = ["", *(f"{k:g}\u00d7" for k in multiples), f"change {multiples[0]:g}\u00d7 to {multiples[-1]:g}\u00d7"]
    rows = []
    for curve in curves:
        values = [
            prose(wording.number(curve.points[k].mean, decimals))
            if k in curve.points
            else tag("span", "cannot" if k in curve.cannot else "-", class_="soft")
            for k in multiples
        ]
        change = prose(wording.interval_text(curve.change, decimals, sign=True))
        rows.append([join([curve.label, " ", _length_chip(curve.verdict)]), *values, change])
    reasons = dict.fromkeys(f"{curve.label}: {reason}" for curve in curves for reason in curve.cannot.values())
    notes = [tag("p", prose(reason), class_="soft") for reason in reasons]
    lead = "The same text, cut into windows of 1 to many times the training length. Flat is good: the model keeps what it learnt. Bars are 95% intervals over seeds."
    return join(
        [tag("p", lead, class_="lead"), _chart("lengths"), table(head, rows, "The metric at each length"), *notes]
    )


def _length_chip(verdict: str) -> Html:
    return tag("span", LENGTH_WORDS.get(verdict, verdict), class_=f"chip {wording.slug(verdict)}")


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
        verdict = "depends" if effect.is_mixed(metric.margin) else verdict_of(effect.interval, metric)
        label = f"{short(effect.factor)}: {effect.reference} \u2192 {effect.choice}"
        rows.append(ForestRow(label, effect.interval, list(effect.by_setting.values()), verdict, note))
    lead = (
        f"The change in {metric.name} when one choice changes and nothing else does, averaged over the settings of the other factors. "
        "Small dots are the single settings: where they lie far apart, the effect depends on the other factors and the average says little."
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


def cells_section(comparison: Comparison) -> Html | None:
    """Every cell with every final metric, and the primary one by seed."""
    study, metric = comparison.study, comparison.metric
    if not comparison.cells:
        return None
    names = study.metrics
    places = metric is not None
    head = ["cell", "seeds", *(["place"] if places else []), *names]
    decimals = {
        name: wording.decimals_for(_interval(comparison, cell, name) for cell in comparison.cells) for name in names
    }
    rows = []
    for cell in comparison.cells:
        label = [cell.label, tag("span", " baseline", class_="soft") if cell.is_baseline else None]
        values = [_cell_value(comparison, cell, name, decimals[name]) for name in names]
        rows.append([join(label), _seeds(cell), *([_place(cell)] if places else []), *values])
    parts = [
        tag(
            "p",
            "Means over seeds with the half-width of their 95% intervals. A place is a range where intervals overlap; click a heading to sort.",
            class_="lead",
        ),
        table(head, rows, "All cells", "sortable"),
    ]
    if metric:
        seeds = [
            [cell.label, *(_number(cell.values.get(seed), decimals.get(metric.name, 3)) for seed in study.seeds)]
            for cell in comparison.cells
        ]
        parts.append(
            details(
                f"{metric.name} by seed", table(["cell", *(f"seed {seed}" for seed in study.seeds)], seeds, "By seed")
            )
        )
    return join(parts)


def _interval(comparison: Comparison, cell: CellSummary, metric: str) -> Interval | None:
    values = list(comparison.study.values(cell.cell.name, metric).values())
    return mean_interval(values) if values else None


def _cell_value(comparison: Comparison, cell: CellSummary, metric: str, decimals: int) -> Html:
    interval = _interval(comparison, cell, metric)
    if interval is None:
        cannot = any(metric in run.cannot for run in comparison.study.runs_of(cell.cell.name))
        return tag("span", "cannot" if cannot else cell.outcome if cell.outcome != "measured" else "-", class_="soft")
    spread = f" \u00b1{interval.high - interval.mean:.{decimals}f}" if interval.is_bounded else ""
    return tag(
        "span",
        prose(wording.number(interval.mean, decimals)),
        tag("span", spread, class_="soft"),
        data_value=interval.mean,
    )


def _number(value: float | None, decimals: int) -> Html:
    return prose("-" if value is None else wording.number(value, decimals))


def _seeds(cell: CellSummary) -> str:
    total = sum(cell.states.values())
    return str(len(cell.values)) if len(cell.values) == total else f"{len(cell.values)} of {total}"


def _place(cell: CellSummary) -> str:
    return wording.place_text(cell.places).replace("-", "\u2013")


def cost_section(comparison: Comparison) -> Html | None:
    """The budget of every cell."""
    if not any(cell.budget.steps > 0 for cell in comparison.cells):
        return None
    head = ["cell", "steps", "tokens", "parameters", "training FLOPs", "seconds a run"]
    rows = []
    for cell in comparison.cells:
        budget = cell.budget
        values = (budget.steps, budget.tokens, budget.parameters, budget.flops, budget.seconds)
        rows.append([cell.label, *(quantity(value) for value in values)])
    return table(head, rows, "What each cell cost", "sortable")


def settings_section(comparison: Comparison) -> Html | None:
    """The configuration keys that differ between cells, and those that all share by the study's word."""
    settings, labels = comparison.settings, [cell.label for cell in comparison.cells if cell.states]
    parts = []
    if comparison.study.shared:
        parts.append(
            tag(
                "p",
                "Shared by all cells: ",
                join([tag("code", item), " "] for item in comparison.study.shared),
                class_="lead",
            )
        )
    if settings:
        head = ["cell", *settings]
        rows = [[label, *(tag("code", _plain(values.get(label))) for values in settings.values())] for label in labels]
        parts.append(table(head, rows, "Settings that differ"))
        parts.append(tag("p", "Every other setting is the same in all cells.", class_="soft"))
    return join(parts) if parts else None


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def problems_section(comparison: Comparison) -> Html | None:
    """Runs that are missing, failed, diverged or not finished, and cells that were skipped, with the reason."""
    skipped = [["skipped", cell.label, "", cell.reason, ""] for cell in comparison.cells if cell.outcome == "skipped"]
    rows: list[list[Any]] = [*skipped]
    for run in comparison.problems:
        reason = run.error or (f"not a number: {', '.join(run.non_finite)}" if run.non_finite else "")
        rows.append([run.state, run.cell, str(run.seed), reason, tag("code", str(run.record.get("command") or ""))])
    return (
        table(["state", "cell", "seed", "reason", "command"], rows, "Runs missing or failed", "text") if rows else None
    )


def repeat_section(comparison: Comparison) -> Html:
    """The command of the study, and that of every run."""
    study = comparison.study
    parts = [tag("pre", f"attnlab sweep {study.name}")]
    if study.code.get("commit"):
        parts.append(
            tag(
                "p",
                "Code: ",
                tag("code", str(study.code["commit"])),
                " with uncommitted changes" if study.code.get("dirty") else "",
                class_="soft",
            )
        )
    runs = [run for run in study.runs.values() if run.record.get("command")]
    if runs:
        lines = [f"{run.record['command']}\n" for run in runs[:MOST_COMMANDS]]
        if len(runs) > MOST_COMMANDS:
            lines.append(f"# and {len(runs) - MOST_COMMANDS} more: run.json of each run directory holds its command\n")
        parts.append(details(f"The command of each of {len(runs)} runs", tag("pre", *lines)))
    return join(parts)


def reading_section(comparison: Comparison) -> Html:
    """What the figures mean."""
    terms = [
        (
            "Paired by seed",
            "Runs with the same seed see the same data in the same order. A cell is compared with the baseline seed by seed, so that luck shared by both cancels.",
        ),
        (
            "Interval",
            "Of a mean: Student's t at 95%. Of differences: t at a level that Holm's method adjusts for the number of comparisons, so that an interval excludes zero exactly where its adjusted p is at most 0.05.",
        ),
        (
            "Sign flip",
            "The exact test of the same differences, without the assumption that they are normal. With n seeds its p cannot be smaller than 2/2\u207f.",
        ),
        ("Better, worse", "The whole interval lies on one side of zero."),
        ("No difference", "The whole interval lies within the margin that the study set before it ran."),
        ("Undecided", "These seeds cannot tell. It does not mean that there is no difference."),
        (
            "Place",
            "A cell stands behind another only where the paired difference is sure (all pairs, Holm) and their own intervals do not overlap. Cells with diverged or failed runs have none.",
        ),
        (
            "Claims",
            "Set before the sweep. Met: the 95% interval lies inside the bound; not met: outside; open: across it. A claim about several cells is met where every one meets it.",
        ),
    ]
    return tag("dl", *(join([tag("dt", term), tag("dd", text)]) for term, text in terms))


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], name: str, kind: str = "") -> Html:
    """A table whose first column names the row; it scrolls sideways by itself where it is too wide."""
    header = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in head)))
    lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", value) for value in row[1:])) for row in rows]
    drawn = tag("table", header, tag("tbody", *lines), class_=f"figures {kind}".strip())
    return tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=name)


def details(title: str, content: Html) -> Html:
    """Content that is folded away."""
    return tag("details", tag("summary", title), content)
