"""Text from a source to batches: sources, tokenizers, token arrays on disk, windows, and the Lightning data module over them."""

from typing import Any

from attnlab.data.cache import DataError, cache_root
from attnlab.data.corpus import Corpus, Part, prepare, split_text
from attnlab.data.sources import KJV, SOURCES, HubText, Source, SourceRow, TextFiles, TinyShakespeare, describe_sources
from attnlab.data.tokenizers import BPE, TOKENIZERS, Byte, Character, Tokenizer, Unigram

__all__ = [
    "BPE", "KJV", "SOURCES", "TOKENIZERS", "Byte", "Character", "Corpus", "DataError", "EvaluationWindows", "HubText", "Part",
    "Source", "SourceRow", "TextData", "TextFiles", "TinyShakespeare", "Tokenizer", "Unigram", "WindowBatches", "Windows",
    "cache_root", "describe_sources", "prepare", "split_text",
]  # fmt: skip

LAZY = {"TextData": "text", "EvaluationWindows": "windows", "WindowBatches": "windows", "Windows": "windows"}


def __getattr__(name: str) -> Any:
    """Loads what needs torch or Lightning at its first use, so that listing the data sets is quick."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"attnlab.data.{LAZY[name]}"), name)
