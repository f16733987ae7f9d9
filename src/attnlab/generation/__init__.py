"""Text out of a model that decodes: greedy and sampled, batched, with a key-value cache."""

from attnlab.generation.sampling import Sampler, generate

__all__ = ["Sampler", "generate"]
