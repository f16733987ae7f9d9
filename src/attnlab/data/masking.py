"""Which tokens of a window a model has to restore, and what it sees in their place. Letters of shapes: B windows, T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from attnlab.data.cache import DataError
from attnlab.ranges import Interval, Probability, check_ranges, must_be


@check_ranges
@dataclass(frozen=True)
class Masking:
    """
    Chooses `probability` of a window's tokens (rounded, at least one); a chosen token becomes the mask, another token, or stays.

    mask_share and random_share: of the chosen ones; the rest stays as it is (80/10/10: Devlin et al. 2019, section 3.1).
    whole_words: all tokens of a word are chosen or none, as long as whole words fit into the number; a window whose first word
    drawn does not fit gets a part of it. Raises DataError for shares that are none.
    """

    probability: Annotated[float, Interval(gt=0, lt=1)] = 0.15
    mask_share: Probability = 0.8
    random_share: Probability = 0.1
    whole_words: bool = False

    def __post_init__(self) -> None:
        shares = (self.mask_share, self.random_share)
        if sum(shares) > 1 + 1e-9:
            wanted = f"at most {1 - shares[0]:g}, what data.masking.mask_share={shares[0]} leaves"
            raise DataError(must_be("data.masking.random_share", wanted, shares[1]))

    def count(self, num_tokens: int) -> int:
        """How many of so many tokens are chosen, at most."""
        return max(1, round(self.probability * num_tokens))

    def choose(self, words_BT: np.ndarray, scores_BT: np.ndarray) -> np.ndarray:
        """True for chosen tokens, (B, T). words_BT numbers the words of each window from 0; the words with the least scores are chosen."""
        batch, length = words_BT.shape
        rows_B1, limit = np.arange(batch)[:, None], self.count(length)
        if not self.whole_words:
            words_BT = np.broadcast_to(np.arange(length), words_BT.shape)
        # A word's score is that of its first token; a stable sort keeps its tokens together and in order.
        first_BT = np.diff(words_BT, axis=1, prepend=-1) != 0
        starts_BT = np.maximum.accumulate(np.where(first_BT, np.arange(length), 0), axis=1)
        order_BT = np.lexsort(
            (np.broadcast_to(np.arange(length), words_BT.shape), scores_BT[rows_B1, starts_BT]), axis=1
        )
        chosen_BT = np.zeros_like(words_BT, dtype=bool)
        chosen_BT[rows_B1, order_BT[:, :limit]] = True
        if self.whole_words and limit < length:
            cut_B1 = words_BT[rows_B1, order_BT[:, limit : limit + 1]]
            was_cut_B1 = cut_B1 == words_BT[rows_B1, order_BT[:, limit - 1 : limit]]
            rest_BT = chosen_BT & ~((words_BT == cut_B1) & was_cut_B1)
            chosen_BT = np.where(rest_BT.any(axis=1, keepdims=True), rest_BT, chosen_BT)
        return chosen_BT

    def replace(
        self, tokens_BT: np.ndarray, chosen_BT: np.ndarray, fates_BT: np.ndarray, others_BT: np.ndarray, mask: int
    ) -> np.ndarray:
        """What the model sees, (B, T): fates (uniform in 0 to 1) decide what becomes of a chosen token, others_BT are random tokens."""
        seen_BT = np.where(chosen_BT & (fates_BT < self.mask_share), mask, tokens_BT)
        is_random_BT = (fates_BT >= self.mask_share) & (fates_BT < self.mask_share + self.random_share)
        return np.where(chosen_BT & is_random_BT, others_BT, seen_BT)
