"""The entries of a model's pattern: what differs in some layers, as choices, and the parts they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attnlab.config import UsageError
from attnlab.ranges import must_be

PLACE = "model.layers"
SEAMS, NORM = ("position", "residual", "attention", "feed_forward"), "norm"  # a norm is a part of its residual
NAME = "_name_"  # of the choice, beside its fields
Node = dict[str, Any]
ChoiceOf = Callable[[str, str, str], Node]  # the field, a group and a name in it to the choice's fields


def expand(config: DictConfig, given: Sequence[tuple[str, object]], choice_of: ChoiceOf) -> Iterator[tuple[str, str]]:
    """Puts whole parts in the place of choices in the entries of a pattern: `{position: rotary}` becomes rotary's
    fields, `{attention.window: 64}` the run's attention with that window. given: what a command line sets there, by the
    place behind `model.layers`. Gives Hydra's name for each choice, and the choice. Raises: UsageError for an entry
    that is no table of choices.
    """
    entries = OmegaConf.select(config, PLACE)
    if not isinstance(entries, DictConfig):
        if given:
            raise UsageError(f"{PLACE}.{given[0][0]}: there is no such field; this model has no layers that may differ")
        return
    said = {str(name): _by_seam(f"{PLACE}.{name}", entry) for name, entry in _plain(entries).items()}
    for place, value in given:
        _set(said, place, value)
    with open_dict(config):
        config.model.layers = {
            name: _parts(f"{PLACE}.{name}", entry, config, choice_of) for name, entry in said.items()
        }
    for name, entry in said.items():
        chosen = ((seam, value.get(NAME)) for seam, value in entry.items() if seam in (*SEAMS, NORM))
        yield from ((f"{seam}@{PLACE}.{name}.{seam}", choice) for seam, choice in chosen if choice)


def _by_seam(place: str, entry: Any) -> Node:
    """An entry with a table for each seam, {NAME: the choice that is named, if any, field: value, ...}, whether it says
    `attention: x`, `attention.window: 64` or `attention: {window: 64}`; other values as they are.
    """
    if not isinstance(entry, Mapping | None):
        raise UsageError(must_be(place, "a table of choices, as in {position: rotary}", entry))
    said: Node = {}
    for key, value in (entry or {}).items():
        name, *path = str(key).split(".")
        if name not in (*SEAMS, NORM):
            said[str(key)] = value
            continue
        _put(said.setdefault(name, {}), path, value if path else _named(f"{place}.{name}", value))
    return said


def _named(place: str, value: Any) -> Node:
    """What a seam is said to be: a choice by its name, a table of fields, or null."""
    if not isinstance(value, str | Mapping | None):
        raise UsageError(must_be(place, "the name of a choice, or a table of fields", value))
    return {NAME: value} if isinstance(value, str) else dict(value or {})


def _set(said: dict[str, Node], place: str, value: Any) -> None:
    """Sets what a command line says; another choice of a seam leaves nothing of the one before."""
    name, *path = place.split(".")
    entry = said.setdefault(name, {})
    if not path:
        for seam, own in _by_seam(f"{PLACE}.{name}", value).items():
            entry[seam] = {**(entry.get(seam, {}) if NAME not in own else {}), **own} if isinstance(own, dict) else own
    elif path[0] not in (*SEAMS, NORM):
        entry[".".join(path)] = value
    elif len(path) > 1:
        _put(entry.setdefault(path[0], {}), path[1:], value)
    else:
        own = _named(f"{PLACE}.{place}", value)
        entry[path[0]] = own if NAME in own or not own else {**entry.get(path[0], {}), **own}


def _put(node: Node, path: Sequence[str], value: Any) -> None:
    """Sets a field at a path; at none, the fields of a table."""
    if not path:
        node.update(value)
        return
    *nodes, last = path
    for word in nodes:
        node = node.setdefault(word, {})
    node[last] = value


def _parts(place: str, entry: Node, config: DictConfig, choice_of: ChoiceOf) -> Node:
    """The fields of one entry, with a whole part for each seam that it says anything of."""
    made = {name: value for name, value in entry.items() if name not in (*SEAMS, NORM)}
    for seam in (seam for seam in SEAMS if entry.get(seam)):
        made[seam] = _part(f"{place}.{seam}", seam, entry[seam], config, choice_of)
    if entry.get(NORM):
        made.setdefault("residual", _plain(config.residual))
        made["residual"]["norm"] = _part(f"{place}.{NORM}", NORM, entry[NORM], config, choice_of)
    return made


def _part(place: str, seam: str, said: Node, config: DictConfig, choice_of: ChoiceOf) -> Node:
    name, fields = said.get(NAME), {key: value for key, value in said.items() if key != NAME}
    part = choice_of(place, seam, name) if name else {} if "_target_" in fields else _plain(config[seam])
    for key, value in fields.items():
        inner = part.get(key)
        part[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return part


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)
