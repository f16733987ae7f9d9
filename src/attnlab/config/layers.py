"""The entries of a model's pattern: what differs in some layers, as choices, and the parts they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from attnlab.config import UsageError
from attnlab.ranges import must_be

PLACE = "model.layers"
SEAMS = ("position", "residual", "attention", "feed_forward")  # of a layer; a norm is a part of its residual
Node = dict[str, Any]
ChoiceOf = Callable[[str, str, str], Node]  # the field, a group and a name in it to the choice's fields


def open_entries(config: DictConfig) -> None:
    """Lets entries be added, and fields be set in them."""
    entries = OmegaConf.select(config, PLACE)
    if isinstance(entries, DictConfig):
        OmegaConf.set_struct(entries, False)


def expand(config: DictConfig, choice_of: ChoiceOf) -> None:
    """Puts whole parts in the place of choices in the entries of a pattern: `{position: rotary}` becomes rotary's
    fields, `{attention.window: 64}` the run's attention with that window. Raises: UsageError for an entry that is no
    table of choices.
    """
    model = config.get("model")
    entries = model.get("layers") if isinstance(model, DictConfig) else None
    if not isinstance(entries, DictConfig):
        return
    given = _plain(entries)
    for name, entry in given.items():
        if not isinstance(entry, Mapping | None):
            raise UsageError(must_be(f"{PLACE}.{name}", "a table of choices, as in {position: rotary}", entry))
    made = {name: _parts(f"{PLACE}.{name}", entry or {}, config, choice_of) for name, entry in given.items()}
    with open_dict(config):
        config.model.layers = made


def chosen(config: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Each choice by name in the entries of a pattern: the entry, the seam and the name."""
    model = config.get("model")
    entries = model.get("layers") if isinstance(model, DictConfig) else None
    for entry, fields in (_plain(entries) if isinstance(entries, DictConfig) else {}).items():
        for seam in (*SEAMS, "norm"):
            if isinstance(fields, Mapping) and isinstance(fields.get(seam), str):
                yield str(entry), seam, fields[seam]


def _parts(place: str, entry: Mapping[str, Any], config: DictConfig, choice_of: ChoiceOf) -> Node:
    """The fields of one entry, with a whole part for each seam that it says anything of."""
    said = _by_seam(entry)
    made = {name: value for name, (value, fields) in said.items() if name not in (*SEAMS, "norm") and not fields}
    made |= {name: fields for name, (_, fields) in said.items() if name not in (*SEAMS, "norm") and fields}
    for seam in SEAMS:
        if seam in said:
            made[seam] = _part(f"{place}.{seam}", seam, *said[seam], config, choice_of)
    if "norm" in said:
        made.setdefault("residual", _plain(config.residual))
        made["residual"]["norm"] = _part(f"{place}.norm", "norm", *said["norm"], config, choice_of)
    return made


def _by_seam(entry: Mapping[str, Any]) -> dict[str, tuple[Any, Node]]:
    """For each name the choice that is said, if any, and the fields: of `attention: x`, `attention.window: 64`, or
    `attention: {window: 64}`.
    """
    said: dict[str, tuple[Any, Node]] = {}
    for key, value in entry.items():
        name, _, field = str(key).partition(".")
        choice, fields = said.get(name, (None, {}))
        if field:
            said[name] = choice, {**fields, field: value}
        elif isinstance(value, Mapping):
            said[name] = choice, {**fields, **value}
        else:
            said[name] = value, fields
    return said


def _part(place: str, seam: str, choice: Any, fields: Node, config: DictConfig, choice_of: ChoiceOf) -> Node | None:
    if choice is None and not fields:
        return None
    if choice is not None and not isinstance(choice, str):
        raise UsageError(must_be(place, "the name of a choice, or a table of fields", choice))
    part = choice_of(place, seam, choice) if choice else {} if "_target_" in fields else _plain(config[seam])
    for path, value in fields.items():
        *nodes, last = path.split(".")
        node = part
        for word in nodes:
            node = node.setdefault(word, {})
        node[last] = value
    return part


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)
