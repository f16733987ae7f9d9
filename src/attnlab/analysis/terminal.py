"""The comparison in a terminal: a few tables that fit its width, and the sentences that matter."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console

from attnlab.analysis import formatting
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import Difference
from attnlab.analysis.headline import headline, length_verdict, reasons
from attnlab.analysis.lengths import OF_SAME_RUNS, LengthCurve, multiples_of
from attnlab.analysis.reached import figure_notes, reached_table
from attnlab.analysis.reader import Run
from attnlab.analysis.sentence_bootstrap import p_summary, sentences_of
from attnlab.analysis.size_trends import size_table
from attnlab.analysis.sparklines import Sparklines, sparklines
from attnlab.analysis.table import UNLIMITED, Column, Contents, Entry, Table, coloured, plain
from attnlab.analysis.tables import (
    HEADINGS,
    effects_table,
    interactions_table,
    interval_columns,
    name_columns,
)
from attnlab.analysis.tuning import budget_sentence, choices_table

MOST_PROBLEMS = 12
MOST_INTERACTIONS = 8
CURVE = "curve"
FIGURES = re.compile(r"[+-]?\d[\d.]*( \+-[\d.]+| \([+-]?[\d.]+ to [+-]?[\d.]+\)|, [+-][\d.]+ to [+-][\d.]+)")
Shape = Sequence[tuple[Table, int]]  # tables that belong together, each with the blanks between its columns
# Whether mean and difference stand with both ends, and the blanks between columns; shares have no half-width to say.
WHOLE = (((True, True), 2),)
NARROWER = (((False, True), 2), ((False, False), 2), ((False, False), 1))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints question, cells, lengths, claims, missing runs and caveats; without colours where `console` has none.

    No line is longer than the console is wide: a table that would be takes its next narrower shape.
    """
    study = comparison.study
    console.print(f"[bold]{plain(study.name)}[/bold]  {plain(study.question)}", highlight=False)
    states = ", ".join(f"{n} {state}" for state, n in comparison.states.items()) or "none"
    console.print(f"{len(study.cells)} cells x {len(study.seeds)} seeds; runs: {states}", highlight=False)
    of_figures = (print_cells, _print_reached, _print_lengths, _print_factors, _print_sizes, _print_tuning)
    for part in (*of_figures, _print_sentences, print_claims):
        part(comparison, console)
    console.print()
    for sentence in headline(comparison, with_reasons=False):
        bullet(console, sentence)
    for caveat in comparison.caveats:
        bullet(console, caveat, "[yellow]![/yellow] ")
    _print_problems(comparison.problems, console)


def bullet(console: Console, sentence: str, mark: str = "- ", mood: str = "", indent: int = 2) -> None:
    """A sentence after a mark; its further lines are indented, and no number is parted from its interval."""
    bound = FIGURES.sub(lambda found: found[0].replace(" ", "\0"), " ".join(sentence.split()))
    lines = textwrap.wrap(bound, max(20, console.width - indent), break_on_hyphens=False) or [""]
    for start, line in zip([mark, *[" " * indent] * len(lines)], lines, strict=False):
        console.print(start + coloured(line.replace("\0", " "), mood), highlight=False, soft_wrap=True)


def note(console: Console, sentence: str) -> None:
    bullet(console, sentence, "", "soft", 0)


def title(console: Console, text: str) -> None:
    console.print()
    console.print(f"[bold]{plain(text)}[/bold]", highlight=False)


def fits(table: Table, console: Console, gap: int = 2) -> bool:
    wide = console.options.update_width(UNLIMITED)
    return console.measure(table.to_rich(gap), options=wide).maximum <= console.width


def print_first_that_fits(shapes: Sequence[Shape], console: Console) -> Sequence[Table]:
    """Prints and returns the first of `shapes` of which every table fits; the last where none does."""
    first = (shape for shape in shapes if all(fits(table, console, gap) for table, gap in shape))
    chosen = next(first, shapes[-1])
    for index, (table, gap) in enumerate(chosen):
        if index:
            console.print()
        console.print(table.to_rich(gap), highlight=False)
    return [table for table, _ in chosen]


