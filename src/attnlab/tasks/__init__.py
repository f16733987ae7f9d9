"""Tasks: a model, what it is trained to do, and the figures that say how well it does it."""

from attnlab.tasks.causal_lm import CausalLanguageModelling

__all__ = ["CausalLanguageModelling"]
