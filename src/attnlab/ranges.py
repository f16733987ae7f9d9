"""Which numbers a field takes, declared once, in the annotation of its argument.

    @check_ranges
    class Rotary(PositionEncoding):
        def __init__(self, d_head: PositiveInt, fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0) -> None: ...

The bounds are those of annotated-types (Gt, Ge, Lt, Le, Interval). A configuration is checked against them before
anything is built, a call when it is made. A number has to be finite, too; `Interval()`: any finite one will do.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt

__all__ = [
    "Annotated", "Ge", "Gt", "Interval", "Le", "Lt", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat",
    "PositiveInt", "Probability", "Rate", "Seed", "check_ranges", "must_be", "outside", "ranges_of",
    "table_types", "types_of", "words",
]  # fmt: skip

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]
Rate = Annotated[float, Interval(ge=0, lt=1)]
"""Of dropout, of a moving average: at 1 nothing would be left."""
Seed = Annotated[int, Interval(ge=0, lt=1 << 32)]
"""What every random generator takes."""

BOUNDS: dict[type, tuple[str, Callable[[float, float], bool], str]] = {
    Gt: ("gt", operator.gt, "above"),
    Ge: ("ge", operator.ge, "at least"),
    Lt: ("lt", operator.lt, "below"),
    Le: ("le", operator.le, "at most"),
}

T = TypeVar("T", bound=Callable[..., object])
P = ParamSpec("P")
R = TypeVar("R")


def check_ranges(target: T) -> T:
    """Has a class or a function raise ValueError for what is outside the ranges that its arguments declare."""
    if inspect.isclass(target):
        target.__init__ = _checking(target.__init__)  # type: ignore[method-assign]
        return target
    return typing.cast(T, _checking(target))


def _checking(function: Callable[P, R]) -> Callable[P, R]:
    names = list(inspect.signature(function).parameters)
    hints: dict[str, object] = {}  # resolved by the first call, when all modules that the annotations name are there

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:
            hints.update(types_of(function))
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if reason := outside(name, hints.get(name, Any), value):
                raise ValueError(reason)
        return function(*args, **kwargs)

    return checking


def types_of(function: Callable[..., object]) -> dict[str, Any]:
    """The annotations of a function; of `**fields: Unpack[StackFields]` those of the TypedDict, each by its name."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, hint in list(hints.items()):
        if typing.get_origin(hint) is typing.Unpack:
            del hints[name]
            hints |= typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
    return hints


def outside(name: str, annotation: object, value: object) -> str | None:
    """The message where a number, or one of a list, is outside the range that its annotation declares; else None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for bounds in ranges_of(annotation):
            within = all(_holds(bound, value) for bound in bounds)
            if not (within and math.isfinite(value)):
                return must_be(name, " and ".join([*_words(bounds), *(["finite"] if within else [])]), value)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            if reason := outside(f"{name}[{place}]", _of_items(annotation, place), item):
                return reason
    elif isinstance(value, dict) and (hints := table_types(annotation)):
        return next((reason for key, item in value.items() if (reason := outside(key, hints.get(key), item))), None)
    return None


def table_types(annotation: object) -> dict[str, Any]:
    """The annotations of the fields of a TypedDict, or of one that is an option; empty where there is none."""
    for option in typing.get_args(annotation) or (annotation,):
        if typing.is_typeddict(option):
            return typing.get_type_hints(option, include_extras=True)
    return {}


def must_be(name: str, wanted: str, value: object) -> str:
    """The one form in which a field's value is refused, with the value as YAML has it."""
    return f"{name} must be {wanted}, got {_shown(value)}"


def words(annotation: object) -> str:
    """The range of a number in words, as in `above 0`; empty where there is none."""
    return " or ".join(" and ".join(_words(bounds)) for bounds in ranges_of(annotation))


def ranges_of(annotation: object) -> Iterator[list[Any]]:
    """The bounds of each number that an annotation names and declares a range of."""
    if typing.get_origin(annotation) is Annotated:
        kind, *metadata = typing.get_args(annotation)
        ours = [m for m in metadata if isinstance(m, Gt | Ge | Lt | Le | Interval)]
        if kind in (int, float) and ours:
            yield [bound for m in ours for bound in (m if isinstance(m, Interval) else [m])]
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from ranges_of(option)


def _of_items(annotation: object, place: int) -> object:
    """What a list's item at a place is, by the first of the options that is a list."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for o in typing.get_args(annotation) if (found := _of_items(o, place)) is not Any), Any)
    if typing.get_origin(annotation) not in (tuple, list, Sequence):
        return Any
    inner = [item for item in typing.get_args(annotation) if item is not Ellipsis]
    return inner[min(place, len(inner) - 1)] if inner else Any


def _holds(bound: object, value: float) -> bool:
    attribute, holds, _ = BOUNDS[type(bound)]
    return holds(value, getattr(bound, attribute))


def _words(bounds: Sequence[object]) -> list[str]:
    match bounds:
        case [Ge(ge=low), Le(le=high)]:
            return [f"from {low} to {high}"]
    return [f"{word} {getattr(bound, attribute)}" for bound in bounds for attribute, _, word in [BOUNDS[type(bound)]]]


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