def turned(table: Table, console: Console, gap: int = 2) -> Shape:
    """A table with rows for columns, in as many parts below each other as the console's width asks for."""
    whole, first, parts = table.transposed(), 1, []
    while first < len(whole.headings):
        ends = range(len(whole.headings), first + 1, -1)
        end = next((end for end in ends if fits(whole.part(first, end), console, gap)), first + 1)
        parts.append((whole.part(first, end), gap))
        first = end
    return parts


def print_cells(comparison: Comparison, console: Console) -> None:
    """Prints the table of cells on the primary metric, as wide as the console, with its notes; nothing without one,
    and where no run reached the target of a cost."""
    metric = comparison.metric
    if metric is None or not comparison.cells or comparison.is_all_censored:
        return
    rows = comparison.best_first
    sizes = {(cell.n, sum(cell.states.values())) for cell in comparison.measured}
    n, asked = sizes.pop() if len(sizes) == 1 else (0, 0)
    equal = f", n = {n}" + (f" of {asked}" if n < asked else "") if n else ""
    what = f"{comparison.average} and 95% interval"
    if comparison.is_proportion:
        what = "runs of which it is 1, and 95% interval of their share"
    title(console, f"{metric.name}, {metric.better} is better: {what}{equal}")
    names: list[Column[CellSummary]] = name_columns(comparison, lambda row: row.cell, "\n")
    verdict = Column("", _verdict, "l")
    # Not in a pipe: its reader wants plain figures, and the curves of a large study take seconds to read.
    lines = sparklines(comparison.study) if console.is_terminal else None
    # A curve goes before a figure becomes narrower.
    curves: list[list[Column[CellSummary]]] = [[]]
    if lines:
        curves = [[Column(CURVE, lambda row: lines.text(row.cell.name, console.encoding), "l")], []]
    shapes: list[Shape] = []
    notes = figure_notes(comparison)
    # Of what has no half-width to say.
    for (mean_whole, apart_whole), gap in WHOLE if notes or comparison.tuning else (*WHOLE, *NARROWER):
        means, apart = _means(comparison, mean_whole), _differences(comparison, apart_whole)
        shapes += [[(Table.of([*names, *curve, *means, *apart, verdict], rows), gap)] for curve in curves]
    compared = [row for row in rows if row.difference]
    outcomes = [Column("", _outcome, "l")] if any(map(_outcome, rows)) else []
    for gap, curve in itertools.product((2, 1) if compared else (), curves):
        first = Table.of([*names, *curve, *_means(comparison, True), *outcomes], rows)
        second = Table.of([*names, *_differences(comparison, True), verdict], compared)
        shapes.append([(first, 2), (second, gap)])
    chosen = print_first_that_fits(shapes, console)
    if lines and CURVE in chosen[0].headings:
        note(console, _scale(lines))
    for sentence in _notes(comparison):
        note(console, sentence)


def _scale(lines: Sparklines) -> str:
    first, last = lines.steps
    low, high = (formatting.number(bound, 3) for bound in (lines.low, lines.high))
    steps = f"{lines.metric} from step {first:g} to {last:g}"
    return f"{CURVE}: {steps}, mean of the seeds, from {low} (bottom) to {high} (top)."


def _means(comparison: Comparison, is_whole: bool) -> list[Column[CellSummary]]:
    """Mean and interval; rank and n where they are not the same everywhere."""
    decimals = formatting.decimals_for(cell.interval for cell in comparison.measured)
    heading = HEADINGS[comparison.average]
    columns: list[Column[CellSummary]] = interval_columns(heading, lambda row: row.interval, decimals, False, is_whole)
    if len({row.rank_interval for row in comparison.measured}) > 1:
        columns.append(Column("place", lambda row: formatting.rank_text(row.rank_interval) if row.interval else ""))

    def n(row: CellSummary) -> str:
        found, asked = row.n, sum(row.states.values())
        return f"{found}" if found == asked else f"{found}/{asked}"

    if len({row.n for row in comparison.measured}) > 1:
        columns.append(Column("n", n))
    return columns


