"""A study's tables: cells with all their figures, exact or to be read; effects, interactions; runs and directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attnlab.analysis.budgets import some_idle
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import Difference
from attnlab.analysis.factors import Effect, Interaction, JudgedAverage
from attnlab.analysis.formatting import (
    decimals_for,
    describe,
    failures_text,
    half_text,
    interval_text,
    number,
    p_text,
    rank_text,
    short_interval,
    tests_text,
    verdict,
    wins_text,
)
from attnlab.analysis.reached import ENDS, columns_of_costs, figure_notes, reached_table
from attnlab.analysis.reader import Cell, Run, short
from attnlab.analysis.size_trends import size_table
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import Column, Contents, Entry, Table
from attnlab.training.metrics import natural
from attnlab.training.run_directory import write_text
from attnlab.training.targets import target_of

HEADINGS = {"mean": "mean", "median": "median", "share": "runs"}  # of the average of a cell's runs
DIGITS = 10  # of the figures of cells
# {column of the exact table: field of a cell's difference to the baseline}
DIFFERENCE = {
    "difference": "interval.mean",
    "difference_low": "interval.low",
    "difference_high": "interval.high",
    "difference_level": "interval.level",
    "bootstrap_low": "bootstrap.low",
    "bootstrap_high": "bootstrap.high",
    "effect_size": "effect_size",
    "pairs": "n",
    "pairs_asked": "contrast.asked",
    **{name: name for name in ("wins", "p", "p_adjusted", "p_sign_flip", "p_sign_flip_adjusted", "p_equivalence")},
    **{name: name for name in ("p_equivalence_adjusted", "smallest_effect", "seeds_to_see", "seeds_to_equate")},
}
BUDGET = ("steps", "tokens", "seconds", "parameters", "flops")
COUNTS = ("step", "max_steps", "tokens", "seconds")
JUDGED = ("interval.mean", "interval.low", "interval.high", "interval.level", "p_adjusted", "n", "contrast.planned")
T = TypeVar("T")


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and table.tex, effects and interactions as CSV and LaTeX where there are some, each
    atomically; returns the files. Raises CannotWrite."""
    texts = {"table.csv": to_csv(comparison), "table.md": to_markdown(comparison), "table.tex": to_latex(comparison)}
    for name, table in _of_factors(comparison, 0).items():
        texts |= {f"{name}.csv": factors_to_csv(comparison, name), f"{name}.tex": table.to_latex()}
    files = {folder / name: text for name, text in texts.items()}
    for path, text in files.items():
        write_text(path, text, durable=False)
    return list(files)


def to_csv(comparison: Comparison) -> str:
    """The table of cells with every figure at full precision, as CSV."""
    study, metric = comparison.study, comparison.metric.name if comparison.metric else ""
    has_idle = some_idle(cell.budget for cell in comparison.cells)

    def count_of(state: str) -> Callable[[CellSummary], int]:
        return lambda row: row.states.get(state, 0)

    def mean_of(name: str) -> Callable[[CellSummary], float | None]:
        return lambda row: _mean(study.values(row.cell.name, name))

    def said_of(figures: Mapping[str, float]) -> Callable[[CellSummary], float | None]:
        return lambda row: figures.get(row.label)

    def judged(row: CellSummary) -> str:
        return row.difference.verdict if row.difference else "baseline" if row.is_baseline else ""

    columns: list[Column[CellSummary]] = [
        Column("cell", _field("cell.name")),
        *(Column(name, _field("cell.choices", name)) for name in study.varying),
        Column("metric", lambda row: metric),
        *(Column(name, _field(f"interval.{name}")) for name in ("mean", "low", "high")),
        Column("n", _field("n")),
        Column("deviation", _field("interval.deviation")),
        Column("place_best", _field("rank_interval", 0)),
        Column("place_worst", _field("rank_interval", 1)),
        *(Column(name, _field(name)) for name in ("outcome", "reason")),
        *(Column(state, count_of(state)) for state in ("finished", "diverged", "failed")),
        Column("lost", _field("n_failed")),
        Column("p_lost", _field("failures.p")),
        Column("p_lost_holm", _field("failures.p_holm")),
        Column("probability_better", _field("probability_better")),
        *(Column(name, _field(f"difference.{path}")) for name, path in DIFFERENCE.items()),
        Column("verdict", judged),
        *(Column(name, _field(f"budget.{name}")) for name in BUDGET),
        *([Column("active_parameters", _field("budget.active_parameters"))] if has_idle else []),
        *(Column(f"seed={seed}", _field("values", seed)) for seed in study.seeds),
        *columns_of_costs(comparison),
        *(Column(f"mean {name}", mean_of(name)) for name in study.metrics if name != metric and not target_of(name)),
        *(Column(name, said_of(figures)) for name, figures in _sentences(comparison).items()),
    ]
    return Table.of(columns, comparison.cells).to_csv(DIGITS)


