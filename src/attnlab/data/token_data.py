"""Examples as rows of tokens, in batches within a token budget.

Shapes: N examples, L rows an example has, B batch, T length.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, Unpack

import numpy as np
import torch

from attnlab.data.cache import DataError, prepared
from attnlab.data.module import ExampleFields, Split, TextedData, padded, remarks_of
from attnlab.data.order import Batch, TokenBatchOrder, typical
from attnlab.data.source import Source
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, placeholder_vocabulary
from attnlab.ranges import Ge, check_ranges

FORMAT = 1

S = TypeVar("S", bound=Split)


class TokenData(TextedData[S]):
    """Examples in batches of similar length within `batch_tokens`, on average over the batches of a step.

    tokenizer: as configured. max_length: the most tokens of a row, with its special tokens. A subclass gives
    `make_splits`, which sets `vocabulary`, and `collate`.
    """

    def __init__(
        self, source: Any, tokenizer: Tokenizer, max_length: int, batch_tokens: int, **fields: Unpack[ExampleFields]
    ) -> None:
        super().__init__(source, **fields)
        self.untrained, self.max_length, self.batch_tokens = tokenizer, max_length, batch_tokens

    @property
    def budget(self) -> int:
        """The most positions of a batch, padding included."""
        return self.batch_tokens

    @property
    def tokens_per_batch(self) -> int:
        return self.tokens_per_step(1)

    def tokens_per_step(self, parts: int) -> int:
        return max(1, self.train_tokens // len(self.order(parts).epoch(0)))

    def order(self, parts: int, rank: int = 0, world_size: int = 1) -> TokenBatchOrder:
        return TokenBatchOrder(self.split("train").lengths, self.budget, self.seed, parts, rank, world_size)

    def steps_in(self, epochs: int, accumulated: int = 1, ranks: int = 1) -> int:
        # In length every epoch has the same row of examples, and that alone decides its steps.
        return epochs * len(self.order(accumulated * ranks).epoch(0))

    def example_batch(self) -> Batch:
        """A batch that is typical in its positions a term: what a term costs goes with them, and the first has any."""
        part = self.split("train")
        return self.collate(part, typical(self.order(1).epoch(0), part.lengths, part.terms))

    def evaluation_budget(self, part: S) -> int:
        return self.budget


@dataclass
class Rows(Split):
    """One split: token rows with their special tokens, and how many examples were cut, dropped or split."""

    rows: list[np.ndarray]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    @property
    def num_terms(self) -> int:
        return len(self)


R = TypeVar("R", bound=Rows)


class RowFields(ExampleFields, total=False):
    """What every data module of rows takes; see RowData."""

    tokenizer_from: str | None
    max_length: Annotated[int, Ge(3)]
    batch_tokens: Annotated[int, Ge(3)]


@check_ranges
class RowData(TokenData[R]):
    """The parts of a source as rows of tokens.

    tokenizer: trained on the training part, unless `tokenizer_from`, a run's directory, gives that run's own. A
    subclass gives `lines`, `encode` and `collate`.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Tokenizer,
        tokenizer_from: str | None = None,
        max_length: Annotated[int, Ge(3)] = 128,
        batch_tokens: Annotated[int, Ge(3)] = 4096,
        **fields: Unpack[ExampleFields],
    ) -> None:
        super().__init__(source, tokenizer, max_length, batch_tokens, **fields)
        self.tokenizer_from = tokenizer_from

    @abstractmethod
    def lines(self, part: Any) -> Iterable[str]:
        """The texts of a part that the tokenizer learns from."""

    @abstractmethod
    def encode(self, parts: Any) -> dict[str, R]:
        """Every part, by its split, as rows of tokens."""

    def prepare_data(self) -> None:
        self._read()

    def make_splits(self) -> dict[str, R]:
        parts = self._read()
        self.remarks = remarks_of(parts)
        splits = self.encode(parts)
        if empty := [name for name, part in splits.items() if not all(map(len, part.rows))]:
            raise DataError(
                f"the {empty[0]} part of {self.name} has one of {self.examples} that the tokenizer has no token for, "
                "and puts no special token around it; leave it out, or take another tokenizer"
            )
        return splits

    @property
    def budget(self) -> int:
        return max(self.batch_tokens, self.max_length)

    @property
    def train_tokens(self) -> int:
        return self.split("train").num_terms

    def placeholder_vocabulary(self) -> Vocabulary:
        return placeholder_vocabulary(None if self.tokenizer_from else self.untrained)

    def particulars(self) -> str:
        return "".join(f"; {told}" for told in [*self.about_examples(), f"vocabulary {self.vocabulary.size:,}"])

    def about_examples(self) -> list[str]:
        """What else there is to say about the examples."""
        return []

    def _read(self) -> dict[str, Any]:
        parts: dict[str, Any] = self.source.read(self.cache)
        self.fingerprint = self.source.fingerprint(parts)
        self.vocabulary = Vocabulary(
            self._trained(parts) if self.tokenizer_from is None else tokenizer_of_run(self.tokenizer_from)
        )
        return parts

    def _trained(self, parts: dict[str, Any]) -> Tokenizer:
        lines = {name: partial(self.lines, part) for name, part in parts.items()}
        return trained_tokenizer(self.untrained, lines, self.source, self.fingerprint, self.cache)


def trained_tokenizer(
    untrained: Tokenizer,
    lines: Mapping[str, Callable[[], Iterable[str]]],
    source: Source[Any],
    fingerprint: str,
    cache: str | None,
) -> Tokenizer:
    """A tokenizer trained on the lines of the training part, from the cache where it is there. lines: of each split."""

    def make(scratch: Path) -> None:
        seen = lines.values() if untrained.sees_whole_text else [lines["train"]]
        text = "\n".join(line for of_part in seen for line in of_part())
        untrained.train(text).save(scratch / "tokenizer.json")

    settings = [FORMAT, fingerprint, untrained.name, asdict(untrained)]
    return prepared(cache, source.shelf, source.name, settings, make, lambda at: Tokenizer.load(at / "tokenizer.json"))


def collate_rows(part: Rows, rows_B: np.ndarray, filler: int, **more: np.ndarray) -> Batch:
    """Rows as one batch: tokens (B, T) filled on the right, is_token, ids (B,), and what else there is."""
    batch = {"ids": rows_B.astype(np.int64), **more}
    tokens = token_batch([part.rows[row] for row in rows_B], filler)
    return tokens | {name: torch.from_numpy(array) for name, array in batch.items()}


def token_batch(rows: Sequence[np.ndarray], filler: int) -> Batch:
    """Rows as tokens (B, T), filled on the right, and is_token (B, T)."""
    tokens_BT = padded(rows, filler)
    is_token_BT = np.arange(tokens_BT.shape[1]) < np.array([[len(row)] for row in rows])
    return {"tokens": torch.from_numpy(tokens_BT), "is_token": torch.from_numpy(is_token_BT)}


def tokenizer_of_run(run: str) -> Tokenizer:
    """The tokenizer that a run was trained with. Raises DataError where there is none."""
    path = Path(run).expanduser() / "tokenizer.json"
    try:
        return Tokenizer.load(path).of_text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"data.tokenizer_from={run}: there is no tokenizer.json that can be read ({error}); give the directory of "
            "a run that has one, such as runs/STUDY/CELL/seed=0"
        ) from error
