"""Learning curves: every run's metrics.jsonl as one frame with a row a run and step, of which only what has changed is
read again.

A file is read from where it was left while it only grows. Lines that are alike are parsed together, each kind with the
fields that it has: a frame of all fields for every line would be mostly empty, and several times slower to fill.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from attnlab.analysis.file_cache import Stamp, is_unchanged, printable, stamp_of
from attnlab.training.run_directory import METRICS, open_to_read
from attnlab.training.study_fields import is_finite

AXES = ("step", "tokens", "seconds")
HEAD = ("cell", "seed", *AXES)
FEW_LINES = 64
BATCH_BYTES = 64_000_000
CHECKED_BYTES = 4096
MOST_CHUNKS = 64

Key = tuple[str, int, str]  # a run's cell, seed and directory


class Piece(NamedTuple):
    """New lines of one run: all that there are, or, where `follows`, those after what is kept of it."""

    key: Key
    lines: bytes
    follows: bool


class Rows(NamedTuple):
    """Which rows of a frame are one run's."""

    frame: pl.DataFrame
    start: int
    height: int


@dataclass
class Progress:
    """How far a file has been read, and where its rows are in the frame."""

    stamp: Stamp | None = None
    offset: int = 0
    checked: bytes = b""  # the last bytes before `offset`: a file that was written anew has others there
    start: int = 0
    height: int = 0


class Curves:
    """The metrics of many runs by step, read on from where the last reading ended."""

    def __init__(self) -> None:
        self._known: dict[Key, Progress] = {}
        self._frame = _empty()

    def read(self, keys: Iterable[Key]) -> pl.DataFrame:
        """The curves now, sorted by cell, seed and step: columns cell, seed, step, tokens, seconds, and one a metric
        that has a finite value.

        A line that is torn or no JSON is left out; of a step that was repeated after a resume the last value wins. The
        same frame while nothing has changed.
        """
        known = {key: self._known.get(key, Progress()) for key in sorted(keys)}
        pieces = [piece for key, progress in known.items() if (piece := _news(key, progress))]
        if pieces or list(known) != list(self._known):
            before, self._known = self._frame, {}  # an interrupt from here on would leave both at odds
            self._frame = _joined(before, known, pieces)
            self._known = known
        return self._frame


def _joined(kept: pl.DataFrame, known: Mapping[Key, Progress], pieces: Sequence[Piece]) -> pl.DataFrame:
    """The kept rows of unchanged runs and the new ones of the others, in order; neighbours are taken as one slice."""
    fresh = {key: rows for batch in _batches(pieces) for key, rows in _fresh(kept, known, batch).items()}
    slices: list[Rows] = []
    total = 0
    for key, progress in known.items():
        rows = fresh.get(key, Rows(kept, progress.start, progress.height))
        progress.start, progress.height = total, rows.height
        total += rows.height
        last = slices[-1] if slices else None
        if last and last.frame is rows.frame and last.start + last.height == rows.start:
            slices[-1] = Rows(last.frame, last.start, last.height + rows.height)
        elif rows.height:
            slices.append(rows)
    parts = [rows.frame.slice(rows.start, rows.height) for rows in slices]
    return _tidy(pl.concat(parts, how="diagonal", rechunk=False) if parts else _empty())


def _fresh(kept: pl.DataFrame, known: Mapping[Key, Progress], batch: Sequence[Piece]) -> dict[Key, Rows]:
    own = [(known[piece.key].start, known[piece.key].height if piece.follows else 0) for piece in batch]
    before = _kept_part([kept.slice(start, height) for start, height in own])
    new = parts_of([piece.lines for piece in batch])
    frame, heights = one_row_a_step([*before, *new], [piece.key[:2] for piece in batch])
    ends = np.cumsum(heights).tolist()
    return {
        piece.key: Rows(frame, end - height, height)
        for piece, end, height in zip(batch, ends, heights.tolist(), strict=True)
    }


def _empty() -> pl.DataFrame:
    return pl.DataFrame(schema={"cell": pl.String, "seed": pl.Int64, **dict.fromkeys(AXES, pl.Float64)})


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """Metrics without a value are no columns, and the order of columns does not depend on who was read first."""
    metrics = sorted(name for name in frame.columns if name not in HEAD and frame[name].null_count() < frame.height)
    tidy = frame.select(*HEAD, *metrics)
    return tidy.rechunk() if tidy.n_chunks() > MOST_CHUNKS else tidy


