"""Checks a composed configuration against the classes that it names, before anything is built or any data read."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard
from weakref import WeakKeyDictionary

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import WHOLE, UsageError
from attnlab.config.compose import Composed
from attnlab.config.identity import flatten, reason_of, record_in
from attnlab.config.scale import by_depth
from attnlab.config.seams import broken_rules, load, misfits, seams
from attnlab.parts import find, parameters_of
from attnlab.ranges import Seed, must_be, outside, table_types, types_of, words
from attnlab.training.study_fields import did_you_mean

Finding = tuple[str, str]  # the field, and the message about it
# What may differ between two encoders: it changes nothing that given weights compute, or shows in their shapes.
FREE = ("dropout", "backend", "tie_embeddings", "max_length", "init_from")
OF_A_SCALE: dict[str, object] = {
    name: kind for name, kind in types_of(by_depth).items() if name not in ("context_length", "return")
}
# Fields beside those of the part itself.
BESIDE: dict[str, dict[str, object]] = {"model": {"init_from": str | None}, "scale": OF_A_SCALE}
# The fields of a run that are no part of a model, a data set or a trainer.
OF_A_RUN: dict[str, object] = {"seed": Seed, "cell": str, "runs_dir": str, "run_dir": str, "mixed_code": bool}
OF_A_RUN |= {"progress": Literal["auto", "plain", "off"]}
OF_DEBUG: dict[str, object] = {"debug": Literal["fast", "overfit", "profile"]}  # there where a preset is chosen
OF_A_STUDY: dict[str, object] = {"name": str, "search": str | None}
OF_A_STUDY |= {"precision": Literal["32", "bf16"] | None, "compile": bool | None}
# What an annotation takes as YAML gives it, and its name in messages.
KINDS: dict[object, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    None: ((type(None),), "null"),
    type(None): ((type(None),), "null"),
    dict: ((dict,), "a table"),
}
A_PART = (dict,), "a part with a _target_ of its own"  # a class, a partial, a callable: checked as a node of its own
FOLDER_NAME = "the name of one folder, without / and not starting with a dot"
# A command checks its jobs, and each job itself once more, for it may be one of Hydra's own.
CHECKED: WeakKeyDictionary[Composed, list[str]] = WeakKeyDictionary()
UNIONS, LISTS = (typing.Union, types.UnionType), (tuple, list, collections.abc.Sequence)


def check(composed: Composed) -> None:
    """Checks a run's fields and combinations, and that a pretrained encoder is its own. Raises: UsageError."""
    if findings := incompatible(composed):
        raise UsageError("\n".join(findings))
    if different := _other_encoder(composed):
        raise UsageError(
            "task.pretrained must be a run of this encoder; give this model its fields, or pretrain one with these; "
            "model.init_from=RUN in place of model and task.pretrained takes that run's\n" + "\n".join(different[:10])
        )


def incompatible(composed: Composed) -> list[str]:
    """Why a run's parts cannot be combined, one reason a line, found once. Raises: UsageError as `check_fields`."""
    if composed not in CHECKED:
        check_fields(composed)
        CHECKED[composed] = broken_rules(composed)
    return CHECKED[composed]


def _other_encoder(composed: Composed) -> list[str]:
    """What tells this model from that of the run in task.pretrained; nothing where that run says nothing yet."""
    run = composed.get("task.pretrained")
    record = record_in(Path(run).expanduser()) if run else {}
    if not record:
        return []
    there, here = (
        {key: value for key, value in flatten(model) if key.split(".")[0] != "init" and key.split(".")[-1] not in FREE}
        for model in (record["config"]["model"], composed.get("model"))
    )
    pairs = [(key, *(fields.get(key, "(absent)") for fields in (there, here))) for key in sorted({*there, *here})]
    return [f"model.{key}: {theirs} there, {own} here" for key, theirs, own in pairs if theirs != own]


def check_fields(composed: Composed) -> None:
    """Checks that every field is there, known and of the right type. Raises: UsageError, one finding a line."""
    if missing := sorted(key for key, value in flatten(composed.raw) if value == MISSING):
        raise UsageError("\n".join(f"{key} is required: add {key}=..." for key in missing))
    try:
        resolved = composed.resolved
    except OmegaConfBaseException as error:
        raise UsageError(reason_of(error)) from error
    findings = list(_check_top(resolved)) or list(_check_places(resolved)) or list(_check_parts(resolved))
    # What is wrong with a field is said where it stands, not again where others take it from there.
    written = [finding for finding in findings if not _is_taken_over(composed.config, finding[0])]
    if findings:
        raise UsageError("\n".join(dict.fromkeys(message for _, message in written or findings)))


def _is_taken_over(node: DictConfig, path: str) -> bool:
    """Whether a field has its value from another one, by an interpolation of its own or of a node around it."""
    for word in path.split("."):
        if not OmegaConf.is_dict(node) or word not in node:
            return False
        if OmegaConf.is_interpolation(node, word):
            return True
        node = node[word]
    return False


def _check_top(resolved: Mapping[str, object]) -> Iterator[Finding]:
    yield from _check_fields("study.", find(resolved, "study"), OF_A_STUDY)
    scale = find(resolved, "scale", {})
    yield from _check_fields("scale.", scale, OF_A_SCALE)
    if scale and find(resolved, "data.context_length") is None:
        yield (
            "scale",
            "scale: its rules count tokens in windows of text; choose data that has data.context_length, as kjv",
        )
    own = {key: value for key, value in resolved.items() if not isinstance(value, dict)}
    yield from _check_fields("", own, OF_A_RUN | OF_DEBUG, beside=[key for key in resolved if key not in own])
    if resolved.get("debug") and (name := find(resolved, "study.name")) != "debug":
        why = "its runs are to find mistakes, and are compared with no others; leave study.name out"
        yield "study.name", f"{must_be('study.name', 'debug', name)}, beside debug={resolved['debug']}: {why}"


