"""The data module of speech: recordings as log-mel windows, and what is said in them as tokens.

Shapes: B clips, N samples, M mel bins, F frames, T target length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Unpack

import numpy as np
import torch

from attnlab.data.audio import RATE, from_int16, to_int16
from attnlab.data.cache import DataError, prepared
from attnlab.data.log_mel import HOP, LogMel, SpeechAugmentation
from attnlab.data.module import IGNORED, ExampleFields, Split, TextedData, padded, remarks_of
from attnlab.data.order import Batch, ShuffledOrder
from attnlab.data.pretrained_tokenizers import PretrainedTokenizer
from attnlab.data.source import SPLITS, Given
from attnlab.data.special_tokens import SpecialTokens, num_special_tokens
from attnlab.data.speech import Speech, SpeechSource
from attnlab.data.token_data import trained_tokenizer
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.translation import TokenRows
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import Ge, PositiveFloat, PositiveInt, check_ranges, must_be
from attnlab.whisper_tokens import START_OF_TRANSCRIPT, WhisperTokens

FORMAT = 1
EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class Recordings:
    """A part of a source as the cache keeps it: samples of 16 bits, read from disk where they are heard."""

    samples: TokenRows
    transcripts: list[str]
    speakers: list[str]
    remarks: tuple[str, ...] = ()
    dropped: int = 0

    @classmethod
    def save(cls, speech: Speech, folder: Path, name: str) -> None:
        """Decodes and writes one recording after the other: together they may be more than memory holds."""
        total, ends = 0, []
        with (folder / f"{name}.int16").open("wb") as file:
            for clip in speech.clips:
                samples_N = to_int16(clip.read())
                file.write(samples_N.tobytes())
                total += len(samples_N)
                ends.append(total)
        np.save(folder / f"{name}_ends.npy", np.array(ends, dtype=np.int64))
        told = {"transcripts": speech.transcripts, "speakers": speech.speakers}
        told_of = {"remarks": speech.remarks, "dropped": speech.dropped}
        (folder / f"{name}.json").write_text(json.dumps(told | told_of))

    @classmethod
    def load(cls, folder: Path, name: str) -> Recordings:
        path, ends_N = folder / f"{name}.int16", np.load(folder / f"{name}_ends.npy")
        # What is empty cannot be mapped.
        samples_N = np.memmap(path, np.int16, "r") if path.stat().st_size else np.empty(0, dtype=np.int16)
        return cls(TokenRows(samples_N, ends_N), **json.loads((folder / f"{name}.json").read_text()))


@dataclass
class SpeechRows(Split):
    """One split: which recordings are kept, and the tokens of each from what precedes the text to the end."""

    recordings: Recordings
    kept: list[int]
    targets: list[np.ndarray]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def transcripts(self) -> list[str]:
        return [self.recordings.transcripts[row] for row in self.kept]

    @property
    def terms(self) -> np.ndarray:
        return np.array([len(row) for row in self.targets])

    def clip(self, row: int) -> np.ndarray:
        """The samples (N,), fp32."""
        return from_int16(self.recordings.samples[self.kept[row]])


def whisper_tokens(tokenizer: Tokenizer, vocabulary_size: int) -> WhisperTokens:
    """A tokenizer's special tokens as Whisper's decoding knows them; one that is not Whisper's has a start and an end
    alone.
    """
    if (found := published_tokens(tokenizer, vocabulary_size)) is not None:
        return found
    special = Vocabulary(tokenizer).special_tokens
    return WhisperTokens(special.require("target_start"), special.require("end"), suppressed=special.suppressed)


def published_tokens(tokenizer: Tokenizer, vocabulary_size: int) -> WhisperTokens | None:
    """Those of a published Whisper's tokenizer; None: it is another one."""
    if not isinstance(tokenizer, PretrainedTokenizer):
        return None
    ids = {str(token["content"]): int(token["id"]) for token in json.loads(tokenizer.rules)["added_tokens"]}
    if START_OF_TRANSCRIPT not in ids:
        return None
    never, never_first = (
        tuple(map(int, found)) if isinstance(found := tokenizer.generation.get(name), list) else ()
        for name in ("suppress_tokens", "begin_suppress_tokens")
    )
    is_said = tokenizer.generation.get("is_multilingual")
    multilingual = is_said if isinstance(is_said, bool) else None
    return WhisperTokens.named(ids, vocabulary_size, never, never_first, multilingual)


