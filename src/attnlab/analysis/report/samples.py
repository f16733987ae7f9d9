"""What runs left of what their models give (outputs/samples.json) and attend to (outputs/attention.png), of one run a cell, within a budget of size."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.reader import Run
from attnlab.analysis.report.run_data import path_of
from attnlab.training.media import ATTENTION, OUTPUTS, SAMPLES
from attnlab.training.run_directory import open_to_read

MOST_CHARACTERS = 3_000_000  # of all samples together, and as many of all pictures
MOST_OF_TEXT, LARGEST_FILE = 2_000, 4_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def sample_data(comparison: Comparison) -> list[dict[str, Any]]:
    """
    One entry a cell that has any: {cell, run, seed, split, columns, rows, left, attention, caption}.

    A value of a row is text, a number or {"png": base64}; `left` counts the rows that were left out to keep the page small.
    """
    found = [entry for cell in comparison.cells if (entry := _of_cell(comparison, cell.cell.name, cell.label))]
    for entry in found:
        _cut(entry, MOST_CHARACTERS // len(found))
        if len(entry.get("attention", "")) > MOST_CHARACTERS // len(found):
            del entry["attention"]
    return [entry for entry in found if entry["rows"] or entry.get("attention")]


def _of_cell(comparison: Comparison, cell: str, label: str) -> dict[str, Any] | None:
    """Of the cell's first run that left something."""
    for run in comparison.study.runs_of(cell):
        table, picture = _table(run.directory), _picture(run.directory)
        if table or picture:
            return {"cell": label, **_place(run), **(table or {"columns": [], "rows": []}), **(picture or {})}
    return None


def _place(run: Run) -> dict[str, Any]:
    return {"run": path_of(run), "seed": run.seed}


def _table(directory: Path) -> dict[str, Any] | None:
    found = _read(directory)
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("columns"), list)
        or not isinstance(found.get("rows"), list)
    ):
        return None
    columns = [str(column) for column in found["columns"]]
    rows = [
        [_value(value) for value in row] for row in found["rows"] if isinstance(row, list) and len(row) == len(columns)
    ]
    return {"split": str(found.get("split", "")), "columns": columns, "rows": rows, "left": 0} if rows else None


def _read(directory: Path) -> Any:
    """outputs/samples.json; None where it is not there, is no JSON, or is far larger than runs leave it."""
    try:
        return json.loads(_content(directory, SAMPLES) or "null")
    except ValueError:
        return None


def _content(directory: Path, name: str) -> bytes:
    """One of a run's outputs; empty where it is not there, or is far larger than runs leave it."""
    try:
        with open_to_read(directory / OUTPUTS / name, within=directory) as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError:
        return b""
    return content if len(content) <= LARGEST_FILE else b""


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {"png": value["png"]} if _is_png(value.get("png")) else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = "" if value is None else str(value)
    return text if len(text) <= MOST_OF_TEXT else f"{text[:MOST_OF_TEXT]}\u2026"


def _is_png(text: Any) -> bool:
    try:
        return isinstance(text, str) and base64.b64decode(text, validate=True).startswith(PNG)
    except ValueError:
        return False


def _picture(directory: Path) -> dict[str, Any] | None:
    data = _content(directory, ATTENTION)
    told = _read(directory)
    caption = str(told.get("attention") or "") if isinstance(told, dict) else ""
    return {"attention": base64.b64encode(data).decode(), "caption": caption} if data.startswith(PNG) else None


def _cut(entry: dict[str, Any], most: int) -> None:
    """Takes rows off the end until the rest fits; the first stays where it alone fits."""
    rows: Sequence[Any] = entry["rows"]
    size, fitting = 0, 0
    for row in rows:
        size += len(json.dumps(row, ensure_ascii=False))
        if size > most:
            break
        fitting += 1
    entry["left"] = len(rows) - fitting
    entry["rows"] = list(rows[:fitting])
