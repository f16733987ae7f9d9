"""Checks a composed configuration against the classes that it names, before anything is built or any data read."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import UsageError
from attnlab.config.compose import Composed
from attnlab.config.constraints import broken_rules
from attnlab.config.identity import flatten
from attnlab.config.overrides import reason_of
from attnlab.config.seams import load, misfits, seams
from attnlab.parts import parameters_of
from attnlab.ranges import Seed, must_be, outside, words
from attnlab.training.run_directory import read_json
from attnlab.training.study_fields import did_you_mean

Finding = tuple[str, str]  # the field, and the message about it
# What may differ between two encoders: it changes nothing that given weights compute, or shows in their shapes.
FREE = ("dropout", "backend", "tied", "max_length", "init_from")
BESIDE: dict[str, dict[str, Any]] = {"model": {"init_from": str | None}}  # fields beside those of the part itself
# The fields of a run that are no part of a model, a data set or a trainer.
OF_A_RUN: dict[str, Any] = {"seed": Seed, "cell": str, "runs_dir": str, "run_dir": str, "mixed_code": bool}
OF_A_RUN |= {"progress": Literal["auto", "plain", "off"]}
OF_A_STUDY = {"name": str, "search": str | None}


def check(composed: Composed) -> None:
    """
    Checks fields, types and combinations of one run, and that a pretrained encoder is this run's.

    Raises: UsageError with every finding, one a line.
    """
    if findings := incompatible(composed):
        raise UsageError("\n".join(findings))
    if different := _other_encoder(composed.resolved):
        raise UsageError(
            "task.pretrained: the encoder of that run is another one; give this model its fields, or pretrain "
            "one with these; "
            "model.init_from=RUN in place of model and task.pretrained takes that run's\n" + "\n".join(different[:10])
        )


def incompatible(composed: Composed) -> list[str]:
    """
    Why the parts of a run cannot be combined, one reason a line.

    Raises: UsageError for fields that are missing, unknown or of another type.
    """
    check_fields(composed)
    return broken_rules(composed)


def _other_encoder(resolved: Mapping[str, Any]) -> list[str]:
    """What tells this model from that of the run in task.pretrained; nothing where that run says nothing yet."""
    run = resolved["task"].get("pretrained")
    record = read_json(Path(run).expanduser() / "run.json", {}) if run else {}
    if not record:
        return []
    there, here = (
        {key: value for key, value in flatten(model) if key.split(".")[0] != "init" and key.split(".")[-1] not in FREE}
        for model in (record["config"]["model"], resolved["model"])
    )
    pairs = [(key, *(fields.get(key, "(absent)") for fields in (there, here))) for key in sorted({*there, *here})]
    return [f"model.{key}: {theirs} there, {own} here" for key, theirs, own in pairs if theirs != own]


def check_fields(composed: Composed) -> None:
    """
    Checks that every field is there, known and of the right type.

    Raises: UsageError with every finding, one a line.
    """
    missing = sorted(OmegaConf.missing_keys(composed.config))
    shortest = [m for m in missing if not any(m != other and m.endswith(other) for other in missing)]
    if shortest:
        raise UsageError("\n".join(f"{key} is required: add {key}=..." for key in shortest))
    try:
        resolved = composed.resolved
    except OmegaConfBaseException as error:
        raise UsageError(reason_of(error)) from error
    findings = list(_check_top(resolved)) or list(_check_places(resolved)) or list(_check_parts(resolved))
    # What is wrong with a field is said where it stands, not again where others take it from there.
    written = [finding for finding in findings if not _is_taken_over(composed.config, finding[0])]
    if findings:
        raise UsageError("\n".join(dict.fromkeys(message for _, message in written or findings)))


def _is_taken_over(config: DictConfig, path: str) -> bool:
    """Whether a field has its value from another one, by an interpolation of its own or of a node around it."""
    node: Any = config
    for word in path.split("."):
        if not OmegaConf.is_dict(node) or word not in node:
            return False
        if OmegaConf.is_interpolation(node, word):
            return True
        node = node[word]
    return False


def _check_top(resolved: dict[str, Any]) -> Iterator[Finding]:
    yield from _check_fields("study", resolved["study"], OF_A_STUDY)
    for key, value in resolved.items():
        if key in OF_A_RUN:
            yield from _check_value(key, value, OF_A_RUN[key])
        elif not isinstance(value, dict):
            near = did_you_mean(key, [*OF_A_RUN, *(k for k in resolved if k != key)])
            yield key, f"{key}: there is no such field.{near}"


def _check_places(resolved: dict[str, Any]) -> Iterator[Finding]:
    """A run's identity has to be a path of its own below runs_dir."""
    for key, name in {"study.name": resolved["study"]["name"], "cell": resolved["cell"]}.items():
        if not is_folder_name(name):
            yield key, must_be(key, "the name of one folder, without / and not starting with a dot", name)
    for key, path in {**resolved, "data.path": resolved["data"].get("path")}.items():
        if key in ("runs_dir", "run_dir", "data.path") and path is not None and not str(path).strip():
            yield key, must_be(key, "a path", path)


