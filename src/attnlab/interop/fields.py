"""The fields of a configuration of Hugging Face transformers and what they are here, read both ways: `read` gives the
settings of a configuration, or raises CannotConvert; `write` the fields of settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

from attnlab.interop.settings import Settings

Config = dict[str, Any]
REQUIRED = object()
ABSENT = object()


class CannotConvert(ValueError):
    """A model that one of the libraries has no counterpart for, or files that do not hold what they say."""


@dataclass(frozen=True)
class Same:
    """A number, or several, that is the same there and here."""

    theirs: str
    ours: str
    default: object = REQUIRED  # what is meant where the field is missing there; ABSENT: nothing
    least: int | None = None  # the smallest number that can be written

    def read(self, config: Mapping[str, object]) -> Settings:
        value = config.get(self.theirs)
        value = self.default if value is None else value
        if value is REQUIRED:
            raise CannotConvert(f"config.json has no {self.theirs}, and a model cannot be built without it")
        if value is ABSENT:
            return {}
        if isinstance(value, str | Mapping):
            raise CannotConvert(f"config.json has {self.theirs}={value!r}; accepted: a number")
        return {self.ours: value}

    def write(self, settings: Settings) -> Config:
        value = settings.get(self.ours)
        if value is not None and self.least is not None:
            value = max(value, self.least)
        return {} if value is None else {self.theirs: value}


@dataclass(frozen=True)
class OneOf:
    """A word there, one or several settings here."""

    theirs: str
    words: Mapping[Any, Settings]
    default: object = REQUIRED  # the word that is meant where the field is missing

    def read(self, config: Mapping[str, object]) -> Settings:
        word = config.get(self.theirs)
        word = self.default if word is None and self.default is not REQUIRED else word
        for known, settings in self.words.items():
            if known == word:
                return dict(settings)
        accepted = ", ".join(map(repr, self.words))
        raise CannotConvert(f"{self.theirs}={word!r} has no counterpart here; accepted: {accepted}")

    def write(self, settings: Settings) -> Config:
        """The first word whose settings are these; where none is, the first that has the largest share of them."""
        shares = {
            word: sum(bool(settings.get(key) == value) for key, value in fields.items()) / len(fields)
            for word, fields in self.words.items()
        }
        return {self.theirs: max(shares, key=lambda word: shares[word])}


@dataclass(frozen=True)
class Only:
    """A field that has a counterpart here for some values alone, the first of which is meant where it is missing."""

    theirs: str
    values: tuple[object, ...]
    why: str = "has no counterpart here"  # of other values

    def read(self, config: Mapping[str, object]) -> Settings:
        value = config.get(self.theirs)
        if value is not None and value not in self.values:
            raise CannotConvert(f"{self.theirs}={value!r} {self.why}; accepted: {', '.join(map(repr, self.values))}")
        return {}

    def write(self, settings: Settings) -> Config:
        return {}


@dataclass(frozen=True)
class Windows:
    """The window of each layer there, None where it sees all; a pattern here where they are not all the same."""

    theirs: str
    ours: ClassVar[str] = "attention.window"

    def read(self, config: Mapping[str, object]) -> Settings:
        windows = cast("Sequence[int | None]", config.get(self.theirs) or [None])
        kinds = list(dict.fromkeys(windows))
        found: Settings = {self.ours: kinds[0]}
        if len(kinds) > 1:
            found["pattern"] = [kinds.index(window) for window in windows]
            found |= {f"layers.{number}.{self.ours}": window for number, window in enumerate(kinds) if number}
        return found

    def write(self, settings: Settings) -> Config:
        whole = settings.get(self.ours)
        pattern = settings.get("pattern") or [0] * settings["num_layers"]
        return {self.theirs: [settings.get(f"layers.{number}.{self.ours}", whole) for number in pattern]}


Field = Same | OneOf | Only | Windows


def required(default: object = REQUIRED, /, **names: str) -> tuple[Same, ...]:
    """Numbers that every configuration has to say, by their names there and here."""
    return tuple(Same(theirs, ours, default) for theirs, ours in names.items())


optional = partial(required, ABSENT)


def flag(theirs: str, *ours: str) -> OneOf:
    """True where it is missing, for all of these settings."""
    return OneOf(theirs, {value: dict.fromkeys(ours, value) for value in (True, False)}, default=True)


def only(**values: object) -> tuple[Only, ...]:
    """Fields that have a counterpart here for one value alone."""
    return tuple(Only(theirs, (value,)) for theirs, value in values.items())
