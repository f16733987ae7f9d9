"""The Lightning data module of masked language modelling on one text. Letters of shapes: B windows of a batch, T tokens, N tokens of a text or a window,
M windows, K random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch

from attnlab.data.draws import uniforms
from attnlab.data.marks import Tokens
from attnlab.data.masking import Masking
from attnlab.data.sources import Source
from attnlab.data.text import TextData
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary, framed, marks_in_front, num_marks
from attnlab.data.windowed import WindowedText
from attnlab.data.windows import ENDLESS, WindowBatches
from attnlab.ranges import Ge, PositiveInt, Probability, Seed, check_ranges

# What random numbers are for: no window to evaluate has a training window's mask.
TRAINING, STATIC, EVALUATION = "masks to train on", "static masks", "masks to evaluate on"


def marks_of(next_sentence: bool) -> int:
    """How many marks stand in a window, unless the tokenizer has its own."""
    marks = marks_in_front()
    return num_marks(marks.pair if next_sentence else marks.text)


@check_ranges
class MaskedTextData(WindowedText):
    """
    A text as batches of windows of `context` tokens between start and end marks, some of them masked.

    masking: which and how. A dynamic mask is drawn anew for every window, a static one belongs to the places of the text, whose
    windows are then the same in every epoch (Liu et al. 2019, arXiv 1907.11692, section 4.1); windows to evaluate always have the
    same. next_sentence: a window is two halves with a separator between; in every second one, at random, the other half comes from
    elsewhere (Devlin et al. 2019, section 3.1). The other fields as in TextData. Raises DataError.
    """

    unit = "masked token"

    def __init__(
        self,
        source: Callable[..., Source] | Source,
        tokenizer: Tokenizer,
        masking: Masking,
        masks: Literal["dynamic", "static"] = "dynamic",
        next_sentence: bool = False,
        context: Annotated[int, Ge(2)] = 126,
        batch_size: PositiveInt = 32,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
        path: str | None = None,
        max_validation_tokens: PositiveInt | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        text = TextData(source, tokenizer, context, batch_size, split, path, max_validation_tokens, seed, cache, False)
        super().__init__(text)
        self.masking, self.masks, self.next_sentence = masking, masks, next_sentence
        self.windows_type = StaticWindows if masks == "static" else WindowBatches
        self._begins_word_V: np.ndarray | None = None
        self._static_3N: np.ndarray | None = None

        self._refuse_without_marks(self.rehearsal_vocabulary())

    def _refuse_without_marks(self, vocabulary: Vocabulary) -> None:
        """Raises DataError where the tokenizer has no mark that windows need."""
        if self.masking.mask_share:
            vocabulary.marks.need("mask")
        if self.next_sentence:
            vocabulary.pair_marks()

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary, and what next-sentence prediction needs."""
        return {"vocabulary_size": self.vocabulary.size, **self._second_task()}

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        return {"vocabulary_size": self.rehearsal_vocabulary().size, **self._second_task()}

    def _second_task(self) -> dict[str, Any]:
        return {"next_sentence": True, "num_segments": 2} if self.next_sentence else {}

    @property
    def tokens_per_batch(self) -> int:
        """Masked tokens of a training batch of one rank; at most, where words are masked whole."""
        return self.batch_size * self.masking.count(self.context)

    @property
    def train_tokens(self) -> int:
        """Masked tokens of an epoch; at most, where words are masked whole."""
        return self.windows().windows_per_epoch * self.masking.count(self.context)

    def describe(self) -> str:
        """The text, and how many tokens of a window are masked."""
        count = f"{'at most ' if self.masking.whole_words else ''}{self.masking.count(self.context)}"
        return f"{self._text.describe()}; {count} of {self.context} tokens of a window masked"

    def training_batches(self, order: WindowBatches) -> MaskedBatches:
        """The windows of the order, masked."""
        return MaskedBatches(self, order)

    def evaluation_batches(self, tokens_N: np.ndarray, rank: int, world_size: int) -> MaskedEvaluation:
        """The windows, masked in the same way whatever the seed and the number of ranks."""
        return MaskedEvaluation(self, tokens_N, rank, world_size)

    # --- windows

    def batch(
        self, tokens_N: np.ndarray, starts_B: np.ndarray, purpose: str, numbers_B: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """Windows of a text as a batch: tokens (B, T) as the model sees them, targets, chosen, and segments and follows where asked.

        The random numbers of a window are those of its number, whatever else is in its batch; a static mask is that of the places of the text.
        """
        seed = 0 if purpose == EVALUATION else self.seed
        drawn_BK = uniforms(seed, 0, numbers_B, purpose, 2 + 3 * self.context)
        plain_BN, follows_B = self._rows(tokens_N, starts_B, drawn_BK[:, :2])
        of_windows_3BN = drawn_BK[:, 2:].reshape(len(starts_B), 3, self.context).swapaxes(0, 1)
        scores_BN, fates_BN, others_BN = self._static(tokens_N, starts_B) if purpose == STATIC else of_windows_3BN
        vocabulary, text_BN = self.vocabulary, plain_BN.astype(np.int64) + self.vocabulary.first_text
        chosen_BN = self.masking.choose(self._words(plain_BN), scores_BN)
        others_BN = vocabulary.text_tokens[(others_BN * len(vocabulary.text_tokens)).astype(np.int64)]
        mask = vocabulary.mask if self.masking.mask_share else vocabulary.marks.filler
        seen_BN = self.masking.replace(text_BN, chosen_BN, fates_BN, others_BN, mask)
        half = self.context // 2
        marks: Sequence[Tokens] = vocabulary.pair_marks() if self.next_sentence else vocabulary.marks.text
        no_marks = tuple((False,) * len(numbers) for numbers in marks)

        def row(marks: Any, x_BN: np.ndarray) -> np.ndarray:
            return framed(marks, *((x_BN[:, :half], x_BN[:, half:]) if self.next_sentence else (x_BN,)))

        arrays = {"tokens": row(marks, seen_BN), "targets": row(marks, text_BN), "chosen": row(no_marks, chosen_BN)}
        if self.next_sentence:
            length, second = arrays["tokens"].shape[1], num_marks(marks[:2]) + half
            segments_T = (np.arange(length) >= second).astype(np.int64)
            arrays |= {"segments": np.broadcast_to(segments_T, (len(starts_B), length)).copy(), "follows": follows_B}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _rows(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows' tokens, (B, context), and whether their second half follows their first, (B,), by two random numbers each."""
        view = np.lib.stride_tricks.sliding_window_view(tokens_N, self.context)
        rows_BN, follows_B = view[starts_B], np.ones(len(starts_B), dtype=np.int64)
        if self.next_sentence:
            follows_B = (drawn_B2[:, 0] * 2).astype(np.int64)
            elsewhere_B = (drawn_B2[:, 1] * len(view)).astype(np.int64)
            half = self.context // 2
            rows_BN = rows_BN.copy()
            rows_BN[follows_B == 0, half:] = view[elsewhere_B[follows_B == 0], half:]
        return rows_BN, follows_B

    def _words(self, plain_BN: np.ndarray) -> np.ndarray:
        """The number of the word that each token belongs to."""
        if self._begins_word_V is None:
            self._begins_word_V = self.tokenizer.begins_word()
        return np.cumsum(self._begins_word_V[plain_BN], axis=1)

    def _static(self, tokens_N: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
        """Three random numbers for each place of the windows, which belong to the places of the text."""
        if self._static_3N is None:
            random = np.random.Generator(np.random.Philox(key=[self.seed, 1]))
            self._static_3N = random.random((3, len(tokens_N)), dtype=np.float32)
        return self._static_3N[:, starts_B[:, None] + np.arange(self.context)]


class MaskedBatches:
    """The endless training order of WindowBatches, masked."""

    def __init__(self, data: MaskedTextData, windows: WindowBatches) -> None:
        self.data, self.windows = data, windows

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> MaskedBatches:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        numbers_B, starts_B = self.windows.next_starts()
        purpose = STATIC if self.data.masks == "static" else TRAINING
        return self.data.batch(self.data.corpus.train.tokens, starts_B, purpose, numbers_B)


class StaticWindows(WindowBatches):
    """The same windows in every epoch: which tokens a static mask hides depends on all numbers of a window."""

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        starts_B = super()._epoch_starts(epoch)
        return starts_B - starts_B.min()


class MaskedEvaluation:
    """Batches of one rank's share of the windows of a text, which are always masked in the same way."""

    def __init__(self, data: MaskedTextData, tokens_N: np.ndarray, rank: int, world_size: int) -> None:
        self.data, self.tokens_N = data, tokens_N
        self.numbers_M = np.arange(rank, len(tokens_N) // data.context, world_size)

    def __len__(self) -> int:
        return -(-len(self.numbers_M) // self.data.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.numbers_M), self.data.batch_size):
            numbers_B = self.numbers_M[start : start + self.data.batch_size]
            yield self.data.batch(self.tokens_N, numbers_B * self.data.context, EVALUATION, numbers_B)
