"""Masked language modelling on one text, and its data module.

Shapes: B windows of a batch, N tokens of a text or a window, K random numbers, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self, Unpack

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.order import Batch, uniforms
from attnlab.data.source import Given, TextSource
from attnlab.data.special_tokens import Tokens, add_special_tokens, leading_special_tokens, num_special_tokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.data.windows import WindowData, WindowFields
from attnlab.parts import Choices
from attnlab.ranges import Ge, Interval, Probability, check_ranges, must_be

# What random numbers are for: no window to evaluate has a training window's mask or noise.
TRAINING, STATIC, EVALUATION = "masks to train on", "static masks", "masks to evaluate on"


@check_ranges
@dataclass(frozen=True)
class Masking:
    """Chooses `probability` of a window's tokens, at least one; each becomes the mask, another token, or stays.

    mask_share and random_share: of the chosen ones; the rest stays as it is (80/10/10: Devlin et al. 2019, section
    3.1). whole_words: all tokens of a word are chosen or none, as long as whole words fit into the number; a window
    whose first word drawn does not fit gets a part of it. Raises DataError for shares that are none.
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
        """True for chosen tokens, (B, T): those of the words (numbered from 0 in each window) with the least scores."""
        batch, length = words_BT.shape
        rows_B1, limit = np.arange(batch)[:, None], self.count(length)
        if not self.whole_words:
            words_BT = np.broadcast_to(np.arange(length), words_BT.shape)
        # A word's score is that of its first token; a stable sort keeps its tokens together and in order.
        first_BT = np.diff(words_BT, axis=1, prepend=-1) != 0
        starts_BT = np.maximum.accumulate(np.where(first_BT, np.arange(length), 0), axis=1)
        places_BT = np.broadcast_to(np.arange(length), words_BT.shape)
        order_BT = np.lexsort((places_BT, scores_BT[rows_B1, starts_BT]), axis=1)
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
        """What the model sees, (B, T): fates (uniform in 0 to 1) decide about chosen tokens, others are random."""
        seen_BT = np.where(chosen_BT & (fates_BT < self.mask_share), mask, tokens_BT)
        is_random_BT = (fates_BT >= self.mask_share) & (fates_BT < self.mask_share + self.random_share)
        return np.where(chosen_BT & is_random_BT, others_BT, seen_BT)


