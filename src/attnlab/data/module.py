"""What every data module tells the rest of a run, and what those of examples in splits share."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypedDict, TypeVar

import lightning
import numpy as np

from attnlab.data.ahead import BatchesAhead, pinned
from attnlab.data.cache import DataError
from attnlab.data.order import (
    ENDLESS,
    Batch,
    EvaluationLoader,
    Order,
    ShuffledOrder,
    TrainingLoader,
    batches_by_length,
)
from attnlab.data.ramps import StepSizes, TakesRamps
from attnlab.data.replayed import ReplayedLoader
from attnlab.data.source import SPLITS, opened
from attnlab.data.tokenizer_files import write_tokenizer
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, placeholder_vocabulary
from attnlab.parts import Choices, Prepared
from attnlab.ranges import Seed

IGNORED = -100  # as a target: of a position that is no term of the loss
PLACEHOLDER_CLASSES = 2


class DataModule(TakesRamps, lightning.LightningDataModule):
    """Examples as batches, in an order that can be resumed.

    Training loaders are endless and a function of the seed alone; evaluation loaders give each example once. A subclass
    whose `train_dataloader` gives any other loader, and whose `state_dict` gives no position, has it replayed: see
    `ReplayedLoader`. A batch is a dict of tensors. unit: what a term of the loss is. frame: which special tokens
    stand around a text, those for an encoder or those for a sequence-to-sequence model's source; None: none.
    """

    name: str
    unit: str = "token"
    order_seed: int = 0  # of loaders that keep no position
    frame: Literal["text", "source"] | None = "text"
    _loader: TrainingLoader | BatchesAhead | None = None
    _order_state: dict[str, int] | None = None

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        """Tokens of the longest row that the fields allow, with special tokens (0: any), and the field that says so."""
        return choices.get("data.context_length") or 0, "data.context_length"

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        if "train_dataloader" in cls.__dict__:
            cls.train_dataloader = _resumable(cls.train_dataloader)  # type: ignore[method-assign]

    # --- what a subclass gives

    @abstractmethod
    def dims(self) -> dict[str, object]:
        """What only the data can tell a model or a task, such as the size of the vocabulary."""

    @abstractmethod
    def placeholder_dims(self) -> dict[str, object]:
        """The same with stand-ins, before any data are read."""

    @property
    @abstractmethod
    def tokens_per_batch(self) -> int:
        """How many terms of the loss a training batch of one rank has, on average."""

    @property
    @abstractmethod
    def train_tokens(self) -> int:
        """How many terms of the loss an epoch has."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What a run's record says about its data: a fingerprint, sizes, what was left out."""

    @abstractmethod
    def describe(self) -> str:
        """The data in one line."""

    # --- what it may give

    def tokens_per_step(self, parts: int) -> int:
        """How many terms of the loss a step of so many batches (ranks times accumulated ones) has, on average, once it
        is of full size."""
        return parts * self.tokens_per_batch

    def steps_in(self, epochs: int, accumulated: int = 1, ranks: int = 1) -> int:
        """The steps, of so many batches on each of so many ranks, in which each example is seen `epochs` times. Raises
        DataError where it is not known how many batches an epoch has."""
        loader = self.train_dataloader()
        order = loader.order if isinstance(loader, TrainingLoader) else None
        if isinstance(order, ShuffledOrder):
            return StepSizes(self.ramps.batch, order.batch_size * accumulated * ranks).needed(epochs * order.count)
        inner = loader.loader if isinstance(loader, ReplayedLoader) else loader
        batches = len(inner) if isinstance(inner, Sized) else ENDLESS
        if batches >= ENDLESS or ranks > 1:
            why = "its training loader has no length" if ranks == 1 else "its loader deals out to ranks itself"
            raise DataError(
                f"trainer.max_epochs: {type(self).__name__} has no known epoch: {why}; set trainer.max_steps"
            )
        return math.ceil(epochs * batches / accumulated)

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The trained tokenizers, by the names of the files that a run keeps them in."""
        return {}

    def write_tokenizer(self, folder: str | Path) -> None:
        """Writes the tokenizer as Hugging Face's files: a text's numbers there are those that the model sees here,
        special tokens included. Raises DataError where there is none, or one each for two languages.
        """
        found = self.tokenizers()
        if len(found) != 1:
            raise DataError(
                f"{self.name} has {', '.join(found) or 'no tokenizer'}; Hugging Face's files hold one tokenizer, no "
                "more and no less"
            )
        tokenizer = found["tokenizer.json"]
        seen = tokenizer if self.frame is None else getattr(self, "vocabulary", tokenizer)
        write_tokenizer(seen, folder, self.frame or "text")

    def example_batch(self) -> Prepared:
        """A batch of the shape of full training batches, for counting what a model computes on it."""
        return next(iter((self.unramped() if self.ramps.steps else self).train_dataloader()))

    # --- the training order

    def rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def in_order(self, order: Order[object], collate: Callable[..., Batch]) -> TrainingLoader | BatchesAhead:
        """The endless batches of an order, from where `load_state_dict` set it; made ahead where a GPU trains. Raises
        DataError for ramps that these data do not take."""
        self.check_ramps()
        order.follow(self.ramps.batch, getattr(self.trainer, "accumulate_grad_batches", 1))
        if self._order_state is not None:
            order.load_state_dict(self._order_state)
        self._close()
        loader, ready = TrainingLoader(order, collate), self._ready_for_device()
        self._loader = loader if ready is None else BatchesAhead(loader, ready)
        return self._loader

    def _ready_for_device(self) -> Callable[[Batch], Batch] | None:
        """What makes a batch ready for the GPU that trains: counts and places known, in pinned memory; None: no GPU."""
        strategy = getattr(self.trainer, "strategy", None)  # what stands in for a trainer may know of ranks alone
        if self.trainer is None or strategy is None or strategy.root_device.type != "cuda":
            return None
        task, device = self.trainer.lightning_module, strategy.root_device
        return lambda batch: pinned(task.on_before_batch_transfer(batch, 0), device)

    def _close(self) -> None:
        if isinstance(self._loader, BatchesAhead):
            self._loader.close()

    def teardown(self, stage: str) -> None:
        self._close()

    def on_exception(self, exception: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, int]:
        return {} if self._loader is None else self._loader.position()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next training loader go on from a saved position."""
        self._order_state = dict(state_dict) or None


