"""Recordings as samples: files that nobody made for this, read for what is said in them.

Shapes: N samples, C channels.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.data.cache import DataError, checked_digest
from attnlab.data.source import existing

RATE = 16_000  # samples a second of all that models hear
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64")
ACCEPTED = f"{', '.join(EXTENSIONS)} as libsndfile reads them"
LOUDEST = 32767  # of 16 bits


@dataclass(frozen=True)
class Clip:
    """A recording: what messages call it, what gives its samples (N,) of 16 kHz, and its sha256."""

    name: str
    read: Callable[[], np.ndarray]
    digest: Callable[[], str]

    @classmethod
    def of_file(cls, path: Path) -> Clip:
        return cls(str(path), partial(read_audio, path), partial(checked_digest, path))

    @classmethod
    def of_bytes(cls, name: str, content: bytes) -> Clip:
        """A recording whose file is in a table."""
        return cls(name, lambda: _decoded(io.BytesIO(content), name), lambda: hashlib.sha256(content).hexdigest())

    @classmethod
    def of_samples(cls, name: str, samples_N: np.ndarray) -> Clip:
        """Samples of 16 bits and 16 kHz."""
        return cls(name, lambda: from_int16(samples_N), lambda: hashlib.sha256(samples_N.tobytes()).hexdigest())


def read_audio(path: Path) -> np.ndarray:
    """The samples (N,) of a file: the mean of its channels at 16 kHz, fp32, full scale at 1. Raises DataError.

    Integers of 8 to 32 bits and floats, of any rate, as libsndfile reads them.
    """
    return _decoded(existing(path, f"an audio file ({ACCEPTED})", "the file"), str(path))


def _decoded(file: Path | io.BytesIO, name: str) -> np.ndarray:
    soundfile = _soundfile()
    try:
        samples_NC, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
        reason = str(error).partition(": ")[2] or str(error)
        raise DataError(
            f"{name} cannot be read as audio ({reason.strip()}); accepted: {ACCEPTED}. Mend it, or take it out"
        ) from error
    if not np.isfinite(samples_NC).all():
        raise DataError(f"{name} holds samples that are no numbers (NaN or inf); mend it, or take it out")
    return resampled(samples_NC.mean(axis=1), rate)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the latter: the package is there, and its library libsndfile is not
        raise DataError(
            f"audio files are read by soundfile, which cannot be loaded ({error}): install it with pip"
        ) from error
    return soundfile


def resampled(samples_N: np.ndarray, rate: int, to: int = RATE) -> np.ndarray:
    """Samples at another rate, fp32, without what the new rate cannot hold (a polyphase filter)."""
    from scipy.signal import resample_poly

    common = math.gcd(rate, to)
    if rate == to or not len(samples_N):
        return samples_N.astype(np.float32, copy=False)
    found: np.ndarray = resample_poly(samples_N, to // common, rate // common)
    return found.astype(np.float32, copy=False)


def to_int16(samples_N: np.ndarray) -> np.ndarray:
    """Samples as the cache keeps them; what is louder than full scale is cut."""
    rounded_N: np.ndarray = np.rint(samples_N * LOUDEST)
    return rounded_N.clip(-LOUDEST, LOUDEST).astype(np.int16)


def from_int16(samples_N: np.ndarray) -> np.ndarray:
    return samples_N.astype(np.float32) / LOUDEST


def quietest(samples_N: np.ndarray, first: int, last: int, width: int = RATE // 10) -> int:
    """The sample in the middle of the quietest tenth of a second between two places: where a recording is best cut."""
    energies = np.convolve(samples_N[first:last].astype(np.float64) ** 2, np.ones(width), mode="valid")
    return first + int(energies.argmin()) + width // 2