def _check_places(resolved: Mapping[str, object]) -> Iterator[Finding]:
    for key in ("study.name", "cell"):
        if not is_folder_name(name := find(resolved, key)):
            yield key, must_be(key, FOLDER_NAME, name)
    for key in ("runs_dir", "run_dir", "data.path"):
        path = find(resolved, key)
        if path is not None and not str(path).strip():
            yield key, must_be(key, "a path", path)


def is_folder_name(name: str) -> bool:
    """Whether a name is one folder's and stays where it is put."""
    is_one = bool(name.strip()) and not name.startswith(".") and not set(name) & {"/", "\\", "\0", "\n"}
    return is_one and len(name) < 200


def _check_parts(resolved: Mapping[str, object]) -> Iterator[Finding]:
    for group, node in resolved.items():
        if isinstance(node, dict) and group != "study":
            yield from _check_node(group, node, seams().get(group, Any))


def _check_node(path: str, node: Mapping[str, object], expected: object = Any) -> Iterator[Finding]:
    if "_target_" not in node:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from _check_node(f"{path}.{key}", value, expected)
        return
    try:
        target = load(path, node)
    except UsageError as error:
        yield path, str(error)
        return
    if wrong := list(misfits(path, node, target, expected)):  # its fields are another part's
        yield from ((path, reason) for reason in wrong)
        return
    known = constructor_types(target) | BESIDE.get(path, {})
    try:  # what a function takes beside its own arguments, where a field of the node tells
        known = getattr(target, "open_fields", lambda node: {})(node) | known
    except ValueError as error:
        yield path, str(error)
        return
    if path in WHOLE:
        known |= dict.fromkeys((key for key in node if is_part(node[key])), seams()[f"{path}.*"])
    yield from _check_fields(f"{path}.", {k: v for k, v in node.items() if not k.startswith("_")}, known)


def is_part(node: object) -> TypeGuard[dict[str, Any]]:
    """Whether a field's value is a part, with a class of its own."""
    return isinstance(node, dict) and "_target_" in node


def _check_fields(
    prefix: str, fields: Mapping[str, object], known: Mapping[str, object], beside: Sequence[str] = ()
) -> Iterator[Finding]:
    for key, value in fields.items():
        field = prefix + key
        if key in known:
            yield from _check_value(field, value, known[key])
        else:
            near = did_you_mean(key, [*known, *beside])
            yield field, _instead(field) or f"{field}: there is no such field.{near} Accepted: {', '.join(known)}."


def _instead(field: str) -> str | None:
    """What stands for an argument of Lightning's Trainer that attnlab gives itself."""
    if not field.startswith("trainer.lightning."):
        return None
    from attnlab.training.lightning_options import GIVEN_HERE

    reason = GIVEN_HERE.get(field.rpartition(".")[2])
    return reason and f"{field}: {reason}"


def constructor_types(target: Callable[..., object]) -> dict[str, object]:
    """The arguments of a class's constructor or of a function, with their types and ranges."""
    return {name: parameter.annotation for name, parameter in parameters_of(target).items()}


def _check_value(path: str, value: object, expected: object) -> Iterator[Finding]:
    if is_part(value):
        yield from _check_node(path, value, expected)
    elif not accepts(expected, value):
        yield path, must_be(path, describe(expected), value)
    elif isinstance(value, dict) and (known := table_types(expected)):
        yield from _check_fields(f"{path}.", value, known)
    elif isinstance(value, dict) and typing.get_origin(expected) is collections.abc.Mapping:
        for key, item in value.items():
            yield from _check_value(f"{path}.{key}", item, typing.get_args(expected)[1])
    elif isinstance(value, dict):
        yield from _check_node(path, value)
    elif reason := outside(path, expected, value):
        yield path, reason


def accepts(expected: object, value: object) -> bool:
    """True where `value`, as YAML gives it, is of the type that the annotation `expected` names."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or isinstance(expected, typing.TypeVar):
        return True
    if origin is Annotated:
        return accepts(arguments[0], value)
    if origin in UNIONS:
        return any(accepts(option, value) for option in arguments)
    if origin is Literal:
        # A word made of digits alone reads as a number: trainer.precision=32.
        return not isinstance(value, bool) and any(str(value) == str(option) for option in arguments)
    if origin in LISTS:
        inner, is_fixed = _items_of(expected)
        if not isinstance(value, list | tuple) or (is_fixed and len(inner) != len(value)):
            return False
        return not inner or all(accepts(inner[i if is_fixed else 0], item) for i, item in enumerate(value))
    kinds, _ = KINDS[dict] if typing.is_typeddict(expected) else KINDS.get(expected, A_PART)
    return isinstance(value, kinds) and (expected is bool or not isinstance(value, bool))


def describe(expected: object) -> str:
    """An annotation in plain words."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return " ".join(filter(None, [describe(arguments[0]), words(expected)]))
    if origin in UNIONS:
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin is collections.abc.Mapping:
        return KINDS[dict][1]
    if origin in LISTS:
        inner, is_fixed = _items_of(expected)
        many = f"{len(inner)} values, each " if is_fixed else "a list of "
        return many + (describe(inner[0]) if inner else "values")
    return (KINDS[dict] if typing.is_typeddict(expected) else KINDS.get(expected, A_PART))[1]


def _items_of(expected: object) -> tuple[list[object], bool]:
    arguments = typing.get_args(expected)
    is_fixed = typing.get_origin(expected) is tuple and Ellipsis not in arguments
    return [argument for argument in arguments if argument is not Ellipsis], is_fixed
