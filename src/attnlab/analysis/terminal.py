"""The comparison in a terminal: a few tables that fit its width, and the sentences that matter."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from rich.console import Console

from attnlab.analysis import formatting
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison, LengthCurve, multiples_of
from attnlab.analysis.differences import Difference
from attnlab.analysis.headline import headline, length_verdict, reasons
from attnlab.analysis.reader import Cell, Run, Study, short
from attnlab.analysis.sentence_bootstrap import p_summary, sentences_of
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import UNLIMITED, Column, Contents, Entry, Table, coloured, plain
from attnlab.training.metrics import parts_of

MOST_PROBLEMS = 12
WIDTH = 10
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = ".:-=+*%#"
EARLY = 0.25  # the first quarter falls so far that nothing else could be told apart on its scale
CURVE = "curve"
FIGURES = re.compile(r"[+-]?\d[\d.]* (\+-[\d.]+|\([+-]?[\d.]+ to [+-]?[\d.]+\))")
T = TypeVar("T")
Shape = Sequence[tuple[Table, int]]  # tables that belong together, each with the blanks between its columns


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints question, cells, lengths, claims, missing runs and caveats; without colours where `console` has none.

    No line is longer than the console is wide: a table that would be takes its next narrower shape.
    """
    study = comparison.study
    console.print(f"[bold]{plain(study.name)}[/bold]  {plain(study.question)}", highlight=False)
    states = ", ".join(f"{n} {state}" for state, n in comparison.states.items()) or "none"
    console.print(f"{len(study.cells)} cells x {len(study.seeds)} seeds; runs: {states}", highlight=False)
    for part in (print_cells, _print_lengths, _print_sentences, _print_claims):
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


def _names(comparison: Comparison, cell_of: Callable[[T], Cell]) -> list[Column[T]]:
    """One narrow column a factor where several vary, else one with the cell's label."""
    study = comparison.study
    factors = study.varying
    if len(factors) < 2 or any(name not in cell.choices for name in factors for cell in study.cells):
        return [Column("cell", lambda item: study.label(cell_of(item)), "l")]

    def column(name: str) -> Column[T]:
        heading = short(name) if [short(other) for other in factors].count(short(name)) == 1 else name
        return Column(heading.replace("_", "\n"), lambda item: str(cell_of(item).choices[name]), "l")

    return [column(name) for name in factors]


def _interval_columns(
    heading: str, interval: Callable[[T], Interval | None], decimals: int, sign: bool, is_whole: bool
) -> list[Column[T]]:
    """An interval as one column with both ends, or as two narrow ones: the mean and the half-width."""

    def column(heading: str, of: Callable[[Interval], str]) -> Column[T]:
        return Column(heading, lambda item: of(found) if (found := interval(item)) else "")

    if is_whole:
        heading = f"{heading} (95% interval)" if heading == "mean" else f"{heading} (interval)"
        return [column(heading, lambda found: formatting.interval_text(found, decimals, sign))]
    return [
        column(heading, lambda found: formatting.number(found.mean, decimals, sign)),
        column("+-", lambda found: formatting.number(found.high - found.mean, decimals) if found.is_bounded else ""),
    ]


