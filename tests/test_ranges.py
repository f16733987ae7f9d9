"""Ranges of numbers: declared in annotations, kept by calls and by the check of a configuration, and by every shipped field."""

import inspect
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pytest
from hydra.utils import get_object

from attnlab.ranges import Ge, Interval, PositiveFloat, PositiveInt, Probability, Rate, check_ranges, outside, ranges_of

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (PositiveFloat, -1, "x must be above 0, got -1"),
        (PositiveFloat, math.nan, "x must be above 0, got nan"),
        (PositiveFloat, math.inf, "x must be above 0 and finite, got inf"),
        (PositiveFloat | None, 0.0, "x must be above 0, got 0.0"),
        (Probability, 2, "x must be from 0 to 1, got 2"),
        (Rate, 1.0, "x must be at least 0 and below 1, got 1.0"),
        (Annotated[float, Interval()], -math.inf, "x must be finite, got -inf"),
        (tuple[Rate, Rate], [0.9, 1.0], "x[1] must be at least 0 and below 1, got 1.0"),
        (PositiveInt | Sequence[PositiveInt], [3, 0], "x[1] must be at least 1, got 0"),
        (Annotated[PositiveInt, Ge(2)], 1, "x must be at least 1 and at least 2, got 1"),
    ],
)
def test_a_number_outside_its_range_is_refused_in_one_form(annotation, value, message):
    assert outside("x", annotation, value) == message


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (PositiveFloat, 1e-300),
        (PositiveFloat | None, None),
        (Probability, 1),
        (tuple[Rate, ...], [0, 0.5]),
        (Annotated[int, Interval()], -3),
        (int, -1),
        (bool, False),
        (str | PositiveInt, "0"),
    ],
)
def test_what_lies_within_or_has_no_range_is_taken(annotation, value):
    assert outside("x", annotation, value) is None


def test_a_call_is_checked_whichever_way_the_value_is_given():
    @check_ranges
    class Part:
        def __init__(self, width: PositiveInt, rate: Rate = 0.0) -> None:
            self.width, self.rate = width, rate

    class Derived(Part):
        pass

    for wrong in (lambda: Part(0), lambda: Part(width=0), lambda: Derived(1, 1.0)):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    with pytest.raises(TypeError, match="width"):
        Part()
    assert (Part(3, rate=0.5).width, list(inspect.signature(Part).parameters)) == (3, ["width", "rate"])


TOLD = {"grid"}  # no field: what a part is told by its model


def shipped_targets():
    """The classes and functions that the files of the choices name."""
    return sorted(
        {
            name
            for path in CONF.rglob("*.yaml")
            for name in re.findall(r"_target_: ((?:attnlab|hydra_plugins.attnlab)[\w.]+)", path.read_text())
        }
    )


def within(annotation):
    """An annotation and all that it is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from within(part)


def deepest(annotation):
    """How many lists stand within one another in an annotation, at most."""
    inner = max(map(deepest, typing.get_args(annotation)), default=0)
    return inner + (typing.get_origin(annotation) in (tuple, Sequence))


@pytest.mark.parametrize("name", shipped_targets())
def test_every_numeric_field_of_a_shipped_choice_declares_its_range_and_keeps_it(name):
    target = get_object(name)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    for field, annotation in hints.items():
        parts = list(within(annotation))
        if field in (*TOLD, "return") or not {int, float} & set(filter(inspect.isclass, parts)):
            continue
        assert any(bounds for part in parts for bounds in ranges_of(part)) or Interval() in parts, (
            f"{name}.{field} has no range"
        )
        wrong = math.nan
        for _ in range(deepest(annotation)):
            wrong = [wrong] * 3
        with pytest.raises(ValueError, match=rf"^{field}(\[0\])* must be"):
            target(**{field: wrong})
