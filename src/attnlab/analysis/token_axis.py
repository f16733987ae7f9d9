"""The tokens, or patches, along one side of an attention map, and how they are shown. Legend: N tokens."""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.data.marks import PURPOSES, Marks
from attnlab.data.vocabulary import Vocabulary

SHOWN = str.maketrans({" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5"})  # blank, line end and tabulator, made visible


@dataclass(frozen=True)
class Axis:
    """
    Labels to show, token numbers (N,), which tokens are marks (N,), and the characters of the text that each is of, (N, 2); -1 for marks.

    Of an image: numbers are all different, `before` tokens stand before the patches, and `grid` has their rows and columns.
    """

    labels: list[str]
    numbers_N: np.ndarray
    is_mark_N: np.ndarray
    places_N2: np.ndarray
    grid: tuple[int, int] | None = None
    before: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def text_axis(
    text: str,
    tokens_N: np.ndarray,
    places_N2: np.ndarray,
    marks: Marks,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> Axis:
    """The tokens of a text, with the marks before and after it; places_N2: the characters that each token is of."""
    # A token of no character is the blank that some texts are read behind.
    pieces = _numbered([visible(text[start:end] or " ") for start, end in places_N2], places_N2)
    return _framed(pieces, tokens_N, places_N2.reshape(-1, 2), marks, before, after)


def output_axis(vocabulary: Vocabulary, tokens: Sequence[int], before: Sequence[int]) -> Axis:
    """Tokens that a model gave, which need not be those that their text is cut into; they have no places."""
    names = name_marks(vocabulary.marks)
    pieces = [names.get(token) or visible(vocabulary.decode([token])) for token in tokens]
    return _framed(pieces, np.array(tokens, np.int64), np.full((len(tokens), 2), -1), vocabulary.marks, before, ())


def _framed(
    pieces: list[str],
    tokens_N: np.ndarray,
    places_N2: np.ndarray,
    marks: Marks,
    before: Sequence[int],
    after: Sequence[int],
) -> Axis:
    """Tokens with the marks before and after them."""
    names = name_marks(marks)
    first, last = ([names.get(int(n), f"[{n}]") for n in side] for side in (before, after))
    numbers = np.concatenate([np.array(before, dtype=np.int64), tokens_N.astype(np.int64), np.array(after, np.int64)])
    outside = [np.full((len(side), 2), -1, dtype=np.int64) for side in (before, after)]
    places = np.concatenate([outside[0], places_N2.astype(np.int64), outside[1]])
    is_mark_N = np.array([True] * len(before) + [False] * len(pieces) + [True] * len(after), dtype=bool)
    return Axis([*first, *pieces, *last], numbers, is_mark_N, places)


def joined(first: Axis, second: Axis) -> Axis:
    """One axis after another; the second's characters belong to another text, so they are left out."""
    nowhere = np.full_like(second.places_N2, -1)
    return Axis(
        first.labels + second.labels,
        np.concatenate([first.numbers_N, second.numbers_N]),
        np.concatenate([first.is_mark_N, second.is_mark_N]),
        np.concatenate([first.places_N2, nowhere]),
    )


def patch_axis(grid: tuple[int, int], before: int, has_class: bool) -> Axis:
    """The tokens of an image: the class token and registers, then patches as row.column, from 1."""
    first = ["[class]"] * has_class + [f"[register {i + 1}]" for i in range(before - has_class)]
    patches = [f"{row + 1}.{column + 1}" for row in range(grid[0]) for column in range(grid[1])]
    count = len(first) + len(patches)
    places = np.full((count, 2), -1, dtype=np.int64)
    return Axis(first + patches, np.arange(count), np.arange(count) < before, places, grid, before)


def visible(piece: str) -> str:
    """A piece of text as a label: blanks, line ends and what has no picture of its own are made visible."""
    shown = "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn") else c for c in piece.translate(SHOWN)
    )
    return shown or "\u2205"


def name_marks(marks: Marks) -> dict[int, str]:
    """A name for the number of each mark."""
    names = {number: f"<extra_id_{index}>" for index, number in enumerate(marks.sentinels)}
    for purpose in reversed(PURPOSES):  # where one mark has several purposes, the first one names it
        number = getattr(marks, purpose)
        if number is not None:
            names[number] = f"[{purpose.replace('_', ' ')}]"
    return names


def _numbered(pieces: list[str], places_N2: np.ndarray) -> list[str]:
    """Tokens that share a character, its bytes being in several, told apart by a number."""
    labels, again = [], 1
    for index, piece in enumerate(pieces):
        shares = index > 0 and places_N2[index][0] < places_N2[index - 1][1]
        again = again + 1 if shares else 1
        labels.append(f"{piece}\u00b7{again}" if again > 1 else piece)
    return labels
