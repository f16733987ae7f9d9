"""Rows of tokens of unequal lengths as one array each: a few bytes a token, and mapped from disk where they are kept there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

TOGETHER = 10_000  # rows that are joined at once


class TokenRows(Sequence[np.ndarray]):
    """R rows out of all their tokens (N,), one after the other, and the place (R,) at which each ends."""

    def __init__(self, tokens_N: np.ndarray, ends_R: np.ndarray) -> None:
        self.tokens_N, self.ends_R = tokens_N, ends_R

    def __len__(self) -> int:
        return len(self.ends_R)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # one row at a time
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        start = int(self.ends_R[row - 1]) if row else 0
        return self.tokens_N[start : int(self.ends_R[row])]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths_R(self) -> np.ndarray:
        """The tokens of each row."""
        return np.diff(self.ends_R, prepend=0)

    def save(self, folder: Path, name: str) -> None:
        """Writes NAME.npy and NAME_ends.npy."""
        np.save(folder / f"{name}.npy", self.tokens_N)
        np.save(folder / f"{name}_ends.npy", self.ends_R)

    @classmethod
    def load(cls, folder: Path, name: str) -> TokenRows:
        """Maps what `save` wrote."""
        return cls(mapped(folder / f"{name}.npy"), mapped(folder / f"{name}_ends.npy"))


class RowsInTheMaking:
    """Takes rows one by one; vocabulary_size decides how many bytes a token needs."""

    def __init__(self, vocabulary_size: int) -> None:
        self.kind = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
        self._waiting: list[np.ndarray] = []
        self._joined: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def add(self, row: np.ndarray) -> None:
        """One more row."""
        self._waiting.append(row)
        if len(self._waiting) == TOGETHER:
            self._join()

    def done(self) -> TokenRows:
        """All rows."""
        self._join()
        return TokenRows(np.concatenate(self._joined), np.concatenate(self._lengths).cumsum())

    def _join(self) -> None:
        self._joined.append(np.concatenate([np.empty(0, self.kind), *self._waiting], dtype=self.kind, casting="unsafe"))
        self._lengths.append(np.array([len(row) for row in self._waiting], dtype=np.int64))
        self._waiting = []


def mapped(path: Path) -> np.ndarray:
    """An array on disk, which is read where it is looked at; one without elements cannot be mapped and is loaded."""
    array: np.ndarray = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
    return array
