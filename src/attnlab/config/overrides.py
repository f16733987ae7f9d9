"""Overrides as words: which values Hydra's grammar reads, which stand for themselves, how any value is written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from attnlab.config import UsageError

WRITTEN = "An override is written name=value, as in model.d_model=128."
# How the names of fields end that hold a path: what exists is meant there, also where Hydra would read a number.
PLACES = ("path", "dir", "from", "pretrained", "cache")
NO_REASON = re.compile(r"\^?$|(object_type|reference_type|full_key)\b|See https")  # what stands around what was wrong
MOST_REASONS = 6  # lines


@dataclass(frozen=True)
class Word:
    """One override, as Hydra's grammar reads it."""

    key: str
    value: Any
    is_sweep: bool
    is_delete: bool


def parse_word(override: str) -> Word:
    """One override, read. Raises: UsageError for what the grammar cannot read."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UsageError(f"{reason_of(error)} {WRITTEN}") from error
    return Word(parsed.key_or_group, parsed.value(), parsed.is_sweep_override(), parsed.is_delete())


def value_of(text: str) -> Any:
    """The value that a text means. Raises: HydraException where it means none."""
    return OverridesParser.create().parse_override(f"key={text}").value()


def key_and_value(override: str) -> tuple[str, str]:
    """The name that an override sets, without the signs that add or remove, and its value as it was written."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def key_and_text(override: str) -> tuple[str, str]:
    """The same, with the text that the value means: without the quotes that Hydra needs."""
    key, value = key_and_value(_readable(override, multirun=False))
    return key, text_of(value)


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
        read = value_of(value)
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


def text_of(value: str) -> str:
    """The text that a value as an override has it means: without quotes."""
    try:
        read = value_of(value)
    except HydraException:
        return value
    if not isinstance(read, str):
        return value
    return re.sub(r"(\\+)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", read)


def reason_of(error: BaseException) -> str:
    """All that Hydra or OmegaConf say of an error and its causes, in one line; a usage error within it, as it is."""
    said: list[str] = []
    link: BaseException | None = error
    while link is not None and len(said) < MOST_REASONS:
        if isinstance(link, UsageError):
            return str(link)
        lines = [line.strip() for line in (str(link).strip() or type(link).__name__).splitlines()]
        said += [line for line in lines if not NO_REASON.match(line) and line not in said]
        if (field := getattr(link, "full_key", None)) and not any(field in line for line in said):
            said.append(f"The field is {field}.")
        link = link.__cause__
    return " ".join(line if line.endswith((".", "!", "?", ":")) else f"{line}." for line in said)
