"""The comparison in a terminal: a few tables that fit its width, and the sentences that matter."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.markup import escape as without_markup
from rich.table import Table

from attnlab.analysis import wording
from attnlab.analysis.comparison import CellSummary, Comparison, LengthCurve
from attnlab.analysis.differences import Judged
from attnlab.analysis.headline import headline, reasons
from attnlab.analysis.reader import Cell, short
from attnlab.analysis.sentences import p_summary, sentences_of
from attnlab.analysis.sparklines import Sparklines, sparklines
from attnlab.analysis.statistics import Interval

STYLES = {
    "better": "green",
    "worse": "red",
    "same": "cyan",
    "undecided": "dim",
    "met": "green",
    "not met": "red",
    "open": "yellow",
    "holds": "green",
    "degrades": "red",
}
OUTCOMES = {"not a number": "NaN"}
MOST_PROBLEMS = 12
CURVE = "curve"
UNLIMITED = 10_000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FIGURES = re.compile(r"[+-]?\d[\d.]* (\+-[\d.]+|\([+-]?[\d.]+ to [+-]?[\d.]+\))")


class Column(NamedTuple):
    """A column: its heading, what it says of an item, and on which side it stands."""

    heading: str
    text: Callable[..., str]
    justify: Literal["left", "right"] = "right"


def escape(text: str) -> str:
    """`text` as it is: no markup in it counts, and what would act on the terminal is spelled out."""
    return without_markup(CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints question, cells, lengths, claims, missing runs and caveats; without colours where `console` has none.

    No line is longer than the console is wide: a table that would be takes its next narrower shape.
    """
    study = comparison.study
    console.print(f"[bold]{escape(study.name)}[/bold]  {escape(study.question)}", highlight=False)
    states = wording.states_text(comparison.states)
    console.print(f"{len(study.cells)} cells x {len(study.seeds)} seeds; runs: {states}", highlight=False)
    for part in (_print_cells, _print_lengths, _print_sentences, _print_claims):
        part(comparison, console)
    console.print()
    for sentence in headline(comparison, with_reasons=False):
        _bullet(console, "- ", sentence)
    for caveat in comparison.caveats:
        _bullet(console, "[yellow]![/yellow] ", caveat)
    _print_problems(comparison, console)


def _bullet(console: Console, mark: str, sentence: str, style: str = "", indent: int = 2) -> None:
    """A sentence after a mark; its further lines are indented, and no number is parted from its interval."""
    bound = FIGURES.sub(lambda found: found[0].replace(" ", "\0"), " ".join(sentence.split()))
    lines = textwrap.wrap(bound, max(20, console.width - indent), break_on_hyphens=False) or [""]
    for start, line in zip([mark, *[" " * indent] * len(lines)], lines, strict=False):
        text = escape(line.replace("\0", " "))
        console.print(start + (f"[{style}]{text}[/]" if style else text), highlight=False, soft_wrap=True)


def _styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]" if word in STYLES else escape(word)


def _table(columns: Sequence[Column], items: Sequence[object], gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            escape(column.heading), justify=column.justify, no_wrap=column.justify == "right", vertical="bottom"
        )
    for item in items:
        table.add_row(*(column.text(item) for column in columns))
    return table


def _fits(table: Table, console: Console) -> bool:
    width = console.measure(table, options=console.options.update_width(UNLIMITED)).maximum
    return width <= console.width


def _print_first_that_fits(shapes: Sequence[Sequence[Table]], console: Console) -> Sequence[Table]:
    """Prints and returns the first of `shapes` (tables that belong together) of which every table fits; the last where none does."""
    chosen = next((tables for tables in shapes if all(_fits(table, console) for table in tables)), shapes[-1])
    for index, table in enumerate(chosen):
        if index:
            console.print()
        console.print(table, highlight=False)
    return chosen


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(f"[bold]{escape(text)}[/bold]", highlight=False)


def _names(comparison: Comparison, cell_of: Callable[..., Cell]) -> list[Column]:
    """One narrow column a factor where several vary, else one with the cell's label."""
    study = comparison.study
    factors = study.varying
    if len(factors) < 2 or any(name not in cell.choices for name in factors for cell in study.cells):
        return [Column("cell", lambda item: escape(study.label(cell_of(item))), "left")]
    headings = [short(name) if [short(n) for n in factors].count(short(name)) == 1 else name for name in factors]
    return [
        Column(heading.replace("_", "\n"), lambda item, name=name: escape(str(cell_of(item).choices[name])), "left")
        for heading, name in zip(headings, factors, strict=True)
    ]


def _interval_columns(
    heading: str, interval: Callable[..., Interval | None], decimals: int, sign: bool, whole: bool
) -> list[Column]:
    """An interval as one column with both ends, or as two narrow ones: the mean and the half-width."""

    def text(item: object) -> str:
        found = interval(item)
        return wording.interval_text(found, decimals, sign) if found else ""

    def mean(item: object) -> str:
        found = interval(item)
        return wording.number(found.mean, decimals, sign) if found else ""

    def half(item: object) -> str:
        found = interval(item)
        return wording.number(found.high - found.mean, decimals) if found and found.is_bounded else ""

    if whole:
        return [Column(f"{heading} (95% interval)" if heading == "mean" else f"{heading} (interval)", text)]
    return [Column(heading, mean), Column("+-", half)]


