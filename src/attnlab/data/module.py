"""What every data module tells the rest of a run."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning

from attnlab.data.cache import DataError
from attnlab.data.kept_order import KeptOrder
from attnlab.data.tokenizer_export import write_tokenizer
from attnlab.data.tokenizers import Tokenizer


class DataModule(lightning.LightningDataModule):
    """
    Examples as batches, in an order that can be resumed.

    Training loaders are endless and a function of the seed alone; evaluation loaders give each example once. A subclass whose
    `train_dataloader` gives any other loader, and whose `state_dict` gives no place, has it made so: see `KeptOrder`. A batch is a
    dict of tensors. unit: what a term of the loss is. frame: which marks stand around a text, those for an encoder or those for a
    sequence-to-sequence model's source.
    """

    name: str
    unit: str = "token"
    order_seed: int = 0  # of loaders that keep no place
    frame: Literal["text", "source"] = "text"

    def __init_subclass__(cls, **more: Any) -> None:
        """Sees that the training order of a subclass can be gone on with."""
        super().__init_subclass__(**more)
        if "train_dataloader" in cls.__dict__:
            cls.train_dataloader = _kept(cls.train_dataloader)  # type: ignore[method-assign]

    @abstractmethod
    def widths(self) -> dict[str, Any]:
        """What only the data can tell a model or a task, such as the size of the vocabulary."""
        raise NotImplementedError(f"{type(self).__name__} gives no widths")

    @abstractmethod
    def rehearsal_widths(self) -> dict[str, Any]:
        """The same with stand-ins, before any data are read."""
        raise NotImplementedError(f"{type(self).__name__} gives no rehearsal widths")

    @property
    @abstractmethod
    def tokens_per_batch(self) -> int:
        """How many terms of the loss a training batch of one rank has, on average."""
        raise NotImplementedError(f"{type(self).__name__} does not say how large its batches are")

    def tokens_per_step(self, parts: int) -> int:
        """How many terms of the loss a step of so many batches (ranks times accumulated ones) has, on average."""
        return parts * self.tokens_per_batch

    @property
    @abstractmethod
    def train_tokens(self) -> int:
        """How many terms of the loss an epoch has."""
        raise NotImplementedError(f"{type(self).__name__} does not say how large its training part is")

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a run's record says about its data: a fingerprint, sizes, what was left out."""
        raise NotImplementedError(f"{type(self).__name__} gives no facts")

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The trained tokenizers, by the names of the files that a run keeps them in."""
        return {}

    def write_tokenizer(self, folder: str | Path) -> None:
        """
        Writes the tokenizer as Hugging Face's files: a text's numbers there are those that the model sees here, marks included.

        Raises DataError where there is none, or one each for two languages.
        """
        found = self.tokenizers()
        if len(found) != 1:
            raise DataError(
                f"{self.name} has {', '.join(found) or 'no tokenizer'}; Hugging Face's files hold one tokenizer, no more and no less"
            )
        # Language models see texts without marks: their data have a tokenizer and no vocabulary.
        write_tokenizer(getattr(self, "vocabulary", found["tokenizer.json"]), folder, self.frame)

    @abstractmethod
    def describe(self) -> str:
        """The data in one line."""
        raise NotImplementedError(f"{type(self).__name__} gives no description")

    def example_batch(self) -> Mapping[str, Any]:
        """A batch of the shape of training batches, for counting what a model computes on it."""
        return next(iter(self.train_dataloader()))

    def place(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _kept(train_dataloader: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its loader as a KeptOrder, where neither the data module nor the loader keeps a place in the order."""

    @functools.wraps(train_dataloader)
    def kept(self: DataModule, *given: Any, **named: Any) -> Any:
        loader = train_dataloader(self, *given, **named)
        if self.state_dict() or isinstance(loader, KeptOrder) or hasattr(loader, "state_dict"):
            return loader
        if isinstance(loader, Mapping | list | tuple) or not hasattr(loader, "__iter__"):
            raise DataError(
                f"{type(self).__name__}.train_dataloader must give one loader, got {type(loader).__name__}; "
                "put several into one batch by a loader of your own"
            )
        return KeptOrder(loader, type(self).__name__, self.order_seed, self.place()[1])

    return kept