def _field(path: str, *keys: object) -> Callable[[object], Contents]:
    """Looks up a field of a field, and what it has at a key; None where one on the way is none."""

    def of(item: object) -> Contents:
        for name in path.split("."):
            item = getattr(item, name, None)
        for key in keys:
            if isinstance(item, Mapping):
                item = item.get(key)
            elif isinstance(item, tuple) and isinstance(key, int):
                item = item[key]
        return item if item is None or isinstance(item, int | float) else str(item)

    return of


def _mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _sentences(comparison: Comparison) -> dict[str, dict[str, float]]:
    columns: dict[str, dict[str, float]] = {}
    for one in comparison.sentences.differences if comparison.sentences else []:
        for seed in one.p_values:
            columns.setdefault(f"{one.score}_difference seed={seed}", {})[one.label] = one.differences[seed]
            columns.setdefault(f"p_{one.score}_sentences seed={seed}", {})[one.label] = one.p_values[seed]
    return columns


def to_markdown(comparison: Comparison) -> str:
    """The table of cells in GitHub's Markdown, with its caveats below, then what reached a target, effects,
    interactions and sizes."""
    shown = (reached_table(comparison), *_of_factors(comparison).values(), size_table(comparison.size_trends))
    further = [f"{table.title}\n\n{table.to_markdown()}" for table in shown if table]
    return "\n".join([_to_be_read(comparison).to_markdown(), *further])


def to_latex(comparison: Comparison) -> str:
    """The table of cells as a booktabs tabular as wide as an article's text at the most: mean, difference and p; what
    they are, and the caveats, as comments."""
    tables = (_compact(comparison, as_columns) for as_columns in (True, False))
    return next((table for table in tables if table.fits_article), _compact(comparison, False)).to_latex()


def _compact(comparison: Comparison, as_columns: bool) -> Table:
    """as_columns: a column a factor, else one with the cells' labels."""
    decimals = decimals_for(cell.interval for cell in comparison.measured)
    apart = decimals_for(cell.difference.interval for cell in comparison.measured if cell.difference)

    def mean(row: CellSummary) -> str:
        return short_interval(row.interval, decimals) if row.interval else row.outcome

    def difference(row: CellSummary) -> str:
        if row.difference is None:
            return "baseline" if row.is_baseline else ""
        return short_interval(row.difference.interval, apart, sign=True)

    def p_of(row: CellSummary) -> str:
        return p_text(row.difference.p_adjusted).replace("< 0.", "<.") if row.difference else ""

    label = Column[CellSummary]("cell", lambda row: row.label, "l")
    names = name_columns(comparison, lambda row: row.cell) if as_columns else [label]
    heading = HEADINGS[comparison.average]
    columns = [*names, Column(heading, mean), Column("difference", difference), Column("p", p_of)]
    if any(cell.n_failed for cell in comparison.cells):
        columns.append(Column("lost", lambda row: f"{row.n_failed}/{sum(row.states.values())}" if row.n_failed else ""))
    return Table.of(columns, comparison.best_first, "Cells", [*_caption(comparison), *comparison.caveats])


def _caption(comparison: Comparison) -> list[str]:
    """What the figures of the compact table are."""
    metric = comparison.metric
    if metric is None:
        return []
    seeds = " or ".join(map(str, sorted({len(cell.values) for cell in comparison.measured}))) or "0"
    what = f"{metric.name} ({describe(metric.name, comparison.study)}), {metric.better} is better"
    if notes := figure_notes(comparison):
        return [f"{what}.", *notes]
    said = [f"{what}: mean over n = {seeds} seeds and half-width of its 95% interval."]
    found = [cell.difference for cell in comparison.measured if cell.difference]
    if comparison.baseline and found:
        said.append(
            f"difference: to {comparison.baseline.label}, paired by seed; its interval and p are adjusted (Bonferroni) "
            f"for {tests_text(comparison.study, found[0].tests)}."
        )
    return said


