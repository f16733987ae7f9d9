"""Pairs of texts: token rows kept on disk, and the data modules of translation and of several tasks at once.

Shapes: N pairs, R rows, B batch, S source length, T target length.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, Unpack

import numpy as np
import torch

from attnlab.data.cache import cache_root, kept, key_of
from attnlab.data.module import ExampleFields, Split, padded, remarks_of
from attnlab.data.order import Batch, EvaluationLoader, batches_by_length, check_budget
from attnlab.data.pairs import Mixture, Pairs, PairSource, TextTask
from attnlab.data.source import Given, opened
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.token_data import TokenData
from attnlab.data.tokenizers import Tokenizer, smallest_type
from attnlab.data.vocabulary import Vocabulary, placeholder_vocabulary
from attnlab.ranges import Ge, PositiveFloat, Seed, check_ranges

FORMAT = 3


class TokenRows(Sequence[np.ndarray]):
    """R rows out of all their tokens (N,), one after the other, and the place (R,) at which each ends."""

    def __init__(self, tokens_N: np.ndarray, ends_R: np.ndarray) -> None:
        self.tokens_N, self.ends_R = tokens_N, ends_R

    def __len__(self) -> int:
        return len(self.ends_R)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]  # one row at a time
        end, row = int(self.ends_R[row]), row % len(self)
        return self.tokens_N[int(self.ends_R[row - 1]) if row else 0 : end]

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
        self.kind = np.dtype(smallest_type(vocabulary_size))
        self._tokens, self._ends = bytearray(), array("q")

    def add(self, row: np.ndarray) -> None:
        self._tokens += row.astype(self.kind).tobytes()
        self._ends.append(len(self._tokens) // self.kind.itemsize)

    def done(self) -> TokenRows:
        return TokenRows(np.frombuffer(self._tokens, self.kind), np.array(self._ends, dtype=np.int64))


def mapped(path: Path) -> np.ndarray:
    """An array on disk, read where it is looked at; one without elements cannot be mapped and is loaded."""
    found: np.ndarray = np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None)
    return found


@dataclass
class EncodedPairs(Split):
    """One split: token rows of sources (with special tokens) and targets (without the last one), and what was left out.

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
    """Texts as rows of at most `max_length` tokens, by the vocabularies of sources and targets.

    A longer pair is dropped or cut; where not cut_targets, targets may be of any length.
    """
    source_vocabulary, vocabulary = vocabularies
    around_source, around_target = source_vocabulary.special_tokens.source, vocabulary.special_tokens.target
    before_end = (around_target[0], around_target[1][:-1])  # the end itself is put there with each batch
    sources, targets = TokenRowsBuilder(source_vocabulary.size), TokenRowsBuilder(vocabulary.size)
    limit = max_length - num_special_tokens(around_source)
    places: list[int] = []
    dropped = cut = 0
    for place, (source, target) in enumerate(zip(texts.sources, texts.targets, strict=True)):
        source_S, target_T = source_vocabulary.encode_text(source), vocabulary.encode_text(target)
        target_limit = max_length - num_special_tokens(around_target) if cut_targets else len(target_T)
        long = len(source_S) > limit or len(target_T) > target_limit
        if long and drop:
            dropped += 1
            continue
        cut += long
        sources.add(add_special_tokens(around_source, source_S[:limit]))
        targets.add(add_special_tokens(before_end, target_T[:target_limit]))
        places.append(place)
    counts = {"too long": dropped, "cut": cut}
    return EncodedPairs(sources.done(), targets.done(), lambda: texts.take(places), counts, np.array(places, np.int64))


