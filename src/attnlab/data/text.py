"""The Lightning data module of language modelling on one text."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.corpus import SPLITS, Corpus, check_split, prepare
from attnlab.data.module import DataModule
from attnlab.data.sources import Source, opened
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import rehearsal
from attnlab.data.windows import EvaluationWindows, WindowBatches, Windows
from attnlab.ranges import PositiveInt, Probability, Seed, check_ranges

MULTIPLES = (8, 4, 2, 1)  # of the context: the window lengths that figures are compared at


@check_ranges
class TextData(DataModule):
    """A text as batches of windows: `context` tokens and their next tokens, `batch_size` windows a batch and rank.

    `source` is a Source, or a class or partial of one that is completed with `path`; `split` holds the fractions of
    train, validation and test; validation scores at most `max_validation_tokens` (None: all); `seed` draws the
    training order. `end_of_text`: whether a mark stands between two documents of the source, <|endoftext|> where the
    tokenizer has none of its own (None: where it is one of sub-words, so that figures on characters and bytes stay
    comparable with published ones). Raises DataError.
    """

    def __init__(
        self,
        source: Callable[..., Source] | Source,
        tokenizer: Tokenizer,
        context: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
        path: str | None = None,
        max_validation_tokens: PositiveInt | None = None,
        seed: Seed = 0,
        cache: str | None = None,
        end_of_text: bool | None = None,
    ) -> None:
        super().__init__()
        check_split(split)
        if not isinstance(source, Source):
            source = opened(source, path)
        self.source, self.untrained, self.split, self.cache = source, tokenizer, split, cache
        self.name = source.name
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.max_validation_tokens = max_validation_tokens
        self.end_of_text = tokenizer.ends_documents if end_of_text is None else end_of_text
        if self.end_of_text and tokenizer.marks is not None:
            tokenizer.marks.need("end")
        self._corpus: Corpus | None = None
        self._order: WindowBatches | None = None
        self._order_state: dict[str, int] | None = None

    @property
    def corpus(self) -> Corpus:
        """The token arrays; prepared at the first use."""
        if self._corpus is None:
            self._corpus = self._prepared()
        return self._corpus

    @property
    def tokenizer(self) -> Tokenizer:
        """The trained tokenizer."""
        return self.corpus.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""
        return self.tokenizer.vocabulary_size

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary."""
        return {"vocabulary_size": self.vocabulary_size}

    def tokenizers(self) -> dict[str, Tokenizer]:
        """The one tokenizer."""
        return {"tokenizer.json": self.tokenizer}

    def rehearsal_widths(self) -> dict[str, Any]:
        """A stand-in."""
        return {"vocabulary_size": rehearsal(self.untrained).tokenizer.vocabulary_size}

    @property
    def train_tokens(self) -> int:
        """Tokens of the training part."""
        return self.corpus.train.num_tokens

    def facts(self) -> dict[str, Any]:
        """The text's fingerprint, and sizes."""
        return {
            "fingerprint": self.corpus.fingerprint,
            "vocabulary_size": self.vocabulary_size,
            "train_tokens": self.train_tokens,
        }

    def describe(self) -> str:
        """Tokens of the parts, the vocabulary, and where they lie."""
        parts = ", ".join(f"{name} {self.corpus.part(name).num_tokens:,}" for name in SPLITS)
        return f"{self.name}: tokens {parts}; vocabulary {self.vocabulary_size:,}; in {self.corpus.folder}"

    @property
    def tokens_per_batch(self) -> int:
        """Target tokens of one training batch of one rank."""
        return self.context * self.batch_size

    def prepare_data(self) -> None:
        """Fetches the text, trains the tokenizer and writes the token arrays into the cache, where they are not there yet."""
        self._prepared()

    def _prepared(self) -> Corpus:
        return prepare(self.source, self.untrained, self.split, self.cache, self.end_of_text)

    def setup(self, stage: str | None = None) -> None:
        """Maps the token arrays and sees that the text is long enough to train and to validate on."""
        with self._tokens("train") as tokens:
            Windows(tokens, self.context)
        self.val_dataloader()

    def train_dataloader(self) -> WindowBatches:
        """The endless training order, from where `load_state_dict` set it."""
        rank, world_size = self.place()
        with self._tokens("train") as tokens:
            self._order = WindowBatches(tokens, self.context, self.batch_size, self.seed, rank, world_size)
        if self._order_state is not None:
            self._order.load_state_dict(self._order_state)
        return self._order

    def val_dataloader(self) -> EvaluationWindows:
        """Windows of the training length over the validation part."""
        return self.evaluation_loader("validation", self.context, False, self.max_validation_tokens, self.context)

    def evaluation_loader(
        self,
        split: str,
        length: int,
        sliding: bool = False,
        max_tokens: int | None = None,
        longest: int | None = None,
    ) -> EvaluationWindows:
        """Windows of `length` over a part; all calls with the same `longest` and `max_tokens` score the same target tokens.

        `longest` is by default 8 times the context, or the largest of 4, 2, 1 times that the part can hold. Sliding windows move by
        half their length. Raises DataError where the part is too short.
        """
        stride = max(1, length // 2) if sliding else length
        rows = max(1, max(self.tokens_per_batch, 4096) // length)
        with self._tokens(split) as tokens:
            if longest is None:
                fitting = [k * self.context for k in MULTIPLES if k * self.context < len(tokens)]
                longest = max(length, fitting[0] if fitting else self.context)
            return EvaluationWindows(tokens, length, longest, stride, max_tokens, rows, *self.place())

    def state_dict(self) -> dict[str, Any]:
        """The place in the training order."""
        return {} if self._order is None else self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader go on from a saved place."""
        self._order_state = dict(state_dict) or None

    @contextlib.contextmanager
    def _tokens(self, split: str) -> Iterator[np.ndarray]:
        """The tokens of a part; a DataError about them says which part of what it is."""
        part = self.corpus.part(split)
        if part.num_tokens == 0:
            raise DataError(f"the {split} part is empty (data.split={list(self.split)}); give it a fraction above 0")
        try:
            yield part.tokens
        except DataError as error:
            raise DataError(f"the {split} part of data={self.source.name}: {error}") from error