def encode_speech(
    recordings: Recordings, vocabulary: Vocabulary, special: SpecialTokens, window: int, max_length: int, drop: bool
) -> SpeechRows:
    """A part with its transcripts as tokens between those that `special` has around a target. Recordings without a
    sample are left out.

    One that is longer than `window` samples, or whose transcript is longer than `max_length` tokens, is left out where
    `drop`, else cut.
    """
    before, after = (np.array(tokens, dtype=np.int64) for tokens in special.target)
    room = max_length - num_special_tokens(special.target)
    way = "left out" if drop else "cut"
    mute, silent = "without transcript, left out", "without sound, left out"
    long_sound, long_text = f"longer than the window, {way}", f"transcript over data.max_length, {way}"
    counts = {mute: recordings.dropped, silent: 0, long_sound: 0, long_text: 0}
    kept, targets = [], []
    for row, length in enumerate(recordings.samples.lengths_R.tolist()):
        tokens_T = vocabulary.encode_text(recordings.transcripts[row])
        counts[silent] += length == 0
        counts[long_sound] += length > window
        counts[long_text] += len(tokens_T) > room
        if length and not (drop and (length > window or len(tokens_T) > room)):
            kept.append(row)
            targets.append(np.concatenate([before, tokens_T[:room], after]))
    return SpeechRows(recordings, kept, targets, counts)


