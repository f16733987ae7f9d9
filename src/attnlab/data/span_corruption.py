"""
Span corruption (Raffel et al. 2020, section 3.1.4): spans of a text give way to sentinels, and the target tells what
they were. The functions, and the Lightning data module on one text.

Shapes: B windows of a batch, N tokens of a window, K spans, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.module import Batch
from attnlab.data.source import TextSource
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.data.windows import WindowData
from attnlab.parts import Choices
from attnlab.ranges import Ge, Interval, PositiveInt, Probability, Seed, check_ranges

TRAINING, EVALUATION = 0, 1  # of the random numbers, so that no evaluated window has a training window's noise


def count_noise(length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """
    How many of `length` tokens are noise, and in how many spans: numbers that do not depend on chance.

    At least one token is noise and one is not, and every span has a token of its own before it.
    """
    assert length >= 2, length
    num_noise = min(max(round(length * density), 1), length - 1)
    num_spans = max(round(num_noise / mean_length), 1)
    return num_noise, min(num_spans, num_noise, length - num_noise)


def lengths(length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """Of the input and the target that `corrupt` makes of `length` tokens."""
    num_noise, num_spans = count_noise(length, density, mean_length)
    return length - num_noise + num_spans, num_noise + num_spans + 1


def draw_noise(length: int, random: np.random.Generator, density: float = 0.15, mean_length: float = 3.0) -> np.ndarray:
    """
    True at the tokens (N,) that are noise.

    Noise and the rest are each cut into as many parts, all ways to cut them equally likely, and the parts take turns,
    the text's own first: T5's random spans.
    """
    num_noise, num_spans = count_noise(length, density, mean_length)
    parts = np.stack([_cut(length - num_noise, num_spans, random), _cut(num_noise, num_spans, random)], axis=1)
    return np.repeat(np.tile([False, True], num_spans), parts.flatten())


def corrupt(tokens_N: np.ndarray, is_noise_N: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The text with a sentinel for each span of noise, and the spans, each after its sentinel, and one more sentinel.

    sentinels: their numbers, in the order in which they are used. Raises DataError where the spans are more than they.
    """
    is_start_N = is_noise_N & ~np.concatenate([[False], is_noise_N[:-1]])
    num_spans = int(is_start_N.sum())
    if num_spans >= len(sentinels):
        raise DataError(
            f"{num_spans} spans of noise need {num_spans + 1} sentinels; data.num_sentinels={len(sentinels)}"
        )
    sentinels_N = sentinels[is_start_N.cumsum() - 1]
    input_tokens = np.where(is_start_N, sentinels_N, tokens_N)[~is_noise_N | is_start_N]
    starts_K = (is_noise_N.cumsum() - 1)[is_start_N]  # among the tokens that are noise
    spans = np.insert(tokens_N[is_noise_N], starts_K, sentinels_N[is_start_N])
    return input_tokens, np.append(spans, sentinels[num_spans])


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Lengths (K,) of `parts` parts, each 1 or more, of `total`."""
    ends = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(ends, prepend=0, append=total)


@check_ranges
class SpanCorruptionData(WindowData):
    """
    A text as batches of corrupted windows.

    noise_density: which share of a window is noise. mean_span_length: of a span of noise, in tokens. Training windows
    are corrupted anew each epoch, windows to evaluate on always in the same way. The other fields as in WindowData. All
    inputs of a text are of one length, and so are all targets, so nothing is padding. Raises DataError.
    """

    frame = "source"

    def __init__(
        self,
        source: Callable[..., TextSource] | TextSource,
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
        super().__init__(source, tokenizer, context, batch_size, split, path, max_validation_tokens, seed, cache)
        num_spans = count_noise(context, noise_density, mean_span_length)[1]
        if num_sentinels <= num_spans:
            raise DataError(
                f"data.num_sentinels={num_sentinels} is too few for the {num_spans} spans of {context} tokens; "
                f"accepted: {num_spans + 1} or more"
            )
        self.noise_density, self.mean_span_length, self.num_sentinels = noise_density, mean_span_length, num_sentinels
        there = len(self.placeholder_vocabulary().sentinels)
        if there <= num_spans:
            raise DataError(
                f"the tokenizer has {there} sentinels (<extra_id_i>), too few for the {num_spans} spans of {context} "
                f"tokens; accepted: a tokenizer with {num_spans + 1} or more, such as T5's or attnlab's own "
                "(tokenizer=bpe)"
            )
        for name in ("end", "target_start"):
            self.placeholder_vocabulary().special_tokens.require(name)

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        """The longer one of input and target."""
        context, mean_length = choices.get("data.context") or 0, choices.get("data.mean_span_length")
        # A window becomes an input and a target, with an end mark each. What the data refuse, they refuse themselves.
        fits = context > 1 and mean_length >= 1
        longest = max(lengths(context, choices.get("data.noise_density"), mean_length)) + 1 if fits else 0
        return longest, "data.context"

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, Any]:
        return {"vocabulary_size": vocabulary.size, "source_vocabulary_size": vocabulary.size}

    @property
    def target_length(self) -> int:
        """Of every window, its marks included."""
        length = lengths(self.context, self.noise_density, self.mean_span_length)[1]
        return length + num_special_tokens(self.placeholder_vocabulary().special_tokens.target)

    @property
    def tokens_per_batch(self) -> int:
        """Target tokens of a training batch of one rank."""
        return self.batch_size * self.target_length

    @property
    def train_tokens(self) -> int:
        """Target tokens of an epoch."""
        return self.order().count * self.target_length

    def describe(self) -> str:
        inputs = lengths(self.context, self.noise_density, self.mean_span_length)[0]
        inputs += num_special_tokens(self.vocabulary.special_tokens.source)
        return f"{super().describe()}; windows of {self.context} tokens: {inputs} in, {self.target_length} out"

    def collate(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """source (B, S), target_in (B, T), target_out, is_source, is_target, ids (B,): of a window, its number."""
        stream, ids_B = (EVALUATION, starts_B // self.context) if drawn_B is None else (TRAINING, drawn_B)
        tokens_BN = np.lib.stride_tricks.sliding_window_view(tokens_N, self.context)[starts_B]
        vocabulary, pairs = self.vocabulary, []
        key = [self.seed if stream == TRAINING else 0, stream]
        for tokens_N, number in zip(tokens_BN.astype(np.int64) + vocabulary.first_text, ids_B, strict=True):
            random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(number)]))
            is_noise_N = draw_noise(len(tokens_N), random, self.noise_density, self.mean_span_length)
            pairs.append(corrupt(tokens_N, is_noise_N, vocabulary.sentinels))
        source_BS = add_special_tokens(vocabulary.special_tokens.source, np.stack([source for source, _ in pairs]))
        out_BT = add_special_tokens(vocabulary.special_tokens.target, np.stack([target for _, target in pairs]))
        in_BT = np.concatenate([np.full((len(out_BT), 1), vocabulary.target_start), out_BT[:, :-1]], axis=1)
        arrays = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": ids_B.astype(np.int64)}
        arrays |= {"is_source": np.ones_like(source_BS, dtype=bool), "is_target": np.ones_like(out_BT, dtype=bool)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
