"""Token numbers of text together with those of the marks that are no text: padding, start, end, mask, sentinels.

The marks come first, so that their numbers are the same in every vocabulary; the tokenizer's numbers follow them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlab.data.tokenizers import Tokenizer

PAD, START, END, MASK, SEPARATOR = range(5)
NUM_MARKS = 5


@dataclass(frozen=True)
class Vocabulary:
    """A trained tokenizer behind the marks PAD 0, START 1, END 2, MASK 3, SEPARATOR 4 and `num_sentinels` sentinels (T5's <extra_id_i>)."""

    tokenizer: Tokenizer
    num_sentinels: int = 0

    @property
    def first_text(self) -> int:
        """The number of the tokenizer's token 0."""
        return NUM_MARKS + self.num_sentinels

    @property
    def size(self) -> int:
        """How many different numbers there are."""
        return self.first_text + self.tokenizer.vocabulary_size

    def sentinel(self, index: int) -> int:
        """The number of sentinel `index`, counted from 0."""
        assert 0 <= index < self.num_sentinels, (index, self.num_sentinels)
        return NUM_MARKS + index

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of a text, without any mark, in int64."""
        return self.tokenizer.encode(text).astype(np.int64) + self.first_text

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, and the characters (N, 2) that each token is of: from, and up to but not including."""
        tokens_N, places_N2 = self.tokenizer.locate(text)
        return tokens_N.astype(np.int64) + self.first_text, places_N2

    def decode(self, tokens: Sequence[int] | np.ndarray | Any) -> str:
        """The text of the numbers up to the first END; all other marks are left out."""
        tokens_N = np.asarray(tokens, dtype=np.int64)
        ends = np.flatnonzero(tokens_N == END)
        kept_N = tokens_N[: ends[0]] if len(ends) else tokens_N
        return self.tokenizer.decode(kept_N[kept_N >= self.first_text] - self.first_text)
