"""Overrides as words: which values Hydra's grammar reads, which stand for themselves, how any value is written."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

# How the names of fields end that hold a path: what exists is meant there, also where Hydra would read a number.
PLACES = ("path", "dir", "from", "pretrained", "cache")
LONGEST_NAME = 120  # bytes of a cell's name, which is a folder's


def key_and_value(override: str) -> tuple[str, str]:
    """The name that an override sets, without the signs that add or remove, and its value as it was written."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def key_and_text(override: str) -> tuple[str, str]:
    """The same, with the text that the value means: without the quotes that Hydra needs."""
    key, value = key_and_value(_readable(override, multirun=False))
    return key, _text_of(value)


def quoted(text: str) -> str:
    """Text as the value that Hydra reads as this text, whatever signs it holds; `${...}` in it is an interpolation."""
    return text if _is_plain(text) else QuotedString(text, Quote.double).with_quotes()


def literal(text: str) -> str:
    """The same, where `${` stands for itself, too."""
    return quoted(_without_interpolation(text))


def as_value(value: Any) -> str:
    """A value of a YAML file as an override's; a text is quoted where it needs it, and within a list or table."""
    return quoted(value) if isinstance(value, str) else Override._get_value_element_as_str(_in_quotes(value), True)


def _in_quotes(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _in_quotes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_quotes(item) for item in value]
    if isinstance(value, bool):
        return str(value).lower()
    return QuotedString(value, Quote.double) if isinstance(value, str) else value


def as_it_stands(config: Any) -> Any:
    """A resolved configuration, as `OmegaConf.create` takes it without reading interpolations into its texts."""
    if isinstance(config, dict):
        return {key: as_it_stands(value) for key, value in config.items()}
    if isinstance(config, list):
        return [as_it_stands(value) for value in config]
    return _without_interpolation(config) if isinstance(config, str) else config


def readable(overrides: Sequence[str], multirun: bool = False) -> list[str]:
    """
    The same overrides as Hydra reads them.

    A value that is the path of something that exists stands for itself, whatever signs are in it, and so does one that
    Hydra's grammar cannot read; all others are Hydra's. In a multirun a comma parts choices, unless the whole value is
    such a path.
    """
    return [_readable(override, multirun) for override in overrides]


def _readable(override: str, multirun: bool) -> str:
    key, sign, value = override.partition("=")
    if not sign or not value:
        return override
    if multirun and "," in value and not re.search(r"[\"'\[\]{}()\\]", value) and not _is_there(value):
        return f"{key}=" + ",".join(_one_value(key, choice) for choice in value.split(","))
    return f"{key}={_one_value(key, value)}"


def _one_value(key: str, value: str) -> str:
    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return quoted(value) if value.strip() else value
    is_word = read is None or (isinstance(read, int | float) and not key.endswith(PLACES))
    if is_word or not _is_there(value) or (read == value and "${" not in value):
        return value
    return literal(value)


def _is_there(path: str) -> bool:
    return os.path.lexists(os.path.expanduser(path))


def _is_plain(text: str) -> bool:
    """Whether Hydra reads text as it is, without quotes, as text."""
    words = ("null", "true", "false", "nan", "inf")
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) is not None and text.lower() not in words


def _without_interpolation(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _text_of(value: str) -> str:
    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return value
    if not isinstance(read, str):
        return value
    return re.sub(r"(\\+)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", read)


def name_of_choices(pairs: Sequence[tuple[str, str]]) -> str:
    """
    A folder's name for settings and their values as overrides have them: the same for the same, another for others.

    It is `key=value,...` where that is short and has no sign of its own meaning, else as near to it as can be, with a
    digest.
    """
    shown = [(key, *_shown(value)) for key, value in pairs]
    name = ",".join(f"{key}={text}" for key, text, _ in shown)
    whole = ",".join(f"{key}={value}" for key, _, value in shown)
    safe = re.sub(r"[^\w=.,+-]", "_", unicodedata.normalize("NFC", name))
    if safe == whole and len(whole.encode()) <= LONGEST_NAME:
        return whole
    start = safe.encode()[:100].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(whole.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _shown(value: str) -> tuple[str, str]:
    """A value without quotes, and in the one way of writing it that no other value has."""
    text = _text_of(value)
    try:
        read = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return text, literal(text) if set(text) & set(",=") else text
    return text, text if read == text or text == value else literal(text)