def _news(key: Key, progress: Progress) -> Piece | None:
    """What is new in a run's metrics.jsonl, None where nothing is; notes in `progress` how far it is read."""
    path = f"{key[2]}/{METRICS}"
    stamp = stamp_of(path)
    if is_unchanged(progress.stamp, stamp):
        return None
    before, progress.stamp = progress.stamp, stamp
    try:
        with open_to_read(path) as file:
            follows = before is not None and before.inode == os.fstat(file.fileno()).st_ino and progress.offset > 0
            if follows:
                file.seek(progress.offset - len(progress.checked))
                follows = file.read(len(progress.checked)) == progress.checked
            if not follows:
                file.seek(0)
            data = file.read()
    except OSError:
        follows, data, progress.stamp = False, b"", None
    lines = data[: data.rfind(b"\n") + 1]
    if follows and not lines:
        return None
    nothing_before = progress.offset == 0
    progress.offset = (progress.offset if follows else 0) + len(lines)
    progress.checked = ((progress.checked if follows else b"") + lines)[-CHECKED_BYTES:]
    return None if nothing_before and not lines else Piece(key, lines, follows)


def _batches(pieces: Iterable[Piece]) -> Iterable[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + len(piece.lines) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.lines)
    if batch:
        yield batch


def _kept_part(frames: Sequence[pl.DataFrame]) -> list[Part]:
    """The kept rows of runs that go on; any new line is later than they are."""
    heights = [frame.height for frame in frames]
    if not any(heights):
        return []
    rows = pl.concat(frames).drop("cell", "seed")
    run = np.repeat(np.arange(len(frames)), heights)
    return [Part(run, np.full(rows.height, -1), {name: rows[name].to_numpy() for name in rows.columns})]


@dataclass
class Part:
    """Rows of one kind: their run's number, their line's number (a later line wins), and their values."""

    run: np.ndarray
    line: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)


def parts_of(texts: Sequence[bytes]) -> list[Part]:
    """The lines of runs by kind; how many quotation marks a line has tells one kind from another well enough."""
    lines = b"".join(texts).split(b"\n")[:-1]
    run = np.repeat(np.arange(len(texts)), [text.count(b"\n") for text in texts])
    marks = np.array([line.count(b'"') for line in lines], dtype=np.int64)
    parts = []
    for kind in np.unique(marks).tolist():
        where = np.flatnonzero(marks == kind)
        for start, frame in _frames([lines[i] for i in where.tolist()], kind):
            numbers = where[start : start + frame.height]
            values = {name: frame[name].to_numpy() for name in frame.columns}
            there = np.isfinite(values["step"])
            values = {name: column[there] for name, column in values.items()}
            parts.append(Part(run[numbers][there], numbers[there], values))
    return parts


def _frames(lines: Sequence[bytes], marks: int, start: int = 0) -> Iterable[tuple[int, pl.DataFrame]]:
    """Frames with a row a line, and the number of their first line; what cannot be parsed at once is halved."""
    data = b"\n".join(lines)
    frame = _of_one_kind(data, lines[0], marks)
    if frame is None:
        frame = _of_any_kind(data, len(lines))
    if frame is None and len(lines) <= FEW_LINES:
        frame = _line_by_line(lines)
    if frame is not None:
        yield start, frame
        return
    half = len(lines) // 2
    yield from _frames(lines[:half], marks, start)
    yield from _frames(lines[half:], marks, start + half)


def _of_one_kind(data: bytes, first: bytes, marks: int) -> pl.DataFrame | None:
    """Parsed with the fields of the first line, in half the time; None unless each line is sure to have these and no
    others.

    It is sure where no field of any line is null and `marks` are as many quotation marks as so many names have.
    """
    entry = _entry(first)
    values = entry.pop("values", None)
    if not isinstance(values, dict) or not values or marks != 2 * (len(entry) + 1 + len(values)):
        return None
    if not entry.keys() >= set(AXES) or values.keys() & {*HEAD}:
        return None
    schema: dict[str, Any] = {
        **dict.fromkeys(entry, pl.Float64),
        "values": pl.Struct(dict.fromkeys(values, pl.Float64)),
    }
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=schema)
        flat = frame.select(*AXES, pl.col("values").struct.unnest())
    except (pl.exceptions.PolarsError, ValueError):
        return None
    whole = frame.height == data.count(b"\n") + 1 and not any(column.null_count() for column in (*frame, *flat))
    return flat if whole else None


