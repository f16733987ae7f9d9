"""Text out of a model that decodes, greedy, sampled or by beam search, and out of speech; with a key-value cache."""

from attnlab.generation.beam import BeamSearch, Hypothesis, decode
from attnlab.generation.sampling import Sampler, generate
from attnlab.generation.transcription import (
    Heard,
    Segment,
    TranscriptionOptions,
    detect_languages,
    transcribe,
    transcribe_windows,
)

__all__ = [
    "BeamSearch", "Heard", "Hypothesis", "Sampler", "Segment", "TranscriptionOptions", "decode", "detect_languages",
    "generate", "transcribe", "transcribe_windows",
]  # fmt: skip
