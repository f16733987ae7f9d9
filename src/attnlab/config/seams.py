"""What a part has to be to stand where it is named, and what it cannot be combined with."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import importlib
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import _locate

from attnlab.config import UsageError, shipped
from attnlab.config.compose import Composed
from attnlab.config.identity import key_and_value
from attnlab.parts import Choices
from attnlab.ranges import must_be
from attnlab.training.study_fields import did_you_mean

HOOKS = {"Module": ["forward"], "Optimizer": ["step"]}  # of torch's own bases, which have dozens of other methods
# Of a model, and the last one of data, which may not have each of them.
SEAMS = ("position", "residual", "norm", "attention", "feed_forward", "init", "augmentation")
PACE = ("val_check_interval", "max_steps")  # of the trainer
OF_A_TOWER = rf"^(?:model\.)?({'|'.join([*SEAMS[:5], 'd_model', 'num_heads', 'num_layers', 'd_ff'])})\b"


@functools.cache
def seams() -> dict[str, object]:
    """What each group's part is: an object of a base, or with Callable what makes one once it is told dims."""
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn
    from torch.optim import Optimizer

    import attnlab.data as data
    import attnlab.layers as layers
    import attnlab.training as training

    return {
        "position": Callable[..., layers.PositionEncoding],
        "residual": Callable[..., layers.Residual],
        "norm": Callable[..., layers.Norm],
        "attention": Callable[..., layers.Mixer],
        "feed_forward": Callable[..., layers.PositionWise],
        "init": Callable[..., layers.Init],
        "model": Callable[..., nn.Module],
        "task": Callable[..., training.Task],
        "optimizer": Callable[..., Optimizer],
        "schedule": Callable[..., training.Schedule],
        "averaging": training.Averaging,
        "data": data.DataModule,
        "batch_ramp": data.Ramp,
        "length_ramp": data.Ramp,
        "tokenizer": data.Tokenizer,
        "augmentation": data.Augmentation | data.SpeechAugmentation,
        "trainer": training.TrainerSettings,
        "logger": training.Tracking,
        "callbacks": Callback,
        "logger.*": Logger,
    }


def load(path: str, node: Mapping[str, object]) -> Any:
    """The class or function that a node names. Raises: UsageError with the whole reason where it cannot be imported."""
    name = node["_target_"]
    if not isinstance(name, str):
        raise UsageError(must_be(f"{path}._target_", "the path of a class, as in attnlab.layers.Rotary", name))
    with contextlib.suppress(Exception):  # which is said below; a package is not asked for a module that is there
        importlib.import_module(name.rpartition(".")[0])
    try:
        found = _locate(name)  # what Hydra's get_object is, which prints the error beside raising it
    except Exception as error:
        raise UsageError(f"{path}: cannot load {name}: {_why_not(name, error.__cause__ or error)}") from error
    if not callable(found):
        raise UsageError(must_be(f"{path}._target_", "a class or a function", name))
    return found


def _why_not(name: str, cause: BaseException) -> str:
    """The reason of a failed import: the nearest name, or the error with the user's own lines on the way to it."""
    package, _, last = name.rpartition(".")
    if isinstance(cause, ModuleNotFoundError) and cause.name == name and package in sys.modules:
        return f"{package} has no {last}.{did_you_mean(last, dir(sys.modules[package]))}"
    installed = ("<", sys.base_prefix, sys.prefix, str(Path(__file__).parents[1]))
    place = "".join(
        f"\n  {frame.filename}:{frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(cause.__traceback__)
        if not frame.filename.startswith(installed) and "site-packages" not in frame.filename
    )
    return "".join(traceback.format_exception_only(cause)).strip() + place


def misfits(path: str, node: Mapping[str, object], target: Callable[..., object], expected: object) -> Iterator[str]:
    """Why the part of a node cannot stand where `expected` is annotated; nothing where that is too vague to tell."""
    bases, completed = _bases(expected)
    made = target if inspect.isclass(target) else typing.get_type_hints(target).get("return")
    if not bases or not inspect.isclass(made) or made is type(None):
        return
    if not issubclass(made, tuple(bases)):
        wrong = must_be(path, f"derived from {_named(bases)}", node["_target_"])
        yield f"{wrong}{_to_give(bases[0])}{_to_choose(path.rpartition('.')[2], bases)}"
    elif made is target and (missing := sorted(_left_open(made))):  # type: ignore[arg-type]
        lacks = f"{path}: {node['_target_']} lacks {', '.join(missing)}"
        yield f"{lacks}, which {_named(bases)} leaves to what is derived from it"
    elif completed is not None and completed != bool(node.get("_partial_")):
        needs, why = ("needs", "the rest later") if completed else ("must not have", "nothing more")
        yield f"{path}: the YAML of {node['_target_']} {needs} the line `_partial_: true`, for it is told {why}"


