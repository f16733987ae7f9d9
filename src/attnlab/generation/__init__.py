"""Text out of a model that decodes: greedy, sampled and by beam search, batched, with a key-value cache."""

from attnlab.generation.beam import BeamSearch, Hypothesis, decode
from attnlab.generation.sampling import Sampler, generate

__all__ = ["BeamSearch", "Hypothesis", "Sampler", "decode", "generate"]
