"""The Lightning data module of span corruption on one text. Letters of shapes: B windows of a batch, N tokens of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.sources import Source
from attnlab.data.span_corruption import corrupt, count_noise, draw_noise, lengths
from attnlab.data.text import TextData
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import framed, num_marks
from attnlab.data.windowed import WindowedText
from attnlab.data.windows import ENDLESS, WindowBatches
from attnlab.ranges import Ge, Interval, PositiveInt, Probability, Seed, check_ranges

TRAINING, EVALUATION = 0, 1  # of the random numbers, so that no evaluated window has a training window's noise


@check_ranges
class SpanCorruptionData(WindowedText):
    """
    A text as batches of corrupted windows: `context` tokens each, `batch_size` windows a batch and rank.

    noise_density: which share of a window is noise. mean_span_length: of a span of noise, in tokens. Training windows are
    corrupted anew each epoch, windows to evaluate on always in the same way. max_validation_tokens: of the text, scored at each
    validation (None: all). The other fields as in TextData. All inputs of a text are of one length, and so are all targets, so
    nothing is padding. Raises DataError.
    """

    frame = "source"

    def __init__(
        self,
        source: Callable[..., Source] | Source,
        tokenizer: Tokenizer,
        context: Annotated[int, Ge(2)] = 128,
        batch_size: PositiveInt = 32,
        noise_density: Annotated[float, Interval(gt=0, lt=1)] = 0.15,
        mean_span_length: Annotated[float, Ge(1)] = 3.0,
        num_sentinels: PositiveInt = 100,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
        path: str | None = None,
        max_validation_tokens: PositiveInt | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        text = TextData(source, tokenizer, context, batch_size, split, path, max_validation_tokens, seed, cache, False)
        super().__init__(text)
        num_spans = count_noise(context, noise_density, mean_span_length)[1]
        if num_sentinels <= num_spans:
            raise DataError(
                f"data.num_sentinels={num_sentinels} is too few for the {num_spans} spans of {context} tokens; accepted: "
                f"{num_spans + 1} or more"
            )
        self.noise_density, self.mean_span_length, self.num_sentinels = noise_density, mean_span_length, num_sentinels
        there = len(self.rehearsal_vocabulary().sentinels)
        if there <= num_spans:
            raise DataError(
                f"the tokenizer has {there} sentinels (<extra_id_i>), too few for the {num_spans} spans of {context} tokens; accepted: "
                f"a tokenizer with {num_spans + 1} or more, such as T5's or attnlab's own (tokenizer=bpe)"
            )
        for name in ("end", "target_start"):
            self.rehearsal_vocabulary().marks.need(name)

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary, which inputs and targets share."""
        return {"vocabulary_size": self.vocabulary.size, "source_vocabulary_size": self.vocabulary.size}

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        size = self.rehearsal_vocabulary().size
        return {"vocabulary_size": size, "source_vocabulary_size": size}

    @property
    def target_length(self) -> int:
        """Of every window, its marks included."""
        length = lengths(self.context, self.noise_density, self.mean_span_length)[1]
        return length + num_marks(self.rehearsal_vocabulary().marks.target)

    @property
    def tokens_per_batch(self) -> int:
        """Target tokens of a training batch of one rank."""
        return self.batch_size * self.target_length

    @property
    def train_tokens(self) -> int:
        """Target tokens of an epoch."""
        return self.windows().windows_per_epoch * self.target_length

    def describe(self) -> str:
        """The text, and what becomes of a window."""
        inputs = lengths(self.context, self.noise_density, self.mean_span_length)[0]
        inputs += num_marks(self.vocabulary.marks.source)
        return f"{self._text.describe()}; windows of {self.context} tokens: {inputs} in, {self.target_length} out"

    def training_batches(self, order: WindowBatches) -> SpanBatches:
        """The windows of the order, corrupted."""
        return SpanBatches(self, order)

    def evaluation_batches(self, tokens_N: np.ndarray, rank: int, world_size: int) -> EvaluationSpans:
        """The windows, corrupted in the same way whatever the seed and the number of ranks."""
        return EvaluationSpans(self, tokens_N.reshape(-1, self.context), rank, world_size)

    def batch(self, tokens_BN: np.ndarray, ids_B: np.ndarray, stream: int) -> dict[str, torch.Tensor]:
        """Corrupted windows as a batch; window i's noise depends on the stream, the seed and its id alone."""
        vocabulary, pairs = self.vocabulary, []
        key = [self.seed if stream == TRAINING else 0, stream]
        for tokens_N, number in zip(tokens_BN.astype(np.int64) + vocabulary.first_text, ids_B, strict=True):
            random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(number)]))
            is_noise_N = draw_noise(len(tokens_N), random, self.noise_density, self.mean_span_length)
            pairs.append(corrupt(tokens_N, is_noise_N, vocabulary.sentinels))
        source_BS = framed(vocabulary.marks.source, np.stack([source for source, _ in pairs]))
        out_BT = framed(vocabulary.marks.target, np.stack([target for _, target in pairs]))
        in_BT = np.concatenate([np.full((len(out_BT), 1), vocabulary.target_start), out_BT[:, :-1]], axis=1)
        arrays = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": ids_B.astype(np.int64)}
        arrays |= {"is_source": np.ones_like(source_BS, dtype=bool), "is_target": np.ones_like(out_BT, dtype=bool)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class SpanBatches:
    """The endless training order of WindowBatches, corrupted; `ids` count windows from the start of training."""

    def __init__(self, data: SpanCorruptionData, windows: WindowBatches) -> None:
        self.data, self.windows = data, windows

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> SpanBatches:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        windows = self.windows
        first = windows.windows_seen + windows.rank * windows.batch_size
        tokens_BN = next(windows)["tokens"].numpy()
        return self.data.batch(tokens_BN, np.arange(first, first + len(tokens_BN)), TRAINING)


class EvaluationSpans:
    """Batches of one rank's share of windows, each corrupted in the way that belongs to its place in the text."""

    def __init__(self, data: SpanCorruptionData, rows_MN: np.ndarray, rank: int, world_size: int) -> None:
        self.data, self.rows_MN, self.ids_M = data, rows_MN, np.arange(rank, len(rows_MN), world_size)

    def __len__(self) -> int:
        return -(-len(self.ids_M) // self.data.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for i in range(0, len(self.ids_M), self.data.batch_size):
            ids_B = self.ids_M[i : i + self.data.batch_size]
            yield self.data.batch(self.rows_MN[ids_B], ids_B, EVALUATION)
