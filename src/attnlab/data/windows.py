"""One text in windows: their orders, what data modules of windows share, and that of language modelling.

Shapes: N tokens of a text, B windows of a batch, T window length.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import ClassVar, Self, TypedDict, Unpack

import numpy as np
import torch

from attnlab.data.ahead import BatchesAhead
from attnlab.data.cache import DataError
from attnlab.data.module import WithVocabulary
from attnlab.data.order import Batch, EvaluationLoader, ShuffledOrder, TrainingLoader
from attnlab.data.ramps import Ramps
from attnlab.data.source import SPLITS, Given, TextSource, check_split, opened
from attnlab.data.texts import Corpus, prepare
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import PositiveInt, Probability, Seed, check_ranges


class Windows:
    """Cuts rows of `length` input tokens and their next tokens out of tokens_N, a whole batch in one indexing."""

    def __init__(self, tokens_N: np.ndarray, length: int) -> None:
        if length < 1:
            raise DataError(f"a window length of {length} tokens cannot be used; accepted: 1 or more")
        if len(tokens_N) < length + 1:
            raise DataError(
                f"{len(tokens_N):,} tokens are too few for one window of {length:,} tokens and the token after it, "
                f"{length + 1:,} in all; use a longer text, a larger share of it (data.split) or a shorter "
                "data.context_length"
            )
        self.length = length
        self.rows = np.lib.stride_tricks.sliding_window_view(tokens_N, length + 1)

    def batch(self, starts_B: np.ndarray) -> Batch:
        """{"tokens": (B, T), "targets": (B, T)} in int64, windows that begin at `starts_B`."""
        rows_BT = self.rows[starts_B].astype(np.int64)
        tokens_BT, targets_BT = np.ascontiguousarray(rows_BT[:, :-1]), np.ascontiguousarray(rows_BT[:, 1:])
        return {"tokens": torch.from_numpy(tokens_BT), "targets": torch.from_numpy(targets_BT)}


class WindowOrder(ShuffledOrder):
    """Every epoch covers a text of `num_tokens` once with windows that do not overlap, from a random offset, shuffled.

    An example is where its window begins. is_fixed: the windows are the same ones in every epoch. Raises DataError.
    """

    def __init__(
        self,
        num_tokens: int,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        is_fixed: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"data.batch_size={batch_size} cannot be used; accepted: 1 or more")
        # One window fewer than fit, so that each epoch has the same number whatever its offset below `context_length`.
        super().__init__(
            max(1, (num_tokens - context_length) // context_length), batch_size, seed, rank, world_size, "windows"
        )
        self.num_tokens, self.context_length, self.is_fixed = num_tokens, context_length, is_fixed

    def draw_epoch(self, random: np.random.Generator) -> np.ndarray:
        slack = self.num_tokens - 1 - self.count * self.context_length
        offset = random.integers(min(slack, self.context_length - 1) + 1)
        return (0 if self.is_fixed else offset) + self.context_length * random.permutation(self.count)


class EvaluationWindows:
    """Batches that score each of the same target tokens once, whatever the window length and the stride.

    The targets follow a lead-in of `longest` tokens (fewer where the text is short) and are as many as fit into the
    text and into `max_tokens`, a multiple of `longest` and at least that. A window scores its last `stride` targets:
    stride = length (the default) makes windows that do not overlap; a smaller one slides, so that each target has at
    least length - stride tokens before it. Batches are {"tokens": (B, T), "targets": (B, T), "scored": (B, T) bool}.
    shared: every other window that slides by half its length is one of those that do not overlap. These then also say
    in "late" (B, T) bool which of their targets it scores, and with half the length as stride only the other windows
    are left. Raises DataError where the text is too short.
    """

    def __init__(
        self,
        tokens_N: np.ndarray,
        length: int,
        longest: int | None = None,
        stride: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = 32,
        rank: int = 0,
        world_size: int = 1,
        shared: bool = False,
    ) -> None:
        longest, stride = longest or length, stride or length
        if not 1 <= stride <= length <= longest:
            raise DataError(
                f"stride {stride}, length {length}, longest {longest} cannot be used; accepted: 1 <= stride <= length "
                "<= longest"
            )
        Windows(tokens_N, longest)  # too short for the longest means too short for all: their figures are compared
        self.windows = Windows(tokens_N, length)
        lead = min(longest, len(tokens_N) - 1 - longest)
        available = len(tokens_N) - 1 - lead
        wanted = available if max_tokens is None else max(longest, min(max_tokens, available))
        self.num_targets = wanted // longest * longest
        self.first_target = lead + 1  # where the scored targets begin in tokens_N
        self.batch_size = batch_size
        # Window i scores the targets from lower[i] up to, not including, upper[i]; target j is the token after input j.
        lower = np.arange(lead, lead + self.num_targets, length if shared else stride)[rank::world_size]
        upper = np.minimum(lower + stride, lead + self.num_targets)
        self.lower, self.upper, self.start = lower, upper, np.maximum(upper - length, 0)
        self.late_from = lower + length // 2 if shared and stride == length else None

    def __len__(self) -> int:
        return -(-len(self.start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for i in range(0, len(self.start), self.batch_size):
            now = slice(i, i + self.batch_size)
            place_BT = self.start[now, None] + np.arange(self.windows.length)
            scored_BT = (place_BT >= self.lower[now, None]) & (place_BT < self.upper[now, None])
            batch = {**self.windows.batch(self.start[now]), "scored": torch.from_numpy(scored_BT)}
            if self.late_from is not None:
                batch["late"] = torch.from_numpy(scored_BT & (place_BT >= self.late_from[now, None]))
            yield batch


class WindowFields(TypedDict, total=False):
    """What every data module of windows takes; see WindowData."""

    batch_size: PositiveInt
    split: Sequence[Probability]
    path: str | None
    max_validation_tokens: PositiveInt | None
    seed: Seed
    cache: str | None


@check_ranges
class WindowData(WithVocabulary):
    """A text in windows of `context_length` tokens, `batch_size` windows a batch and rank.

    source: a TextSource, or a class or partial of one that is completed with `path`. split: the fractions of train,
    validation and test. max_validation_tokens: of the text, scored at each validation (None: all). seed: draws the
    training order. A subclass gives `collate`, and how large its examples are. In the steps of a length ramp windows
    are cut to their first tokens (Li et al. 2021, arXiv 2108.06084, section 4), and begin where they always do. Raises
    DataError.
    """

    takes_batch_ramp = takes_length_ramp = True
    shortest_window: ClassVar[int] = 1
    has_fixed_windows: bool = False
    end_of_text: bool = False

    def __init__(
        self,
        source: Given[TextSource],
        tokenizer: Tokenizer,
        context_length: PositiveInt,
        batch_size: PositiveInt = 32,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
        path: str | None = None,
        max_validation_tokens: PositiveInt | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_split(split)
        self.source = opened(source, path)
        self.name, self.untrained, self.split, self.cache = self.source.name, tokenizer, split, cache
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        self.max_validation_tokens = max_validation_tokens

    @abstractmethod
    def collate(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """Windows of a text as a batch. drawn_B: their numbers among all that training sees; None in evaluation."""

    @cached_property
    def corpus(self) -> Corpus:
        return prepare(self.source, self.untrained, self.split, self.cache, self.end_of_text)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]  # which is made at its first use
        return Vocabulary(self.tokenizer, self.num_sentinels)

    def facts(self) -> dict[str, object]:
        sizes = {"vocabulary_size": self.dims()["vocabulary_size"], "train_tokens": self.train_tokens}
        return {"fingerprint": self.corpus.fingerprint, **sizes}

    def describe(self) -> str:
        parts = ", ".join(f"{name} {self.corpus.part(name).num_tokens:,}" for name in SPLITS)
        return f"{self.name}: tokens {parts}; vocabulary {self.tokenizer.vocabulary_size:,}; in {self.corpus.folder}"

    def prepare_data(self) -> None:
        self.tokenizers()

    def setup(self, stage: str | None = None) -> None:
        """Sees that the text is long enough to train and to validate on."""
        self.tokens("train", self.context_length)
        self.at_length(min(map(self.length_at, range(self.ramps.length.steps + 1))))
        self.val_dataloader()

    def tokens(self, split: str, length: int) -> np.ndarray:
        """The tokens (N,) of a part. Raises DataError for one that is empty, or holds no window of this length."""
        part = self.corpus.part(split)
        if part.num_tokens == 0:
            raise DataError(f"the {split} part is empty (data.split={list(self.split)}); give it a fraction above 0")
        try:
            Windows(part.tokens, length)
        except DataError as error:
            raise DataError(f"the {split} part of data={self.name}: {error}") from error
        return part.tokens

    def order(self, rank: int = 0, world_size: int = 1) -> WindowOrder:
        num_tokens = len(self.tokens("train", self.context_length))
        where = (rank, world_size, self.has_fixed_windows)
        return WindowOrder(num_tokens, self.context_length, self.batch_size, self.seed, *where)

    def train_dataloader(self) -> TrainingLoader | BatchesAhead:
        order = self.order(*self.rank_and_world_size())
        return self.in_order(order, partial(self._collate_of_step, order))

    def _collate_of_step(self, order: WindowOrder, starts_B: np.ndarray, drawn_B: np.ndarray) -> Batch:
        return self.at_length(self.length_at(order.step)).collate(self.corpus.train.tokens, starts_B, drawn_B)

    def length_at(self, step: int) -> int:
        return self.ramps.length.size(self.context_length, step)

    def at_length(self, length: int) -> Self:
        if length == self.context_length:
            return self
        if length < self.shortest_window:
            raise DataError(
                f"length_ramp: windows of {length} tokens are too short for data={self.name}; begin with a larger "
                f"share of data.context_length={self.context_length}, {self.shortest_window} tokens or more"
            )
        data = copy.copy(self)
        data.context_length, data.ramps = length, Ramps(self.ramps.batch)
        return data

    def val_dataloader(self) -> EvaluationLoader | EvaluationWindows:
        return self.evaluation_loader("validation", max_tokens=self.max_validation_tokens)

    def evaluation_loader(self, split: str, *, max_tokens: int | None = None) -> EvaluationLoader | EvaluationWindows:
        """Every whole window of a part once over all ranks, up to `max_tokens` of its text. Raises DataError."""
        part, (rank, world_size) = self.corpus.part(split), self.rank_and_world_size()
        count = min(part.num_tokens, max(max_tokens or part.num_tokens, self.context_length)) // self.context_length
        if count == 0:
            raise DataError(
                f"the {split} part of data={self.name} has {part.num_tokens:,} tokens, too few for a window of "
                f"{self.context_length} (data.context_length); use a longer text or a larger share of it (data.split)"
            )
        if count < world_size:
            raise DataError(
                f"{count} windows to evaluate are too few for {world_size} ranks; evaluate on fewer devices"
            )
        starts = np.arange(rank, count, world_size) * self.context_length
        batches = [starts[i : i + self.batch_size] for i in range(0, len(starts), self.batch_size)]
        return EvaluationLoader(batches, partial(self.collate, part.tokens[: count * self.context_length]))


MULTIPLES = (8, 4, 2, 1)  # of the context: the window lengths that figures are compared at


@check_ranges
class TextData(WindowData):
    """A text as batches of windows: `context_length` tokens and their next tokens.

    end_of_text: whether a special token stands between two documents of the source, <|endoftext|> where the tokenizer
    has none of its own (None: where it is one of sub-words, so that figures on characters and bytes stay comparable
    with published ones). The other fields as in WindowData. Raises DataError.
    """

    frame = None

    def __init__(
        self,
        source: Given[TextSource],
        tokenizer: Tokenizer,
        context_length: PositiveInt = 64,
        end_of_text: bool | None = None,
        **fields: Unpack[WindowFields],
    ) -> None:
        super().__init__(source, tokenizer, context_length, **fields)
        self.end_of_text = tokenizer.ends_documents if end_of_text is None else end_of_text
        if self.end_of_text and tokenizer.special_tokens is not None:
            tokenizer.special_tokens.require("end")

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return {"vocabulary_size": vocabulary.tokenizer.vocabulary_size}

    @property
    def train_tokens(self) -> int:
        return self.corpus.train.num_tokens

    @property
    def tokens_per_batch(self) -> int:
        return self.context_length * self.batch_size

    def collate(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """tokens (B, T) and targets (B, T), the tokens after them."""
        return Windows(tokens_N, self.context_length).batch(starts_B)

    def val_dataloader(self) -> EvaluationWindows:
        most = self.max_validation_tokens
        return self.evaluation_loader("validation", self.context_length, max_tokens=most, longest=self.context_length)

    def evaluation_loader(
        self,
        split: str,
        length: int | None = None,
        sliding: bool = False,
        max_tokens: int | None = None,
        longest: int | None = None,
        shared: bool = False,
    ) -> EvaluationWindows:
        """Windows of `length` (None: the context); equal `longest` and `max_tokens` score the same target tokens.

        longest: by default 8 times the context, or the largest of 4, 2, 1 times that the part can hold. Sliding windows
        move by half their length. shared: as `EvaluationWindows`, for an even length. Raises DataError where the part
        is too short.
        """
        length = length or self.context_length
        stride = max(1, length // 2) if sliding else length
        rows = max(1, max(self.tokens_per_batch, 4096) // length)
        num_tokens = self.corpus.part(split).num_tokens
        if longest is None:
            fitting = [k * self.context_length for k in MULTIPLES if k * self.context_length < num_tokens]
            longest = max(length, fitting[0] if fitting else self.context_length)
        tokens = self.tokens(split, longest)
        where = self.rank_and_world_size()
        return EvaluationWindows(tokens, length, longest, stride, max_tokens, rows, *where, shared)