def _differences(comparison: Comparison, is_whole: bool) -> list[Column[CellSummary]]:
    """Difference and interval, wins and p values; a sign-flip p that is the same everywhere is left to the note."""
    found = [row.difference for row in comparison.measured if row.difference]
    if not found:
        return []

    def column(heading: str, of: Callable[[Difference], str]) -> Column[CellSummary]:
        return Column(heading, lambda row: of(row.difference) if row.difference else "")

    decimals = formatting.decimals_for(difference.interval for difference in found)
    columns: list[Column[CellSummary]] = interval_columns(
        "diff", lambda row: row.difference.interval if row.difference else None, decimals, True, is_whole
    )
    if comparison.is_proportion:
        return [*columns, column("p", lambda difference: _p(difference.p_adjusted))]
    columns.append(column("wins", lambda difference: f"{difference.wins:g}/{difference.contrast.asked}"))
    if any(difference.n > 1 for difference in found):
        columns.append(column("p", lambda difference: _p(difference.p_adjusted)))
    if comparison.target is None and _common_flip(comparison) is None:
        columns.append(column("p flip", lambda difference: _p(difference.p_sign_flip_adjusted)))
    return columns


def _p(p: float) -> str:
    return formatting.p_text(p).replace("< 0.", "<.")


def _common_flip(comparison: Comparison) -> str | None:
    found = {formatting.p_text(row.difference.p_sign_flip_adjusted) for row in comparison.measured if row.difference}
    found.discard("-")
    return found.pop() if len(found) == 1 else None


def _verdict(row: CellSummary) -> Contents:
    if row.difference:
        return formatting.verdict(row.difference)
    return "baseline" if row.is_baseline and row.interval else _outcome(row)


def _outcome(row: CellSummary) -> str:
    return "" if row.interval else row.outcome.replace("not a number", "NaN")


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    found = [row.difference for row in comparison.measured if row.difference]
    if said := figure_notes(comparison):
        notes = said
    elif comparison.baseline and found:
        flip, size = _common_flip(comparison), found[0].tests
        notes.append(
            f"diff: cell minus {comparison.baseline.label}, paired by seed; wins: seeds in which the cell is better."
        )
        if any(difference.n > 1 for difference in found):
            is_adjusted = size > 1 or comparison.study.looks.stages
            of = formatting.tests_text(comparison.study, size) + ", as are the intervals of diff" * bool(is_adjusted)
            same = f"; p flip, of the exact sign flip, {flip} in every row" if flip else "; p flip: exact sign flip"
            notes.append(f"p: t test, adjusted (Bonferroni) for {of}{same}.")
        if any(difference.contrast.failed and not difference.contrast.is_open for difference in found):
            notes.append("Where runs are lost: median and sign test, counting the lost ones against any finding.")
    return [*notes, *reasons(comparison, ("skipped", "unavailable"))]


def _print_reached(comparison: Comparison, console: Console) -> None:
    """Of the cost to a target: which runs reached it, and what stands beside the sign test."""
    if table := reached_table(comparison):
        title(console, table.title)
        print_first_that_fits([[(table, 2)], [(table, 1)]], console)
        for sentence in table.notes:
            note(console, sentence)


def _print_lengths(comparison: Comparison, console: Console) -> None:
    curves = comparison.primary_lengths
    if not curves:
        return
    title(console, f"{curves[0].prefix} at multiples of the training length")
    cells = {comparison.study.label(cell): cell for cell in comparison.study.cells}
    names: list[Column[LengthCurve]] = name_columns(comparison, lambda curve: cells[curve.label], "\n")
    decimals = formatting.decimals_for(point for curve in curves for point in curve.points.values())

    def point_of(multiple: float) -> Callable[[LengthCurve], str]:
        def point(curve: LengthCurve) -> str:
            known = curve.points.get(multiple)
            return formatting.mean_text(known, max(0, decimals - 1)) if known else "-"

        return point

    points = [Column(f"{k:g}x", point_of(k)) for k in multiples_of(curves)]
    shapes: list[Shape] = []
    is_share = any(curve.change and not curve.change.contrast.is_mean for curve in curves)
    for is_whole, gap in ((True, 2), (True, 1)) if is_share else ((True, 2), (False, 2), (False, 1)):
        change: list[Column[LengthCurve]] = interval_columns(
            "change", lambda curve: curve.change.interval if curve.change else None, decimals, True, is_whole
        )
        shapes.append([(Table.of([*names, *points, *change, Column("", length_verdict, "l")], curves), gap)])
    print_first_that_fits(shapes, console)
    if is_share:
        note(console, OF_SAME_RUNS)