def _bases(expected: object) -> tuple[list[type], bool | None]:
    """The classes that an annotation asks for, and whether it asks for what makes them; None: it takes both."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        found = [(bases, completed) for bases, completed in map(_bases, arguments) if bases]
        ways = {completed for _, completed in found}
        return list(dict.fromkeys(base for bases, _ in found for base in bases)), ways.pop() if len(ways) == 1 else None
    if origin in (collections.abc.Callable, functools.partial):
        return _bases(arguments[-1])[0], True
    if inspect.isclass(expected) and expected.__module__ not in ("builtins", "pathlib", "types", "typing"):
        return [expected], False
    return [], None


@functools.cache
def _left_open(cls: type) -> set[str]:
    """The names that a class leaves to those derived from it; torch's and Lightning's classes do not enforce them."""
    return {name for name in dir(cls) if getattr(inspect.getattr_static(cls, name), "__isabstractmethod__", False)}


def _to_give(base: type) -> str:
    """What a class that is derived from a base gives, where it must, else where it may."""
    if hooks := HOOKS.get(base.__name__, sorted(_left_open(base))):
        return f"; it has to give {', '.join(hooks)}"
    public = [name for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"; it may give {', '.join(public)}" if public else ""


def _to_choose(group: str, bases: Sequence[type]) -> str:
    """Attnlab's choices that are derived from one of the bases."""
    known = [name for base in bases for name in _choices_for(group, base)] if group in seams() else []
    return f"; accepted: {', '.join(f'{group}={name}' for name in known)}, or one of your own" if known else ""


def _named(classes: Sequence[type]) -> str:
    return " or ".join(map(_full_name, classes))


def _full_name(cls: type) -> str:
    package = cls.__module__
    while "." in package and getattr(sys.modules.get(package.rpartition(".")[0]), cls.__name__, None) is cls:
        package = package.rpartition(".")[0]
    return f"{package}.{cls.__name__}"


def choices_of(composed: Composed) -> Choices:
    """A composed configuration as its parts see it. Raises: UsageError for a part that cannot be loaded."""
    return Choices(
        composed.resolved,
        dict(map(key_and_value, composed.overrides)),
        composed.names,
        {group: load(group, node) for group, node in _nodes(composed.resolved).items()},
    )


def _nodes(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in fields.items() if isinstance(node, dict) and "_target_" in node}


def towers_of(choices: Choices) -> dict[str, Choices]:
    """What the parts of each tower of a model see: its stack's fields and parts in the place of the model's own."""
    towers: Mapping[str, Sequence[str]] = getattr(choices.parts["model"], "towers", {})
    found = {}
    for tower in towers:
        others = {field for other, fields in towers.items() if other != tower for field in (other, *fields)}
        own = {name: value for name, value in (choices.get(f"model.{tower}") or {}).items() if value is not None}
        model = {name: value for name, value in choices.get("model").items() if name not in others} | own
        given = {key.replace(f"model.{tower}.", "model."): value for key, value in choices.given.items()}
        given |= {seam: given[f"model.{seam}"] for seam in SEAMS if f"model.{seam}" in given}
        found[tower] = _within(choices, f"model.{tower}", model, own, given)
    return found


def _within(
    choices: Choices, place: str, model: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, str]
) -> Choices:
    """What parts see where a place of the model has fields and parts of its own: `model` with them, and these parts."""
    nodes = _nodes(own)
    named = {seam: choices.names.get(f"{seam}@{place}.{seam}") for seam in nodes}
    return Choices(
        {**choices.fields, **nodes, "model": model},
        given,
        {**choices.names, **{seam: name for seam, name in named.items() if name}},
        {**choices.parts, **{seam: load(f"{place}.{seam}", node) for seam, node in nodes.items()}},
    )


def broken_rules(composed: Composed) -> list[str]:
    """The rules that a configuration breaks, a line each, which begins with the field that it is about.

    Those of each part stand on its class (`incompatible`); here is what belongs to no part.
    """
    choices = choices_of(composed)
    found = [*_other_kind(choices), *_without_effect(choices), *_of_callbacks(choices)]
    of_model = list(_said_by_parts(choices))
    for entry, seen in entries_of(choices).items():
        said = (reason for reason in _said_by_own(seen) if reason not in of_model)
        found += (re.sub(OF_A_TOWER, rf"model.layers.{entry}.\1", reason) for reason in said)
    towers = {tower: list(_said_by_parts(seen)) for tower, seen in towers_of(choices).items()}
    if not towers:
        return list(dict.fromkeys([*found, *of_model]))
    for tower, reasons in towers.items():
        for reason in reasons:  # of all towers it is the model's
            is_of_all = all(reason in others for others in towers.values())
            found.append(reason if is_of_all else re.sub(OF_A_TOWER, rf"model.{tower}.\1", reason))
    return list(dict.fromkeys(found))


def entries_of(choices: Choices) -> dict[str, Choices]:
    """What the parts of each entry of a model's pattern see: its own choices in the place of the model's."""
    entries: Mapping[str, Mapping[str, object] | None] = choices.get("model.layers") or {}
    found = {}
    for entry in dict.fromkeys(choices.get("model.pattern") or []):
        own = {name: value for name, value in (entries.get(entry) or {}).items() if value is not None}
        model = {**choices.get("model"), **own}
        found[entry] = _within(choices, f"model.layers.{entry}", model, own, choices.given)
    return found


