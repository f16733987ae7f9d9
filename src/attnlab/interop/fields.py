"""How the fields of one library's configuration become settings here: declarative entries, each readable both ways."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnlab.interop.settings import Settings

Config = dict[str, Any]
REQUIRED = object()
ABSENT = object()


class CannotConvert(ValueError):
    """A model that one of the libraries has no counterpart for, or files that do not hold what they say."""


def some(names: Sequence[str], listed: int = 12) -> str:
    """The first of several names, and how many there are where that is not all."""
    return ", ".join(names[:listed]) + (f", ... ({len(names)} in all)" if len(names) > listed else "")


@dataclass(frozen=True)
class Same:
    """
    A number, or several, that is the same there and here.

    default: what is meant where the field is missing there; ABSENT: nothing. least: the smallest number that can be
    written.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    least: int | None = None

    def read(self, config: Mapping[str, Any]) -> Settings:
        """The setting of this field. Raises CannotConvert where it is required and missing, and for what is no number."""
        value = config.get(self.theirs)
        if value is None:
            if self.default is REQUIRED:
                raise CannotConvert(f"config.json has no {self.theirs}, and a model cannot be built without it")
            if self.default is ABSENT:
                return {}
            value = self.default
        if isinstance(value, str | Mapping):
            raise CannotConvert(f"config.json has {self.theirs}={value!r}; accepted: a number")
        return {self.ours: value}

    def write(self, settings: Settings) -> Config:
        """The field of this setting."""
        value = settings.get(self.ours)
        if value is None:
            return {}
        return {self.theirs: value if self.least is None else max(value, self.least)}


@dataclass(frozen=True)
class OneOf:
    """A word there, one or several settings here. default: the word that is meant where the field is missing."""

    theirs: str
    words: Mapping[Any, Settings]
    default: Any = REQUIRED

    def read(self, config: Mapping[str, Any]) -> Settings:
        """The settings of the word. Raises CannotConvert for a word without a counterpart."""
        word = config.get(self.theirs, None if self.default is REQUIRED else self.default)
        word = self.default if word is None and self.default is not REQUIRED else word
        if not isinstance(word, Hashable) or word not in self.words:
            raise CannotConvert(
                f"{self.theirs}={word!r} has no counterpart here; accepted: {', '.join(map(repr, self.words))}"
            )
        return dict(self.words[word])

    def write(self, settings: Settings) -> Config:
        """The first word whose settings are these; where none is, the first that has the largest share of them."""

        def share(word: Any) -> float:
            fields = self.words[word]
            return sum(settings.get(key) == value for key, value in fields.items()) / len(fields)

        return {self.theirs: max(self.words, key=share)}


@dataclass(frozen=True)
class Only:
    """
    A field that has a counterpart here for some values alone; the first is what is meant where it is missing, so
    nothing is written.

    why: what is so with the other values.
    """

    theirs: str
    values: tuple[Any, ...]
    why: str = "has no counterpart here"

    def read(self, config: Mapping[str, Any]) -> Settings:
        """Nothing. Raises CannotConvert for another value."""
        value = config.get(self.theirs)
        if value is not None and value not in self.values:
            accepted = ", ".join(map(repr, self.values))
            raise CannotConvert(f"{self.theirs}={value!r} {self.why}; accepted: {accepted}")
        return {}

    def write(self, settings: Settings) -> Config:
        """Nothing."""
        return {}


Field = Same | OneOf | Only
