"""Token numbers of text together with those of the marks that are no text.

A tokenizer with marks of its own keeps its numbers. Before the numbers of another one stand five marks and perhaps sentinels, the same
ones in every vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attnlab.data.marks import Marks, Tokens
from attnlab.data.tokenizers import Byte, Tokenizer

PAD, START, END, MASK, SEPARATOR = range(5)
NUM_MARKS = 5


@dataclass(frozen=True)
class Vocabulary:
    """
    A trained tokenizer and its marks: its own, or PAD 0, START 1, END 2, MASK 3, SEPARATOR 4 and `num_sentinels` sentinels before it.

    pad, start, end, mask, separator, target_start: the numbers of these marks; each raises DataError where the tokenizer has none.
    """

    tokenizer: Tokenizer
    num_sentinels: int = 0

    @cached_property
    def marks(self) -> Marks:
        """All marks, and where they stand around a text."""
        return self.tokenizer.marks or marks_in_front(self.num_sentinels)

    @property
    def first_text(self) -> int:
        """The number of the tokenizer's token 0."""
        return 0 if self.tokenizer.marks else NUM_MARKS + self.num_sentinels

    @property
    def size(self) -> int:
        """How many different numbers there are."""
        return self.first_text + self.tokenizer.vocabulary_size

    @property
    def pad(self) -> int:
        """The number of what fills rows."""
        return self.marks.need("pad")

    @property
    def start(self) -> int:
        """The number of what stands before a text."""
        return self.marks.need("start")

    @property
    def end(self) -> int:
        """The number of what stands after a text."""
        return self.marks.need("end")

    @property
    def mask(self) -> int:
        """The number of what hides a token."""
        return self.marks.need("mask")

    @property
    def separator(self) -> int:
        """The number of what stands between two texts."""
        return self.marks.need("separator")

    @property
    def target_start(self) -> int:
        """The number of where a decoder's input starts."""
        return self.marks.need("target_start")

    def pair_marks(self) -> tuple[Tokens, Tokens, Tokens]:
        """What stands before, between and after two texts. Raises DataError where nothing tells them apart."""
        before, between, after = self.marks.pair
        return before, between or (self.separator,), after

    @property
    def sentinels(self) -> np.ndarray:
        """The numbers of the sentinels, counted from 0; at most `num_sentinels`."""
        return np.array(self.marks.sentinels[: self.num_sentinels], dtype=np.int64)

    def sentinel(self, index: int) -> int:
        """The number of sentinel `index`, counted from 0."""
        assert 0 <= index < len(self.sentinels), (index, len(self.sentinels))
        return int(self.sentinels[index])

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """The numbers of all tokens that are text."""
        return self.tokenizer.text_tokens + self.first_text

    # --- texts and their tokens

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of a text, without any mark, in int64."""
        return self.tokenizer.encode(text).astype(np.int64) + self.first_text

    def encode_text(self, text: str) -> np.ndarray:
        """`encode` of a text that stands by itself: after a blank where the tokenizer's first word would look unlike others."""
        return self.encode(self.tokenizer.text_lead + text)

    def encode_word(self, word: str) -> np.ndarray:
        """`encode` of a word as it looks within a text."""
        return self.encode(self.tokenizer.word_lead + word)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode_text`, and the characters (N, 2) of the text that each token is of: from, and up to but not including."""
        lead = self.tokenizer.text_lead
        tokens_N, places_N2 = self.tokenizer.locate(lead + text)
        return tokens_N.astype(np.int64) + self.first_text, np.maximum(places_N2 - len(lead), 0)

    def decode(self, tokens: Sequence[int] | np.ndarray | Any) -> str:
        """The text of the numbers up to the first end mark; all other marks are left out."""
        tokens_N = np.asarray(tokens, dtype=np.int64)
        ends = np.flatnonzero(np.isin(tokens_N, self.marks.ends))
        kept_N = tokens_N[: ends[0]] if len(ends) else tokens_N
        return self.tokenizer.decode(kept_N[kept_N >= self.first_text] - self.first_text)


def marks_in_front(num_sentinels: int = 0) -> Marks:
    """The marks of a tokenizer that has none of its own."""
    return Marks(
        pad=PAD,
        start=START,
        end=END,
        mask=MASK,
        separator=SEPARATOR,
        target_start=START,
        ends=(END,),
        sentinels=tuple(range(NUM_MARKS, NUM_MARKS + num_sentinels)),
        text=((START,), (END,)),
        pair=((START,), (SEPARATOR,), (END,)),
        source=((), (END,)),
        target=((), (END,)),
    )


def rehearsal(tokenizer: Tokenizer | None, num_sentinels: int = 0) -> Vocabulary:
    """A stand-in before any data are read: the bytes, unless the tokenizer has marks and with them all that there is to know."""
    return Vocabulary(tokenizer if tokenizer is not None and tokenizer.marks else Byte(), num_sentinels)


def framed(marks: Sequence[Tokens], *texts: np.ndarray) -> np.ndarray:
    """Tokens (..., N) of one text or two with the marks before, between and after them."""
    parts: list[np.ndarray] = []
    for place, numbers in enumerate(marks):
        parts.append(np.broadcast_to(np.array(numbers, dtype=texts[0].dtype), (*texts[0].shape[:-1], len(numbers))))
        parts.extend(texts[place : place + 1])
    return np.concatenate(parts, axis=-1)


def num_marks(marks: Sequence[Tokens]) -> int:
    """How many marks stand before, between and after."""
    return sum(map(len, marks))
