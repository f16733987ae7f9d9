"""Speech to text with Whisper: decoding under its rules of timestamps, and long recordings window by window.

Legend: B batch, M mel bins, F frames, T tokens produced so far, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.generation.sampling import NO_NUMBERS, Sampler
from attnlab.models.base import evaluating
from attnlab.models.encoder_decoder import Decoding
from attnlab.models.whisper import Whisper
from attnlab.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Seed, check_ranges, must_be
from attnlab.whisper_tokens import WhisperTokens

FRAMES_A_SECOND, FRAMES_A_TIMESTAMP = 100, 2
NOTHING = float("-inf")
GREEDY = Sampler(0.0)
FAITHFUL = 0.5  # at lower temperatures, what was heard is what the next window is told


@check_ranges
@dataclass(frozen=True)
class TranscriptionOptions:
    """How speech is transcribed.

    language: its code, of a multilingual model; None: what the model takes the first window for. translate: into
    English. timestamps: whether the model says when it heard what. max_new_tokens: of a window; None: as many as the
    model has positions. latest_start: seconds within which the first timestamp of a window lies. A window is silent
    where nobody speaks at a probability above no_speech_threshold (None: none is) and its tokens have a mean
    log-probability of at most log_probability_threshold. temperatures: a window is decoded at the first, and at the
    next where that log-probability was below the threshold or the text, which repeats itself, is more than
    compression_threshold times (None: it may) as long as when compressed by zlib. after_previous: whether a window is
    told the text before it, unless that was decoded at a temperature of 0.5 or more. seed: of what is drawn. The
    defaults are the published ones (Radford et al. 2022, section 4.5), but that the paper searches with five beams at
    temperature 0.
    """

    language: str | None = None
    translate: bool = False
    timestamps: bool = True
    max_new_tokens: PositiveInt | None = None
    latest_start: NonNegativeFloat = 1.0
    no_speech_threshold: Probability | None = 0.6
    log_probability_threshold: float = -1.0
    temperatures: Sequence[NonNegativeFloat] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_threshold: PositiveFloat | None = 2.4
    after_previous: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError(must_be("temperatures", "one number or more, such as 0", self.temperatures))


@dataclass(frozen=True)
class Heard:
    """What was heard in a window: tokens, timestamps among them, without the end; their mean log-probability in nats,
    that of the end included; and the probability that nobody speaks, where the model knows a token for it.
    """

    tokens: list[int]
    log_probability: float
    no_speech: float | None = None


@dataclass(frozen=True)
class Segment:
    """Tokens of text that were heard from one time to another, in seconds of the recording."""

    start: float
    end: float
    tokens: list[int]


@torch.no_grad()
def transcribe(
    model: Whisper,
    features_MF: Tensor,
    tokens: WhisperTokens,
    options: TranscriptionOptions | None = None,
    decode: Callable[[list[int]], str] | None = None,
    silence: float = 0.0,
) -> list[Segment]:
    """The segments of a recording of any length, window by window (section 2.3 and the published code).

    With timestamps, a window starts where the last complete segment ended; without, at the end of the window before,
    and each window is a segment. decode: tokens as the text whose repetition is looked for; None: it is not. silence:
    the feature that fills the last window up. Raises ValueError as `transcribe_windows`.
    """
    options, num_frames, seek = options or TranscriptionOptions(), features_MF.shape[1], 0
    random = torch.Generator().manual_seed(options.seed)
    segments: list[Segment] = []
    previous: list[int] = []
    while seek < num_frames:
        length = min(model.num_frames, num_frames - seek)
        window_1MF = features_MF[None, :, seek : seek + length]
        window_1MF = F.pad(window_1MF, (0, model.num_frames - length), value=silence)
        if options.language is None and tokens.multilingual:
            options = replace(options, language=detect_languages(model, window_1MF, tokens)[0])
        for temperature in options.temperatures:
            sampler = Sampler(temperature)
            (heard,) = transcribe_windows(model, window_1MF, tokens, options, sampler, [random], previous)
            if not is_doubtful(heard, options, decode and decode(text_of(heard.tokens, tokens))):
                break
        if is_silent(heard, options):
            seek += length
            continue
        found, used, kept = [(0, length, text_of(heard.tokens, tokens))], length, len(heard.tokens)
        if options.timestamps:
            found, used, kept = cut(heard.tokens, tokens, length)
        tells = options.after_previous and temperature < FAITHFUL
        previous = [*previous, *heard.tokens[:kept]] if tells else []
        segments += [
            Segment((seek + start) / FRAMES_A_SECOND, (seek + end) / FRAMES_A_SECOND, text)
            for start, end, text in found
            if text
        ]
        seek += max(used, 1)
    return segments


@torch.no_grad()
def transcribe_windows(
    model: Whisper,
    features_BMF: Tensor,
    tokens: WhisperTokens,
    options: TranscriptionOptions | None = None,
    sampler: Sampler = GREEDY,
    generators: Sequence[torch.Generator] = (),
    previous: Sequence[int] = (),
) -> list[Heard]:
    """What is heard in each of several windows, which are decoded together: at each step what the sampler takes of
    those tokens that the rules allow. generators: one a window, for a sampler that draws. previous: tokens heard before
    all of them, the last of which the prompt tells in half of the positions. Raises ValueError for a language, a task
    or timestamps that the vocabulary has no token for, a prompt that leaves no room for text, and scores that are NaN
    or inf.
    """
    options = options or TranscriptionOptions()
    prompt = tokens.prompt(options.language, options.translate, options.timestamps)
    before = tokens.before(previous, model.max_length // 2 - 1)
    limit = _limit(model, [*before, *prompt], options)
    if not len(features_BMF):
        return []
    with evaluating(model):
        state = model.start(features_BMF, capacity=len(before) + len(prompt) + limit)
        logits_BV, no_speech_B = _prompted(model, state, before, prompt, tokens.no_speech)
        rows = _Rows(len(features_BMF), features_BMF.device, sampler, generators)
        while True:
            going_B = rows.extend(allowed(logits_BV, rows.produced_BT, tokens, options), tokens.end)
            if rows.produced_BT.shape[1] == limit or not going_B.any():
                break
            if not going_B.all():
                rows.select(going_B)
                state.select(going_B)
            logits_BV = model.step(rows.produced_BT[:, -1], state)
    rows.select(torch.zeros_like(going_B))
    return [
        Heard(found, sums / (len(found) + 1), no_speech)
        for (found, sums), no_speech in zip(rows.found, no_speech_B, strict=True)
    ]


@torch.no_grad()
def detect_languages(model: Whisper, features_BMF: Tensor, tokens: WhisperTokens) -> list[str]:
    """The code of each window's most probable language. Raises ValueError where the vocabulary has none."""
    if not tokens.languages:
        raise ValueError("this vocabulary has no tokens of languages, so none can be detected; leave language out")
    codes, ids = list(tokens.languages), list(tokens.languages.values())
    with evaluating(model):
        state = model.start(features_BMF, capacity=1)
        logits_BV = model.step(torch.full((len(features_BMF),), tokens.start, device=features_BMF.device), state)
    return [codes[place] for place in logits_BV[:, ids].argmax(dim=1).tolist()]


