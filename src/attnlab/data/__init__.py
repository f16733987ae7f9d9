"""Text and images from a source to batches: sources, tokenizers, token arrays on disk, windows, and the Lightning data modules over them."""

from typing import Any

from attnlab.data.cache import DataError, cache_root
from attnlab.data.catalogue import CATALOGUE, SourceRow, describe_sources
from attnlab.data.corpus import Corpus, Part, prepare, split_text
from attnlab.data.entities import WNUT17, CoNLL, HubEntities
from attnlab.data.images import IMAGE_SOURCES, Digits, FashionMNIST, HubImages, ImageFolder, MNIST5k
from attnlab.data.labelled import SST2, TSV, HubLabelled, Newsgroups, ReutersR8, UnlabelledText
from attnlab.data.marian_tokenizer import MarianTokenizer
from attnlab.data.masking import Masking
from attnlab.data.pairs import PAIR_SOURCES, HomeAssistant, HubPairs, Multi30k, ParallelText
from attnlab.data.pretrained_tokenizer import PretrainedTokenizer
from attnlab.data.questions import HubQuestions, SQuAD, SQuADFiles
from attnlab.data.sources import KJV, SOURCES, HubText, Source, TextFiles, TinyShakespeare
from attnlab.data.tokenizer_export import write_tokenizer
from attnlab.data.tokenizer_files import read_tokenizer
from attnlab.data.tokenizers import BPE, TOKENIZERS, Byte, Character, Tokenizer, Unigram, WithEndOfText

__all__ = [
    "BPE",
    "CATALOGUE",
    "IMAGE_SOURCES",
    "KJV",
    "PAIR_SOURCES",
    "SOURCES",
    "SST2",
    "TOKENIZERS",
    "TSV",
    "WNUT17",
    "Augmentation",
    "Byte",
    "Character",
    "ClassificationData",
    "CoNLL",
    "Corpus",
    "DataError",
    "DataModule",
    "Digits",
    "EvaluationWindows",
    "FashionMNIST",
    "HomeAssistant",
    "HubEntities",
    "HubImages",
    "HubLabelled",
    "HubPairs",
    "HubQuestions",
    "HubText",
    "ImageData",
    "ImageFolder",
    "MNIST5k",
    "MarianTokenizer",
    "MaskedTextData",
    "Masking",
    "Multi30k",
    "Newsgroups",
    "ParallelText",
    "Part",
    "PretrainedTokenizer",
    "ReutersR8",
    "SQuAD",
    "SQuADFiles",
    "Source",
    "SourceRow",
    "SpanCorruptionData",
    "SpanExtractionData",
    "TextData",
    "TextFiles",
    "TextTask",
    "TextToTextData",
    "TinyShakespeare",
    "TokenClassificationData",
    "Tokenizer",
    "TranslationData",
    "Unigram",
    "UnlabelledText",
    "WindowBatches",
    "Windows",
    "WithEndOfText",
    "cache_root",
    "describe_sources",
    "prepare",
    "read_tokenizer",
    "split_text",
    "write_tokenizer",
]

LAZY = {
    "Augmentation": "augment",
    "ClassificationData": "classification",
    "DataModule": "module",
    "ImageData": "image_data",
    "MaskedTextData": "masked_text",
    "SpanCorruptionData": "span_corruption_text",
    "SpanExtractionData": "span_extraction",
    "TextData": "text",
    "TextTask": "text_to_text",
    "TextToTextData": "text_to_text",
    "TokenClassificationData": "token_classification",
    "TranslationData": "translation",
    "EvaluationWindows": "windows",
    "WindowBatches": "windows",
    "Windows": "windows",
}


def __getattr__(name: str) -> Any:
    """Loads what needs torch or Lightning at its first use, so that listing the data sets is quick."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"attnlab.data.{LAZY[name]}"), name)