def _print_factors(comparison: Comparison, console: Console) -> None:
    """Average effects and the largest interactions, where several factors vary."""
    smaller = len(comparison.interactions) - MOST_INTERACTIONS
    largest = partial(interactions_table, most=MOST_INTERACTIONS)
    kinds: dict[str, Callable[[Comparison, int], Table | None]] = {
        "Average effects of the factors": effects_table,
        "Interactions of two factors": largest,
    }
    for words, of in kinds.items():
        shapes = [table for detail in (2, 1, 0) if (table := of(comparison, detail))]
        if not shapes or comparison.metric is None:
            continue
        title(console, f"{words} on {comparison.metric.name}, with simultaneous 95% intervals")
        print_first_that_fits([[(table, gap)] for gap in (2, 1) for table in shapes], console)
        more = [f"{smaller} smaller ones: on the page and in interactions.csv."] * (of is largest and smaller > 0)
        for sentence in [*more, *shapes[0].notes]:
            note(console, sentence)


def _print_tuning(comparison: Comparison, console: Console) -> None:
    """What was chosen in each cell, where cells were tuned."""
    if comparison.tuning is None:
        return
    title(console, "Tuning")
    note(console, budget_sentence(comparison.tuning))
    table = choices_table(comparison.tuning, comparison.cells)
    print_first_that_fits([[(table, 2)], [(table, 1)], turned(table, console)], console)
    for sentence in table.notes:
        note(console, sentence)


def _print_sizes(comparison: Comparison, console: Console) -> None:
    """Whether the effects grow or shrink with size, where the study has two sizes."""
    shapes = [table for detail in (2, 1, 0) if (table := size_table(comparison.size_trends, detail))]
    if shapes:
        title(console, shapes[0].title)
        print_first_that_fits([[(table, gap)] for table in shapes for gap in (2, 1)], console)
        for sentence in shapes[0].notes:
            note(console, sentence)


def _print_sentences(comparison: Comparison, console: Console) -> None:
    """BLEU and chrF against the baseline over resampled test sentences, where they were asked for."""
    if comparison.sentences is None:
        return
    title(console, "Against the baseline on resampled test sentences")
    rows = [
        [one.label, one.score, formatting.number(one.mean, 2, sign=True), p_summary(one)]
        for one in comparison.sentences.differences
    ]
    console.print(Table(["cell", "score", "diff", "p by seed"], rows, align="llrl").to_rich(), highlight=False)
    for sentence in sentences_of(comparison.sentences):
        note(console, sentence)


def print_claims(comparison: Comparison, console: Console) -> None:
    """Prints verdict, claim and what was measured: beside each other where that fits, else below each other."""
    claims = comparison.claims
    if not claims:
        return
    title(console, "Claims made beforehand, with simultaneous 95% intervals")
    rows: list[list[Contents]] = [
        [Entry(claim.verdict, mood=claim.verdict), claim.says, claim.reason] for claim in claims
    ]
    beside = Table(["verdict", "claim", "measured"], rows, align="lll")
    if fits(beside, console):
        console.print(beside.to_rich(), highlight=False)
        return
    indent = 2 + max(len(claim.verdict) for claim in claims)
    for claim in claims:
        mark = coloured(claim.verdict) + " " * (indent - len(claim.verdict))
        bullet(console, claim.says, mark, "", indent)
        bullet(console, claim.reason, " " * indent, "soft", indent)


def _print_problems(problems: Sequence[Run], console: Console) -> None:
    """Runs without a result, together where many cells lack the same seed for the same reason."""
    groups: dict[tuple[str, int, str], list[str]] = {}
    for run in problems:
        groups.setdefault((run.state, run.seed, run.problem), []).append(run.cell)
    lines = []
    for (state, seed, reason), cells in groups.items():
        names = [f"seed={seed} of {len(cells)} cells"] if len(cells) > 2 else [f"{cell} seed={seed}" for cell in cells]
        lines += [f"{state}: {name}{': ' + reason if reason else ''}" for name in names]
    for line in lines[:MOST_PROBLEMS]:
        bullet(console, line, "  ")
    if len(lines) > MOST_PROBLEMS:
        console.print(f"  and {len(lines) - MOST_PROBLEMS} more")