def _resumable(train_dataloader: Callable[..., Iterable[object]]) -> Callable[..., Iterable[object]]:
    """The method with its loader replayed, where neither the data module nor the loader keeps a position."""

    @functools.wraps(train_dataloader)
    def resumable(self: DataModule, *given: object, **named: object) -> Iterable[object]:
        loader = train_dataloader(self, *given, **named)
        if self.state_dict() or isinstance(loader, ReplayedLoader) or hasattr(loader, "state_dict"):
            return loader
        if isinstance(loader, Mapping | list | tuple) or not hasattr(loader, "__iter__"):
            raise DataError(
                f"{type(self).__name__}.train_dataloader must give one loader, got {type(loader).__name__}; "
                "put several into one batch by a loader of your own"
            )
        return ReplayedLoader(loader, type(self).__name__, self.order_seed, self.rank_and_world_size()[1])

    return resumable


class WithVocabulary(DataModule):
    """Data with a vocabulary: that of targets, where sources have their own. untrained: the tokenizer as configured."""

    untrained: Tokenizer
    vocabulary: Vocabulary
    num_sentinels: int = 0

    @abstractmethod
    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        """What the data tell a model with this vocabulary, which may be a stand-in."""

    def prepare(self) -> None:
        """Sees that `vocabulary` is there."""
        return

    def placeholder_vocabulary(self) -> Vocabulary:
        return placeholder_vocabulary(self.untrained, self.num_sentinels)

    def dims(self) -> dict[str, object]:
        self.prepare()
        return self.dims_of(self.vocabulary)

    def placeholder_dims(self) -> dict[str, object]:
        return self.dims_of(self.placeholder_vocabulary())

    def tokenizers(self) -> dict[str, Tokenizer]:
        self.prepare()
        return {"tokenizer.json": self.vocabulary.tokenizer}