def _said_by_own(seen: Choices) -> Iterator[str]:
    """What the parts say that an entry of a pattern may have."""
    for seam in SEAMS[:5]:
        says = getattr(seen.parts.get(seam), "incompatible", None)
        if says is not None and seen.takes(seam):
            yield from says(seen)


def _said_by_parts(choices: Choices) -> Iterator[str]:
    for group, part in choices.parts.items():
        says = getattr(part, "incompatible", None)
        if says is not None and (group not in SEAMS or choices.takes(group)):
            yield from says(choices)


def _other_kind(choices: Choices) -> Iterator[str]:
    """Data and model have to be of the kind that the task declares; what is no class cannot be told."""
    for group, or_else in (
        ("data", "choose one of them, or the model's own (leave task and data out)"),
        ("model", "choose one of them, or leave task out to get the model's own"),
    ):
        needed: type = getattr(choices.parts["task"], f"{group}_type", object)
        chosen = choices.parts[group]
        if isinstance(chosen, type) and not issubclass(chosen, needed):
            # MaskedTextData in words is masked-text data.
            *kind, noun = re.findall(r"[A-Z0-9][a-z]*", needed.__name__) or [needed.__name__]
            wanted = f"{'-'.join(kind)} {noun}".lower().strip() if group == "data" else "another model"
            if group == "data" and (fitting := _tasks_for(chosen, choices.parts["model"])):
                or_else = f"choose task={' or '.join(fitting)}, {or_else.removeprefix('choose ')}"
            yield (
                f"task: task={choices.name('task')} needs {wanted} ({', '.join(_choices_for(group, needed))}), "
                f"got {group}={choices.name(group)}; {or_else}"
            )


def _tasks_for(data: type, model: object) -> list[str]:
    """Attnlab's tasks that are for this kind of data and of model, and not for any."""
    files = sorted((shipped("conf") / "task").glob("*.yaml"))
    tasks: dict[str, Any] = {file.stem: load("task", {"_target_": _target_of(file)}) for file in files}
    return [
        name
        for name, task in tasks.items()
        if issubclass(data, task.data_type) and isinstance(model, type) and issubclass(model, task.model_type)
    ]


def _of_callbacks(choices: Choices) -> Iterator[str]:
    """What a callback does that attnlab does itself, or waits for that no validation reports."""
    for name, node in (choices.get("callbacks") or {}).items():
        from attnlab.training.lightning_options import refused_callback

        kind, path = load(f"callbacks.{name}", node), f"callbacks.{name}"
        if reason := refused_callback(kind):
            yield f"{path}: {node['_target_']} {reason}"
        yield from getattr(kind, "incompatible", lambda choices: ())(choices)
        if isinstance(monitor := node.get("monitor"), str) and not monitor.startswith("train/"):
            yield from _without_metric(path, monitor, choices)


def _without_metric(path: str, monitor: str, choices: Choices) -> Iterator[str]:
    """Why a callback would wait in vain for what it monitors."""
    task: Any = choices.parts["task"]
    every, steps = (choices.get(f"trainer.{name}") or 0 for name in PACE)
    if not hasattr(task, "reports"):
        return
    if not (monitor.startswith("val/") and task.reports(monitor, choices.fields)):
        known = [full for metric in task.metrics(choices.fields) for full in metric.names()]
        validated = [full for full in known if full.startswith("val/")]
        near = did_you_mean(monitor, validated)
        yield must_be(f"{path}.monitor", f"a metric of the validations ({', '.join(validated)})", monitor) + near
    elif not 0 < every <= (steps or every):
        yield (
            f"{path}: {monitor} is of validations, and there are none (trainer.val_check_interval={every}, "
            f"trainer.max_steps={steps}); set trainer.val_check_interval"
        )


@functools.cache
def _choices_for(group: str, needed: type) -> list[str]:
    """Attnlab's choices of a group that are of a kind."""
    files = sorted((shipped("conf") / group).glob("*.yaml"))
    kinds = {file.stem: load(group, {"_target_": _target_of(file)}) for file in files}
    return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, needed)]


def _target_of(path: Path) -> str:
    choice = yaml.safe_load(path.read_text(encoding="utf-8"))
    built_on = [word for word in choice.get("defaults", []) if isinstance(word, str) and word != "_self_"]
    return choice.get("_target_") or _target_of(path.with_name(f"{built_on[0].split('@')[0]}.yaml"))


def _without_effect(choices: Choices) -> Iterator[str]:
    """What is set of a seam that the model, or the data, do not have."""
    for seam in SEAMS:
        holder = "data" if seam == "augmentation" else "model"
        given = " ".join(f"{key}={value}" for key, value in choices.given.items() if key.split(".")[0] == seam)
        if given and not choices.takes(seam):
            holder = f"{holder}={choices.name(holder)}"
            yield f"{seam}: {holder} has no {seam}, so {given} would have no effect; leave it out"
