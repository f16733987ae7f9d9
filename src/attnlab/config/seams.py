"""What a part has to be to stand where it is named: of which base, with what, and whether it is built later."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate

from attnlab.config import UsageError
from attnlab.ranges import must_be
from attnlab.training.study_fields import did_you_mean

HOOKS = {"Module": ["forward"], "Optimizer": ["step"]}  # of torch's own bases, which have dozens of other methods


@functools.cache
def seams() -> dict[str, Any]:
    """What each group's part is: an object of a base, or with Callable what makes one once it is told widths."""
    from torch import nn
    from torch.optim import Optimizer

    from attnlab import data, layers, training

    return {
        "position": Callable[..., layers.PositionEncoding],
        "residual": Callable[..., layers.Residual],
        "norm": Callable[..., layers.Norm],
        "attention": Callable[..., layers.Attention],
        "feed_forward": Callable[..., layers.FeedForward],
        "init": Callable[..., layers.Init],
        "model": Callable[..., nn.Module],
        "task": Callable[..., training.Task],
        "optimizer": Callable[..., Optimizer],
        "schedule": Callable[..., training.Schedule],
        "averaging": training.Averaging,
        "data": data.DataModule,
        "tokenizer": data.Tokenizer,
        "augmentation": data.Augmentation,
        "trainer": training.TrainerSettings,
        "logger": training.Tracking,
    }


def load(path: str, node: dict[str, Any]) -> Any:
    """The class or function that a node names. Raises: UsageError with the whole reason where it cannot be imported."""
    name = node["_target_"]
    if not isinstance(name, str):
        raise UsageError(must_be(f"{path}._target_", "the path of a class, as in attnlab.layers.Rotary", name))
    try:
        found = _locate(name)  # what Hydra's get_object is, which prints the error beside raising it
    except Exception as error:
        cause = error.__cause__ or error
        package, _, last = name.rpartition(".")
        if isinstance(cause, ModuleNotFoundError) and cause.name == name and package in sys.modules:
            near = did_you_mean(last, dir(sys.modules[package]))
            raise UsageError(f"{path}: cannot load {name}: {package} has no {last}.{near}") from error
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_own(frame.filename)]
        place = "".join(f"\n  {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames)
        reason = "".join(traceback.format_exception_only(cause)).strip()
        raise UsageError(f"{path}: cannot load {name}: {reason}{place}") from error
    if not callable(found):
        raise UsageError(must_be(f"{path}._target_", "a class or a function", name))
    return found


def _is_own(file: str) -> bool:
    """Whether a file belongs neither to Python nor to an installed package."""
    ours = str(Path(__file__).parents[1])
    return not file.startswith(("<", sys.base_prefix, sys.prefix, ours)) and "site-packages" not in file


def misfits(path: str, node: dict[str, Any], expected: Any) -> Iterator[str]:
    """Why the part of a node cannot stand where `expected` is annotated; nothing where that is too vague to tell."""
    bases, completed = _bases(expected)
    target = load(path, node)
    made = _made_by(target)
    if not bases or made is None:
        return
    named = " or ".join(_full_name(base) for base in bases)
    if not issubclass(made, tuple(bases)):
        yield f"{must_be(path, f'derived from {named}', node['_target_'])}{_to_give(bases[0])}"
    elif made is target and (missing := sorted(_left_open(made))):
        yield f"{path}: {node['_target_']} lacks {', '.join(missing)}, which {named} leaves to what is derived from it"
    elif completed is not None and completed != bool(node.get("_partial_")):
        needs, why = ("needs", "the rest later") if completed else ("must not have", "nothing more")
        yield f"{path}: the YAML of {node['_target_']} {needs} the line `_partial_: true`, for it is told {why}"


def _bases(expected: Any) -> tuple[list[type], bool | None]:
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


def _made_by(target: Any) -> type | None:
    """The class of what a target gives; None for a function that does not say so."""
    if not inspect.isclass(target):
        target = typing.get_type_hints(target).get("return")
    return target if inspect.isclass(target) and target is not type(None) else None


def _left_open(cls: type) -> set[str]:
    """The names that a class leaves to those derived from it; torch's and Lightning's classes do not enforce them."""
    return {name for name in dir(cls) if getattr(inspect.getattr_static(cls, name), "__isabstractmethod__", False)}


def _to_give(base: type) -> str:
    """What a class that is derived from a base gives, where it must, else where it may."""
    if hooks := HOOKS.get(base.__name__, sorted(_left_open(base))):
        return f"; it has to give {', '.join(hooks)}"
    public = [name for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"; it may give {', '.join(public)}" if public else ""


def _full_name(cls: type) -> str:
    """The shortest path that a class can be imported from."""
    package = cls.__module__
    while "." in package and getattr(sys.modules.get(package.rpartition(".")[0]), cls.__name__, None) is cls:
        package = package.rpartition(".")[0]
    return f"{package}.{cls.__name__}"
