"""Factorial sweeps: what a choice changes with every other factor held fixed, and how far that depends on the choice of
another.

Cells that differ in named factors and in nothing else are matched by seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from attnlab.analysis.differences import DECIDED, Judged, judge
from attnlab.analysis.outcomes import Contrast, Outcomes, contrast_of, together
from attnlab.analysis.reader import Cell, Choice, same, short
from attnlab.analysis.statistics import signed_sum

Move = TypeVar("Move", bound=Hashable)


@dataclass(frozen=True)
class Averaged:
    """A contrast averaged over the settings of the other factors, one value a seed.

    `by_setting` has the mean at each setting that has values, `planned` counts the settings of the plan.
    """

    contrast: Contrast
    by_setting: dict[str, float]
    planned: int


@dataclass(frozen=True)
class JudgedAverage(Judged):
    """An averaged contrast, judged: its interval is clustered by seed, and simultaneous with those of its family."""

    by_setting: dict[str, float]
    planned: int


@dataclass(frozen=True)
class Effect(JudgedAverage):
    """The mean change when `factor` goes from `reference` to `choice` and nothing else does.

    `depends` says that an interaction with it is sure (see `interactions`), so that its average says little.
    """

    factor: str
    reference: Choice
    choice: Choice
    depends: bool

    @property
    def word(self) -> str:
        """The verdict, or "depends"."""
        return "depends" if self.depends else self.verdict

    @property
    def label(self) -> str:
        """ "residual: pre_ln -> post_ln"."""
        return f"{short(self.factor)}: {self.reference} \u2192 {self.choice}"

    @property
    def ends(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """The settings with the smallest and the largest change, and these changes."""
        changes = self.by_setting.items()
        return min(changes, key=itemgetter(1)), max(changes, key=itemgetter(1))


@dataclass(frozen=True)
class Interaction(JudgedAverage):
    """The difference of differences of two factors: what both choices change together, minus what each changes alone.

    For factors f and g it is (f and g changed - only g) - (only f - neither), the interaction term of a linear model
    with treatment coding. Settings and seeds of which one of the four cells has no value are left out.
    """

    factors: tuple[str, str]
    references: tuple[Choice, Choice]
    choices: tuple[Choice, Choice]

    @property
    def label(self) -> str:
        """ "residual post_ln x warmup_steps 200"."""
        parts = zip(self.factors, self.choices, strict=True)
        return " x ".join(f"{short(factor)} {choice}" for factor, choice in parts)


class Factorial:
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

    def reference(self, factor: str) -> Choice:
        """The baseline's choice of a factor, or its first one."""
        return self.study.baseline.get(factor, self.study.factors[factor][0])

    def others(self, factor: str) -> list[Choice]:
        """The choices of a factor that are not its reference."""
        return [choice for choice in self.study.factors[factor] if not same(choice, self.reference(factor))]

    @cached_property
    def changes(self) -> dict[tuple[str, Choice], Averaged]:
        """{(factor, choice): the change from the factor's reference to that choice}."""
        moves = [(factor, choice) for factor in self.factors() for choice in self.others(factor)]
        return {move: self.contrast(dict([move])) for move in moves}

    def judged(self, averaged: Mapping[Move, Averaged]) -> dict[Move, dict[str, Any]]:
        """The fields of each contrast as a `JudgedAverage`, judged as one family; {} where there is no metric."""
        if self.study.metric is None:
            return {}
        found = judge({move: one.contrast for move, one in averaged.items()}, self.study.metric, self.outcomes.alpha)
        return {
            move: {**vars(one), "by_setting": averaged[move].by_setting, "planned": averaged[move].planned}
            for move, one in found.items()
        }

    def contrast(self, moves: Mapping[str, Choice]) -> Averaged:
        """Takes every factor in `moves` from its reference to the choice given: of one factor the difference, of two
        that of differences.

        Settings that a cell of the plan cannot have are no part of the average. Seeds of which any other setting lacks
        a run have no value; where a setting has none at all, the values are of the others, and the contrast is partial.
        """
        cells = [cell for cell in self.study.matching(moves) if cell.skip is None]
        corners = {self._setting(cell, moves): self._corners(cell, list(moves)) for cell in cells}
        whole = {
            setting: [(sign, cell) for sign, cell in of if cell]
            for setting, of in corners.items()
            if all(cell and cell.skip is None and not self.outcomes.cannot(cell.name, self.metric) for _, cell in of)
        }
        found = {setting: by_seed for setting, of in whole.items() if (by_seed := self._by_seed(of))}
        used = [cell.name for of in whole.values() for _, cell in of]
        outcomes = [self.outcomes.of(name, self.metric) for name in used]
        seeds = sorted(set.intersection(*map(set, outcomes))) if outcomes else []
        asked = {seed: together(of[seed] for of in outcomes) for seed in seeds}
        # One mean a seed, over the settings; only seeds that every setting has, so that all seeds mean the same.
        shared = sorted(set.intersection(*map(set, found.values()))) if found else []
        values = {seed: float(np.mean([by_seed[seed] for by_seed in found.values()])) for seed in shared}
        contrast = contrast_of(values, {"": asked}, "seeds", len(found) < len(whole))
        means = {setting: float(np.mean(list(of.values()))) for setting, of in found.items()}
        return Averaged(self.outcomes.marked(contrast, used), means, len(corners))

    def _corners(self, cell: Cell, factors: Sequence[str]) -> list[tuple[int, Cell | None]]:
        """The cells with each of `factors` at the cell's choice or its reference, with their signs in the contrast."""
        corners: list[tuple[int, dict[str, Choice]]] = [(1, dict(cell.choices))]
        for factor in factors:
            corners += [(-sign, {**choices, factor: self.reference(factor)}) for sign, choices in corners]
        return [(sign, self._by_choices.get(_key(choices))) for sign, choices in corners]

    def _by_seed(self, corners: Sequence[tuple[int, Cell]]) -> dict[int, float]:
        parts = [(sign, self._values[cell.name]) for sign, cell in corners]
        seeds = set.intersection(*(set(values) for _, values in parts))
        return {seed: signed_sum([(sign, values[seed]) for sign, values in parts]) for seed in sorted(seeds)}

    def _setting(self, cell: Cell, moves: Mapping[str, Choice]) -> str:
        rest = (name for name in self.study.varying if name in cell.choices and name not in moves)
        return ", ".join(self.study.choice_label(name, cell.choices[name]) for name in rest)