@check_ranges
class SpeechData(TextedData[SpeechRows]):
    """Recordings with their transcripts: log-mel windows of one length (`num_mels`, `seconds`: see LogMel).

    source: a SpeechSource, or a class or partial of one that is completed with `path`. tokenizer: trained on the
    transcripts of the training part. language: the code of what is said; with the tokenizer of a published Whisper, a
    target begins with what that model is told before a text without timestamps: language and task where it is
    multilingual. augmentation: of training recordings. batch_size: recordings of a batch, on each rank. max_length: the
    most tokens of a decoder's input, its start included. A training recording that is longer than the window, or whose
    transcript is longer, is left out; to evaluate on, it is cut, and scored against the whole transcript. seed draws
    the training order and the augmentation. Raises DataError.
    """

    examples = "recordings"
    takes_batch_ramp = True

    def __init__(
        self,
        source: Given[SpeechSource],
        tokenizer: Tokenizer,
        augmentation: SpeechAugmentation | None = None,
        num_mels: PositiveInt = 80,
        seconds: PositiveFloat = 30.0,
        max_length: Annotated[int, Ge(3)] = 64,
        batch_size: PositiveInt = 32,
        language: str | None = None,
        **fields: Unpack[ExampleFields],
    ) -> None:
        super().__init__(source, **fields)
        self.untrained, self.augmentation = tokenizer, augmentation or SpeechAugmentation()
        self.log_mel, self.max_length, self.batch_size = LogMel(num_mels, seconds), max_length, batch_size
        self.language = language

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        window = {"num_mels": self.log_mel.num_mels, "num_frames": self.log_mel.num_frames}
        told = {"special_tokens": self.special_tokens_of(vocabulary), "max_length": self.max_length}
        return super().dims_of(vocabulary) | told | window

    def special_tokens_of(self, vocabulary: Vocabulary) -> SpecialTokens:
        """Those of a vocabulary with what stands around a target here. Raises DataError for a language that a published
        model does not know, and where no text fits between them.
        """
        special, tokens = vocabulary.special_tokens, published_tokens(vocabulary.tokenizer, vocabulary.size)
        if tokens is not None:
            try:
                start, *before = tokens.prompt(self.language, timestamps=False)
            except ValueError as error:
                raise DataError(f"data.{error}") from error
            target = (tuple(before), (tokens.end,))
            special = replace(special, target_start=start, target=target, never=tokens.suppressed)
        if (least := num_special_tokens(special.target) + 1) > self.max_length:
            what = f"at least {least}, for what stands around a text and a token of it"
            raise DataError(must_be("data.max_length", what, self.max_length))
        return special

    @property
    def tokens_per_batch(self) -> int:
        return max(1, self.batch_size * self.train_tokens // len(self.split("train")))

    def facts(self) -> dict[str, object]:
        speakers = {name: len(set(part.recordings.speakers)) for name, part in self.splits().items()}
        return super().facts() | {"speakers": speakers}

    def particulars(self) -> str:
        hours = {name: part.recordings.samples.lengths_R.sum() / RATE / 3600 for name, part in self.splits().items()}
        told = ", ".join(f"{name} {value:.2f}" for name, value in hours.items())
        return f"; hours {told}; windows of {self.log_mel.seconds:g} s; vocabulary {self.vocabulary.size:,}"

    def references(self, split: str) -> list[str]:
        """What is said in each recording of a split, by id."""
        return self.split(split).transcripts

    def decode_target(self, tokens: list[int]) -> str:
        """The text of target tokens, up to the first end, as one line."""
        return " ".join(self.vocabulary.decode(tokens).split())

    # --- batches

    def order(self, parts: int, rank: int = 0, world_size: int = 1) -> ShuffledOrder:
        count = len(self.split("train"))
        return ShuffledOrder(count, self.batch_size, self.seed, rank, world_size, unit="recordings")

    def evaluation_budget(self, part: SpeechRows) -> int:
        return EVALUATED_AT_ONCE

    def collate(self, part: SpeechRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """features (B, M, F); tokens_in (B, T) from the start; targets (B, T), IGNORED where there is none; ids (B,).

        Augmented in training.
        """
        special = self.special_tokens
        clips = [part.clip(row) for row in rows_B]
        if drawn_B is None:
            features_BMF = self.log_mel(clips)
        else:
            epochs_B, window = drawn_B // len(part), self.log_mel.num_samples
            clips = self.augmentation.perturbed(clips, window, rows_B, self.seed, epochs_B)
            lengths_B = np.array([min(-(-len(clip_N) // HOP), self.log_mel.num_frames) for clip_N in clips])
            features_BMF = self.augmentation.masked(self.log_mel(clips), lengths_B, rows_B, self.seed, epochs_B)
        targets = [part.targets[row] for row in rows_B]
        inputs = [np.concatenate([[special.require("target_start")], row[:-1]]) for row in targets]
        batch = {"tokens_in": padded(inputs, special.pad_id), "targets": padded(targets, IGNORED), "ids": rows_B}
        return {"features": features_BMF} | {n: torch.from_numpy(v.astype(np.int64)) for n, v in batch.items()}

    # --- preparing

    def make_splits(self) -> dict[str, SpeechRows]:
        parts, self.fingerprint = read_speech(self.source, self.cache)
        self.remarks = remarks_of(parts)
        # As they will be encoded, each behind a blank.
        lines = {name: partial(_behind_blanks, part) for name, part in parts.items()}
        self.vocabulary = Vocabulary(
            trained_tokenizer(self.untrained, lines, self.source, self.fingerprint, self.cache)
        )
        self.special_tokens = self.special_tokens_of(self.vocabulary)
        limits = self.vocabulary, self.special_tokens, self.log_mel.num_samples, self.max_length
        return {split: encode_speech(parts[split], *limits, drop=split == "train") for split in SPLITS}


def _behind_blanks(part: Recordings) -> list[str]:
    return [f" {line}" for line in part.transcripts]


def read_speech(source: SpeechSource, cache: str | Path | None = None) -> tuple[dict[str, Recordings], str]:
    """The parts of a source decoded, out of the cache where they are there, and their fingerprint."""
    parts = None if source.fetched else source.read(cache)
    version = source.version() if parts is None else source.fingerprint(parts)

    def make(folder: Path) -> None:
        for name, part in (source.read(cache) if parts is None else parts).items():
            Recordings.save(part, folder, name)

    def read(folder: Path) -> dict[str, Recordings]:
        return {name: Recordings.load(folder, name) for name in SPLITS}

    return prepared(cache, source.shelf, source.name, [FORMAT, version], make, read), version