def name_columns(comparison: Comparison, cell_of: Callable[[T], Cell], end: str = "_") -> list[Column[T]]:
    """One narrow column a factor where several vary, else one with the cell's label. end: in place of _ in headings."""
    study = comparison.study
    factors = study.varying
    if len(factors) < 2 or any(name not in cell.choices for name in factors for cell in study.cells):
        return [Column("cell", lambda item: study.label(cell_of(item)), "l")]

    def column(name: str) -> Column[T]:
        heading = short(name) if [short(other) for other in factors].count(short(name)) == 1 else name
        return Column(heading.replace("_", end), lambda item: str(cell_of(item).choices[name]), "l")

    return [column(name) for name in factors]


def interval_columns(
    heading: str, interval: Callable[[T], Interval | None], decimals: int, sign: bool, is_whole: bool
) -> list[Column[T]]:
    """An interval as one column with both ends, or as two narrow ones: the mean and the half-width."""

    def column(heading: str, of: Callable[[Interval], str]) -> Column[T]:
        return Column(heading, lambda item: of(found) if (found := interval(item)) else "")

    if is_whole:
        heading = f"{heading} (95% interval)" if heading in HEADINGS.values() else f"{heading} (interval)"
        return [column(heading, lambda found: interval_text(found, decimals, sign))]
    return [
        column(heading, lambda found: number(found.mean, decimals, sign)),
        column("+-", lambda found: half_text(found, decimals, sign)),
    ]


def _of_factors(comparison: Comparison, detail: int = 2) -> dict[str, Table]:
    found = {"effects": effects_table(comparison, detail), "interactions": interactions_table(comparison, detail)}
    return {name: table for name, table in found.items() if table}


def effects_table(comparison: Comparison, detail: int = 2) -> Table | None:
    """What each choice of each factor changes on average; None where fewer than two factors vary. detail: 2 is all, 1
    leaves out the single settings, 0 has short intervals, too."""
    if not comparison.effects:
        return None
    decimals = decimals_for(effect.interval for effect in comparison.effects)

    def settings(effect: Effect) -> str:
        low, high = (number(value, decimals, sign=True) for _, value in effect.ends)
        return f"{low} to {high}"

    def judged(effect: Effect) -> Contents:
        return Entry("depends", mood="depends") if effect.depends else verdict(effect)

    columns: list[Column[Effect]] = [
        Column("factor", lambda effect: short(effect.factor), "l"),
        Column("change", lambda effect: f"{effect.reference} to {effect.choice}", "l"),
        _change("effect", decimals, detail > 0),
        *([Column("single settings", settings)] if detail > 1 else []),
        *_tested(judged),
    ]
    note = (
        "effect: mean over the settings of the other factors, paired by seed; p: adjusted for all effects (Bonferroni)."
    )
    said = [note, "depends: an interaction with another factor is sure."]
    notes = said if any(effect.depends for effect in comparison.effects) else said[:1]
    return Table.of(columns, comparison.effects, "Average effects", notes)


def interactions_table(comparison: Comparison, detail: int = 2, most: int | None = None) -> Table | None:
    """What two choices change beyond the sum of what each changes alone, the largest `most` first; None without any.
    detail: as that of `effects_table`."""
    if not comparison.interactions:
        return None
    decimals = decimals_for(one.interval for one in comparison.interactions)

    def settings(one: Interaction) -> str:
        return f"{len(one.by_setting)}/{one.contrast.planned}"

    columns: list[Column[Interaction]] = [
        Column("interaction", lambda one: one.label, "l"),
        _change("beyond the sum", decimals, detail > 0),
        *([Column("settings", settings)] if detail > 1 else []),
        *_tested(verdict),
    ]
    largest = sorted(comparison.interactions, key=lambda one: -abs(one.interval.mean))[:most]
    note = "beyond the sum: what both choices change together, minus what each changes alone, paired by seed."
    return Table.of(columns, largest, "Interactions", [note])


def _change(heading: str, decimals: int, is_whole: bool) -> Column[Any]:
    said = interval_text if is_whole else short_interval
    return Column(f"{heading} (interval)" if is_whole else heading, lambda one: said(one.interval, decimals, sign=True))


def _tested(judged: Callable[[Any], Contents]) -> list[Column[Any]]:
    p: Column[JudgedAverage] = Column("p", lambda one: p_text(one.p_adjusted))
    return [p, Column("", judged, "l")]


