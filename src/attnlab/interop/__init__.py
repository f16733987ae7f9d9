"""Weights in from and out to other libraries: Hugging Face transformers' architectures, both ways.

`remote_code` writes what none of them computes, and `remote`, which needs transformers, is what such a folder imports.
"""

from attnlab.interop.convert import (
    ARCHITECTURES,
    HEADS,
    Head,
    Imported,
    architecture_for,
    compare,
    from_theirs,
    read_model,
    to_folder,
    tokenizer_there,
)
from attnlab.interop.fields import CannotConvert
from attnlab.interop.files import GGUF, read_gguf
from attnlab.interop.settings import Settings, build, canonical, completed, different, nested
from attnlab.interop.speech import CTranslate2, is_ctranslate2, read_whisper
from attnlab.interop.warm_start import Start, start_from

__all__ = [
    "ARCHITECTURES",
    "GGUF",
    "HEADS",
    "CTranslate2",
    "CannotConvert",
    "Head",
    "Imported",
    "Settings",
    "Start",
    "architecture_for",
    "build",
    "canonical",
    "compare",
    "completed",
    "different",
    "from_theirs",
    "is_ctranslate2",
    "nested",
    "read_gguf",
    "read_model",
    "read_whisper",
    "start_from",
    "to_folder",
    "tokenizer_there",
]  # fmt: skip