def print_cells(comparison: Comparison, console: Console) -> None:
    """Prints the table of cells on the primary metric, as wide as the console, with its notes; nothing without one."""
    metric = comparison.metric
    if metric is None or not comparison.cells:
        return
    rows = [*comparison.measured, *(cell for cell in comparison.cells if cell.interval is None)]
    sizes = {len(cell.values) for cell in comparison.measured}
    planned = len(comparison.study.seeds)
    equal = "" if len(sizes) != 1 else f", n = {planned}" if sizes == {planned} else f", n = {sizes.pop()} of {planned}"
    title(console, f"{metric.name}, {metric.better} is better: mean and 95% interval{equal}")
    names: list[Column[CellSummary]] = _names(comparison, lambda row: row.cell)
    verdict = Column("", _verdict, "l")
    # Not in a pipe: its reader wants plain figures, and the curves of a large study take seconds to read.
    lines = sparklines(comparison.study) if console.is_terminal else None
    # A curve goes before a figure becomes narrower.
    curves: list[list[Column[CellSummary]]] = [[]]
    if lines:
        curves = [[Column(CURVE, lambda row: lines.text(row.cell.name, console.encoding), "l")], []]
    shapes: list[Shape] = []
    for (mean_whole, apart_whole), gap in (
        ((True, True), 2),
        ((False, True), 2),
        ((False, False), 2),
        ((False, False), 1),
    ):
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
    columns: list[Column[CellSummary]] = _interval_columns("mean", lambda row: row.interval, decimals, False, is_whole)
    if len({row.rank_interval for row in comparison.measured}) > 1:
        columns.append(Column("place", lambda row: formatting.rank_text(row.rank_interval) if row.interval else ""))
    n = len(comparison.study.seeds)
    if len({len(row.values) for row in comparison.measured}) > 1:
        columns.append(
            Column("n", lambda row: f"{len(row.values)}" if len(row.values) == n else f"{len(row.values)}/{n}")
        )
    return columns


def _differences(comparison: Comparison, is_whole: bool) -> list[Column[CellSummary]]:
    """Difference and interval, wins and p values; a sign-flip p that is the same everywhere is left to the note."""
    found = [row.difference for row in comparison.measured if row.difference]
    if not found:
        return []

    def column(heading: str, of: Callable[[Difference], str]) -> Column[CellSummary]:
        return Column(heading, lambda row: of(row.difference) if row.difference else "")

    decimals = formatting.decimals_for(difference.interval for difference in found)
    columns: list[Column[CellSummary]] = _interval_columns(
        "diff", lambda row: row.difference.interval if row.difference else None, decimals, True, is_whole
    )
    columns.append(column("wins", lambda difference: f"{difference.wins:g}/{difference.contrast.asked}"))
    if any(difference.n > 1 for difference in found):
        columns.append(column("p", lambda difference: _p(difference.p_adjusted)))
    if _common_flip(comparison) is None:
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
    if comparison.baseline and found:
        flip, size = _common_flip(comparison), found[0].tests
        notes.append(
            f"diff: cell minus {comparison.baseline.label}, paired by seed; wins: seeds in which the cell is better."
        )
        if any(difference.n > 1 for difference in found):
            of = f"for {size} comparisons, as are the intervals of diff" if size > 1 else "for one comparison"
            same = f"; p flip, of the exact sign flip, {flip} in every row" if flip else "; p flip: exact sign flip"
            notes.append(f"p: t test, adjusted (Bonferroni) {of}{same}.")
        if any(difference.contrast.missing for difference in found):
            notes.append("Where runs are missing: median and sign test, counting the missing ones against any finding.")
    return [*notes, *reasons(comparison, ("skipped", "unavailable"))]


def _print_lengths(comparison: Comparison, console: Console) -> None:
    curves = comparison.primary_lengths
    if not curves:
        return
    title(console, f"{curves[0].prefix} at multiples of the training length")
    cells = {comparison.study.label(cell): cell for cell in comparison.study.cells}
    names: list[Column[LengthCurve]] = _names(comparison, lambda curve: cells[curve.label])
    decimals = formatting.decimals_for(point for curve in curves for point in curve.points.values())

    def point_of(multiple: float) -> Callable[[LengthCurve], str]:
        def point(curve: LengthCurve) -> str:
            known = curve.points.get(multiple)
            return formatting.number(known.mean, max(0, decimals - 1)) if known else "-"

        return point

    points = [Column(f"{k:g}x", point_of(k)) for k in multiples_of(curves)]
    shapes: list[Shape] = []
    for is_whole, gap in ((True, 2), (False, 2), (False, 1)):
        change: list[Column[LengthCurve]] = _interval_columns(
            "change", lambda curve: curve.change.interval if curve.change else None, decimals, True, is_whole
        )
        shapes.append([(Table.of([*names, *points, *change, Column("", length_verdict, "l")], curves), gap)])
    print_first_that_fits(shapes, console)


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