def is_folder_name(name: str) -> bool:
    """Whether a name is one folder's and stays where it is put."""
    return (
        bool(name.strip()) and not name.startswith(".") and not set(name) & {"/", "\\", "\0", "\n"} and len(name) < 200
    )


def _check_parts(resolved: dict[str, Any]) -> Iterator[Finding]:
    for group, node in resolved.items():
        if isinstance(node, dict) and group != "study":
            yield from _check_node(group, node, seams().get(group, Any))


def _check_node(path: str, node: dict[str, Any], expected: Any = Any) -> Iterator[Finding]:
    """The findings of a part, which is to be what `expected` annotates, and of all its fields."""
    if "_target_" not in node:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from _check_node(f"{path}.{key}", value)
        return
    try:
        target = load(path, node)
    except UsageError as error:
        yield path, str(error)
        return
    if wrong := list(misfits(path, node, expected)):  # its fields are another part's
        yield from ((path, reason) for reason in wrong)
        return
    known = constructor_types(target) | BESIDE.get(path, {})
    yield from _check_fields(path, {k: v for k, v in node.items() if not k.startswith("_")}, known)


def _check_fields(path: str, fields: dict[str, Any], known: dict[str, Any]) -> Iterator[Finding]:
    for key, value in fields.items():
        field = f"{path}.{key}"
        if key in known:
            yield from _check_value(field, value, known[key])
        else:
            near = did_you_mean(key, list(known))
            yield field, f"{field}: there is no such field.{near} Accepted: {', '.join(known)}."


def constructor_types(target: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a class's constructor or of a function, with their types and ranges."""
    return {name: parameter.annotation for name, parameter in parameters_of(target).items()}


def _check_value(path: str, value: Any, expected: Any) -> Iterator[Finding]:
    if isinstance(value, dict) and "_target_" in value:
        yield from _check_node(path, value, expected)
    elif not accepts(expected, value):
        yield path, must_be(path, describe(expected), value)
    elif isinstance(value, dict):
        yield from _check_node(path, value)
    elif reason := outside(path, expected, value):
        yield path, reason


def accepts(expected: Any, value: Any) -> bool:
    """True where `value`, as YAML gives it, is of the type that the annotation `expected` names."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or isinstance(expected, typing.TypeVar):
        return True
    if origin is Annotated:
        return accepts(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(option, value) for option in arguments)
    if origin is Literal:
        # A word made of digits alone reads as a number: trainer.precision=32.
        return not isinstance(value, bool) and any(str(value) == str(option) for option in arguments)
    if origin in (tuple, list, collections.abc.Sequence):
        inner = [a for a in arguments if a is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in arguments
        if not isinstance(value, list | tuple) or (fixed and len(inner) != len(value)):
            return False
        return all(accepts(inner[i] if fixed else inner[0], item) for i, item in enumerate(value)) if inner else True
    if origin in (dict, collections.abc.Mapping) or expected is dict:
        return isinstance(value, dict)
    if expected in (None, type(None)):
        return value is None
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in (str, bool):
        return isinstance(value, expected)
    # A part (a class, a partial, a callable) is a node of its own and was checked there.
    return isinstance(value, dict)


NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    dict: "a table",
}


def describe(expected: Any) -> str:
    """An annotation in plain words."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return " ".join(filter(None, [describe(arguments[0]), words(expected)]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin in (tuple, list, collections.abc.Sequence):
        inner = [a for a in arguments if a is not Ellipsis]
        many = f"{len(inner)} values, each " if origin is tuple and Ellipsis not in arguments else "a list of "
        return many + (describe(inner[0]) if inner else "values")
    return NAMES.get(expected, "a part with a _target_ of its own")