def _key(choices: Mapping[str, Choice]) -> frozenset[tuple[str, str | float]]:
    """The same for choices that are the same (see reader.same): 0.001 and "1e-3"."""

    def canonical(choice: Choice) -> str | float:
        try:
            number = math.nan if choice is None else float(choice)
        except (TypeError, ValueError):
            return str(choice)
        return str(choice) if math.isnan(number) else number

    return frozenset((name, canonical(choice)) for name, choice in choices.items())


def factor_effects(factorial: Factorial, found: list[Interaction]) -> list[Effect]:
    """The effects of every factor's choices against its baseline's, where at least two factors vary; [] otherwise.

    found: the study's interactions.
    """
    decided = [one for one in found if one.verdict in DECIDED]
    sure = {move for one in decided for move in zip(one.factors, map(str, one.choices), strict=True)}
    return [
        Effect(
            **fields,
            factor=factor,
            reference=factorial.reference(factor),
            choice=choice,
            depends=(factor, str(choice)) in sure,
        )
        for (factor, choice), fields in factorial.judged(factorial.changes).items()
    ]


def interactions(factorial: Factorial) -> list[Interaction]:
    """The interactions of every pair of factors and of their choices with the baseline's choices.

    A contrast is left out where no seed has all of its cells: it then has no value.
    """
    averaged = {
        (pair, choices): factorial.contrast(dict(zip(pair, choices, strict=True)))
        for pair in combinations(factorial.factors(), 2)
        for choices in product(*map(factorial.others, pair))
    }
    return [
        Interaction(
            **fields,
            factors=pair,
            references=(factorial.reference(pair[0]), factorial.reference(pair[1])),
            choices=(choices[0], choices[1]),
        )
        for (pair, choices), fields in factorial.judged(averaged).items()
    ]


def unmatched(factorial: Factorial) -> list[str]:
    """Changes of one factor without a value at some setting: "warmup_steps 200 (6 of 8 settings)"."""
    study, names = factorial.study, []
    is_measured = any(study.values(cell.name, factorial.metric) for cell in study.cells)
    for (factor, choice), found in factorial.changes.items():
        used = len(found.by_setting) if found.contrast.values else 0
        if 0 < found.planned != used and is_measured:
            names.append(f"{short(factor)} {choice} ({used} of {found.planned} settings)")
    return names
