"""Tasks: a model, what it is trained to do, and the figures that say how well it does it."""

from attnlab.tasks.answers import Answers
from attnlab.tasks.classification import Classification, ImageClassification, SequenceClassification
from attnlab.tasks.contrastive import Contrastive
from attnlab.tasks.language_modelling import CausalLanguageModelling, MaskedLanguageModelling, SpanCorruption
from attnlab.tasks.pretrained import EncoderTask
from attnlab.tasks.span_extraction import SpanExtraction
from attnlab.tasks.token_classification import TokenClassification
from attnlab.tasks.transcription import Transcription
from attnlab.tasks.translation import TextToText, Translation

__all__ = [
    "Answers",
    "CausalLanguageModelling",
    "Classification",
    "Contrastive",
    "EncoderTask",
    "ImageClassification",
    "MaskedLanguageModelling",
    "SequenceClassification",
    "SpanCorruption",
    "SpanExtraction",
    "TextToText",
    "TokenClassification",
    "Transcription",
    "Translation",
]
