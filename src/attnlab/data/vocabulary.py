"""Token numbers of text together with those of the special tokens that are none.

A tokenizer with special tokens of its own keeps its numbers. Before those of another one stand five and perhaps
sentinels, the same ones in every vocabulary. Letters of shapes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from attnlab.data.special_tokens import NUM_SPECIAL_TOKENS, SpecialTokens, Tokens, leading_special_tokens
from attnlab.data.tokenizers import Byte, Tokenizer


class _Required:
    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, vocabulary: Vocabulary, owner: type | None = None) -> int:
        return vocabulary.special_tokens.require(self.name)


@dataclass(frozen=True)
class Vocabulary:
    """A trained tokenizer and special tokens: its own, or the leading ones and `num_sentinels` sentinels before it.

    pad, start, end, mask, separator, target_start: their numbers; each raises DataError where the tokenizer has none.
    """

    tokenizer: Tokenizer
    num_sentinels: int = 0

    pad, start, end, mask, separator, target_start = (_Required() for _ in range(6))

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """All of them, and where they stand around a text."""
        return self.tokenizer.special_tokens or leading_special_tokens(self.num_sentinels)

    @property
    def first_text(self) -> int:
        """The number of the tokenizer's token 0."""
        return 0 if self.tokenizer.special_tokens else NUM_SPECIAL_TOKENS + self.num_sentinels

    @property
    def size(self) -> int:
        return self.first_text + self.tokenizer.vocabulary_size

    def pair_special_tokens(self) -> tuple[Tokens, Tokens, Tokens]:
        """What stands before, between and after two texts. Raises DataError where nothing tells them apart."""
        before, between, after = self.special_tokens.pair
        return before, between or (self.separator,), after

    @property
    def sentinels(self) -> np.ndarray:
        """The numbers of the sentinels, counted from 0; at most `num_sentinels`."""
        return np.array(self.special_tokens.sentinels[: self.num_sentinels], dtype=np.int64)

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """The numbers of all tokens that are text."""
        return self.tokenizer.text_tokens + self.first_text

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of a text, without any special token, in int64."""
        return self.tokenizer.encode(text).astype(np.int64) + self.first_text

    def encode_text(self, text: str) -> np.ndarray:
        """`encode` of a text that stands by itself: after a blank where its first word would look unlike others."""
        return self.encode(self.tokenizer.text_lead + text)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode_text`, and the characters (N, 2) that each token is of: from, and up to but not including."""
        lead = self.tokenizer.text_lead
        tokens_N, places_N2 = self.tokenizer.locate(lead + text)
        return tokens_N.astype(np.int64) + self.first_text, np.maximum(places_N2 - len(lead), 0)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of the numbers up to the first end; all other special tokens are left out."""
        tokens_N = np.asarray(tokens, dtype=np.int64)
        ends = np.flatnonzero(np.isin(tokens_N, self.special_tokens.ends))
        kept_N = tokens_N[: ends[0]] if len(ends) else tokens_N
        return self.tokenizer.decode(kept_N[kept_N >= self.first_text] - self.first_text)


def placeholder_vocabulary(tokenizer: Tokenizer | None, num_sentinels: int = 0) -> Vocabulary:
    """A stand-in before any data are read: the bytes, unless the tokenizer has special tokens: then all is known."""
    return Vocabulary(tokenizer if tokenizer is not None and tokenizer.special_tokens else Byte(), num_sentinels)