def _print_cells(comparison: Comparison, console: Console) -> None:
    metric = comparison.metric
    if metric is None or not comparison.cells:
        return
    rows = [*comparison.measured, *(cell for cell in comparison.cells if cell.interval is None)]
    sizes = {len(cell.values) for cell in comparison.measured}
    planned = len(comparison.study.seeds)
    equal = "" if len(sizes) != 1 else f", n = {planned}" if sizes == {planned} else f", n = {sizes.pop()} of {planned}"
    _title(console, f"{metric.name}, {metric.better} is better: mean and 95% interval{equal}")
    names = _names(comparison, lambda row: row.cell)
    verdict = Column("", _verdict, "left")
    # Not in a pipe: its reader wants plain figures, and the curves of a large study take seconds to read.
    lines = sparklines(comparison.study) if console.is_terminal else None
    curves = [[_curve(lines, console)], []] if lines else [[]]  # a curve goes before a figure becomes narrower
    shapes = []
    for (mean_whole, apart_whole), gap in (((1, 1), 2), ((0, 1), 2), ((0, 0), 2), ((0, 0), 1)):
        means, apart = _means(comparison, bool(mean_whole)), _differences(comparison, bool(apart_whole))
        shapes += [[_table([*names, *curve, *means, *apart, verdict], rows, gap)] for curve in curves]
    compared = [row for row in rows if row.difference]
    outcomes = [Column("", _outcome, "left")] if any(map(_outcome, rows)) else []
    for gap, curve in itertools.product((2, 1) if compared else (), curves):
        first = _table([*names, *curve, *_means(comparison, True), *outcomes], rows, 2)
        shapes.append([first, _table([*names, *_differences(comparison, True), verdict], compared, gap)])
    chosen = _print_first_that_fits(shapes, console)
    notes = _notes(comparison)
    if lines and CURVE in [column.header for column in chosen[0].columns]:
        notes.insert(0, _scale(lines))
    for note in notes:
        _bullet(console, "", note, "dim", 0)


def _curve(lines: Sparklines, console: Console) -> Column:
    return Column(CURVE, lambda row: escape(lines.text(row.cell.name, console.encoding)), "left")


def _scale(lines: Sparklines) -> str:
    """What the column of curves shows."""
    first, last = lines.steps
    low, high = (wording.number(bound, 3) for bound in (lines.low, lines.high))
    return f"{CURVE}: {lines.metric} from step {first:g} to {last:g}, mean of the seeds, from {low} (bottom) to {high} (top)."


def _means(comparison: Comparison, whole: bool) -> list[Column]:
    """Mean and interval; place and n where they are not the same everywhere."""
    decimals = wording.decimals_for(cell.interval for cell in comparison.measured)
    columns = _interval_columns("mean", lambda row: row.interval, decimals, False, whole)
    if len({row.places for row in comparison.measured}) > 1:
        columns.append(Column("place", lambda row: wording.place_text(row.places) if row.interval else ""))
    n = len(comparison.study.seeds)
    if len({len(row.values) for row in comparison.measured}) > 1:
        columns.append(
            Column("n", lambda row: f"{len(row.values)}" if len(row.values) == n else f"{len(row.values)}/{n}")
        )
    return columns


def _differences(comparison: Comparison, whole: bool) -> list[Column]:
    """Difference and interval, wins and p values; a sign-flip p that is the same everywhere is left to the note."""
    found = [row.difference for row in comparison.measured if row.difference]
    if not found:
        return []
    decimals = wording.decimals_for(difference.interval for difference in found)
    columns = _interval_columns(
        "diff", lambda row: row.difference.interval if row.difference else None, decimals, True, whole
    )
    columns.append(
        Column("wins", lambda row: f"{row.difference.wins:g}/{row.difference.contrast.asked}" if row.difference else "")
    )
    if any(difference.n > 1 for difference in found):
        columns.append(Column("p", lambda row: _p(row.difference.p_adjusted) if row.difference else ""))
    if _common_flip(comparison) is None:
        columns.append(Column("p flip", lambda row: _p(row.difference.p_sign_flip_adjusted) if row.difference else ""))
    return columns


def _p(p: float) -> str:
    return wording.p_text(p).replace("< 0.", "<.")


def _common_flip(comparison: Comparison) -> str | None:
    """The sign-flip p that all comparisons share which have one, None where they differ."""
    found = {wording.p_text(row.difference.p_sign_flip_adjusted) for row in comparison.measured if row.difference}
    found.discard("-")
    return found.pop() if len(found) == 1 else None


def _verdict(row: CellSummary) -> str:
    if row.difference:
        return _verdict_text(row.difference, wording.VERDICTS)
    return "baseline" if row.is_baseline and row.interval else _outcome(row)


def _verdict_text(judged: Judged, words: Mapping[str, str]) -> str:
    word, _, reason = wording.verdict_text(judged, words).partition(":")
    return _styled(word) + escape(f":{reason}" if reason else "")


