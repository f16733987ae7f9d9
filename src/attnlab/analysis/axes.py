"""What runs are drawn along in parallel coordinates: the choices and settings in which they differ, and the primary metric."""

from __future__ import annotations

import math
from typing import Any

from attnlab.analysis.comparison import IDENTITY, Comparison
from attnlab.analysis.reader import is_number, natural, same, short
from attnlab.analysis.run_data import path_of

MOST_AXES, MOST_VALUES = 8, 40  # of an axis of words
FEW_NUMBERS = 12  # so many are drawn as words are


def axis_data(comparison: Comparison) -> list[dict[str, Any]]:
    """
    One axis a choice or setting: {name, values: [the words, in order] or None for numbers, of: {cell/seed=n: place or number}}.

    None at all where runs differ in fewer than two things, or there is no metric.
    """
    study = comparison.study
    runs = [
        run for run in study.runs.values() if run.record and comparison.metric and comparison.metric.name in run.final
    ]
    choices = {cell.name: cell.choices for cell in study.cells}
    given = {name: {path_of(run): choices.get(run.cell, {}).get(name) for run in runs} for name in study.varying}
    searched = {name: {path_of(run): run.config.get(name) for run in runs} for name in _searched(comparison)}
    axes = [_axis(name, of, study.factors.get(name, [])) for name, of in (given | searched).items()]
    kept = [axis for axis in axes if axis["values"] is None or 1 < len(axis["values"]) <= MOST_VALUES][:MOST_AXES]
    return kept if len(kept) > 1 and len(runs) > 1 else []


def _searched(comparison: Comparison) -> list[str]:
    """The settings that differ between the runs of one cell, as a search leaves them; seeds and copies of other settings are none."""
    found: dict[str, None] = {}
    for cell in comparison.study.cells:
        configs = [run.config for run in comparison.study.runs_of(cell.name) if run.record]
        for key in sorted({key for config in configs for key in config}):
            values = [config.get(key) for config in configs]
            if key.split(".")[0] not in IDENTITY and any(not same(value, values[0]) for value in values):
                found[key] = None
    return [key for key in found if not any(key.endswith(f".{other}") for other in found)]


def _axis(name: str, of: dict[str, Any], order: list[Any]) -> dict[str, Any]:
    numbers = {key: float(value) for key, value in of.items() if _is_number(value)}
    if len(numbers) == len(of) and len(set(numbers.values())) > FEW_NUMBERS:
        return {"name": short(name), "values": None, "of": numbers}
    words = sorted({_word(value) for value in of.values()}, key=_place)
    planned = [_word(value) for value in order]
    words = [
        *(word for word in dict.fromkeys(planned) if word in words),
        *(word for word in words if word not in planned),
    ]
    return {"name": short(name), "values": words, "of": {key: words.index(_word(value)) for key, value in of.items()}}


def _place(word: str) -> tuple[float, Any]:
    """Numbers by their size, then words."""
    return (float(word), ()) if _is_number(word) else (math.inf, natural(word))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return is_number(value)


def _word(value: Any) -> str:
    return "-" if value is None else str(value)
