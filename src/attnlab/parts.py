"""Parts: what a group of the configuration chooses, what each says about itself, and how it is built.

A part is a class or a `functools.partial` of one: `partial(PreNorm, norm=RMSNorm)` says which, and whoever builds it
says how wide. What it cannot be combined with stands on its class, in `incompatible`.
"""

import inspect
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

from attnlab.ranges import types_of

T = TypeVar("T")
Config = Mapping[str, Any]  # of a run: plain values, all of them resolved
Prepared = Mapping[str, Any]  # a batch, with what was counted in it before it went to its device


def find(fields: object, path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested tables, or `default` where there is none."""
    for word in path.split("."):
        if not isinstance(fields, Mapping) or word not in fields:
            return default
        fields = fields[word]
    return fields


@dataclass(frozen=True)
class Choices:
    """A composed configuration as its parts see it: plain values, read only.

    fields: every field, nested as in the YAML. given: what the command line or a study sets, as it was typed, by its
    path ({"position": "rotary", "model.d_model": "64"}). names: each group's choice as a person types it. parts: the
    class or function that each group's choice names.
    """

    fields: Mapping[str, object]
    given: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Callable[..., object]] = field(default_factory=dict)

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default` where there is none."""
        return find(self.fields, path, default)

    def name(self, group: str) -> str:
        """A group's choice as a person types it, else the name of its class; empty where the group has no part."""
        typed = self.names.get(group) or self.given.get(group)
        return typed or str(getattr(self.parts.get(group), "__name__", ""))

    def is_a(self, group: str, *kinds: type) -> bool:
        """Whether a group's choice is one of these classes, or derived from one."""
        part = self.parts.get(group)
        return inspect.isclass(part) and issubclass(part, kinds)

    def takes(self, seam: str) -> bool:
        """Whether the model, or for an augmentation the data, has this seam; a norm is a part of the residual."""
        holders = {"norm": ("model.norm", "model.residual"), "augmentation": ("data.augmentation",)}
        paths = holders.get(seam, (f"model.{seam}",))
        return any(isinstance(self.get(path), Mapping) for path in paths)

    def longest_row(self) -> tuple[int, str]:
        """Tokens of the data's longest row, special tokens included, and the field that says so; 0 where unknown."""
        says = getattr(self.parts.get("data"), "longest_row", None)
        return says(self) if says else (0, "")


class Part(ABC):  # noqa: B024 - what must be given is abstract in the base of each group
    """What every choice of a group may say about itself; the base of the base class of each group."""

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """Why this part cannot be combined with what else is chosen: one line a reason, none where it can.

        Each starts with the path of the field that it is about (`position: ...`, `model.num_heads: ...`) and says what
        to do. Asked before anything is built, of a part that the model uses. A subclass yields what its base does, too.
        """
        yield from ()


def short_table(choices: Choices) -> Iterator[str]:
    """Why a model's learned table of positions (model.max_length) cannot serve the rows of the data."""
    rows, (row, field) = choices.get("model.max_length"), choices.longest_row()
    if rows is not None and rows < row:
        yield (
            f"model.max_length: a learned table of {rows} positions (model.max_length) cannot serve rows of {row} "
            f"tokens ({field}); shorten the rows, or take a longer table where it is not trained yet"
        )


def unsharded(
    choices: Choices, group: str, why: str = "learns single numbers, which torch cannot shard"
) -> Iterator[str]:
    """Why the choice of a group cannot be trained under fsdp2."""
    if choices.get("trainer.strategy") == "fsdp2":
        yield (
            f"trainer.strategy: fsdp2 shards tensors over ranks, and {group}={choices.name(group)} {why}; "
            "choose another, or trainer.strategy=ddp"
        )


def build_part(part: Callable[..., T], **dims: object) -> T:
    """Calls a part with those of `dims` that it takes and does not bind. Raises ValueError where one is missing."""
    bound, known = _bound(part), parameters_of(unwrapped(part))
    given = {name: value for name, value in dims.items() if name in known and name not in bound}
    needed = (name for name, parameter in known.items() if parameter.default is parameter.empty)
    if missing := [name for name in needed if name not in given and name not in bound]:
        raise ValueError(
            f"{unwrapped(part).__name__} needs {', '.join(missing)}, which is not given here; given: {', '.join(dims)}"
        )
    return part(**given)


def accepts(part: Callable[..., object], name: str) -> bool:
    """Whether a part takes this argument and does not bind it."""
    return name in parameters_of(unwrapped(part)) and name not in _bound(part)


def value_of(part: Callable[..., object], name: str, otherwise: object) -> Any:
    """What a part has as this argument where nobody gives one; `otherwise` where it takes none."""
    known = parameters_of(unwrapped(part))
    return _bound(part).get(name, known[name].default) if name in known else otherwise


def unwrapped(part: Callable[..., object]) -> Any:
    """The class or function that a partial completes."""
    return unwrapped(part.func) if isinstance(part, partial) else part


def _bound(part: Callable[..., object]) -> dict[str, object]:
    """The fields that a part binds; of partials within partials, the outer one's win."""
    return {**_bound(part.func), **part.keywords} if isinstance(part, partial) else {}


@cache
def parameters_of(target: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a class's constructor or of a function by name, with types, ranges and defaults.

    What a constructor passes on whole (`**fields: Unpack[StackFields]`) counts field by field. The defaults are those
    of the class (`defaults`), else of the constructor that it goes to, the next one in the class's order of resolution.
    """
    if not inspect.isclass(target):
        return _own_parameters(target, target)
    found: dict[str, inspect.Parameter] = {}
    constructors = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    for index, function in enumerate(constructors):
        for name, parameter in _own_parameters(function if index else target, function).items():
            own = found.setdefault(name, parameter)
            if own.default is parameter.empty:
                found[name] = own.replace(default=parameter.default)
        types = types_of(function)
        passed_on = types.keys() - inspect.signature(function).parameters.keys() - {"return"}
        for name in (name for name in types if name in passed_on):
            default = getattr(target, "defaults", {}).get(name, inspect.Parameter.empty)
            parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
            found.setdefault(name, parameter)
        if all(found[name].default is not inspect.Parameter.empty for name in passed_on):
            break
    return found


def _own_parameters(target: Callable[..., object], function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Those that a signature names itself, with the types that the function's annotations say."""
    hints = types_of(function)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(target).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