def _print_claims(comparison: Comparison, console: Console) -> None:
    """Verdict, claim and what was measured: beside each other where that fits, else below each other."""
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


# --- learning curves as one line of characters each


@dataclass(frozen=True)
class Sparklines:
    """`levels`: the heights of each cell's curve from 0 (`low`) to 7 (`high`), None where it has no value."""

    metric: str
    steps: tuple[float, float]
    low: float
    high: float
    levels: Mapping[str, list[int | None]]

    def text(self, cell: str, encoding: str) -> str:
        """A cell's curve, in blocks where `encoding` has them; empty for a cell without one."""
        characters = characters_in(encoding)
        return "".join(" " if level is None else characters[level] for level in self.levels.get(cell, []))


def characters_in(encoding: str) -> str:
    """Eight characters of rising height that `encoding` can write."""
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS


def sparklines(study: Study, width: int = WIDTH) -> Sparklines | None:
    """The validation curves of the primary measure, or of the loss where there are none; None where a study has
    neither.

    Each is the mean over the cell's finished seeds (over all while none is), where all of these have a value. The scale
    reaches from the lowest value of any cell to the highest after the first quarter of the training; what is above it
    is drawn as its top.
    """
    name = curve_name(study)
    if name is None:
        return None
    means = _mean_curves(study, name)
    first, last = (
        float(bound) for bound in (min(x[0] for x, _ in means.values()), max(x[-1] for x, _ in means.values()))
    )
    grid = np.linspace(first, last, width)
    drawn = {cell: np.interp(grid, x, y, left=np.nan, right=np.nan) for cell, (x, y) in means.items()}
    late = np.concatenate([y[x >= first + EARLY * (last - first)] for x, y in means.values()])
    every = np.concatenate([y for _, y in means.values()])
    low, high = float(every.min()), float((late if late.size else every).max())
    return Sparklines(name, (first, last), low, high, {cell: _levels(y, low, high) for cell, y in drawn.items()})


def curve_name(study: Study) -> str | None:
    """The validation curve of the primary measure, else of the loss, else the training loss, else None."""
    own = [f"val/{parts_of(study.metric.name)[1].removeprefix('sliding_')}"] if study.metric else []
    return next((name for name in (*own, "val/loss", "train/loss") if name in study.curves.columns), None)


def _mean_curves(study: Study, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    finished = {(run.cell, run.seed) for run in study.runs.values() if run.state == "finished"}
    some = {cell for cell, _ in finished}
    rows = study.curves.select("cell", "seed", "step", value=pl.col(name)).drop_nulls("value")
    pairs = rows.select("cell", "seed").unique().rows()
    wanted = [pair for pair in pairs if pair in finished or pair[0] not in some]
    schema = {"cell": pl.String, "seed": pl.Int64}
    rows = rows.join(pl.DataFrame(wanted, schema=schema, orient="row"), on=["cell", "seed"])
    by_step = rows.group_by("cell", "step").agg(pl.col("value").mean(), n=pl.len())
    whole = by_step.filter(pl.col("n") == pl.col("n").max().over("cell")).sort("cell", "step")
    return {
        str(cell): (of_cell["step"].to_numpy(), of_cell["value"].to_numpy())
        for (cell,), of_cell in whole.group_by(["cell"], maintain_order=True)
    }


def _levels(values: np.ndarray, low: float, high: float) -> list[int | None]:
    share = (values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.0)
    top = len(BLOCKS) - 1
    return [None if np.isnan(value) else int(np.clip(round(value * top), 0, top)) for value in share.tolist()]
