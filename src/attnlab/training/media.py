"""What a view of a run can show beside numbers: tables and pictures. Shapes: H rows, W columns, C channels, Y and X rows and columns of an image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlab.training.measures import parts_of

if TYPE_CHECKING:
    from PIL import Image

NUM_SAMPLES = 32  # rows of a table of samples
OUTPUTS, SAMPLES, ATTENTION = "outputs", "samples.json", "attention.png"  # what a run leaves to look at


@dataclass(frozen=True)
class Thumbnail:
    """A small image in a table, as the bytes of a PNG file."""

    png: bytes

    def __str__(self) -> str:
        """What stands for it where there is text alone."""
        return "(image)"


def thumbnail(pixels_CYX: np.ndarray, most: int = 48) -> Thumbnail:
    """Of an image in uint8 with one channel or three; one that is larger than `most` pixels a side is made smaller."""
    from PIL import Image

    image = Image.fromarray(pixels_CYX[0] if len(pixels_CYX) == 1 else np.moveaxis(pixels_CYX[:3], 0, -1))
    image.thumbnail((most, most))
    return Thumbnail(_png(image))


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True)
class Table:
    """Rows of plain values and thumbnails under the names of their columns."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def as_markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


@dataclass(frozen=True)
class Picture:
    """Grey levels (H, W), 0 to 255, and what they show."""

    pixels_HW: np.ndarray  # noqa: N815 - shape suffixes on fields, too
    caption: str = ""

    def as_png(self) -> bytes:
        """The bytes of a PNG file."""
        from PIL import Image

        return _png(Image.fromarray(self.pixels_HW))


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def restricted_figures(figures: Mapping[str, float]) -> dict[str, Table]:
    """
    The figures that are of a part of a split (test/nats@4x, test/bleu@6-10), as one table a split.

    A row is a restriction (a length, a task), a column a measure; what a row lacks is None.
    """
    tables = {}
    parts = {name: parts_of(name) for name in figures if "@" in name}
    for split in dict.fromkeys(split for split, _, _ in parts.values()):
        of_split = {(restriction, measure): figures[n] for n, (s, measure, restriction) in parts.items() if s == split}
        restrictions = dict.fromkeys(restriction for restriction, _ in of_split)
        measures = tuple(dict.fromkeys(measure for _, measure in of_split))
        rows = [(restriction, *(of_split.get((restriction, m)) for m in measures)) for restriction in restrictions]
        tables[f"{split}/by_part"] = Table(("part", *measures), rows)
    return tables
