"""
Pairs of a source and a target text: token rows kept on disk, and the Lightning data module of translation.

Shapes: N pairs, R rows, B batch, S source length, T target length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from attnlab.data.cache import cache_root, kept, key_of
from attnlab.data.module import Batch, padded, remarks_of
from attnlab.data.order import EvaluationLoader, batches_by_length, check_budget
from attnlab.data.pairs import Pairs, PairSource
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.token_data import TokenData, TokenSplit
from attnlab.data.tokenizers import Tokenizer, smallest_type
from attnlab.data.vocabulary import Vocabulary, placeholder_vocabulary
from attnlab.ranges import Ge, Seed, check_ranges

FORMAT = 3
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
        return np.diff(self.ends_R, prepend=0)

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}.npy", self.tokens_N)
        np.save(folder / f"{name}_ends.npy", self.ends_R)

    @classmethod
    def load(cls, folder: Path, name: str) -> TokenRows:
        return cls(mapped(folder / f"{name}.npy"), mapped(folder / f"{name}_ends.npy"))


class TokenRowsBuilder:
    """Takes rows one by one; vocabulary_size decides how many bytes a token needs."""

    def __init__(self, vocabulary_size: int) -> None:
        self.kind = smallest_type(vocabulary_size)
        self._waiting: list[np.ndarray] = []
        self._joined: list[np.ndarray] = [np.empty(0, self.kind)]
        self._lengths: list[int] = []

    def add(self, row: np.ndarray) -> None:
        self._waiting.append(row)
        self._lengths.append(len(row))
        if len(self._waiting) == TOGETHER:
            self._join()

    def done(self) -> TokenRows:
        self._join()
        return TokenRows(np.concatenate(self._joined), np.array(self._lengths, dtype=np.int64).cumsum())

    def _join(self) -> None:
        if self._waiting:
            self._joined.append(np.concatenate(self._waiting, dtype=self.kind, casting="unsafe"))
        self._waiting = []


def mapped(path: Path) -> np.ndarray:
    """An array on disk, read where it is looked at; one without elements cannot be mapped and is loaded."""
    array: np.ndarray = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
    return array


@dataclass
class EncodedPairs(TokenSplit):
    """
    One split: token rows of sources (with marks) and targets (without the last one), and what was left out.

    read: gives the sentences. places: of each pair among those that were read.
    """

    sources: TokenRows
    targets: TokenRows
    read: Callable[[], Pairs]
    counts: dict[str, int] = field(default_factory=dict)
    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def texts(self) -> Pairs:
        """The sentences; those to train on are read when somebody asks for them, for they may be millions."""
        return self.read()

    @property
    def lengths(self) -> np.ndarray:
        return np.stack([self.sources.lengths_R, self.targets.lengths_R + 1], axis=1)

    @property
    def terms(self) -> np.ndarray:
        """Target tokens (N,), the end included."""
        return self.lengths[:, 1]

    def save(self, folder: Path) -> None:
        """Writes all but the sentences."""
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
    texts: Pairs, vocabularies: tuple[Vocabulary, Vocabulary], max_length: int, cut_targets: bool, drop: bool
) -> EncodedPairs:
    """
    Texts as rows of at most `max_length` tokens, by the vocabularies of sources and targets.

    A longer pair is dropped or cut; where not cut_targets, targets may be of any length.
    """
    source_vocabulary, vocabulary = vocabularies
    source_marks, target_marks = source_vocabulary.special_tokens.source, vocabulary.special_tokens.target
    before_end = (target_marks[0], target_marks[1][:-1])  # the end itself is put there with each batch
    sources, targets = TokenRowsBuilder(source_vocabulary.size), TokenRowsBuilder(vocabulary.size)
    places: list[int] = []
    dropped = cut = 0
    for place, (source, target) in enumerate(zip(texts.sources, texts.targets, strict=True)):
        source_S, target_T = source_vocabulary.encode_text(source), vocabulary.encode_text(target)
        limit = max_length - num_special_tokens(source_marks)
        target_limit = max_length - num_special_tokens(target_marks) if cut_targets else len(target_T)
        long = len(source_S) > limit or len(target_T) > target_limit
        if long and drop:
            dropped += 1
            continue
        cut += long
        sources.add(add_special_tokens(source_marks, source_S[:limit]))
        targets.add(add_special_tokens(before_end, target_T[:target_limit]))
        places.append(place)
    kept = np.array(places, dtype=np.int64)
    counts = {"too long": dropped, "cut": cut}
    return EncodedPairs(sources.done(), targets.done(), lambda: texts.take(kept.tolist()), counts, kept)


@check_ranges
class TranslationData(TokenData[EncodedPairs]):
    """
    Sentence pairs as batches within a token budget.

    source: a class or partial of a PairSource, completed with `pair` and `path`. tokenizer: trained on the training
    part, on both languages together where `joint`, else once for each. batch_tokens: a batch's pairs times its longest
    source plus its longest target, padding included, on average over the batches of a step. max_length: the most tokens
    of a source or target; a longer training pair is dropped or cut (`too_long`) and counted, and pairs to evaluate on
    are cut in the source alone. Raises DataError.
    """

    examples = "pairs"
    frame = "source"
    source: PairSource

    def __init__(
        self,
        source: Callable[..., PairSource],
        tokenizer: Tokenizer,
        pair: str,
        joint: bool = True,
        batch_tokens: Annotated[int, Ge(2)] = 4096,
        max_length: Annotated[int, Ge(2)] = 128,
        too_long: Literal["drop", "truncate"] = "drop",
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(source, tokenizer, max_length, batch_tokens, path, seed, cache, pair=pair)
        self.joint, self.too_long = joint, too_long
        for name in ("end", "target_start"):
            placeholder_vocabulary(tokenizer).special_tokens.require(name)

    @property
    def label(self) -> str:
        return f"{self.name} {self.source.pair}"

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        check_budget(self.split("train").lengths, self.batch_tokens)

    def dims(self) -> dict[str, Any]:
        return super().dims() | {"source_vocabulary_size": self.source_vocabulary.size}

    def placeholder_dims(self) -> dict[str, Any]:
        return super().placeholder_dims() | {"source_vocabulary_size": self.placeholder_vocabulary().size}

    def tokenizers(self) -> dict[str, Tokenizer]:
        found = super().tokenizers()
        return found if self.joint else found | {"source_tokenizer.json": self.source_vocabulary.tokenizer}

    @property
    def train_tokens(self) -> int:
        """Target tokens of an epoch, the ends included."""
        return int(self.split("train").terms.sum())

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        return facts | {"pair": self.source.pair, "source_vocabulary_size": self.source_vocabulary.size}

    def particulars(self) -> str:
        own = "" if self.joint else f"{self.source_vocabulary.size:,} and "
        return f"; vocabulary {own}{self.vocabulary.size:,}"

    # --- texts

    def sources(self, split: str) -> list[str]:
        """The source sentences of a split, by id."""
        return self.split(split).texts.sources

    def references(self, split: str) -> list[str]:
        """The target sentences of a split, by id."""
        return self.split(split).texts.targets

    def target_languages(self) -> tuple[str, ...]:
        """The language of the targets, as the pair has it."""
        return (self.source.target_language,)

    def source_lengths(self, split: str) -> list[int]:
        """The tokens of the source of each pair of a split, by id, without marks."""
        lengths_N = self.split(split).lengths[:, 0] - num_special_tokens(self.source_vocabulary.special_tokens.source)
        return lengths_N.tolist()  # type: ignore[no-any-return]

    def decode_target(self, tokens: Sequence[int]) -> str:
        """The text of target tokens, up to the first end mark, as one line."""
        return self.vocabulary.decode(tokens).replace("\n", " ").strip()

    # --- batches

    def collate(self, part: EncodedPairs, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """source (B, S), is_source, target_in (B, T) from its start, target_out to its end, is_target, ids (B,)."""
        filler, start, end = self._filler_start_end
        sources, targets = [part.sources[row] for row in rows_B], [part.targets[row] for row in rows_B]
        lengths_B1 = np.array([[len(row)] for row in targets])
        source_BS = padded(sources, filler)
        out_BT = padded(targets, filler, int(lengths_B1.max()) + 1)
        start_B1 = np.full((len(rows_B), 1), start)
        in_BT = np.concatenate([start_B1, out_BT[:, :-1]], axis=1)
        np.put_along_axis(out_BT, lengths_B1, end, axis=1)
        batch = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": rows_B.astype(np.int64)}
        batch["is_source"] = np.arange(source_BS.shape[1]) < np.array([[len(row)] for row in sources])
        batch["is_target"] = np.arange(out_BT.shape[1]) <= lengths_B1
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def evaluation_budget(self, part: EncodedPairs) -> int:
        return max(self.batch_tokens, int(part.lengths.sum(axis=1).max()))

    def source_loader(self, texts: Sequence[str]) -> EvaluationLoader:
        """Batches of texts to translate, cut at the greatest length, with `ids`, their places in the list."""
        self.split("train")
        marks, limit = self.source_vocabulary.special_tokens.source, self._most_source_tokens()
        sources, targets = TokenRowsBuilder(self.source_vocabulary.size), TokenRowsBuilder(self.vocabulary.size)
        for text in texts:
            sources.add(add_special_tokens(marks, self._source_tokens(text)[:limit]))
            targets.add(np.empty(0, dtype=np.int64))
        pairs = EncodedPairs(sources.done(), targets.done(), lambda: Pairs(list(texts), [""] * len(texts)))
        batches = batches_by_length(pairs.lengths, max(self.batch_tokens, self.max_length + 1))
        return EvaluationLoader(batches, partial(self.collate, pairs))

    def texts_cut(self, texts: Sequence[str]) -> list[int]:
        """The places of those texts that `source_loader` cuts."""
        self.split("train")
        limit = self._most_source_tokens()
        return [i for i, text in enumerate(texts) if len(self._source_tokens(text)) > limit]

    def _most_source_tokens(self) -> int:
        return self.max_length - num_special_tokens(self.source_vocabulary.special_tokens.source)

    def _source_tokens(self, text: str) -> np.ndarray:
        return self.source_vocabulary.encode_text(text.strip())

    # --- preparing

    def make_splits(self) -> dict[str, EncodedPairs]:
        """Every split's rows, mapped from the cache, below the folder of the tokenizers; sets the vocabularies."""
        texts = self.source.read(self.cache)
        self.remarks, self.fingerprint = remarks_of(texts), self.source.fingerprint(texts)
        settings = [FORMAT, self.fingerprint, self.untrained.name, asdict(self.untrained), self.joint]
        shelf = cache_root(self.cache) / self.source.shelf
        folder = shelf / f"{self.name}-{self.source.pair}-{key_of(settings)}"
        source, target = kept(folder, partial(self._train_tokenizers, texts), _load_tokenizers)
        self.source_vocabulary, self.vocabulary = Vocabulary(source.of_source), Vocabulary(target)
        marks = self.vocabulary.special_tokens
        self._filler_start_end = marks.pad_id, marks.require("target_start"), marks.require("end")
        return {split: self._rows(split, pairs, folder) for split, pairs in texts.items()}

    def _train_tokenizers(self, texts: dict[str, Pairs], folder: Path) -> None:
        seen = texts.values() if self.untrained.sees_whole_text else [texts["train"]]
        sources = [line for pairs in seen for line in pairs.sources]
        targets = [line for pairs in seen for line in pairs.targets]
        # Each as it will be encoded, with a space before it.
        for name, lines in {"source": sources, "target": targets}.items():
            text = "\n".join(f" {line}" for line in ([*sources, *targets] if self.joint else lines))
            self.untrained.train(text).save(folder / f"{name}.json")

    def _rows(self, split: str, texts: Pairs, folder: Path) -> EncodedPairs:
        """A split's rows. The sentences to evaluate on stay in memory; those to train on do not."""
        training = split == "train"

        def read(kept: np.ndarray) -> Pairs:
            return self._training_texts(kept) if training else texts.take(kept.tolist())

        def make(scratch: Path) -> None:
            vocabularies, drop = (self.source_vocabulary, self.vocabulary), training and self.too_long == "drop"
            encode_pairs(texts, vocabularies, self.max_length, training, drop).save(scratch)

        way = self.too_long if training else "cut"
        found = kept(folder / f"{split}-{self.max_length}-{way}", make, partial(EncodedPairs.load, read=read))
        # Of the files as they are now: what was kept knows the pairs alone, which may be the same ones.
        found.counts = {"pairs with an empty side": texts.dropped, **found.counts}
        return found

    def _training_texts(self, places: np.ndarray) -> Pairs:
        return self.source.read(self.cache)["train"].take(places.tolist())


def _load_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.load(folder / "source.json"), Tokenizer.load(folder / "target.json")