def is_silent(heard: Heard, options: TranscriptionOptions) -> bool:
    """Whether a window is to be passed over."""
    threshold = options.no_speech_threshold
    if threshold is None or heard.no_speech is None:
        return False
    return heard.no_speech > threshold and heard.log_probability <= options.log_probability_threshold


def is_doubtful(heard: Heard, options: TranscriptionOptions, text: str | None) -> bool:
    """Whether a window, unless it is silent, is to be decoded again; text: what was heard in it."""
    threshold = options.compression_threshold
    repeats = threshold is not None and text is not None and compression(text) > threshold
    is_unsure = heard.log_probability < options.log_probability_threshold
    return (repeats or is_unsure) and not is_silent(heard, options)


def compression(text: str) -> float:
    """How many times as long as when compressed a text is."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def cut(found: Sequence[int], tokens: WhisperTokens, length: int) -> tuple[list[tuple[int, int, list[int]]], int, int]:
    """The segments of a window of `length` frames: first frame, the one behind the last, text; how many frames the next
    window starts later, and how many of the tokens the segments have. Two timestamps in a row end a segment; what
    stands behind the last of them was cut off by the window, unless it ends in a timestamp by itself, behind which
    nobody spoke.
    """
    first = tokens.first_timestamp
    assert first is not None, "a prompt that asks for timestamps has checked it"
    is_time = [token >= first for token in found]
    ends = [place for place in range(1, len(found)) if is_time[place - 1] and is_time[place]]
    is_complete = is_time[-2:] == [False, True]
    if not ends:
        frames = [frame_of(token, first) for token in found if token >= first]
        return [(0, (frames and frames[-1]) or length, text_of(found, tokens))], length, len(found)
    segments = []
    for start, end in pairwise([0, *ends, *([len(found)] if is_complete else [])]):
        frames = [frame_of(found[place], first) for place in (start, end - 1)]
        segments.append((frames[0], frames[1], text_of(found[start:end], tokens)))
    return segments, length if is_complete else segments[-1][1], end


def frame_of(token: int, first: int) -> int:
    """The frame of a window that a timestamp names."""
    return (token - first) * FRAMES_A_TIMESTAMP


def text_of(found: Sequence[int], tokens: WhisperTokens) -> list[int]:
    """What is neither a timestamp nor another special token."""
    timestamps, special = tokens.first_timestamp, tokens.special
    return [token for token in found if (timestamps is None or token < timestamps) and token not in special]


# --- what may follow


def allowed(logits_BV: Tensor, produced_BT: Tensor, tokens: WhisperTokens, options: TranscriptionOptions) -> Tensor:
    """The logits in fp32, -inf where a token may not follow what a row has produced behind its prompt."""
    scores_BV = logits_BV.float().clone()
    scores_BV[:, list(tokens.suppressed)] = NOTHING
    if not produced_BT.shape[1]:
        scores_BV[:, list(tokens.suppressed_first)] = NOTHING
    return timestamp_rules(scores_BV, produced_BT, tokens, options.latest_start) if options.timestamps else scores_BV


def timestamp_rules(scores_BV: Tensor, produced_BT: Tensor, tokens: WhisperTokens, latest_start: float = 1.0) -> Tensor:
    """The scores with -inf where a rule of the timestamps forbids a token (section 4.5 and the published code): they
    come in pairs, never fall, and those of a pair but for one's end and the next one's start differ; the first token is
    one, of at most `latest_start` seconds; and one is produced where all of them together are more probable than any
    other token.
    """
    first = tokens.first_timestamp
    assert first is not None, "a prompt that asks for timestamps has checked it"
    ids_V = torch.arange(scores_BV.shape[1], device=scores_BV.device)
    is_time_V = ids_V >= first
    is_text_V = ~is_time_V
    is_text_V[list(tokens.special)] = False
    banned_BV = (ids_V == (-1 if tokens.no_timestamps is None else tokens.no_timestamps)).expand_as(scores_BV)
    if not produced_BT.shape[1]:
        latest = first + round(latest_start * FRAMES_A_SECOND / FRAMES_A_TIMESTAMP)
        banned_BV = banned_BV | ~is_time_V | (ids_V > latest)
    else:
        was_time_BT = produced_BT >= first
        last_B = was_time_BT[:, -1]
        before_B = was_time_BT[:, -2] if produced_BT.shape[1] > 1 else torch.ones_like(last_B)
        ended_B, started_B = last_B & ~before_B, last_B & before_B
        latest_B = produced_BT.where(was_time_BT, first - 1).amax(dim=1)
        least_B = torch.where(ended_B, latest_B, latest_B + 1)  # a segment may start where the last one ended
        banned_BV = banned_BV | (is_time_V & ((ids_V < least_B[:, None]) | started_B[:, None]))
        banned_BV = banned_BV | (is_text_V & ended_B[:, None])
    scores_BV = scores_BV.masked_fill(banned_BV, NOTHING)
    times_B = scores_BV[:, first:].logsumexp(dim=1)
    to_time_B = times_B > scores_BV[:, :first].amax(dim=1)
    return scores_BV.masked_fill(to_time_B[:, None] & ~is_time_V, NOTHING)


# --- the steps


class _Rows:
    """The windows that are still decoded, and what was found in all: tokens and summed log-probabilities."""

    def __init__(
        self, count: int, device: torch.device, sampler: Sampler, generators: Sequence[torch.Generator]
    ) -> None:
        self.places = list(range(count))
        self.sampler, self.generators = sampler, generators
        self.produced_BT = torch.empty(count, 0, dtype=torch.long, device=device)
        self.sums_B = torch.zeros(count, device=device)
        self.end = -1
        self.found: list[tuple[list[int], float]] = [([], 0.0)] * count

    def extend(self, scores_BV: Tensor, end: int) -> Tensor:
        """Appends a token to each row; where it is not the end, (B)."""
        log_p_BV = scores_BV.log_softmax(dim=1)
        if log_p_BV.isnan().any():
            raise ValueError(f"the model's scores of token {self.produced_BT.shape[1] + 1} of a window {NO_NUMBERS}")
        of_rows = [self.generators[place] for place in self.places] if self.generators else []
        next_B = self.sampler(log_p_BV, of_rows).to(log_p_BV.device)
        self.end = end
        self.sums_B = self.sums_B + log_p_BV.gather(1, next_B[:, None])[:, 0]
        self.produced_BT = torch.cat([self.produced_BT, next_B[:, None]], dim=1)
        return next_B != end

    def select(self, going_B: Tensor) -> None:
        """Takes the others out of the batch."""
        columns = (self.produced_BT.tolist(), self.sums_B.tolist(), going_B.tolist())
        for place, produced, sums, going in zip(self.places, *columns, strict=True):
            if not going:
                self.found[place] = ([token for token in produced if token != self.end], sums)
        self.places = [place for place, going in zip(self.places, going_B.tolist(), strict=True) if going]
        self.produced_BT, self.sums_B = self.produced_BT[going_B], self.sums_B[going_B]


def _prompted(
    model: Whisper, state: Decoding, before: Sequence[int], prompt: Sequence[int], no_speech: int | None
) -> tuple[Tensor, list[float | None]]:
    """The logits behind the prompt, and the probability behind its start that nobody speaks."""
    device = next(model.parameters()).device
    x_1TD = model.embed(torch.tensor([[*before, *prompt]], device=device))
    x_BTD = x_1TD.expand(len(state.memory.states_BSD), -1, -1)
    states_BTD = model.decoder(x_BTD, cache=state.cache, memory=state.memory)
    logits_B2V = model.logits(states_BTD[:, [len(before), -1]])
    probabilities_BV = logits_B2V[:, 0].float().softmax(dim=1)
    nobody_B = [None] * len(x_BTD) if no_speech is None else probabilities_BV[:, no_speech].tolist()
    return logits_B2V[:, 1], nobody_B


def _limit(model: Whisper, prompt: Sequence[int], options: TranscriptionOptions) -> int:
    room = model.max_length - len(prompt)
    if room < 1:
        raise ValueError(
            must_be("model.max_length", f"above {len(prompt)}, the length of the prompt", model.max_length)
        )
    return min(room, options.max_new_tokens or room)
