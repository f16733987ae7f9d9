"""The later sections of the page: every figure, what it cost, how to repeat it and how to read it."""

from __future__ import annotations

from typing import Any

from attnlab.analysis import wording
from attnlab.analysis.budget import quantity, time_note
from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.analysis.report import evidence_section
from attnlab.analysis.report.markup import Html, details, join, prose, table, tag
from attnlab.analysis.report.run_sections import filter_box
from attnlab.analysis.statistics import Interval, mean_interval

MOST_COLUMNS = 6


def cells_section(comparison: Comparison, data: dict[str, Any]) -> Html | None:
    """Every cell with every final metric, and the primary one by seed, each value a link to its run's directory."""
    study, metric = comparison.study, comparison.metric
    if not comparison.cells:
        return None
    main, others = _columns(comparison)
    lead = "Means over seeds with the half-width of their 95% intervals. A place is a range where cells cannot be told apart. Choose a heading to sort, unfold a cell for its runs."
    parts = [tag("p", lead, class_="lead"), filter_box("cells"), _figures(comparison, main, "All cells")]
    if others:
        parts.append(
            details(f"{len(others)} other metrics", _figures(comparison, others, "Other metrics"), "other metrics")
        )
    if metric:
        decimals = wording.decimals_for(cell.interval for cell in comparison.cells)
        links = {(run["cell"], run["seed"]): run.get("href") for run in data["runs"]}
        rows = [
            [
                cell.label,
                *(_linked(_number(cell.values.get(k), decimals), links.get((cell.label, k))) for k in study.seeds),
            ]
            for cell in comparison.cells
        ]
        by_seed = table(["cell", *(f"seed {seed}" for seed in study.seeds)], rows, "By seed")
        parts.append(details(f"{metric.name} by seed", by_seed, "by seed"))
    return join(parts)


def _columns(comparison: Comparison) -> tuple[list[str], list[str]]:
    """The metrics to show at once (the primary one and its family) and those to fold away."""
    names, metric = comparison.study.metrics, comparison.metric
    if len(names) <= MOST_COLUMNS:
        return names, []
    family = metric.name.partition("@")[0] if metric else ""
    main = [name for name in names if name.partition("@")[0] == family][:MOST_COLUMNS]
    main = main if len(main) > 1 else names[:MOST_COLUMNS]
    return main, [name for name in names if name not in main]


def _figures(comparison: Comparison, names: list[str], title: str) -> Html:
    places = any(cell.places for cell in comparison.cells)
    intervals = {(cell.label, name): _interval(comparison, cell, name) for name in names for cell in comparison.cells}
    decimals = {name: wording.decimals_for(intervals[cell.label, name] for cell in comparison.cells) for name in names}
    rows = []
    for cell in comparison.cells:
        label = join([cell.label, tag("span", " baseline", class_="soft") if cell.is_baseline else None])
        values = [_cell_value(comparison, cell, name, intervals[cell.label, name], decimals[name]) for name in names]
        rows.append([label, _seeds(cell), *([_place(cell)] if places else []), *values])
    head = ["cell", "seeds", *(["place"] if places else []), *names]
    return table(head, rows, title, "sortable", [cell.label for cell in comparison.cells], "cells")


def _interval(comparison: Comparison, cell: CellSummary, metric: str) -> Interval | None:
    values = list(comparison.study.values(cell.cell.name, metric).values())
    return mean_interval(values) if values else None


def _cell_value(
    comparison: Comparison, cell: CellSummary, metric: str, interval: Interval | None, decimals: int
) -> Html:
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


def _linked(figure: Html, href: str | None) -> Html:
    return tag("a", figure, href=href) if href else figure


def _number(value: float | None, decimals: int) -> Html:
    return prose("-" if value is None else wording.number(value, decimals))


def _seeds(cell: CellSummary) -> str:
    total, finished = sum(cell.states.values()), cell.states.get("finished", 0)
    return str(total) if finished == total else f"{finished} of {total}"


def _place(cell: CellSummary) -> str:
    return wording.place_text(cell.places).replace("-", "\u2013")


def cost_section(comparison: Comparison) -> Html | None:
    """The budget of every cell."""
    if not any(cell.budget.steps > 0 for cell in comparison.cells):
        return None
    head = ["cell", "steps", f"{comparison.study.unit}s", "parameters", "training FLOPs", "seconds a run"]
    rows = []
    for cell in comparison.cells:
        budget = cell.budget
        values = (budget.steps, budget.tokens, budget.parameters, budget.flops)
        rows.append([cell.label, *(quantity(value) for value in values), wording.number(budget.seconds, 1)])
    note = time_note({cell.cell.name: cell.budget for cell in comparison.cells})
    return join([table(head, rows, "What each cell cost", "sortable"), tag("p", note, class_="soft") if note else None])


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
        rows = [[label, *(tag("code", _plain(values.get(label))) for values in settings.values())] for label in labels]
        head = ["cell", *settings]
        if len(labels) <= MOST_COLUMNS + 2:  # few cells: a column each, so that long names of settings stand in rows
            head, *rows = [list(line) for line in zip(head, *rows, strict=True)]
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
    """The command of the study, and its code."""
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
    parts.append(
        tag("p", "The command of a single run stands with it under Every run, and in its run.json.", class_="soft")
    )
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
            "Of a mean: Student's t at 95%, each by itself. Of differences, effects, interactions, changes with length and claims: simultaneous, "
            "each at 1 - 0.05 / (their number), so that all intervals of such a family hold in 95% of studies (Bonferroni). Every word "
            "follows from where an interval lies: under no effect each family has a false word in at most 5% of studies.",
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
            "The ranks that a cell may hold: behind those that are surely better, before those that are surely worse, by paired tests. With the "
            "baseline that is what the difference says; other pairs are tested at what the differences leave of the 5%, so that both "
            "together are one family.",
        ),
        (
            "Claims",
            "Set before the sweep. Met: the interval, simultaneous over all claims, lies inside the bound; not met: outside; open: across it. A claim about several cells is met where every one meets it.",
        ),
        *evidence_section.TERMS,
    ]
    return tag("dl", *(join([tag("dt", term), tag("dd", text)]) for term, text in terms))