def _of_any_kind(data: bytes, height: int) -> pl.DataFrame | None:
    """Parsed with the fields of all lines; None where a line has no object in it, or something that is no number."""
    try:
        frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        if frame.height != height or not isinstance(frame.schema.get("values"), pl.Struct):
            return None
        axes = [name if name in frame.columns else pl.lit(None, pl.Float64).alias(name) for name in AXES]
        values = frame["values"].struct.unnest()
        if set(values.columns) & {*HEAD}:
            return None
        flat = frame.select(axes).hstack(values)
        if not all(dtype.is_numeric() or dtype == pl.Null for dtype in flat.dtypes):
            return None
        return flat.cast(pl.Float64)
    except (pl.exceptions.PolarsError, ValueError):
        return None


def _line_by_line(lines: Sequence[bytes]) -> pl.DataFrame:
    """The slow way, which takes from each line what there is: a line without a step is a row of nulls."""
    rows = []
    for entry in map(_entry, lines):
        axes = {axis: entry.get(axis) for axis in AXES}
        if is_finite(axes["step"]) and all(is_finite(value) or value is None for value in axes.values()):
            found = entry.get("values")
            numbers = (
                {printable(k): float(v) for k, v in found.items() if is_finite(v)} if isinstance(found, dict) else {}
            )
            rows.append({**{k: v for k, v in numbers.items() if k not in HEAD}, **axes})
        else:
            rows.append({})
    names = dict.fromkeys([*AXES, *(name for row in rows for name in row)])
    return pl.DataFrame({name: pl.Series([row.get(name) for row in rows], dtype=pl.Float64) for name in names})


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def one_row_a_step(parts: Sequence[Part], labels: Sequence[tuple[str, int]]) -> tuple[pl.DataFrame, np.ndarray]:
    """One row a run and step, in order, with the last value of each column; and how many rows each run has.

    labels: cell and seed of each run.
    """
    run = np.concatenate([part.run for part in parts]) if parts else np.zeros(0, dtype=np.int64)
    step = np.concatenate([part.values["step"] for part in parts]) if parts else np.zeros(0)
    order = np.lexsort((step, run))
    is_new = np.ones(run.size, dtype=bool)
    is_new[1:] = (np.diff(run[order]) != 0) | (np.diff(step[order]) != 0)
    row = np.empty(run.size, dtype=np.int64)
    row[order] = np.cumsum(is_new) - 1
    heights = np.bincount(run[order][is_new], minlength=len(labels))
    rows = np.split(row, np.cumsum([part.run.size for part in parts])[:-1]) if parts else []
    columns = []
    for name in dict.fromkeys([*AXES, *(name for part in parts for name in part.values)]):
        own = [(part, at) for part, at in zip(parts, rows, strict=True) if name in part.values]
        columns.append(pl.Series(name, _last_values(own, name, int(heights.sum())), nan_to_null=True))
    index = pl.DataFrame(
        {"cell": [cell for cell, _ in labels], "seed": [seed for _, seed in labels]},
        schema={"cell": pl.String, "seed": pl.Int64},
    )
    return index[np.repeat(np.arange(len(labels)), heights)].hstack(columns), heights


def _last_values(parts: Sequence[tuple[Part, np.ndarray]], name: str, height: int) -> np.ndarray:
    column = np.full(height, np.nan)
    if not parts:
        return column
    values = np.concatenate([part.values[name] for part, _ in parts])
    rows = np.concatenate([at for _, at in parts])
    if len(parts) > 1:
        by_line = np.argsort(np.concatenate([part.line for part, _ in parts]), kind="stable")
        values, rows = values[by_line], rows[by_line]
    known = np.isfinite(values)
    column[rows[known]] = values[known]
    return column
