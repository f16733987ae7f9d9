"""Weights in from and out to other libraries: Hugging Face transformers' architectures, both ways."""

from attnlab.interop.convert import ARCHITECTURES, Imported, architecture_for, from_theirs, read_model, to_folder
from attnlab.interop.fields import CannotConvert
from attnlab.interop.settings import Settings, build, canonical, completed

__all__ = [
    "ARCHITECTURES",
    "CannotConvert",
    "Imported",
    "Settings",
    "architecture_for",
    "build",
    "canonical",
    "completed",
    "from_theirs",
    "read_model",
    "to_folder",
]