@check_ranges
class MaskedTextData(WindowData):
    """A text as batches of windows of `context_length` tokens between start and end tokens, some of them masked.

    masking: which and how. A dynamic mask is drawn anew for every window, a static one belongs to the places of the
    text, whose windows are then the same in every epoch (Liu et al. 2019, arXiv 1907.11692, section 4.1); windows to
    evaluate always have the same. next_sentence: a window is two halves with a separator between; in every second one,
    at random, the other half comes from elsewhere (Devlin et al. 2019, section 3.1). The other fields as in WindowData.
    Raises DataError.
    """

    unit = "masked token"
    shortest_window = 2

    def __init__(
        self,
        source: Given[TextSource],
        tokenizer: Tokenizer,
        masking: Masking,
        masks: Literal["dynamic", "static"] = "dynamic",
        next_sentence: bool = False,
        context_length: Annotated[int, Ge(2)] = 126,
        **fields: Unpack[WindowFields],
    ) -> None:
        super().__init__(source, tokenizer, context_length, **fields)
        self.masking, self.masks, self.next_sentence = masking, masks, next_sentence
        self.has_fixed_windows = masks == "static"
        vocabulary = self.placeholder_vocabulary()
        if masking.mask_share:
            vocabulary.special_tokens.require("mask")
        if next_sentence:
            vocabulary.pair_special_tokens()

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        # Of a window with the special tokens around it, unless the tokenizer has its own.
        leading = leading_special_tokens()
        around = num_special_tokens(leading.pair if choices.get("data.next_sentence") else leading.text)
        return (choices.get("data.context_length") or 0) + around, "data.context_length, and its special tokens"

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        second_task = {"next_sentence": True, "num_segments": 2} if self.next_sentence else {}
        return {"vocabulary_size": vocabulary.size, **second_task}

    @property
    def tokens_per_batch(self) -> int:
        """Masked tokens of a training batch of one rank; at most, where words are masked whole."""
        return self.batch_size * self.masking.count(self.context_length)

    @property
    def train_tokens(self) -> int:
        """Masked tokens of an epoch; at most, where words are masked whole."""
        return self.order().count * self.masking.count(self.context_length)

    def at_length(self, length: int) -> Self:
        # Made once for all lengths: what is made for one of them goes with it.
        _ = self._begins_word_V
        if self.masks == "static":
            _ = self._static_3N
        return super().at_length(length)

    def describe(self) -> str:
        count = f"{'at most ' if self.masking.whole_words else ''}{self.masking.count(self.context_length)}"
        return f"{super().describe()}; {count} of {self.context_length} tokens of a window masked"

    def collate(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """tokens (B, T) as the model sees them, targets, chosen, and segments and follows where asked.

        The random numbers of a window are those of its number, whatever else is in its batch; a static mask is that of
        the places of the text; windows to evaluate are masked in the same way whatever the seed.
        """
        purpose = EVALUATION if drawn_B is None else STATIC if self.masks == "static" else TRAINING
        numbers_B = starts_B // self.context_length if drawn_B is None else drawn_B
        seed = 0 if purpose == EVALUATION else self.seed
        drawn_BK = uniforms(seed, 0, numbers_B, purpose, 2 + 3 * self.context_length)
        plain_BN, follows_B = self._rows(tokens_N, starts_B, drawn_BK[:, :2])
        if purpose == STATIC:
            scores_BN, fates_BN, others_BN = self._static_3N[:, starts_B[:, None] + np.arange(self.context_length)]
        else:
            scores_BN, fates_BN, others_BN = drawn_BK[:, 2:].reshape(len(starts_B), 3, -1).swapaxes(0, 1)
        vocabulary, text_BN = self.vocabulary, plain_BN.astype(np.int64) + self.vocabulary.first_text
        words_BN = np.cumsum(self._begins_word_V[plain_BN], axis=1)
        chosen_BN = self.masking.choose(words_BN, scores_BN)
        others_BN = vocabulary.text_tokens[(others_BN * len(vocabulary.text_tokens)).astype(np.int64)]
        mask = vocabulary.mask if self.masking.mask_share else vocabulary.special_tokens.pad_id
        seen_BN = self.masking.replace(text_BN, chosen_BN, fates_BN, others_BN, mask)
        arrays = self._between_special_tokens(seen_BN, text_BN, chosen_BN)
        if self.next_sentence:
            arrays["follows"] = follows_B
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _between_special_tokens(
        self, seen_BN: np.ndarray, text_BN: np.ndarray, chosen_BN: np.ndarray
    ) -> dict[str, np.ndarray]:
        """tokens, targets and chosen (B, T), and segments where a row is of two texts."""
        vocabulary, half = self.vocabulary, self.context_length // 2
        around: Sequence[Tokens] = (
            vocabulary.pair_special_tokens() if self.next_sentence else vocabulary.special_tokens.text
        )
        not_chosen = [(False,) * len(numbers) for numbers in around]
        rows = {"tokens": (around, seen_BN), "targets": (around, text_BN), "chosen": (not_chosen, chosen_BN)}
        arrays = {
            name: add_special_tokens(tokens, *([x_BN[:, :half], x_BN[:, half:]] if self.next_sentence else [x_BN]))
            for name, (tokens, x_BN) in rows.items()
        }
        if self.next_sentence:
            segments_T = np.arange(arrays["tokens"].shape[1]) >= num_special_tokens(around[:2]) + half
            arrays["segments"] = np.broadcast_to(segments_T.astype(np.int64), arrays["tokens"].shape).copy()
        return arrays

    def _rows(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows' tokens (B, N), and whether their second half follows their first (B,), by two draws."""
        view = np.lib.stride_tricks.sliding_window_view(tokens_N, self.context_length)
        rows_BN, follows_B = view[starts_B], np.ones(len(starts_B), dtype=np.int64)
        if self.next_sentence:
            follows_B = (drawn_B2[:, 0] * 2).astype(np.int64)
            elsewhere_B = (drawn_B2[:, 1] * len(view)).astype(np.int64)
            half = self.context_length // 2
            rows_BN = rows_BN.copy()
            rows_BN[follows_B == 0, half:] = view[elsewhere_B[follows_B == 0], half:]
        return rows_BN, follows_B

    @cached_property
    def _begins_word_V(self) -> np.ndarray:
        return self.tokenizer.begins_word()

    @cached_property
    def _static_3N(self) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=[self.seed, 1]))
        return random.random((3, len(self.corpus.train.tokens)), dtype=np.float32)