def _outcome(row: CellSummary) -> str:
    return "" if row.interval else OUTCOMES.get(row.outcome, row.outcome)


def _notes(comparison: Comparison) -> list[str]:
    """What the columns mean, and why a cell has no figure."""
    notes = []
    if comparison.baseline and any(row.difference for row in comparison.measured):
        flip, tested = _common_flip(comparison), any(r.difference and r.difference.n > 1 for r in comparison.measured)
        notes.append(
            f"diff: cell minus {comparison.baseline.label}, paired by seed; wins: seeds in which the cell is better."
        )
        if tested:
            size = next(row.difference.tests for row in comparison.measured if row.difference)
            of = f"for {size} comparisons, as are the intervals of diff" if size > 1 else "for one comparison"
            same = f"; p flip, of the exact sign flip, {flip} in every row" if flip else "; p flip: exact sign flip"
            notes.append(f"p: t test, adjusted (Bonferroni) {of}{same}.")
        if any(row.difference and row.difference.contrast.missing for row in comparison.measured):
            notes.append("Where runs are missing: median and sign test, counting the missing ones against any finding.")
    return [*notes, *reasons(comparison, ("skipped", "cannot"))]


def _print_lengths(comparison: Comparison, console: Console) -> None:
    curves = wording.primary_lengths(comparison)
    if not curves:
        return
    _title(console, f"{curves[0].prefix} at multiples of the training length")
    multiples = sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})
    cells = {comparison.study.label(cell): cell for cell in comparison.study.cells}
    names = _names(comparison, lambda curve: cells[curve.label])
    decimals = wording.decimals_for(point for curve in curves for point in curve.points.values())
    points = [Column(f"{k:g}x", lambda curve, k=k: _point(curve, k, max(0, decimals - 1))) for k in multiples]
    verdict = Column("", _length_verdict, "left")
    shapes = []
    for whole, gap in ((True, 2), (False, 2), (False, 1)):
        change = _interval_columns(
            "change", lambda curve: curve.change and curve.change.interval, decimals, True, whole
        )
        shapes.append([_table([*names, *points, *change, verdict], curves, gap)])
    _print_first_that_fits(shapes, console)


def _length_verdict(curve: LengthCurve) -> str:
    if curve.change:
        return _verdict_text(curve.change, wording.LENGTH_WORDS)
    return _styled(wording.LENGTH_WORDS[curve.verdict])


def _point(curve: LengthCurve, multiple: float, decimals: int) -> str:
    if multiple in curve.points:
        return wording.number(curve.points[multiple].mean, decimals)
    return "-"


def _print_sentences(comparison: Comparison, console: Console) -> None:
    """BLEU and chrF against the baseline over resampled test sentences, where they were asked for."""
    if comparison.sentences is None:
        return
    _title(console, "Against the baseline on resampled test sentences")
    columns = [
        Column("cell", lambda one: escape(one.label), "left"),
        Column("score", lambda one: one.score, "left"),
        Column("diff", lambda one: wording.number(one.mean, 2, sign=True)),
        Column("p by seed", p_summary, "left"),
    ]
    console.print(_table(columns, comparison.sentences.differences, 2), highlight=False)
    for note in sentences_of(comparison.sentences):
        _bullet(console, "", note, "dim", 0)


def _print_claims(comparison: Comparison, console: Console) -> None:
    """Verdict, claim and what was measured: beside each other where that fits, else below each other."""
    if not comparison.claims:
        return
    _title(console, "Claims made beforehand, with simultaneous 95% intervals")
    claims = comparison.claims
    verdict = Column("verdict", lambda claim: _styled(claim.verdict), "left")
    says = Column("claim", lambda claim: escape(claim.says), "left")
    beside = _table([verdict, says, Column("measured", lambda claim: escape(claim.reason), "left")], claims, 2)
    if _fits(beside, console):
        console.print(beside, highlight=False)
        return
    indent = 2 + max(len(claim.verdict) for claim in claims)
    for claim in claims:
        _bullet(console, _styled(claim.verdict) + " " * (indent - len(claim.verdict)), claim.says, "", indent)
        _bullet(console, " " * indent, claim.reason, "dim", indent)


def _print_problems(comparison: Comparison, console: Console) -> None:
    """Runs without a result, together where many cells lack the same seed for the same reason."""
    groups: dict[tuple[str, int, str], list[str]] = {}
    for run in comparison.problems:
        reason = run.error or (f"not a number: {', '.join(run.non_finite)}" if run.non_finite else "")
        groups.setdefault((run.state, run.seed, reason), []).append(run.cell)
    lines = []
    for (state, seed, reason), cells in groups.items():
        names = [f"seed={seed} of {len(cells)} cells"] if len(cells) > 2 else [f"{cell} seed={seed}" for cell in cells]
        lines += [f"{state}: {name}{': ' + reason if reason else ''}" for name in names]
    for line in lines[:MOST_PROBLEMS]:
        _bullet(console, "  ", line)
    if len(lines) > MOST_PROBLEMS:
        console.print(f"  and {len(lines) - MOST_PROBLEMS} more")
