"""Weights in from and out to other libraries: Hugging Face transformers' architectures, both ways."""

from attnlab.interop.convert import ARCHITECTURES, Imported, architecture_for, from_theirs, read_model, to_folder
from attnlab.interop.fields import CannotConvert
from attnlab.interop.gguf_files import GGUF, read_gguf
from attnlab.interop.heads import HEADS, Head
from attnlab.interop.settings import Settings, build, canonical, completed, different, nested
from attnlab.interop.start import Start, start_from
from attnlab.interop.trial import compare, tokenizer_there

__all__ = [
    "ARCHITECTURES",
    "GGUF",
    "HEADS",
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
    "nested",
    "read_gguf",
    "read_model",
    "start_from",
    "to_folder",
    "tokenizer_there",
]
