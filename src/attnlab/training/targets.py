"""Costs to a target: the steps, tokens, FLOPs or seconds that a run takes until a validated metric reaches a value.

Such a cost is a metric of a run. Its name, "steps to val/loss 2.0", says all of it, so that whatever carries the name
of a metric carries it, too. Of every cost lower values are better; from which side the target is reached follows from
which values of the validated metric are better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

# {what is counted: in words; {unit} stands for a term of the loss}
AXES = {
    "steps": "optimizer steps",
    "tokens": "training {unit}s",
    "flops": "training FLOPs",
    "seconds": "training seconds",
}
FIELDS = tuple(f"{axis}_to" for axis in AXES)  # of a metric in study.yaml
NAME = re.compile(rf"({'|'.join(AXES)})[ _]to\s+(\S+)\s+(\S+)")
EXAMPLE = "{val/loss: 2.0}"


@dataclass(frozen=True)
class Target:
    """What a run has to reach: a `value` of a validated `metric`; `axis`, one of AXES, is what it costs. Its text is
    the cost's name."""

    axis: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.axis} to {self.metric} {self.value}"

    def words(self, better: str) -> str:
        """What the cost measures, where such values of the metric are better."""
        side = "at least" if better == "higher" else "at most"
        return f"{AXES[self.axis]} until {self.metric} is {side} {self.value:g}"


@lru_cache(maxsize=1 << 12)
def target_of(name: str) -> Target | None:
    """The target in the name of a cost, which may also be written as in "steps_to val/loss 2.0"; None for the name of
    any other metric."""
    found = NAME.fullmatch(name.strip())
    value = _number(found[3]) if found else None
    return Target(found[1], found[2], value) if found and value is not None else None


def target_in(where: str, table: Mapping[str, object]) -> Target | None:
    """The target of a table such as {steps_to: {val/loss: 2.0}}; None where it names none. Raises: ValueError for one
    that is no target, named by the field `where`."""
    named = [field for field in FIELDS if field in table]
    if not named:
        return None
    if len(named) > 1 or "name" in table:
        both = " and ".join([*named, *["name"] * ("name" in table)])
        raise ValueError(f"{where} must be one metric, got {both}; leave all but one of them out")
    field, given = named[0], table[named[0]]
    entry = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (None, None)
    value = _number(entry[1])
    if not isinstance(entry[0], str) or value is None:
        accepted = f"a table of one validated metric and the finite value to reach, as in {EXAMPLE}"
        raise ValueError(f"{where}.{field} must be {accepted}, got {given!r}")
    return checked(Target(field.removesuffix("_to"), entry[0], value), f"{where}.{field}")


def checked(target: Target, where: str) -> Target:
    """The target, if its metric is one that runs have along their training. Raises: ValueError."""
    if re.fullmatch(r"val/\S+", target.metric):
        return target
    raise ValueError(
        f"{where} must name a metric of the validations during training, as in {EXAMPLE}, got {target.metric}; "
        "what is measured at the end alone has no first time at which it is reached"
    )


def _number(value: object) -> float | None:
    """The finite number that a value or its text is, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
