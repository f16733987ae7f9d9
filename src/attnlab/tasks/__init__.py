"""Tasks: a model, what it is trained to do, and the figures that say how well it does it."""

from attnlab.tasks.causal_lm import CausalLanguageModelling
from attnlab.tasks.image_classification import ImageClassification
from attnlab.tasks.masked_lm import MaskedLanguageModelling
from attnlab.tasks.sequence_classification import SequenceClassification
from attnlab.tasks.span_corruption import SpanCorruption
from attnlab.tasks.span_extraction import SpanExtraction
from attnlab.tasks.text_to_text import TextToText
from attnlab.tasks.token_classification import TokenClassification
from attnlab.tasks.translation import Translation

__all__ = [
    "CausalLanguageModelling",
    "ImageClassification",
    "MaskedLanguageModelling",
    "SequenceClassification",
    "SpanCorruption",
    "SpanExtraction",
    "TextToText",
    "TokenClassification",
    "Translation",
]
