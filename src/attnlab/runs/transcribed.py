"""What a run hears in recordings of any length: one that was trained here, or a published Whisper.

Shapes: N samples, M mel bins, F frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attnlab.config import UsageError
from attnlab.data.audio import RATE, quietest, read_audio
from attnlab.data.log_mel import FRAMES_A_SECOND, LogMel
from attnlab.data.speech_data import whisper_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.generation.transcription import TranscriptionOptions, transcribe, transcribe_windows
from attnlab.models import Whisper
from attnlab.runs.trained import load_model

AT_ONCE = 16  # windows


@dataclass(frozen=True)
class Spoken:
    """What was heard from one time to another, in seconds of the recording."""

    start: float
    end: float
    text: str


class Transcriber:
    """A run that hears. Raises UsageError where it is none.

    A published vocabulary has timestamps: a window starts where the last segment of the one before ended. One of our
    own has none: a recording that is longer than a window is cut where it is quietest in the second half of each, and
    each piece is decoded once and greedily.
    """

    def __init__(self, directory: Path, checkpoint: str = "last") -> None:
        model, tokenizer = load_model(directory, checkpoint)
        if not isinstance(model, Whisper) or tokenizer is None:
            kind = type(model).__name__
            raise UsageError(f"{directory}: a run of {kind} hears nothing; give one of task=transcription")
        self.model, self.vocabulary = model.eval(), Vocabulary(tokenizer)
        self.tokens = whisper_tokens(tokenizer, model.vocabulary_size)
        self.log_mel = LogMel(model.num_mels, model.num_frames / FRAMES_A_SECOND)

    def hear_file(self, path: Path, options: TranscriptionOptions | None = None) -> list[Spoken]:
        """What is said in a file. Raises DataError for one that cannot be read, UsageError for one without a sample."""
        samples_N = read_audio(path)
        if not len(samples_N):
            raise UsageError(f"{path} has no sound: it lasts 0 seconds; give a recording of something")
        return self.hear(samples_N, options)

    def hear(self, samples_N: np.ndarray, options: TranscriptionOptions | None = None) -> list[Spoken]:
        """What is said in samples of 16 kHz. Raises ValueError for a language or task that the vocabulary lacks."""
        options = options or TranscriptionOptions()
        if self.tokens.first_timestamp is None:
            return list(self._pieces(samples_N, replace(options, timestamps=False)))
        features_MF = self.log_mel.of_recording(samples_N)
        found = transcribe(self.model, features_MF, self.tokens, options, self._text)
        return [Spoken(segment.start, segment.end, self._text(segment.tokens)) for segment in found]

    def _pieces(self, samples_N: np.ndarray, options: TranscriptionOptions) -> Iterator[Spoken]:
        places = pieces(samples_N, self.log_mel.num_samples)
        for first in range(0, len(places), AT_ONCE):
            few = places[first : first + AT_ONCE]
            features_BMF = self.log_mel([samples_N[start:end] for start, end in few])
            heard = transcribe_windows(self.model, features_BMF, self.tokens, options)
            for (start, end), one in zip(few, heard, strict=True):
                yield Spoken(start / RATE, end / RATE, self._text(one.tokens))

    def _text(self, tokens: list[int]) -> str:
        return " ".join(self.vocabulary.decode(tokens).split())


def pieces(samples_N: np.ndarray, window: int) -> list[tuple[int, int]]:
    """From and up to which sample a recording is heard at once: all of it, or cut in the second half of each window."""
    ends = [0]
    while len(samples_N) - ends[-1] > window:
        ends.append(quietest(samples_N, ends[-1] + window // 2, ends[-1] + window))
    return list(zip(ends, [*ends[1:], len(samples_N)], strict=True))