def factors_to_csv(comparison: Comparison, name: str) -> str:
    """The "effects" or "interactions" with all their figures."""
    judged = [Column(path.rpartition(".")[2], _field(path)) for path in JUDGED] + [Column("verdict", _field("verdict"))]
    if name == "effects":
        paths = ("factor", "reference", "choice")
        columns = [*(Column(path, _field(path)) for path in paths), *judged, Column("depends", _field("depends"))]
        return Table.of(columns, comparison.effects).to_csv(DIGITS)
    own = [Column(f"{path}_{k + 1}", _field(f"{path}s", k)) for k in (0, 1) for path in ("factor", "choice")]
    return Table.of([*own, *judged], comparison.interactions).to_csv(DIGITS)


def _to_be_read(comparison: Comparison) -> Table:
    metric = comparison.metric
    decimals = decimals_for(cell.interval for cell in comparison.measured)
    apart = decimals_for(cell.difference.interval for cell in comparison.measured if cell.difference)

    def value(row: CellSummary) -> str:
        reason = f": {row.reason}" if row.reason else ""
        return interval_text(row.interval, decimals) if row.interval else row.outcome + reason

    def judged(row: CellSummary) -> str:
        if row.difference is None:
            return failures_text(row) if row.interval else ""
        return str(verdict(row.difference))

    def compared(heading: str, of: Callable[[Difference], str]) -> Column[CellSummary]:
        return Column(heading, lambda row: of(row.difference) if row.difference else "")

    def difference(row: CellSummary) -> str:
        if row.difference is None:
            return "baseline" if row.is_baseline else "-"
        return interval_text(row.difference.interval, apart, sign=True)

    names: list[Column[CellSummary]] = name_columns(comparison, lambda row: row.cell)
    notes = figure_notes(comparison)
    by_seed = [] if comparison.is_proportion else [compared("wins", wins_text)]
    of_means: list[Column[CellSummary]] = [
        compared("effect size (g_z)", lambda found: number(found.effect_size, 1, sign=True)),
        *by_seed,
        Column("P(better)", lambda row: number(row.probability_better, 2) if row.difference else ""),
    ]
    columns = [
        *names,
        Column(f"{metric.name if metric else 'value'} (95% interval)", value),
        Column("n", lambda row: row.n),
        Column("place", lambda row: rank_text(row.rank_interval)),
        Column("difference", difference),
        *(by_seed if notes else of_means),
        compared("p (adjusted)", lambda found: p_text(found.p_adjusted)),
        *([] if notes else [compared("p (sign flip, adjusted)", lambda found: p_text(found.p_sign_flip_adjusted))]),
        Column("verdict", judged, "l"),
    ]
    return Table.of(columns, comparison.best_first, "Cells", [*notes, *comparison.caveats])


def runs_to_csv(comparison: Comparison) -> str:
    """One row a run: cell, choices, seed, state, counts, error, directory, and final values to the last bit."""
    study = comparison.study
    cells = {cell.name: cell for cell in study.cells}

    def choice_of(name: str) -> Callable[[Run], Contents]:
        return lambda run: _field("choices", name)(cells[run.cell])

    def bound(name: str, end: int) -> Callable[[Run], Contents]:
        return lambda run: str(run.costs[name][end]) if name in run.costs else None

    costs = [name for name in study.metrics if target_of(name)]
    columns: list[Column[Run]] = [
        Column("cell", _field("cell")),
        *(Column(name, choice_of(name)) for name in study.varying),
        Column("seed", _field("seed")),
        Column("state", _field("state")),
        *(Column(name, _field("status", name)) for name in COUNTS),
        Column("error", _field("error")),
        Column("directory", _field("directory")),
        *(Column(name, _field("final", name)) for name in study.metrics),
        *(Column(f"{name} {said}", bound(name, end)) for name in costs for said, end in ENDS.items()),
    ]
    return Table.of(columns, _runs_in_order(comparison)).to_csv()


def runs_to_text(comparison: Comparison) -> str:
    """The same in aligned columns, with the primary metric alone."""
    metric = comparison.metric.name if comparison.metric else ""
    rows = []
    for run in _runs_in_order(comparison):
        figure = f"{run.final[metric]:.7g}" if metric in run.final else "-"
        figure = str(run.costs[metric]) if metric in run.costs and not run.costs[metric].is_exact else figure
        rows.append([run.cell, str(run.seed), run.state, figure, str(run.directory)])
    return Table(["cell", "seed", "state", metric, "directory"], rows, align="lllll").to_text()


def _runs_in_order(comparison: Comparison) -> list[Run]:
    position = {cell.name: number for number, cell in enumerate(comparison.study.cells)}
    return sorted(comparison.study.runs.values(), key=lambda run: (position[run.cell], natural(run.cell), run.seed))
