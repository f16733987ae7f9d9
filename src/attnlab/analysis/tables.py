"""The table of cells as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from attnlab.analysis import wording
from attnlab.analysis.comparison import CellSummary, Comparison
from attnlab.training.run_directory import write_text

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": "$<$", ">": "$>$", **{character: f"\\{character}" for character in "&%$#_{}"}}
COLUMNS = (
    "metric",
    "mean",
    "low",
    "high",
    "n",
    "deviation",
    "place_best",
    "place_worst",
    "outcome",
    "reason",
    "finished",
    "diverged",
    "failed",
    "lost",
    "p_lost",
    "p_lost_holm",
    "probability_better",
)
DIFFERENCE = (
    "difference",
    "difference_low",
    "difference_high",
    "difference_level",
    "bootstrap_low",
    "bootstrap_high",
    "effect_size",
    "pairs",
    "pairs_asked",
    "wins",
    "p",
    "p_adjusted",
    "p_sign_flip",
    "p_sign_flip_adjusted",
    "p_equivalence",
    "p_equivalence_adjusted",
    "smallest_effect",
    "seeds_to_see",
    "seeds_to_equate",
    "verdict",
)
BUDGET = ("steps", "tokens", "seconds", "parameters", "flops")


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and table.tex into `folder`, each atomically, and returns the files. Raises CannotWrite."""
    texts = {"csv": to_csv(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    files = {folder / f"table.{suffix}": text for suffix, text in texts.items()}
    for path, text in files.items():
        write_text(path, text, durable=False)
    return list(files)


def to_csv(comparison: Comparison) -> str:
    """Every cell with all its figures at full precision, the mean of every other metric and its value by seed; empty where there is none.

    The columns after `outcome` are fields of CellSummary and Difference; seeds that would be needed are empty beyond power.MOST_SEEDS, too.
    """
    study = comparison.study
    others = [name for name in study.metrics if comparison.metric is None or name != comparison.metric.name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    seeds = [f"seed={seed}" for seed in study.seeds]
    writer.writerow(
        [
            "cell",
            *study.varying,
            *COLUMNS,
            *DIFFERENCE,
            *BUDGET,
            *seeds,
            *(f"mean {name}" for name in others),
            *_sentences(comparison),
        ]
    )
    for cell in comparison.cells:
        choices = [cell.cell.choices.get(name, "") for name in study.varying]
        by_seed = [_exact(cell.values.get(seed)) for seed in study.seeds]
        means = [_mean(study.values(cell.cell.name, name)) for name in others]
        budget = [_exact(getattr(cell.budget, name)) for name in BUDGET]
        metric = comparison.metric.name if comparison.metric else ""
        writer.writerow(
            [
                cell.cell.name,
                *choices,
                metric,
                *_figures(cell),
                *_difference(cell),
                *budget,
                *by_seed,
                *means,
                *(_exact(of.get(cell.label)) for of in _sentences(comparison).values()),
            ]
        )
    return out.getvalue()


def _sentences(comparison: Comparison) -> dict[str, dict[str, float]]:
    """{column: {label: figure}} of the resampled test sentences, by score and seed; {} where they were not asked for."""
    found = comparison.sentences.differences if comparison.sentences else []
    columns: dict[str, dict[str, float]] = {}
    for one in found:
        for seed in one.p_values:
            columns.setdefault(f"{one.score}_difference seed={seed}", {})[one.label] = one.differences[seed]
            columns.setdefault(f"p_{one.score}_sentences seed={seed}", {})[one.label] = one.p_values[seed]
    return columns


def _mean(values: dict[int, float]) -> str:
    return _exact(sum(values.values()) / len(values)) if values else ""


def _exact(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.10g}"


def _figures(cell: CellSummary) -> list[str]:
    interval = cell.interval
    means = [_exact(getattr(interval, key)) if interval else "" for key in ("mean", "low", "high")]
    places = [str(place) for place in cell.places] if cell.places else ["", ""]
    counts = [str(cell.states.get(state, 0)) for state in ("finished", "diverged", "failed")]
    return [
        *means,
        str(len(cell.values)),
        _exact(interval.deviation if interval else None),
        *places,
        cell.outcome,
        cell.reason,
        *counts,
        str(cell.n_lost),
        *(_exact(p) for p in ((cell.lost.p, cell.lost.p_holm) if cell.lost else (None, None))),
        _exact(cell.probability_better),
    ]


def _difference(cell: CellSummary) -> list[str]:
    found = cell.difference
    if found is None:
        return ["baseline" if cell.is_baseline and name == "verdict" else "" for name in DIFFERENCE]
    interval, drawn = found.interval, found.bootstrap
    figures = [interval.mean, interval.low, interval.high, interval.level, drawn.low, drawn.high, found.effect_size]
    tests = [found.p, found.p_adjusted, found.p_sign_flip, found.p_sign_flip_adjusted]
    tests += [found.p_equivalence, found.p_equivalence_adjusted]
    seeds = [found.smallest_effect, found.seeds_to_see, found.seeds_to_equate]
    return [
        *(_exact(number) for number in (*figures, found.n, found.contrast.asked, found.wins, *tests, *seeds)),
        found.verdict,
    ]


def _rows(comparison: Comparison) -> list[list[str]]:
    """The readable table: a header and one row a cell."""
    metric = comparison.metric
    header = [
        "cell",
        f"{metric.name if metric else 'value'} (95% interval)",
        "n",
        "place",
        "difference",
        "effect size (g_z)",
        "wins",
        "P(better)",
        "p (adjusted)",
        "p (sign flip, adjusted)",
        "verdict",
    ]
    measured = comparison.measured
    decimals = wording.decimals_for(cell.interval for cell in measured)
    apart = wording.decimals_for(cell.difference.interval for cell in measured if cell.difference)
    rest = [cell for cell in comparison.cells if cell.interval is None]
    return [header, *(_row(cell, decimals, apart) for cell in [*measured, *rest])]


def _row(cell: CellSummary, decimals: int, apart: int) -> list[str]:
    value = wording.interval_text(cell.interval, decimals) if cell.interval else wording.outcome_text(cell)
    start = [cell.label, value, str(len(cell.values)), wording.place_text(cell.places)]
    found = cell.difference
    lost = wording.lost_text(cell) if cell.interval else ""
    if found is None:
        return [*start, "baseline" if cell.is_baseline else "-", *[""] * 5, lost]
    verdict = wording.verdict_text(found)
    p_values = [wording.p_text(found.p_adjusted), wording.p_text(found.p_sign_flip_adjusted)]
    return [
        *start,
        wording.interval_text(found.interval, apart, sign=True),
        wording.number(found.effect_size, 1, sign=True),
        wording.wins_text(found),
        wording.number(cell.probability_better, 2),
        *p_values,
        verdict,
    ]


def to_markdown(comparison: Comparison) -> str:
    """The table of cells in GitHub's Markdown, with its caveats below."""
    header, *rows = [[_markdown(text) for text in row] for row in _rows(comparison)]
    lines = [header, ["---", *["---:"] * (len(header) - 2), "---"], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(_markdown(caveat) for caveat in comparison.caveats)]) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<>`])", r"\\\1", text).replace("\n", " ")


def to_latex(comparison: Comparison) -> str:
    """The table of cells as a booktabs tabular."""
    header, *rows = [[_latex(text) for text in row] for row in _rows(comparison)]
    columns = f"l{'r' * (len(header) - 2)}l"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", f"{' & '.join(header)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text.replace("\n", " "))
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
