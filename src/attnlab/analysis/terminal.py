"""The comparison in a terminal: a few tables and the sentences that matter."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnlab.analysis import wording
from attnlab.analysis.comparison import CellSummary, Comparison

STYLES = {
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "undecided": "dim",
    "met": "green",
    "not met": "red",
    "open": "yellow",
}
MOST_PROBLEMS = 12


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints question, cells, lengths, claims, missing runs and caveats; without colours where `console` has none."""
    study = comparison.study
    console.print(f"[bold]{escape(study.name)}[/bold]  {escape(study.question)}")
    console.print(
        f"{len(study.cells)} cells x {len(study.seeds)} seeds; runs: {wording.states_text(comparison.states)}"
    )
    console.print()
    for table in (_cells(comparison), _lengths(comparison), _claims(comparison)):
        if table is not None:
            console.print(table)
            console.print()
    for sentence in wording.headline(comparison):
        console.print(f"- {escape(sentence)}")
    for caveat in comparison.caveats:
        console.print(f"[yellow]![/yellow] {escape(caveat)}")
    _problems(comparison, console)


def _styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]" if word in STYLES else escape(word)


def _cells(comparison: Comparison) -> Table | None:
    metric = comparison.metric
    if metric is None or not comparison.cells:
        return None
    title = f"{metric.name}, {metric.better} is better: mean and 95% interval"
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("cell", no_wrap=len(comparison.cells[0].label) < 30)
    for name in ("mean (95% interval)", "n", "place", "against the baseline", "wins", "p t", "p flip", ""):
        table.add_column(name, justify="left" if name in ("", "against the baseline") else "right")
    measured = comparison.measured
    decimals = wording.decimals_for(cell.interval for cell in measured)
    apart = wording.decimals_for(cell.difference.interval for cell in measured if cell.difference)
    for cell in [*measured, *(cell for cell in comparison.cells if cell.interval is None)]:
        table.add_row(*_row(cell, decimals, apart))
    if any(cell.difference for cell in measured):
        table.caption = "p: t test and exact sign-flip test, both Holm-adjusted; intervals of differences at the same adjusted level"
        table.caption_justify = "left"
    return table


def _row(cell: CellSummary, decimals: int, apart: int) -> list[str]:
    if cell.interval is None:
        return [escape(cell.label), "-", "0", "-", escape(wording.outcome_text(cell)), "", "", "", ""]
    start = [
        escape(cell.label),
        wording.interval_text(cell.interval, decimals),
        str(len(cell.values)),
        wording.place_text(cell.places),
    ]
    lost = f"[red]{cell.n_lost} of {sum(cell.states.values())} runs lost[/]" if cell.n_lost else ""
    if cell.difference is None:
        return [*start, "baseline" if cell.is_baseline else "-", "", "", "", lost]
    difference = cell.difference
    text = f"{wording.interval_text(difference.interval, apart, sign=True)}"
    p_values = [wording.p_text(p) for p in (difference.p_t_holm, difference.p_sign_flip_holm)]
    return [
        *start,
        text,
        wording.wins_text(difference),
        *p_values,
        " ".join(filter(None, [_styled(difference.verdict), lost])),
    ]


def _lengths(comparison: Comparison) -> Table | None:
    curves = wording.primary_lengths(comparison)
    if not curves:
        return None
    multiples = sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})
    title = f"{curves[0].prefix} at multiples of the training length"
    table = Table(
        title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("cell")
    for k in multiples:
        table.add_column(f"{k:g}x", justify="right")
    table.add_column("change (95% interval)", justify="right")
    decimals = wording.decimals_for(point for curve in curves for point in curve.points.values())
    for curve in curves:
        points = [
            wording.number(curve.points[k].mean, decimals)
            if k in curve.points
            else "cannot"
            if k in curve.cannot
            else "-"
            for k in multiples
        ]
        table.add_row(escape(curve.label), *points, wording.interval_text(curve.change, decimals, sign=True))
    return table


def _claims(comparison: Comparison) -> Table | None:
    if not comparison.claims:
        return None
    table = Table(
        title="Claims", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim")
    table.add_column("measured")
    for claim in comparison.claims:
        table.add_row(_styled(claim.verdict), escape(claim.says), escape(claim.reason))
    return table


def _problems(comparison: Comparison, console: Console) -> None:
    for run in comparison.problems[:MOST_PROBLEMS]:
        reason = run.error or (f"not a number: {', '.join(run.non_finite)}" if run.non_finite else "")
        console.print(f"  {run.state}: {escape(run.cell)} seed={run.seed}{escape(': ' + reason) if reason else ''}")
    if len(comparison.problems) > MOST_PROBLEMS:
        console.print(f"  and {len(comparison.problems) - MOST_PROBLEMS} more")
