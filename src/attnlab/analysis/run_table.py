"""Every run with its value and its directory: where each figure of a comparison comes from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.reader import Run, natural

COUNTS = ("step", "max_steps", "tokens", "seconds")


def runs_to_csv(comparison: Comparison) -> str:
    """One row a run: its cell, choices, seed, state, counts, error, directory and every final value at full precision; empty where there is none."""
    study = comparison.study
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["cell", *study.varying, "seed", "state", *COUNTS, "error", "directory", *study.metrics])
    choices = {cell.name: [cell.choices.get(name, "") for name in study.varying] for cell in study.cells}
    for run in _in_order(comparison):
        counts = [run.status.get(name, "") for name in COUNTS]
        finals = [repr(run.final[name]) if name in run.final else "" for name in study.metrics]
        writer.writerow(
            [run.cell, *choices[run.cell], run.seed, run.state, *counts, run.error or "", run.directory, *finals]
        )
    return out.getvalue()


def runs_to_text(comparison: Comparison) -> str:
    """The same in aligned columns, with the primary metric alone."""
    metric = comparison.metric.name if comparison.metric else ""
    rows = [["cell", "seed", "state", metric, "directory"]]
    for run in _in_order(comparison):
        value = run.final.get(metric, math.nan)
        figure = "-" if math.isnan(value) else f"{value:.7g}"
        rows.append([run.cell, str(run.seed), run.state, figure, str(run.directory)])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _in_order(comparison: Comparison) -> list[Run]:
    """As the plan names the cells, then by seed."""
    place = {cell.name: number for number, cell in enumerate(comparison.study.cells)}
    runs = comparison.study.runs.values()
    return sorted(runs, key=lambda run: (place[run.cell], natural(run.cell), run.seed))
