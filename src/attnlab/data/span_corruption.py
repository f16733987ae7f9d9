"""Span corruption on one text (Raffel et al. 2020, section 3.1.4: spans give way to sentinels, and the target tells
what they were), the mixture of denoisers of UL2, and their data modules.

Shapes: B windows of a batch, N tokens of a text or a window, K spans, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Unpack

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.order import Batch
from attnlab.data.source import Given, TextSource
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.data.windows import WindowData, WindowFields
from attnlab.parts import Choices
from attnlab.ranges import Ge, Interval, PositiveInt, check_ranges, must_be

# What random numbers are for: no window to evaluate has a training window's noise.
TRAINING_NOISE, EVALUATION_NOISE = 0, 1
MODES = ("R", "S", "X")  # of UL2: regular, sequential, extreme


def count_noise(length: int, density: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """How many of `length` tokens are noise, and in how many spans: numbers that do not depend on chance.

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
    """True at the tokens (N,) that are noise.

    Noise and the rest are each cut into as many parts, all ways to cut them equally likely, and the parts take turns,
    the text's own first: T5's random spans.
    """
    num_noise, num_spans = count_noise(length, density, mean_length)
    parts = np.stack([_cut(length - num_noise, num_spans, random), _cut(num_noise, num_spans, random)], axis=1)
    return np.repeat(np.tile([False, True], num_spans), parts.flatten())


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Lengths (K,) of `parts` parts, each 1 or more, of `total`."""
    ends = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(ends, prepend=0, append=total)


def corrupt(tokens_N: np.ndarray, is_noise_N: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text with a sentinel for each span of noise, and the spans, each after its sentinel, and one more sentinel.

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


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a window, SPANCORRUPT(mean_length, density) of UL2. mode: the token before its inputs, one of
    MODES; None: there is none. at_end: the noise is one span at the end of the window (the prefix language model, S).
    """

    density: float
    mean_length: float
    mode: str | None = None
    at_end: bool = False

    def num_spans(self, length: int) -> int:
        return 1 if self.at_end else count_noise(length, self.density, self.mean_length)[1]

    def lengths(self, length: int) -> tuple[int, int]:
        """Of the input, its mode included, and the target of a window of so many tokens."""
        num_noise, num_spans = count_noise(length, self.density)[0], self.num_spans(length)
        return length - num_noise + num_spans + (self.mode is not None), num_noise + num_spans + 1

    def corrupt(
        self, tokens_N: np.ndarray, random: np.random.Generator, sentinels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The input and the target of a window."""
        if self.at_end:
            is_noise_N = np.arange(len(tokens_N)) >= len(tokens_N) - count_noise(len(tokens_N), self.density)[0]
        else:
            is_noise_N = draw_noise(len(tokens_N), random, self.density, self.mean_length)
        return corrupt(tokens_N, is_noise_N, sentinels)


@check_ranges
class SpanCorruptionData(WindowData):
    """A text as batches of corrupted windows.

    noise_density: which share of a window is noise. mean_span_length: of a span of noise, in tokens. Training windows
    are corrupted anew each epoch, windows to evaluate on always in the same way. The other fields as in WindowData. All
    inputs of a text are of one length, and so are all targets, so nothing is padding. Raises DataError.
    """

    frame = "source"
    shortest_window = 2

    def __init__(
        self,
        source: Given[TextSource],
        tokenizer: Tokenizer,
        context_length: Annotated[int, Ge(2)] = 128,
        noise_density: Annotated[float, Interval(gt=0, lt=1)] = 0.15,
        mean_span_length: Annotated[float, Ge(1)] = 3.0,
        num_sentinels: PositiveInt = 100,
        **fields: Unpack[WindowFields],
    ) -> None:
        super().__init__(source, tokenizer, context_length, **fields)
        self.num_sentinels = num_sentinels
        self.denoise_by([Denoiser(noise_density, mean_span_length)])

    def denoise_by(self, denoisers: Sequence[Denoiser]) -> None:
        """Says how windows are corrupted. Raises DataError where there are too few sentinels."""
        self.denoisers = list(denoisers)
        self.num_modes = len(MODES) if any(one.mode for one in denoisers) else 0
        num_spans = max(one.num_spans(self.context_length) for one in denoisers)
        needed, modes = num_spans + self.num_modes, " and the tokens of modes" * bool(self.num_modes)
        if self.num_sentinels <= needed:
            raise DataError(
                f"data.num_sentinels={self.num_sentinels} is too few for the {num_spans} spans of "
                f"{self.context_length} tokens{modes}; accepted: {needed + 1} or more"
            )
        there = len(self.placeholder_vocabulary().sentinels)
        if there <= needed:
            raise DataError(
                f"the tokenizer has {there} sentinels (<extra_id_i>), too few for the {num_spans} spans of "
                f"{self.context_length} tokens{modes}; accepted: a tokenizer with {needed + 1} or more, such as T5's "
                "or attnlab's own (tokenizer=bpe)"
            )
        for name in ("end", "target_start"):
            self.placeholder_vocabulary().special_tokens.require(name)

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        context_length, mean_length = choices.get("data.context_length") or 0, choices.get("data.mean_span_length")
        # The longer one of input and target, with an end each. What the data refuse, they refuse themselves.
        fits = context_length > 1 and mean_length >= 1
        longest = max(lengths(context_length, choices.get("data.noise_density"), mean_length)) + 1 if fits else 0
        return longest, "data.context_length"

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return {"vocabulary_size": vocabulary.size, "source_vocabulary_size": vocabulary.size}

    @property
    def target_length(self) -> int:
        """Of a window, its special tokens included; a mean over denoisers."""
        found = [one.lengths(self.context_length)[1] for one in self.denoisers]
        return round(sum(found) / len(found)) + num_special_tokens(self.placeholder_vocabulary().special_tokens.target)

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self.target_length

    @property
    def train_tokens(self) -> int:
        return self.order().count * self.target_length

    def describe(self) -> str:
        inputs = [one.lengths(self.context_length)[0] for one in self.denoisers]
        inputs = [count + num_special_tokens(self.vocabulary.special_tokens.source) for count in inputs]
        span = f"{min(inputs)} to {max(inputs)}" if min(inputs) < max(inputs) else f"{inputs[0]}"
        mean = " on average" * (len(self.denoisers) > 1)
        return (
            f"{super().describe()}; windows of {self.context_length} tokens: {span} in, {self.target_length} out{mean}"
        )

    def collate(self, tokens_N: np.ndarray, starts_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """source (B, S), target_in (B, T), target_out, is_source, is_target, ids (B,): of a window, its number."""
        training = drawn_B is not None
        ids_B = starts_B // self.context_length if drawn_B is None else drawn_B
        tokens_BN = np.lib.stride_tricks.sliding_window_view(tokens_N, self.context_length)[starts_B]
        special, rows = self.vocabulary.special_tokens, list[tuple[np.ndarray, np.ndarray]]()
        key = [self.seed, TRAINING_NOISE] if training else [0, EVALUATION_NOISE]
        for tokens_N, number in zip(tokens_BN.astype(np.int64) + self.vocabulary.first_text, ids_B, strict=True):
            random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(number)]))
            source_S, target_T = self._corrupted(tokens_N, random)
            rows.append((add_special_tokens(special.source, source_S), add_special_tokens(special.target, target_T)))
        source_BS, is_source_BS = _filled([source for source, _ in rows], special.pad_id)
        out_BT, is_target_BT = _filled([target for _, target in rows], special.pad_id)
        in_BT = np.concatenate([np.full((len(out_BT), 1), self.vocabulary.target_start), out_BT[:, :-1]], axis=1)
        arrays = {"source": source_BS, "target_in": in_BT, "target_out": out_BT, "ids": ids_B.astype(np.int64)}
        arrays |= {"is_source": is_source_BS, "is_target": is_target_BT}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _corrupted(self, tokens_N: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The input and the target of a window, by one of the denoisers, all equally likely."""
        one = self.denoisers[int(random.integers(len(self.denoisers))) if len(self.denoisers) > 1 else 0]
        sentinels = self.vocabulary.sentinels
        source_S, target_T = one.corrupt(tokens_N, random, sentinels[: len(sentinels) - self.num_modes])
        if one.mode is not None:
            source_S = np.append(sentinels[MODES.index(one.mode) - len(MODES)], source_S)
        return source_S, target_T


def _filled(rows: Sequence[np.ndarray], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array, (B, T), and where it is no padding."""
    lengths_B1 = np.array([[len(row)] for row in rows])
    is_token_BT = np.arange(lengths_B1.max()) < lengths_B1
    filled_BT = np.full(is_token_BT.shape, filler, dtype=np.int64)
    filled_BT[is_token_BT] = np.concatenate(rows)
    return filled_BT, is_token_BT


Share = Annotated[float, Interval(gt=0, lt=1)]
Kinds = Sequence[tuple[Annotated[float, Ge(1)], Share]]  # the mean length of spans, in tokens, and the share of noise


@check_ranges
class MixtureOfDenoisersData(SpanCorruptionData):
    """A text as batches of windows that are corrupted in one of several ways, all equally likely; a token before the
    input tells the model its mode (UL2, Tay et al. 2022, arXiv 2205.05131, section 3.1 and table 1).

    regular, extreme: the mean length of spans and the share of noise of each denoiser of the modes R and X. sequential:
    the shares of S, which takes out one span, the end of the window. The tokens of the modes R, S and X are the last
    three of `num_sentinels`. The other fields as in WindowData. Raises DataError.
    """

    def __init__(
        self,
        source: Given[TextSource],
        tokenizer: Tokenizer,
        context_length: Annotated[int, Ge(2)] = 128,
        regular: Kinds = ((3, 0.15), (8, 0.15)),
        sequential: Sequence[Share] = (0.25,),
        extreme: Kinds = ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)),
        num_sentinels: PositiveInt = 100,
        **fields: Unpack[WindowFields],
    ) -> None:
        WindowData.__init__(self, source, tokenizer, context_length, **fields)
        self.num_sentinels = num_sentinels
        self.denoise_by(denoisers_of(regular, sequential, extreme))

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        context_length = choices.get("data.context_length") or 0
        try:
            kinds = denoisers_of(*(choices.get(f"data.{name}") or () for name in ("regular", "sequential", "extreme")))
        except DataError:
            kinds = []
        found = [max(one.lengths(context_length)) + 1 for one in kinds if context_length > 1]
        return max(found, default=0), "data.context_length"


def denoisers_of(regular: Kinds, sequential: Sequence[Share], extreme: Kinds) -> list[Denoiser]:
    """The denoisers of a mixture. Raises DataError for none, and for what is no length or no share."""
    found = []
    for field, mode, kinds in (("regular", "R", regular), ("extreme", "X", extreme)):
        for kind in kinds:
            if len(kind) != 2 or not (kind[0] >= 1 and 0 < kind[1] < 1):
                wanted = "a list of [mean length of spans, share of noise], as in [[3, 0.15]]"
                raise DataError(must_be(f"data.{field}", wanted, kinds))
            found.append(Denoiser(kind[1], kind[0], mode))
    for share in sequential:
        if not 0 < share < 1:
            raise DataError(
                must_be("data.sequential", "a list of shares above 0 and below 1, as in [0.25]", sequential)
            )
        found.append(Denoiser(share, 1.0, "S", at_end=True))
    if not found:
        raise DataError("data.regular, data.sequential and data.extreme are all empty: one has to name a denoiser")
    return found
