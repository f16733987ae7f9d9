"""What data modules of labelled text share: a tokenizer, encoded splits, batches within a token budget. Shapes: B batch, T length."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from attnlab.data.budget import BudgetedRows, EvaluationBatches, TokenBudgetBatches, typical
from attnlab.data.cache import DataError, cache_root, kept, key_of
from attnlab.data.module import DataModule
from attnlab.data.sources import opened
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, rehearsal
from attnlab.ranges import Ge, Seed, check_ranges

FORMAT = 1


@dataclass
class Encoded:
    """One split: token rows with their marks, and how many examples were cut, dropped or split."""

    rows: list[np.ndarray]
    counts: dict[str, int]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, marks included."""
        return np.array([len(row) for row in self.rows])

    @property
    def num_examples(self) -> int:
        """How many there are, as a reader counts them."""
        return len(self.rows)

    @property
    def num_terms(self) -> int:
        """How many terms of the loss they have."""
        return len(self.rows)


E = TypeVar("E", bound=Encoded)


@check_ranges
class EncodedData(DataModule, Generic[E]):
    """
    The parts of a source as rows of tokens, in batches within a token budget.

    source: gives `read` (the parts by split) and `fingerprint`; or a class or partial that is completed with `path`. tokenizer:
    trained on the training part, unless `tokenizer_from`, a run's directory, gives that run's own. max_length: tokens of a row
    with its marks. batch_tokens: a batch's rows times the longest of them, on average over the batches of a step. A
    subclass gives `lines`, `encode_parts` and `collate`. Raises DataError.
    """

    kind: ClassVar[str]
    examples: ClassVar[str]

    def __init__(
        self,
        source: Any,
        tokenizer: Tokenizer,
        tokenizer_from: str | None = None,
        max_length: Annotated[int, Ge(3)] = 128,
        batch_tokens: Annotated[int, Ge(3)] = 4096,
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if callable(source):
            source = opened(source, path)
        self.source, self._untrained, self.tokenizer_from = source, tokenizer, tokenizer_from
        self.name, self.max_length, self.batch_tokens = source.name, max_length, batch_tokens
        self.seed, self.cache = seed, cache
        self._splits: dict[str, E] | None = None
        self.remarks: list[str] = []
        self._order: TokenBudgetBatches | None = None
        self._order_state: dict[str, int] | None = None

    @abstractmethod
    def lines(self, part: Any) -> Iterable[str]:
        """The texts of a part that the tokenizer learns from."""
        raise NotImplementedError(f"{type(self).__name__} gives no lines")

    @abstractmethod
    def encode_parts(self, parts: dict[str, Any]) -> dict[str, E]:
        """Every part as rows of tokens."""
        raise NotImplementedError(f"{type(self).__name__} gives no encode_parts")

    @abstractmethod
    def collate(self, part: E, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
        """The rows of a part as a batch."""
        raise NotImplementedError(f"{type(self).__name__} gives no collate")

    # --- what was prepared

    def prepare_data(self) -> None:
        """Reads the texts and trains the tokenizer, where it is not in the cache yet."""
        self._prepared()

    def setup(self, stage: str | None = None) -> None:
        """Encodes every split."""
        for name in ("train", "validation", "test"):
            self.split(name)

    def split(self, name: str) -> E:
        """The rows of a split. Raises DataError for one that is not there, or is empty."""
        splits = self._all_splits()
        if name not in splits or not splits[name].rows:
            known = ", ".join(split for split, part in splits.items() if part.rows)
            raise DataError(f"{self.name} has no {self.examples} in a split {name!r}; accepted: {known}")
        return splits[name]

    def _all_splits(self) -> dict[str, E]:
        if self._splits is None:
            parts, self.vocabulary, self.fingerprint = self._prepared()
            self.remarks = remarks_of(parts)
            splits = self.encode_parts(parts)
            if empty := [name for name, part in splits.items() if not all(map(len, part.rows))]:
                raise DataError(
                    f"the {empty[0]} part of {self.name} has one of {self.examples} that the tokenizer has no token for, and puts no "
                    "mark around it; leave it out, or take another tokenizer"
                )
            self._splits = splits
        return self._splits

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary, and its marks."""
        self.split("train")
        return {"vocabulary_size": self.vocabulary.size, "marks": self.vocabulary.marks}

    def rehearsal_vocabulary(self) -> Vocabulary:
        """A stand-in for the vocabulary before any data are read."""
        return rehearsal(None if self.tokenizer_from else self._untrained)

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        vocabulary = self.rehearsal_vocabulary()
        return {"vocabulary_size": vocabulary.size, "marks": vocabulary.marks}

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The one tokenizer."""
        self.split("train")
        return {"tokenizer.json": self.vocabulary.tokenizer}

    @property
    def train_tokens(self) -> int:
        """Terms of the loss of an epoch."""
        return self.split("train").num_terms

    @property
    def tokens_per_batch(self) -> int:
        """Terms of the loss of a training batch that is a step of its own, on average."""
        return self.tokens_per_step(1)

    def tokens_per_step(self, parts: int) -> int:
        """Terms of the loss of a step of so many batches, on average."""
        order = TokenBudgetBatches(self.split("train").lengths, self._budget, self.seed, parts)
        return max(1, self.train_tokens // len(order.groups(0)))

    @property
    def _budget(self) -> int:
        return max(self.batch_tokens, self.max_length)

    def facts(self) -> dict[str, Any]:
        """Sizes, and how many examples were cut or dropped."""
        self.split("train")
        splits = self._all_splits()
        return {
            "fingerprint": self.fingerprint,
            "vocabulary_size": self.vocabulary.size,
            "train_tokens": self.train_tokens,
            self.examples: {name: part.num_examples for name, part in splits.items()},
            "left_out": {name: part.counts for name, part in splits.items()},
            **({"remarks": self.remarks} if self.remarks else {}),
        }

    def describe(self) -> str:
        """Examples of every split, vocabulary, what was cut, and what was decided in reading them."""
        facts = self.facts()
        sizes = ", ".join(f"{name} {count:,}" for name, count in facts[self.examples].items())
        left_out = {f"{what} in {split}": n for split, c in facts["left_out"].items() for what, n in c.items() if n}
        notes = "".join(
            [*(f"; {what}: {count:,}" for what, count in left_out.items()), *(f"; {r}" for r in self.remarks)]
        )
        told = "".join(f"{particular}; " for particular in self.particulars())
        return f"{self.name}: {self.examples} {sizes}; {told}vocabulary {facts['vocabulary_size']:,}{notes}"

    def particulars(self) -> list[str]:
        """What else there is to say about the data."""
        return []

    # --- batches

    def train_dataloader(self) -> BudgetedRows:
        """The endless training order, from where `load_state_dict` set it."""
        rank, world_size = self.place()
        micro_batches = self.trainer.accumulate_grad_batches if self.trainer else 1
        part = self.split("train")
        self._order = TokenBudgetBatches(part.lengths, self._budget, self.seed, world_size * micro_batches)
        if self._order_state is not None:
            self._order.load_state_dict(self._order_state)
        return BudgetedRows(partial(self.collate, part), self._order, rank, world_size)

    def example_batch(self) -> dict[str, torch.Tensor]:
        """A batch of typical length: what a row costs goes with its length, and the first batch may have any."""
        part = self.split("train")
        groups = TokenBudgetBatches(part.lengths, self._budget, self.seed).groups(0)
        return self.collate(part, typical(groups, part.lengths, np.ones(len(part.rows), dtype=np.int64)))

    def val_dataloader(self) -> EvaluationBatches:
        """The rows to validate on."""
        return self.evaluation_loader("validation")

    def evaluation_loader(self, split: str) -> EvaluationBatches:
        """Every row of a split once over all ranks, with `ids`, the longest first."""
        part = self.split(split)
        return EvaluationBatches(part.lengths, self._budget, partial(self.collate, part), *self.place())

    def state_dict(self) -> dict[str, Any]:
        """The place in the training order."""
        return {} if self._order is None else self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader go on from a saved place."""
        self._order_state = dict(state_dict) or None

    def _prepared(self) -> tuple[dict[str, Any], Vocabulary, str]:
        parts = self.source.read(self.cache)
        fingerprint = self.source.fingerprint(parts)
        if self.tokenizer_from is not None:
            return parts, Vocabulary(tokenizer_of_run(self.tokenizer_from)), fingerprint
        settings = [FORMAT, fingerprint, self._untrained.name, asdict(self._untrained)]
        folder = cache_root(self.cache) / self.kind / f"{self.name}-{key_of(settings)}"

        def make(scratch: Path) -> None:
            seen = parts.values() if self._untrained.sees_whole_text else [parts["train"]]
            text = "\n".join(line for part in seen for line in self.lines(part))
            self._untrained.train(text).save(scratch / "tokenizer.json")

        tokenizer = kept(folder, make, lambda there: Tokenizer.load(there / "tokenizer.json"))
        return parts, Vocabulary(tokenizer), fingerprint


def padded(rows: list[np.ndarray], filler: int) -> np.ndarray:
    """Rows of unequal lengths as one array (B, T), filled on the right."""
    together_BT = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for place, row in enumerate(rows):
        together_BT[place, : len(row)] = row
    return together_BT


def collate_rows(part: Encoded, rows_B: np.ndarray, filler: int, **also: np.ndarray) -> dict[str, torch.Tensor]:
    """Rows as one batch: tokens (B, T) filled on the right, is_token, ids (B,), and what else there is."""
    rows = [part.rows[row] for row in rows_B]
    tokens_BT = padded(rows, filler)
    is_token_BT = np.arange(tokens_BT.shape[1]) < np.array([[len(row)] for row in rows])
    batch = {"tokens": tokens_BT, "is_token": is_token_BT, "ids": rows_B.astype(np.int64), **also}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def remarks_of(parts: dict[str, Any]) -> list[str]:
    """What was decided in reading parts that a reader should know."""
    return [remark for part in parts.values() for remark in getattr(part, "remarks", ())]


def tokenizer_of_run(run: str) -> Tokenizer:
    """The tokenizer that a run was trained with. Raises DataError where there is none."""
    path = Path(run).expanduser() / "tokenizer.json"
    try:
        return Tokenizer.load(path).of_text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"data.tokenizer_from={run}: there is no tokenizer.json that can be read ({error}); give the directory of a "
            "run that has one, such as runs/STUDY/CELL/seed=0"
        ) from error
