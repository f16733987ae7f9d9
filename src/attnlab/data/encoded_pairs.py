"""Sentence pairs as rows of tokens, kept on disk and put into batches. Shapes: N pairs, B batch, S source length, T target length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from attnlab.data.marks import Marks
from attnlab.data.pairs import Pairs
from attnlab.data.rows import RowsInTheMaking, TokenRows, mapped
from attnlab.data.vocabulary import Vocabulary, framed, num_marks


@dataclass
class EncodedPairs:
    """
    One split: token rows of sources (with marks) and targets (without the last one), what was left out, and how to read the sentences.

    places: of each pair among those that were read.
    """

    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    read: Callable[[], Pairs]
    counts: dict[str, int] = field(default_factory=dict)
    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def texts(self) -> Pairs:
        """The sentences; those to train on are read when somebody asks for them, for they may be millions."""
        return self.read()

    @property
    def lengths(self) -> np.ndarray:
        """(N, 2): positions that a source and a target take in a batch."""
        sources_N, targets_N = (lengths_of(rows) for rows in (self.sources, self.targets))
        return np.stack([sources_N, targets_N + 1], axis=1)

    def save(self, folder: Path) -> None:
        """Writes all but the sentences."""
        assert isinstance(self.sources, TokenRows)
        assert isinstance(self.targets, TokenRows)
        self.sources.save(folder, "sources")
        self.targets.save(folder, "targets")
        np.save(folder / "places.npy", self.places)
        (folder / "counts.json").write_text(json.dumps(self.counts))

    @classmethod
    def load(cls, folder: Path, read: Callable[[np.ndarray], Pairs]) -> EncodedPairs:
        """What `save` wrote, mapped from disk. read: gives the sentences at places."""
        sources, targets = TokenRows.load(folder, "sources"), TokenRows.load(folder, "targets")
        places, counts = mapped(folder / "places.npy"), json.loads((folder / "counts.json").read_text())
        return cls(sources, targets, lambda: read(places), counts, places)


def encode_pairs(
    texts: Pairs, vocabularies: tuple[Vocabulary, Vocabulary], max_length: int, targets_too: bool, drop: bool
) -> EncodedPairs:
    """
    Texts as rows of at most `max_length` tokens, by the vocabularies of sources and targets.

    A longer pair is dropped or cut; where not targets_too, targets may be of any length.
    """
    source_vocabulary, vocabulary = vocabularies
    sources, targets = RowsInTheMaking(source_vocabulary.size), RowsInTheMaking(vocabulary.size)
    places: list[int] = []
    source_marks, target_marks = source_vocabulary.marks.source, vocabulary.marks.target
    before_end = (target_marks[0], target_marks[1][:-1])  # the end itself is put there with each batch
    dropped = cut = 0
    for place, (source, target) in enumerate(zip(texts.sources, texts.targets, strict=True)):
        source_S, target_T = source_vocabulary.encode_text(source), vocabulary.encode_text(target)
        limit = max_length - num_marks(source_marks)
        target_limit = max_length - num_marks(target_marks) if targets_too else len(target_T)
        long = len(source_S) > limit or len(target_T) > target_limit
        if long and drop:
            dropped += 1
            continue
        cut += long
        sources.add(framed(source_marks, source_S[:limit]))
        targets.add(framed(before_end, target_T[:target_limit]))
        places.append(place)
    counts = {"too long": dropped, "cut": cut}
    kept = np.array(places, dtype=np.int64)
    return EncodedPairs(sources.done(), targets.done(), lambda: chosen(texts, kept), counts, kept)


def lengths_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The tokens of each row (N,)."""
    return rows.lengths_R if isinstance(rows, TokenRows) else np.array([len(row) for row in rows], dtype=np.int64)


def chosen(texts: Pairs, places: np.ndarray) -> Pairs:
    """The sentences at these places."""
    return Pairs([texts.sources[place] for place in places], [texts.targets[place] for place in places])


def collate(pairs: EncodedPairs, marks: Marks, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
    """Pairs as one batch: source (B, S), is_source, target_in (B, T) from its start, target_out to its end, is_target, ids (B,)."""
    sources, targets = [pairs.sources[row] for row in rows_B], [pairs.targets[row] for row in rows_B]
    start, end = marks.need("target_start"), marks.need("end")
    source_BS = np.full((len(rows_B), max(map(len, sources))), marks.filler)
    in_BT = np.full((len(rows_B), max(map(len, targets)) + 1), marks.filler)
    out_BT = in_BT.copy()
    is_source_BS, is_target_BT = np.zeros_like(source_BS, dtype=bool), np.zeros_like(in_BT, dtype=bool)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        source_BS[row, : len(source)], is_source_BS[row, : len(source)] = source, True
        in_BT[row, 0], in_BT[row, 1 : len(target) + 1] = start, target
        out_BT[row, : len(target)], out_BT[row, len(target)] = target, end
        is_target_BT[row, : len(target) + 1] = True
    batch = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": rows_B.astype(np.int64)}
    batch |= {"is_source": is_source_BS, "is_target": is_target_BT}
    return {name: torch.from_numpy(array) for name, array in batch.items()}