class Split(ABC):
    """One split as a data module holds it: rows that make batches. counts: of what was cut or left out."""

    counts: dict[str, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def num_examples(self) -> int:
        """How many there are, as a reader counts them."""
        return len(self)

    @property
    def lengths(self) -> np.ndarray:
        """Positions (N,) or (N, L) that the rows of an example take in a batch, special tokens included."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def terms(self) -> np.ndarray:
        """Terms of the loss (N,) by which a batch is judged typical; one a row, where their length says it all."""
        return np.ones(len(self), dtype=np.int64)


S = TypeVar("S", bound=Split)


class ExampleFields(TypedDict, total=False):
    """What every data module of examples takes; see ExampleData."""

    path: str | None
    seed: Seed
    cache: str | None


class ExampleData(DataModule, Generic[S]):
    """The examples of a source in splits.

    source: an ExampleSource, or a class or partial of one that is completed with `path`. examples: what they are
    called. A subclass gives `make_splits`, `collate`, `order` and `evaluation_budget`. Raises DataError.
    """

    examples: ClassVar[str]
    fingerprint: str

    def __init__(self, source: Any, path: str | None = None, seed: Seed = 0, cache: str | None = None) -> None:
        super().__init__()
        self.source = opened(source, path)
        self.name, self.seed, self.cache = self.source.name, seed, cache
        self.remarks: list[str] = []
        self._splits: dict[str, S] | None = None

    @abstractmethod
    def make_splits(self) -> dict[str, S]:
        """Every split, read, checked and encoded; sets `fingerprint`, and `remarks` about the reading."""

    @abstractmethod
    def collate(self, part: S, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """Examples of a split as a batch. drawn_B: their numbers in the training order, where it tells them apart."""

    @abstractmethod
    def order(self, parts: int, rank: int = 0, world_size: int = 1) -> Order[object]:
        """The training order from its start, in steps of so many batches."""

    @abstractmethod
    def evaluation_budget(self, part: S) -> int:
        """The most positions of a batch to evaluate, padding included."""

    @property
    def label(self) -> str:
        """What messages call the data."""
        return self.name

    def splits(self) -> dict[str, S]:
        """Every split; prepared at the first use."""
        if self._splits is None:
            self._splits = self.make_splits()
        return self._splits

    def split(self, name: str) -> S:
        """A split. Raises DataError for one that is not there, or is empty."""
        splits = self.splits()
        if name not in splits or not len(splits[name]):
            known = ", ".join(split for split, part in splits.items() if len(part))
            counts = splits[name].counts if name in splits else {}
            left_out = ", ".join(f"{what}: {count:,}" for what, count in counts.items() if count)
            raise DataError(
                f"{self.label} has no {self.examples} in a split {name!r}{left_out and f' ({left_out})'}; "
                + (f"accepted: {known}" if known else "no split has any: look at data.path")
            )
        return splits[name]

    def prepare_data(self) -> None:
        """Reads the examples and keeps what is made of them in the cache, where it is not there yet."""
        self.splits()

    def setup(self, stage: str | None = None) -> None:
        """Sees that there is something to train, to validate and to test on."""
        for name in SPLITS:
            self.split(name)

    def train_dataloader(self) -> TrainingLoader | BatchesAhead:
        rank, world_size = self.rank_and_world_size()
        micro_batches = self.trainer.accumulate_grad_batches if self.trainer else 1
        order = self.order(world_size * micro_batches, rank, world_size)
        return self.in_order(order, partial(self.collate, self.split("train")))

    def val_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("validation")

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        """Every example of a split once over all ranks, with `ids`, the longest first. Raises DataError."""
        part = self.split(split)
        batches = batches_by_length(part.lengths, self.evaluation_budget(part), *self.rank_and_world_size())
        return EvaluationLoader(batches, partial(self.collate, part))

    def facts(self) -> dict[str, object]:
        self.split("train")
        counts = {name: part.counts for name, part in self.splits().items()}
        return {
            "fingerprint": self.fingerprint,
            "train_tokens": self.train_tokens,
            self.examples: {name: part.num_examples for name, part in self.splits().items()},
            **({"left_out": counts} if any(counts.values()) else {}),
            **({"remarks": self.remarks} if self.remarks else {}),
        }

    def describe(self) -> str:
        sizes = ", ".join(f"{name} {part.num_examples:,}" for name, part in self.splits().items())
        counts = ((split, what, n) for split, part in self.splits().items() for what, n in part.counts.items())
        notes = [f"{what} in {split}: {n:,}" for split, what, n in counts if n]
        return "; ".join([f"{self.label}: {self.examples} {sizes}{self.particulars()}", *notes, *self.remarks])

    def particulars(self) -> str:
        """What else there is to say about the data, after how many examples there are."""
        return ""


class TextedData(ExampleData[S], WithVocabulary):
    """Examples with texts, whose rows of tokens have at most data.max_length."""

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        return choices.get("data.max_length") or 0, "data.max_length"

    @property
    def train_tokens(self) -> int:
        return int(self.split("train").terms.sum())

    def prepare(self) -> None:
        self.split("train")

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return {"vocabulary_size": vocabulary.size, "special_tokens": vocabulary.special_tokens}

    def facts(self) -> dict[str, object]:
        return super().facts() | {"vocabulary_size": self.vocabulary.size}


def remarks_of(parts: Mapping[str, object]) -> list[str]:
    return [remark for part in parts.values() for remark in getattr(part, "remarks", ())]


def padded(rows: Sequence[np.ndarray], filler: int, width: int | None = None) -> np.ndarray:
    """Rows of unequal lengths as one array (B, T), filled on the right to the longest, or to `width`."""
    together_BT = np.full((len(rows), width or max(map(len, rows))), filler, dtype=np.int64)
    for number, row in enumerate(rows):
        together_BT[number, : len(row)] = row
    return together_BT
