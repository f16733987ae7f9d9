"""What there is to choose: the groups, their choices, and the fields of each, with type, default and comment."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING

from attnlab.config import LISTS, UsageError, place_of
from attnlab.config.check import A_PART, BESIDE, OF_A_RUN, constructor_types, describe
from attnlab.config.compose import CONFIG_NAME, ConfigSpace, read_yaml
from attnlab.config.identity import flatten
from attnlab.config.seams import load
from attnlab.parts import find
from attnlab.ranges import must_be, table_types
from attnlab.training.study_fields import did_you_mean

Comments = dict[str, str]  # by the dotted name of a field
PACKAGE = "@package "  # Hydra's word for where the fields of a file stand
UNLESS_EPOCHS = re.compile(r"\$\{attnlab_steps:(\d+),.*")
SAME_AS = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,(.*))?\}")


class Field(NamedTuple):
    """A field as it is typed (`position.base`), its type and default in words, and what the file says of it."""

    name: str
    kind: str
    default: str
    about: str


class Choice(NamedTuple):
    """A choice of a group: its class, what the file says of it, and its fields."""

    group: str
    name: str
    target: str
    about: str
    fields: list[Field]


def find_choice(space: ConfigSpace, group: str, name: str) -> Choice:
    """One choice, whole. Raises: UsageError for one that there is not, or whose class cannot be loaded."""
    check_choice(space, group, name)
    about, comments = _said(space, group, name)
    comments = _said(space, "", CONFIG_NAME)[1] | comments
    place = place_of(group, name, read_yaml(space.file_of(f"{group}/{name}")) or {})
    node = find(space.compose([f"{group}={name}"]).raw, place)
    found = _fields(place, node) if isinstance(node, dict) else _set_by(space.file_of(f"{group}/{name}"))
    fields = [Field(key, kind, shown(default), comments.get(key, "")) for key, kind, default in found]
    return Choice(group, name, str(find(node, "_target_", "")), about, fields)


def defaults(space: ConfigSpace) -> dict[str, str]:
    """The choice of each group where none is named."""
    names = dict.fromkeys(LISTS, "[]") | space.compose([]).names
    return {group: names[group] for group in space.groups if group in names}


def _set_by(file: Path) -> Iterator[tuple[str, str, object]]:
    """What a file sets that is no part, but changes others."""
    before = _prefix(_head(file.read_text(encoding="utf-8").splitlines())[1], "", "", {})
    yield from ((f"{before}{key}", "set by it", value) for key, value in flatten(read_yaml(file) or {}) if key)


def of_a_run(space: ConfigSpace) -> list[Field]:
    """The fields of a run that are of no group."""
    _, comments = _said(space, "", CONFIG_NAME)
    raw = space.compose([]).raw
    return [Field(key, describe(OF_A_RUN[key]), shown(raw[key]), comments.get(key, "")) for key in OF_A_RUN]


def about(space: ConfigSpace, group: str, name: str) -> str:
    """What the file of a choice says of it."""
    return _said(space, group, name)[0]


def check_choice(space: ConfigSpace, group: str, name: str | None = None) -> None:
    """Raises: UsageError where there is no such group, or no such choice of it, with what there is."""
    for what, given, known in (("a group", group, [*space.groups]), (group, name, space.groups.get(group, []))):
        if given is not None and given not in known:
            raise UsageError(must_be(what, f"one of {', '.join(known)}", given) + "." + did_you_mean(given, known))


def shown(value: object) -> str:
    """A value as it is typed; `required` where it has to be given."""
    if value == MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str) and (steps := UNLESS_EPOCHS.fullmatch(value)):
        return steps[1]
    if isinstance(value, str) and (same := SAME_AS.fullmatch(value)):
        field, otherwise = same.groups()
        return f"that of {field}" + (f", else {otherwise}" if otherwise else "")
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else str(value)


def _fields(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """The fields of a node and below it, with their types in words and their values."""
    target = load(path, node) if "_target_" in node else None
    known = constructor_types(target) if target else {}
    with contextlib.suppress(ValueError):  # of a name that is still to be given
        known = getattr(target, "open_fields", lambda node: {})(node) | known
    known |= BESIDE.get(path, {})
    for key, value in node.items():
        if not str(key).startswith("_"):
            yield from _field(f"{path}.{key}", known.get(key), value)


def _field(path: str, expected: object, value: object) -> Iterator[tuple[str, str, object]]:
    if not isinstance(value, dict) or not value:
        yield path, "" if expected is None else describe(expected).replace(A_PART[1], "a part"), value
        return
    if "_target_" in value:
        yield path, "a part", value["_target_"]
    if types := table_types(expected):
        for key, inner in value.items():
            yield from _field(f"{path}.{key}", types.get(key), inner)
    else:
        yield from _fields(path, value)


def _said(space: ConfigSpace, group: str, name: str) -> tuple[str, Comments]:
    """The comment at the head of a choice's file, and those beside its fields; of the files that it is built on, too,
    where it says nothing itself. Raises: UsageError for one that is no YAML."""
    path = space.file_of(f"{group}/{name}" if group else name)
    content = read_yaml(path) or {}
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head, package = _head(lines)
    node = yaml.compose(text, yaml.SafeLoader)
    comments: Comments = {}
    for base in _built_on(content):
        comments |= _said(space, group, base)[1]
    if isinstance(node, yaml.MappingNode):
        comments |= _comments(node, lines, _prefix(package, group, name, content))
    return " ".join(head), comments


def _head(lines: Iterable[str]) -> tuple[list[str], str | None]:
    """The comment at the head of a file, and where its fields stand, where that is said there."""
    head = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    package = next((line.removeprefix(PACKAGE) for line in head if line.startswith(PACKAGE)), None)
    return [line for line in head if not line.startswith(PACKAGE)], package


def _prefix(package: str | None, group: str, name: str, content: Mapping[str, Any]) -> str:
    """What stands before the fields of a choice's file in a run's configuration."""
    if package is not None:
        return "" if package == "_global_" else f"{package}."
    return f"{place_of(group, name, content)}." if group else ""


def _built_on(content: Mapping[str, Any]) -> list[str]:
    """The choices of the same group in a file's defaults."""
    words = [word for word in content.get("defaults") or [] if isinstance(word, str)]
    return [word.partition("@")[0] for word in words if word != "_self_" and "/" not in word]


def _comments(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    """What stands behind each field of a file, by its dotted name."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = key.end_mark if is_block else value.end_mark
        rest = lines[mark.line][mark.column :].lstrip(": ") if mark.line < len(lines) else ""
        if rest.startswith("#"):
            yield name, rest.lstrip("# ")
        if isinstance(value, yaml.MappingNode):
            yield from _comments(value, lines, f"{name}.")
