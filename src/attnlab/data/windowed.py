"""What the data modules share that make an example of each window of a text. Letters of shapes: N tokens of a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.corpus import Corpus
from attnlab.data.module import DataModule
from attnlab.data.text import TextData
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, rehearsal
from attnlab.data.windows import WindowBatches


class WindowedText(DataModule):
    """
    A text in windows of `context` tokens, in an endless training order that can be gone on with.

    A subclass gives `training_batches` and `evaluation_batches`, and how large its examples are. Raises DataError.
    """

    num_sentinels: int = 0
    windows_type: type[WindowBatches] = WindowBatches

    def __init__(self, text: TextData) -> None:
        super().__init__()
        self._text, self.name = text, text.name
        self.context, self.batch_size, self.seed = text.context, text.batch_size, text.seed
        self.max_validation_tokens = text.max_validation_tokens
        self._order: WindowBatches | None = None
        self._order_state: dict[str, int] | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text's tokens, and marks."""
        return Vocabulary(self.corpus.tokenizer, self.num_sentinels)

    def rehearsal_vocabulary(self) -> Vocabulary:
        """A stand-in for it before any data are read."""
        return rehearsal(self._text.untrained, self.num_sentinels)

    @abstractmethod
    def training_batches(self, order: WindowBatches) -> Iterable[Any]:
        """Batches of the windows of a training order."""
        raise NotImplementedError(f"{type(self).__name__} gives no training batches")

    @abstractmethod
    def evaluation_batches(self, tokens_N: np.ndarray, rank: int, world_size: int) -> Iterable[Any]:
        """Batches of one rank's share of the windows that these tokens, one after the other, make up."""
        raise NotImplementedError(f"{type(self).__name__} gives no evaluation batches")

    @property
    def corpus(self) -> Corpus:
        """The token arrays; prepared at the first use."""
        return self._text.corpus

    @property
    def tokenizer(self) -> Tokenizer:
        """The trained tokenizer."""
        return self.corpus.tokenizer

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The one tokenizer."""
        return self._text.tokenizers()

    def facts(self) -> dict[str, Any]:
        """The text's fingerprint, and sizes."""
        return self._text.facts() | {"vocabulary_size": self.vocabulary.size, "train_tokens": self.train_tokens}

    def prepare_data(self) -> None:
        """Fetches the text, trains the tokenizer and writes the token arrays into the cache, where they are not there yet."""
        self._text.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Sees that the text is long enough to train and to validate on."""
        self.windows()
        self.val_dataloader()

    def train_dataloader(self) -> Iterable[Any]:
        """The endless training order, from where `load_state_dict` set it."""
        self._order = self.windows(*self.place())
        if self._order_state is not None:
            self._order.load_state_dict(self._order_state)
        return self.training_batches(self._order)

    def val_dataloader(self) -> Iterable[Any]:
        """Windows over the validation part."""
        return self.evaluation_loader("validation", self.max_validation_tokens)

    def evaluation_loader(self, split: str, max_tokens: int | None = None) -> Iterable[Any]:
        """Every whole window of a part once over all ranks, up to `max_tokens` of its text. Raises DataError for too few of them."""
        part, (rank, world_size) = self.corpus.part(split), self.place()
        count = min(part.num_tokens, max(max_tokens or part.num_tokens, self.context)) // self.context
        if count == 0:
            raise DataError(
                f"the {split} part of data={self.name} has {part.num_tokens:,} tokens, too few for a window of {self.context} "
                "(data.context); use a longer text or a larger share of it (data.split)"
            )
        if count < world_size:
            raise DataError(
                f"{count} windows to evaluate are too few for {world_size} ranks; evaluate on fewer devices"
            )
        return self.evaluation_batches(part.tokens[: count * self.context], rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training order."""
        return {} if self._order is None else self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader go on from a saved place."""
        self._order_state = dict(state_dict) or None

    def windows(self, rank: int = 0, world_size: int = 1) -> WindowBatches:
        """The training order from its start. Raises DataError for a text that is too short."""
        tokens, order = self.corpus.train.tokens, self.windows_type
        try:
            return order(tokens, self.context, self.batch_size, self.seed, rank, world_size)
        except DataError as error:
            raise DataError(f"the train part of data={self.name}: {error}") from error
