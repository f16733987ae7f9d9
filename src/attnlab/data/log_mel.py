"""What a model hears of speech: the log-mel spectrogram of a window of samples, and how a training changes it.

Shapes: B clips, N samples, M mel bins, F frames, K bins of the Fourier transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from attnlab.data.audio import RATE, resampled
from attnlab.data.cache import DataError
from attnlab.data.order import uniforms
from attnlab.parts import Part
from attnlab.ranges import Interval, NonNegativeInt, PositiveFloat, PositiveInt, Probability, check_ranges, must_be

WIDTH, HOP = 400, 160  # samples of a frame (25 ms), and from one to the next (10 ms)
FRAMES_A_SECOND = RATE // HOP
KNEE, HERTZ_A_MEL, LOG_STEP = 1000.0, 200 / 3, math.log(6.4) / 27  # Slaney's scale: linear to the knee, then log


@check_ranges
@dataclass(frozen=True)
class LogMel:
    """The log-mel spectrogram of Whisper (Radford et al. 2022, section 2.2): frames of 25 ms every 10 ms, the energies
    of `num_mels` bins on Slaney's scale, their logarithm within 8 powers of ten of the loudest, shifted and scaled.

    seconds: of a window; a whole number of frames, even, for the second convolution halves them. Raises DataError.
    """

    num_mels: PositiveInt = 80
    seconds: PositiveFloat = 30.0

    def __post_init__(self) -> None:
        if (
            self.num_frames < 2
            or self.num_frames % 2
            or not math.isclose(self.num_frames, self.seconds * FRAMES_A_SECOND)
        ):
            raise DataError(must_be("data.seconds", "a whole number of 0.02 seconds", self.seconds))

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FRAMES_A_SECOND)

    @property
    def num_samples(self) -> int:
        return self.num_frames * HOP

    @cached_property
    def _filters_MK(self) -> Tensor:
        return torch.from_numpy(mel_filters(self.num_mels)).float()

    def __call__(self, clips: Sequence[np.ndarray]) -> Tensor:
        """The features (B, M, F), fp32, of samples (N,) of 16 kHz, cut after the window or silent up to its end."""
        samples_BN = torch.zeros(len(clips), self.num_samples)
        for row, clip_N in enumerate(clips):
            kept_N = torch.from_numpy(np.asarray(clip_N[: self.num_samples], dtype=np.float32))
            samples_BN[row, : len(kept_N)] = kept_N
        return self._features(samples_BN)

    def of_recording(self, samples_N: np.ndarray) -> Tensor:
        """The features (M, F) of a recording of any length, followed by silence, as a whole: see `transcribe`."""
        num_frames = -(-len(samples_N) // HOP)
        samples_1N = torch.zeros(1, num_frames * HOP + self.num_samples)
        samples_1N[0, : len(samples_N)] = torch.from_numpy(np.asarray(samples_N, dtype=np.float32))
        return self._features(samples_1N)[0, :, :num_frames]

    def _features(self, samples_BN: Tensor) -> Tensor:
        window = torch.hann_window(WIDTH)
        spectrum_BKF = torch.stft(samples_BN, WIDTH, HOP, window=window, return_complex=True)[..., :-1]
        power_BKF = torch.view_as_real(spectrum_BKF).square().sum(dim=-1)
        log_BMF = (self._filters_MK @ power_BKF).clamp(min=1e-10).log10()
        log_BMF = torch.maximum(log_BMF, log_BMF.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log_BMF + 4.0) / 4.0


def mel_filters(num_mels: int) -> np.ndarray:
    """The weights (M, K), fp64, of triangles of area 1, evenly apart on the mel scale from 0 to 8 kHz (Slaney 1998)."""
    last = _mel(np.array([RATE / 2]))[0]
    edges = _hertz(np.linspace(0, last, num_mels + 2))
    bins_K = np.linspace(0, RATE / 2, WIDTH // 2 + 1)
    ramps = edges[:, None] - bins_K
    rising = -ramps[:-2] / np.diff(edges)[:-1, None]
    falling = ramps[2:] / np.diff(edges)[1:, None]
    found: np.ndarray = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return found


def _mel(hertz: np.ndarray) -> np.ndarray:
    above = KNEE / HERTZ_A_MEL + np.log(np.maximum(hertz, KNEE) / KNEE) / LOG_STEP
    return np.where(hertz < KNEE, hertz / HERTZ_A_MEL, above)


def _hertz(mels: np.ndarray) -> np.ndarray:
    knee = KNEE / HERTZ_A_MEL
    return np.where(mels < knee, mels * HERTZ_A_MEL, KNEE * np.exp(LOG_STEP * (np.maximum(mels, knee) - knee)))


@check_ranges
@dataclass(frozen=True)
class SpeechAugmentation(Part):
    """Speech as a training hears it: a function of seed, epoch and example alone, whatever batch an example is in.

    speeds: one of them is drawn for each clip, tempo and pitch together, 1 in place of one that would not fit into the
    window (Ko et al. 2015). frequency_masks, time_masks: how many bands of mel bins and stretches of frames are
    hidden, each up to `frequency_width` bins or `time_width` frames wide, the latter at most `time_share` of the clip
    (SpecAugment without warping, Park et al. 2019, arXiv 1904.08779, section 2); what is hidden has the mean of the
    clip's features.
    """

    speeds: Sequence[Annotated[float, Interval(ge=0.5, le=2)]] = (1.0,)
    frequency_masks: NonNegativeInt = 0
    frequency_width: NonNegativeInt = 27
    time_masks: NonNegativeInt = 0
    time_width: NonNegativeInt = 100
    time_share: Probability = 1.0

    def __post_init__(self) -> None:
        if not self.speeds:
            raise DataError(must_be("augmentation.speeds", "one speed or more, such as [0.9,1.0,1.1]", self.speeds))

    def perturbed(
        self, clips: Sequence[np.ndarray], longest: int, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int
    ) -> list[np.ndarray]:
        """The clips, each at a speed of its own. longest: samples of the window."""
        drawn_B = uniforms(seed, epochs_B, examples_B, "speed", 1)[:, 0]
        speeds_B = np.asarray(self.speeds)[(drawn_B * len(self.speeds)).astype(np.int64)]
        return [at_speed(clip_N, speed, longest) for clip_N, speed in zip(clips, speeds_B.tolist(), strict=True)]

    def masked(
        self, features_BMF: Tensor, lengths_B: np.ndarray, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int
    ) -> Tensor:
        """The features with bands and stretches hidden. lengths_B: frames of each clip."""
        bins, frames = features_BMF.shape[1:]
        hidden_BMF = torch.zeros(features_BMF.shape, dtype=torch.bool)
        whole_B = np.full(len(features_BMF), bins)
        widest_B = np.minimum(self.time_width, self.time_share * lengths_B)
        for turn in range(self.frequency_masks):
            draws_B2 = uniforms(seed, epochs_B, examples_B, f"frequency {turn}", 2)
            hidden_BMF |= stretches(draws_B2, np.minimum(self.frequency_width, whole_B), whole_B, bins)[:, :, None]
        for turn in range(self.time_masks):
            draws_B2 = uniforms(seed, epochs_B, examples_B, f"time {turn}", 2)
            hidden_BMF |= stretches(draws_B2, widest_B, lengths_B, frames)[:, None, :]
        return torch.where(hidden_BMF, features_BMF.mean(dim=(1, 2), keepdim=True), features_BMF)


def at_speed(clip_N: np.ndarray, speed: float, longest: int) -> np.ndarray:
    """Samples that last 1 / speed as long; as they are where they would not fit into `longest`."""
    percent = round(100 * speed)
    return clip_N if percent == 100 or len(clip_N) > longest * percent // 100 else resampled(clip_N, percent, 100)


def stretches(draws_B2: np.ndarray, widest_B: np.ndarray, lengths_B: np.ndarray, size: int) -> Tensor:
    """True on a stretch of each row (B, size): up to `widest` wide, all widths and then all places alike probable."""
    widths_B = np.floor(draws_B2[:, 0] * (np.floor(widest_B) + 1))
    starts_B = np.floor(draws_B2[:, 1] * (np.maximum(lengths_B - widths_B, 0) + 1))
    places = torch.arange(size)
    starts_B1, widths_B1 = (torch.from_numpy(values_B)[:, None] for values_B in (starts_B, widths_B))
    return (places >= starts_B1) & (places < starts_B1 + widths_B1)
