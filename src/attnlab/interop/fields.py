"""The fields of a configuration of Hugging Face transformers and what they are here, read both ways: `read` gives the
settings of a configuration, or raises CannotConvert; `write` the fields of settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from attnlab.interop.settings import Settings

Config = dict[str, Any]
REQUIRED = object()
ABSENT = object()
SLIDING, FULL = "sliding_attention", "full_attention"


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


Plain = Same | OneOf | Only


@dataclass(frozen=True)
class OfLayers:
    """What may differ from layer to layer: a list of configurations there, of these fields; a pattern here where they
    are not all the same.
    """

    theirs: str
    fields: tuple[Plain, ...]

    def read(self, config: Mapping[str, object]) -> Settings:
        layers = cast("Sequence[Config]", config.get(self.theirs) or [{}])
        settings = [self._read(layer) for layer in layers]
        kinds = [kind for index, kind in enumerate(settings) if kind not in settings[:index]]
        found = dict(kinds[0])
        if len(kinds) > 1:
            found["pattern"] = [kinds.index(kind) for kind in settings]
        for number, kind in enumerate(kinds[1:], 1):
            parts = {key.split(".")[0] for key in {*kinds[0], *kind} if kinds[0].get(key) != kind.get(key)}
            # Of a part whose class is said, all that is said: a kind takes the fields it lacks from the first one's.
            own = {key: value for key, value in kind.items() if key.split(".")[0] in parts}
            lost = (key for key in kinds[0] if key not in kind and key.split(".")[0] not in kind)
            found |= {f"layers.{number}.{key}": value for key, value in {**dict.fromkeys(lost), **own}.items()}
        return found

    def _read(self, config: Config) -> Settings:
        if unknown := sorted(config.keys() - {entry.theirs for entry in self.fields}):
            fields = ", ".join(f"{key}={config[key]!r}" for key in unknown)
            raise CannotConvert(f"config.json has fields of layers without a counterpart here: {fields}")
        settings: Settings = {}
        for entry in self.fields:
            settings |= entry.read(config)
        return settings

    def write(self, settings: Settings) -> Config:
        pattern = settings.get("pattern") or [0] * settings["num_layers"]
        kinds = {number: self._write(_of_kind(settings, number)) for number in dict.fromkeys(pattern)}
        return {self.theirs: [dict(kinds[number]) for number in pattern]}

    def _write(self, settings: Settings) -> Config:
        config: Config = {}
        for entry in self.fields:
            config |= entry.write(settings)
        return config


def _of_kind(settings: Settings, number: int) -> Settings:
    """The settings of the layers of one kind."""
    start = f"layers.{number}."
    own = {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}
    parts = {key for key in own if "." not in key}
    return {key: value for key, value in settings.items() if key.split(".")[0] not in parts} | own


Field = Plain | OfLayers


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


def types_and_window(layers: Sequence[Config]) -> tuple[list[str], int | None]:
    """The type of each layer, and the first one's window of those that have one: there can be but one."""
    window = next((layer["sliding_window"] for layer in layers if "sliding_window" in layer), None)
    return [SLIDING if "sliding_window" in layer else FULL for layer in layers], window


def norm_eps(default: float) -> tuple[Same, ...]:
    """One number for all norms, those of queries and keys, too."""
    return tuple(Same("rms_norm_eps", ours, default) for ours in ("residual.norm.eps", "attention.qk_norm_eps"))
