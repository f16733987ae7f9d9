"""Tables whose columns have names, in files that nobody typed: .csv, .tsv, .jsonl."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnlab.data.cache import DataError
from attnlab.data.readers import read_text

TABLES = (".csv", ".tsv", ".jsonl")


def records(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table with their places in words. columns: those that have to be there, by the fields that say
    them. Raises DataError.
    """
    rows = _of_jsonl(path) if path.suffix.lower() == ".jsonl" else _of_columns(path)
    for place, row in rows:
        for name, column in columns.items():
            if column not in row:
                raise DataError(
                    f"{place} has no column {column!r} (data.source.{name}); it has: {', '.join(map(str, row))}"
                )
        yield place, row


def _of_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        place = f"line {number:,} of {path}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place} is no JSON ({error}); accepted: an object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{place} is no object of JSON; accepted: an object a line")
        yield place, row


def _of_columns(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"  # where a quote is a letter like any other
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **style)
    names: list[str] = []
    try:
        for cells in reader:
            place = f"line {reader.line_num:,} of {path}"
            if not any(cell.strip() for cell in cells):
                continue
            if names and len(cells) != len(names):
                accepted = f"{len(names)} as in line 1 ({', '.join(names)})"
                raise DataError(f"{place} has {len(cells)} columns; accepted: {accepted}")
            if names:
                yield place, dict(zip(names, cells, strict=True))
            else:
                names = [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"line {reader.line_num:,} of {path} cannot be read ({error}); mend its quotes") from error
