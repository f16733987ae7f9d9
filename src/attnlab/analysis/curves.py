"""Learning curves: every run's metrics.jsonl as one frame, of which only what has changed is read again.

A file is read from where it was left while it only grows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from attnlab.analysis.kept_files import Stamp, is_unchanged, stamp_of
from attnlab.analysis.metric_lines import AXES, HEAD, Part, one_row_a_step, parts_of
from attnlab.training.run_directory import METRICS, open_to_read

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
    """Some rows of a frame."""

    frame: pl.DataFrame
    start: int
    height: int


@dataclass
class Place:
    """How far a file has been read, and where its rows are in the frame."""

    stamp: Stamp | None = None
    offset: int = 0
    checked: bytes = b""  # the last bytes before `offset`: a file that was written anew has others there
    start: int = 0
    height: int = 0


class Curves:
    """The curves of a study's runs."""

    def __init__(self) -> None:
        self._places: dict[Key, Place] = {}
        self._frame = _empty()

    def read(self, keys: Iterable[Key]) -> pl.DataFrame:
        """The curves now, sorted by cell, seed and step: columns cell, seed, step, tokens, seconds, and one a metric that has a finite value.

        A line that is torn or no JSON is left out; of a step that was repeated after a resume the last value wins. The same frame while
        nothing has changed.
        """
        places = {key: self._places.get(key, Place()) for key in sorted(keys)}
        pieces = [piece for key, place in places.items() if (piece := _news(key, place))]
        if pieces or list(places) != list(self._places):
            before, self._places = self._frame, {}  # an interrupt from here on would leave both at odds
            self._frame = _joined(before, places, pieces)
            self._places = places
        return self._frame


def _joined(kept: pl.DataFrame, places: Mapping[Key, Place], pieces: Sequence[Piece]) -> pl.DataFrame:
    """The kept rows of unchanged runs and the new ones of the others, in order; neighbours are taken as one slice."""
    fresh = {key: rows for batch in _batches(pieces) for key, rows in _fresh(kept, places, batch).items()}
    slices: list[Rows] = []
    total = 0
    for key, place in places.items():
        rows = fresh.get(key, Rows(kept, place.start, place.height))
        place.start, place.height = total, rows.height
        total += rows.height
        last = slices[-1] if slices else None
        if last and last.frame is rows.frame and last.start + last.height == rows.start:
            slices[-1] = Rows(last.frame, last.start, last.height + rows.height)
        elif rows.height:
            slices.append(rows)
    parts = [rows.frame.slice(rows.start, rows.height) for rows in slices]
    return _tidy(pl.concat(parts, how="diagonal", rechunk=False) if parts else _empty())


def _fresh(kept: pl.DataFrame, places: Mapping[Key, Place], batch: Sequence[Piece]) -> dict[Key, Rows]:
    """The rows that the runs of a batch now have."""
    own = [(places[piece.key].start, places[piece.key].height if piece.follows else 0) for piece in batch]
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


def _news(key: Key, place: Place) -> Piece | None:
    """What is new in a run's metrics.jsonl, None where nothing is; notes in `place` how far it is read."""
    path = f"{key[2]}/{METRICS}"
    stamp = stamp_of(path)
    if is_unchanged(place.stamp, stamp):
        return None
    before, place.stamp = place.stamp, stamp
    try:
        with open_to_read(path) as file:
            follows = before is not None and before.inode == os.fstat(file.fileno()).st_ino and place.offset > 0
            if follows:
                file.seek(place.offset - len(place.checked))
                follows = file.read(len(place.checked)) == place.checked
            if not follows:
                file.seek(0)
            data = file.read()
    except OSError:
        follows, data, place.stamp = False, b"", None
    lines = data[: data.rfind(b"\n") + 1]
    if follows and not lines:
        return None
    nothing_before = place.offset == 0
    place.offset = (place.offset if follows else 0) + len(lines)
    place.checked = ((place.checked if follows else b"") + lines)[-CHECKED_BYTES:]
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
