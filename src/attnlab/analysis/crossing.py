"""Cells of a factorial sweep that differ in named factors and in nothing else, matched by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attnlab.analysis.outcomes import Contrast, Outcomes, contrast_of, together
from attnlab.analysis.reader import Cell, same
from attnlab.analysis.statistics import signed_sum


@dataclass(frozen=True)
class Averaged:
    """A contrast averaged over the settings of the other factors, one value a seed.

    `by_setting` has the mean at each setting that has values, `planned` counts the settings of the plan.
    """

    contrast: Contrast
    by_setting: dict[str, float]
    planned: int


class Crossing:
    """Looks cells up by their choices, and contrasts them by seed on the study's metric."""

    def __init__(self, outcomes: Outcomes) -> None:
        study = outcomes.study
        self.outcomes, self.study = outcomes, study
        self.metric = study.metric.name if study.metric else ""
        self._values = {cell.name: study.values(cell.name, self.metric) for cell in study.cells}
        self._by_choices = {_key(cell.choices): cell for cell in study.cells}

    def factors(self) -> list[str]:
        """The factors that vary, in the plan's order; none where there is no metric or only one."""
        found = [name for name in self.study.factors if name in self.study.varying]
        return found if len(found) > 1 and self.study.metric else []

    def reference(self, factor: str) -> Any:
        """The baseline's choice of a factor, or its first one."""
        return self.study.baseline.get(factor, self.study.factors[factor][0])

    def others(self, factor: str) -> list[Any]:
        """The choices of a factor that are not its reference."""
        return [choice for choice in self.study.factors[factor] if not same(choice, self.reference(factor))]

    @cached_property
    def changes(self) -> dict[tuple[str, Any], Averaged]:
        """{(factor, choice): the change from the factor's reference to that choice}."""
        moves = [(factor, choice) for factor in self.factors() for choice in self.others(factor)]
        return {move: self.contrast(dict([move])) for move in moves}

    def contrast(self, moves: Mapping[str, Any]) -> Averaged:
        """Takes every factor in `moves` from its reference to the choice given: of one factor the difference, of two that of differences.

        Settings that a cell of the plan cannot have are no part of the average. Seeds of which any other setting lacks a run have no value;
        where a setting has none at all, the values are of the others, and the contrast is partial.
        """
        cells = [cell for cell in self.study.cells if cell.skip is None and _has(cell, moves)]
        corners = {self._setting(cell, moves): self._corners(cell, list(moves)) for cell in cells}
        whole = {setting: of for setting, of in corners.items() if self._possible(of)}
        found = {setting: by_seed for setting, of in whole.items() if (by_seed := self._by_seed(of))}
        used = [cell for of in whole.values() for _, cell in of if cell]
        contrast = contrast_of(_over_settings(found), {"": self._together(used)}, "seeds", len(found) < len(whole))
        contrast = self.outcomes.marked(contrast, (cell.name for cell in used))
        means = {setting: float(np.mean(list(of.values()))) for setting, of in found.items()}
        return Averaged(contrast, means, len(corners))

    def _possible(self, corners: Sequence[tuple[int, Cell | None]]) -> bool:
        cells = [cell for _, cell in corners]
        return all(cell and cell.skip is None and not self.outcomes.cannot(cell.name, self.metric) for cell in cells)

    def _together(self, cells: Sequence[Cell]) -> dict[int, str]:
        """{seed: outcome of all `cells` together} over the seeds that all of them were asked for."""
        by_cell = [self.outcomes.of(cell.name, self.metric) for cell in cells]
        seeds = set.intersection(*map(set, by_cell)) if by_cell else set()
        return {seed: together(of[seed] for of in by_cell) for seed in sorted(seeds)}

    def _corners(self, cell: Cell, factors: Sequence[str]) -> list[tuple[int, Cell | None]]:
        """The cells with each of `factors` at the cell's choice or at its reference, with the sign that each has in the contrast."""
        corners: list[tuple[int, dict[str, Any]]] = [(1, dict(cell.choices))]
        for factor in factors:
            corners += [(-sign, {**choices, factor: self.reference(factor)}) for sign, choices in corners]
        return [(sign, self._by_choices.get(_key(choices))) for sign, choices in corners]

    def _by_seed(self, corners: Sequence[tuple[int, Cell | None]]) -> dict[int, float]:
        parts = [(sign, self._values[cell.name] if cell else {}) for sign, cell in corners]
        seeds = set.intersection(*(set(values) for _, values in parts))
        return {seed: signed_sum([(sign, values[seed]) for sign, values in parts]) for seed in sorted(seeds)}

    def _setting(self, cell: Cell, moves: Mapping[str, Any]) -> str:
        rest = (name for name in self.study.varying if name in cell.choices and name not in moves)
        return ", ".join(self.study.choice_label(name, cell.choices[name]) for name in rest)


def _has(cell: Cell, choices: Mapping[str, Any]) -> bool:
    return all(same(cell.choices.get(name), choice) for name, choice in choices.items())


def _over_settings(contrasts: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
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
