"""Cells of a factorial sweep that differ in named factors and in nothing else, matched by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnlab.analysis.reader import Cell, Study, same

Values = Mapping[str, Mapping[int, float]]


class Crossing:
    """Looks cells up by their choices, and contrasts them by seed. `values` are {cell: {seed: value}}."""

    def __init__(self, study: Study, values: Values) -> None:
        self.study, self.values = study, values
        self._by_choices = {_key(cell.choices): cell for cell in study.cells}

    def factors(self) -> list[str]:
        """The factors that vary, in the plan's order."""
        return [name for name in self.study.factors if name in self.study.varying]

    def reference(self, factor: str) -> Any:
        """The baseline's choice of a factor, or its first one."""
        return self.study.baseline.get(factor, self.study.factors[factor][0])

    def others(self, factor: str) -> list[Any]:
        """The choices of a factor that are not its reference."""
        return [choice for choice in self.study.factors[factor] if not same(choice, self.reference(factor))]

    def contrast(self, moves: Mapping[str, Any]) -> tuple[dict[str, dict[int, float]], int]:
        """{setting of the other factors: {seed: contrast}}, and how many settings the plan has.

        The contrast takes every factor in `moves` from its reference to the choice given: of one factor the difference, of two the
        difference of differences. A setting is left out where no seed has all of its cells.
        """
        found, planned = {}, 0
        for cell in self.study.cells:
            if cell.skip is None and all(same(cell.choices.get(name), choice) for name, choice in moves.items()):
                corners = self._corners(cell, list(moves))
                planned += 1
                by_seed = self._by_seed(corners)
                if by_seed:
                    found[self._setting(cell, moves)] = by_seed
        return found, planned

    def _corners(self, cell: Cell, factors: Sequence[str]) -> list[tuple[int, Cell | None]]:
        """The cells with each of `factors` at the cell's choice or at its reference, with the sign that each has in the contrast."""
        corners: list[tuple[int, dict[str, Any]]] = [(1, dict(cell.choices))]
        for factor in factors:
            corners += [(-sign, {**choices, factor: self.reference(factor)}) for sign, choices in corners]
        return [(sign, self._by_choices.get(_key(choices))) for sign, choices in corners]

    def _by_seed(self, corners: Sequence[tuple[int, Cell | None]]) -> dict[int, float]:
        parts = [(sign, self.values.get(cell.name, {}) if cell else {}) for sign, cell in corners]
        seeds = set.intersection(*(set(values) for _, values in parts))
        return {seed: math.fsum(sign * values[seed] for sign, values in parts) for seed in sorted(seeds)}

    def _setting(self, cell: Cell, moves: Mapping[str, Any]) -> str:
        rest = (name for name in self.study.varying if name in cell.choices and name not in moves)
        return ", ".join(self.study.choice_label(name, cell.choices[name]) for name in rest)


def over_settings(contrasts: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """One mean a seed, over the settings; only seeds that every setting has, so that all seeds mean the same."""
    shared = set.intersection(*(set(pair) for pair in contrasts.values())) if contrasts else set()
    return {seed: float(np.mean([pair[seed] for pair in contrasts.values()])) for seed in sorted(shared)}


def _key(choices: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset((name, _canonical(choice)) for name, choice in choices.items())


def _canonical(choice: Any) -> Any:
    """The same for choices that are the same (see reader.same): 0.001 and "1e-3"."""
    try:
        number = float(choice)
    except (TypeError, ValueError):
        return str(choice)
    return str(choice) if math.isnan(number) else number
