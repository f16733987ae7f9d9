"""A study's tables: cells with all their figures, exact or to be read, and runs with their directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import Difference
from attnlab.analysis.formatting import (
    decimals_for,
    failures_text,
    interval_text,
    number,
    p_text,
    rank_text,
    verdict,
    wins_text,
)
from attnlab.analysis.reader import Run, natural
from attnlab.analysis.table import Column, Contents, Table
from attnlab.training.run_directory import write_text

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


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and table.tex, each atomically, and returns the files. Raises CannotWrite."""
    texts = {"csv": to_csv(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    files = {folder / f"table.{suffix}": text for suffix, text in texts.items()}
    for path, text in files.items():
        write_text(path, text, durable=False)
    return list(files)


def to_csv(comparison: Comparison) -> str:
    """The table of cells with every figure at full precision, as CSV."""
    study, metric = comparison.study, comparison.metric.name if comparison.metric else ""

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
        Column("n", lambda row: len(row.values)),
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
        *(Column(f"seed={seed}", _field("values", seed)) for seed in study.seeds),
        *(Column(f"mean {name}", mean_of(name)) for name in study.metrics if name != metric),
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
    """The table of cells in GitHub's Markdown, with its caveats below."""
    return _to_be_read(comparison).to_markdown()


def to_latex(comparison: Comparison) -> str:
    """The table of cells as a booktabs tabular, its caveats as comments."""
    return _to_be_read(comparison).to_latex()


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

    columns = [
        Column[CellSummary]("cell", lambda row: row.label, "l"),
        Column(f"{metric.name if metric else 'value'} (95% interval)", value),
        Column("n", lambda row: len(row.values)),
        Column("place", lambda row: rank_text(row.rank_interval)),
        Column("difference", difference),
        compared("effect size (g_z)", lambda found: number(found.effect_size, 1, sign=True)),
        compared("wins", wins_text),
        Column("P(better)", lambda row: number(row.probability_better, 2) if row.difference else ""),
        compared("p (adjusted)", lambda found: p_text(found.p_adjusted)),
        compared("p (sign flip, adjusted)", lambda found: p_text(found.p_sign_flip_adjusted)),
        Column("verdict", judged, "l"),
    ]
    rest = [cell for cell in comparison.cells if cell.interval is None]
    return Table.of(columns, [*comparison.measured, *rest], "Cells", comparison.caveats)


def runs_to_csv(comparison: Comparison) -> str:
    """One row a run: cell, choices, seed, state, counts, error, directory, and final values to the last bit."""
    study = comparison.study
    cells = {cell.name: cell for cell in study.cells}

    def choice_of(name: str) -> Callable[[Run], Contents]:
        return lambda run: _field("choices", name)(cells[run.cell])

    columns: list[Column[Run]] = [
        Column("cell", _field("cell")),
        *(Column(name, choice_of(name)) for name in study.varying),
        Column("seed", _field("seed")),
        Column("state", _field("state")),
        *(Column(name, _field("status", name)) for name in COUNTS),
        Column("error", _field("error")),
        Column("directory", _field("directory")),
        *(Column(name, _field("final", name)) for name in study.metrics),
    ]
    return Table.of(columns, _runs_in_order(comparison)).to_csv()


def runs_to_text(comparison: Comparison) -> str:
    """The same in aligned columns, with the primary metric alone."""
    metric = comparison.metric.name if comparison.metric else ""
    rows = []
    for run in _runs_in_order(comparison):
        figure = f"{run.final[metric]:.7g}" if metric in run.final else "-"
        rows.append([run.cell, str(run.seed), run.state, figure, str(run.directory)])
    return Table(["cell", "seed", "state", metric, "directory"], rows, align="lllll").to_text()


def _runs_in_order(comparison: Comparison) -> list[Run]:
    position = {cell.name: number for number, cell in enumerate(comparison.study.cells)}
    runs = comparison.study.runs.values()
    return sorted(runs, key=lambda run: (position[run.cell], natural(run.cell), run.seed))
