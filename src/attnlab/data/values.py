"""
Values of files and tables that nobody typed, read for what they say: texts, classes, whole numbers, true or false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral
from textwrap import shorten
from typing import Any

from attnlab.data.cache import DataError

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def is_missing(value: Any) -> bool:
    """Whether a table has nothing here: None, or the NaN that tables of numbers have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, place: str) -> str:
    """
    A text; of a whole number, its digits. Raises DataError for anything else, with the words that say where it
    stands.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{place} is {shown(value)}; accepted: a text")


def whole_number_of(value: Any, place: str) -> int:
    """A whole number, or a text that spells one. Raises DataError for anything else."""
    spelt = isinstance(value, str) and WHOLE_NUMBER.fullmatch(value)
    number = isinstance(value, Integral) and not isinstance(value, bool)
    if spelt or number or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(f"{place} is {shown(value)}; accepted: a whole number")


def truth_of(value: Any, place: str) -> bool:
    """True or false, or a text or number that spells one of them. Raises DataError for anything else."""
    truth = TRUTHS.get(str(value).lower())
    if truth is None:
        raise DataError(f"{place} is {shown(value)}; accepted: true or false")
    return truth


def class_of(given: Any, names: Sequence[str] | None, place: str) -> str:
    """
    The name of a class: that of its number where numbers have names, else what is given.

    A column of whole numbers that lacks one became one of floats somewhere, so 1.0 is the class 1. Raises DataError
    for what has none.
    """
    if names:
        if is_missing(given) or not isinstance(given, int) or not 0 <= given < len(names):
            accepted = f"0 to {len(names) - 1} ({shorten(', '.join(names), 200)})"
            raise DataError(f"{place} has the class {given}; accepted: {accepted}. Leave out rows without a class")
        return names[given]
    if is_missing(given) or not str(given).strip():
        raise DataError(f"{place} has no class; accepted: a class in every row")
    return str(int(given)) if isinstance(given, float) and given.is_integer() else str(given)


def shown(value: Any) -> str:
    """A value in a message, with its type where that is what is wrong with it."""
    return f"{shorten(repr(value), 60, placeholder='...')} ({type(value).__name__})"