@check_ranges
class TranslationData(TokenData[EncodedPairs]):
    """Sentence pairs as batches within a token budget.

    source: a class or partial of a PairSource, completed with `language_pair` and `path`. tokenizer: trained on the
    training part, on both languages together where `joint_vocabulary`, else once for each. batch_tokens: a batch's
    pairs times its longest source plus its longest target, padding included, on average over the batches of a step.
    max_length: the most tokens of a source or target; a longer training pair is dropped or cut (`on_overlong`) and
    counted, and pairs to evaluate on are cut in the source alone. Raises DataError.
    """

    examples = "pairs"
    frame = "source"
    source: PairSource

    def __init__(
        self,
        source: Callable[..., PairSource],
        tokenizer: Tokenizer,
        language_pair: str,
        joint_vocabulary: bool = True,
        batch_tokens: Annotated[int, Ge(2)] = 4096,
        max_length: Annotated[int, Ge(2)] = 128,
        on_overlong: Literal["drop", "truncate"] = "drop",
        **fields: Unpack[ExampleFields],
    ) -> None:
        given: Given[PairSource] = source
        paired = partial(opened, given, language_pair=language_pair)
        super().__init__(paired, tokenizer, max_length, batch_tokens, **fields)
        self.joint_vocabulary, self.on_overlong = joint_vocabulary, on_overlong
        for name in ("end", "target_start"):
            placeholder_vocabulary(tokenizer).special_tokens.require(name)

    @property
    def label(self) -> str:
        return f"{self.name} {self.source.language_pair}"

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        check_budget(self.split("train").lengths, self.batch_tokens)

    def dims(self) -> dict[str, object]:
        return super().dims() | {"source_vocabulary_size": self.source_vocabulary.size}

    def placeholder_dims(self) -> dict[str, object]:
        return super().placeholder_dims() | {"source_vocabulary_size": self.placeholder_vocabulary().size}

    def tokenizers(self) -> dict[str, Tokenizer]:
        found = super().tokenizers()
        return found if self.joint_vocabulary else found | {"source_tokenizer.json": self.source_vocabulary.tokenizer}

    def facts(self) -> dict[str, object]:
        facts, size = super().facts(), self.source_vocabulary.size
        return facts | {"language_pair": self.source.language_pair, "source_vocabulary_size": size}

    def particulars(self) -> str:
        own = "" if self.joint_vocabulary else f"{self.source_vocabulary.size:,} and "
        return f"; vocabulary {own}{self.vocabulary.size:,}"

    # --- texts

    def sources(self, split: str) -> list[str]:
        return self.split(split).texts.sources

    def references(self, split: str) -> list[str]:
        return self.split(split).texts.targets

    def target_languages(self) -> tuple[str, ...]:
        """The language of the targets, as the pair has it."""
        return (self.source.target_language,)

    def source_lengths(self, split: str) -> list[int]:
        """The tokens of the source of each pair of a split, by id, without special tokens."""
        lengths_N = self.split(split).lengths[:, 0] - num_special_tokens(self.source_vocabulary.special_tokens.source)
        return lengths_N.tolist()  # type: ignore[no-any-return]

    def decode_target(self, tokens: Sequence[int]) -> str:
        """The text of target tokens, up to the first end, as one line."""
        return self.vocabulary.decode(tokens).replace("\n", " ").strip()

    # --- batches

    def collate(self, part: EncodedPairs, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """source (B, S), is_source, target_in (B, T) from its start, target_out to its end, is_target, ids (B,)."""
        filler, start, end = self._filler_start_end
        sources, targets = [part.sources[row] for row in rows_B], [part.targets[row] for row in rows_B]
        lengths_B1 = np.array([[len(row)] for row in targets])
        source_BS = padded(sources, filler)
        out_BT = padded(targets, filler, int(lengths_B1.max()) + 1)
        in_BT = np.concatenate([np.full((len(rows_B), 1), start), out_BT[:, :-1]], axis=1)
        np.put_along_axis(out_BT, lengths_B1, end, axis=1)
        batch = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": rows_B.astype(np.int64)}
        batch["is_source"] = np.arange(source_BS.shape[1]) < np.array([[len(row)] for row in sources])
        batch["is_target"] = np.arange(out_BT.shape[1]) <= lengths_B1
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def evaluation_budget(self, part: EncodedPairs) -> int:
        return max(self.batch_tokens, int(part.lengths.sum(axis=1).max()))

    def source_loader(self, texts: Sequence[str]) -> EvaluationLoader:
        """Batches of texts to translate, cut at the greatest length, with `ids`, their places in the list."""
        tokens, limit = self._source_tokens(texts)
        sources, targets = TokenRowsBuilder(self.source_vocabulary.size), TokenRowsBuilder(self.vocabulary.size)
        for tokens_S in tokens:
            sources.add(add_special_tokens(self.source_vocabulary.special_tokens.source, tokens_S[:limit]))
            targets.add(np.empty(0, dtype=np.int64))
        pairs = EncodedPairs(sources.done(), targets.done(), lambda: Pairs(list(texts), [""] * len(texts)))
        batches = batches_by_length(pairs.lengths, max(self.batch_tokens, self.max_length + 1))
        return EvaluationLoader(batches, partial(self.collate, pairs))

    def texts_cut(self, texts: Sequence[str]) -> list[int]:
        """The places of those texts that `source_loader` cuts."""
        tokens, limit = self._source_tokens(texts)
        return [place for place, tokens_S in enumerate(tokens) if len(tokens_S) > limit]

    def _source_tokens(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """The tokens of texts to translate, and the most that a source may have."""
        self.prepare()
        limit = self.max_length - num_special_tokens(self.source_vocabulary.special_tokens.source)
        return [self.source_vocabulary.encode_text(text.strip()) for text in texts], limit

    # --- preparing

    def make_splits(self) -> dict[str, EncodedPairs]:
        """Every split's rows, mapped from the cache, below the folder of the tokenizers; sets the vocabularies."""
        texts = self.source.read(self.cache)
        self.remarks, self.fingerprint = remarks_of(texts), self.source.fingerprint(texts)
        settings = [FORMAT, self.fingerprint, self.untrained.name, asdict(self.untrained), self.joint_vocabulary]
        shelf = cache_root(self.cache) / self.source.shelf
        folder = shelf / f"{self.name}-{self.source.language_pair}-{key_of(settings)}"
        source, target = kept(folder, partial(self._train_tokenizers, texts), _load_tokenizers)
        self.source_vocabulary, self.vocabulary = Vocabulary(source.of_source), Vocabulary(target)
        special = self.vocabulary.special_tokens
        self._filler_start_end = special.pad_id, special.require("target_start"), special.require("end")
        return {split: self._rows(split, pairs, folder) for split, pairs in texts.items()}

    def _train_tokenizers(self, texts: dict[str, Pairs], folder: Path) -> None:
        seen = texts.values() if self.untrained.sees_whole_text else [texts["train"]]
        sources = [line for pairs in seen for line in pairs.sources]
        targets = [line for pairs in seen for line in pairs.targets]
        # Each as it will be encoded, with a space before it.
        for name, lines in {"source": sources, "target": targets}.items():
            text = "\n".join(f" {line}" for line in ([*sources, *targets] if self.joint_vocabulary else lines))
            self.untrained.train(text).save(folder / f"{name}.json")

    def _rows(self, split: str, texts: Pairs, folder: Path) -> EncodedPairs:
        """A split's rows. The sentences to evaluate on stay in memory; those to train on do not."""
        training = split == "train"

        def read(kept: np.ndarray) -> Pairs:
            return (self.source.read(self.cache)["train"] if training else texts).take(kept.tolist())

        def make(scratch: Path) -> None:
            vocabularies, drop = (self.source_vocabulary, self.vocabulary), training and self.on_overlong == "drop"
            encode_pairs(texts, vocabularies, self.max_length, training, drop).save(scratch)

        way = self.on_overlong if training else "cut"
        found = kept(folder / f"{split}-{self.max_length}-{way}", make, partial(EncodedPairs.load, read=read))
        # Of the files as they are now: what was kept knows the pairs alone, which may be the same ones.
        found.counts = {"pairs with an empty side": texts.dropped, **found.counts}
        return found


def _load_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.load(folder / "source.json"), Tokenizer.load(folder / "target.json")


@check_ranges
class TextToTextData(TranslationData):
    """Several tasks as batches within a token budget, with one vocabulary: an example is "prefix: source" and a target
    text (Raffel et al. 2020, section 2.4).

    tasks: by name. temperature: of the mixture. The other fields as in TranslationData. Raises DataError.
    """

    source: Mixture

    def __init__(
        self,
        tasks: Mapping[str, TextTask],
        tokenizer: Tokenizer,
        temperature: PositiveFloat = 1.0,
        batch_tokens: Annotated[int, Ge(2)] = 4096,
        max_length: Annotated[int, Ge(2)] = 128,
        on_overlong: Literal["drop", "truncate"] = "drop",
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        mixture, own = partial(Mixture, tasks, temperature), (batch_tokens, max_length, on_overlong)
        super().__init__(mixture, tokenizer, "text-text", True, *own, seed=seed, cache=cache)

    def target_languages(self) -> tuple[str, ...]:
        return tuple(task.source.target_language for task in self.source.tasks.values())

    def tasks_of(self, split: str) -> list[str]:
        """The name of the task of each example of a split, by id."""
        return [self.source.members[split][place] for place in self.split(split).places]

    def facts(self) -> dict[str, object]:
        facts, counts = super().facts(), self.source.examples()
        return facts | {
            "tasks": {name: {"examples": size, "an_epoch": counts[name]} for name, size in self.source.sizes.items()}
        }

    def describe(self) -> str:
        self.split("train")
        counts = self.source.examples()
        shares = ", ".join(f"{name} {count / sum(counts.values()):.0%}" for name, count in counts.items())
        return f"{super().describe()}; shares {shares}"
