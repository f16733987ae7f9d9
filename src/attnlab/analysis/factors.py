"""Factorial sweeps: what a choice changes with every other factor held fixed, and how far that depends on the choice of
another.

Cells that differ in named factors and in nothing else are matched by seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from operator import itemgetter
from typing import TypeVar

import numpy as np

from attnlab.analysis.contrasts import Contrast, contrast_of, together
from attnlab.analysis.differences import DECIDED, Judged, Outcomes, judge
from attnlab.analysis.reader import JOINT, Cell, Choice, short
from attnlab.analysis.statistics import signed_sum
from attnlab.training.study_fields import same
from attnlab.training.targets import target_of

Move = TypeVar("Move", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Averaged(Contrast):
    """A contrast averaged over the settings of the other factors, one value a seed.

    `by_setting` has the mean at each setting that has values, `planned` counts the settings of the plan.
    """

    by_setting: dict[str, float]
    planned: int


@dataclass(frozen=True)
class JudgedAverage(Judged):
    """An averaged contrast, judged: its interval is clustered by seed, and simultaneous with those of its family."""

    contrast: Averaged

    @property
    def by_setting(self) -> dict[str, float]:
        return self.contrast.by_setting


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

    factors: tuple[str, ...]
    choices: tuple[Choice, ...]

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
        self.before = Factorial(outcomes.before) if outcomes.before else self
        self.metric = study.metric.name if study.metric else ""
        self._values = {cell.name: study.values(cell.name, self.metric) for cell in study.cells}
        self._by_choices = {_key(cell.choices): cell for cell in study.cells}

    def factors(self) -> list[str]:
        """The factors that vary, in the plan's order; none where only one does, and where there is no metric, one that
        is 0 or 1 a run, or the cost to a target: a mean of these over settings has no exact test."""
        found = [name for name in self.study.factors if name in self.study.varying]
        has_means = self.metric and not (self.outcomes.is_proportion(self.metric) or target_of(self.metric))
        return found if len(found) > 1 and has_means else []

    def reference(self, factor: str) -> Choice:
        return self.study.baseline.get(factor, self.study.factors[factor][0])

    def others(self, factor: str) -> list[Choice]:
        return [choice for choice in self.study.factors[factor] if not same(choice, self.reference(factor))]

    @cached_property
    def changes(self) -> dict[tuple[str, Choice], Averaged]:
        """{(factor, choice): the change from the factor's reference to that choice}."""
        moves = [(factor, choice) for factor in self.factors() for choice in self.others(factor)]
        return {move: self.contrast(dict([move])) for move in moves}

    def judged(self, averaged: Mapping[Move, Averaged]) -> dict[Move, Judged]:
        return judge(averaged, self.study.metric, self.outcomes.alpha, self.outcomes.spent) if self.study.metric else {}

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
            if all(
                cell and cell.skip is None and not self.outcomes.unavailable(cell.name, self.metric) for _, cell in of
            )
        }
        found = {setting: by_seed for setting, of in whole.items() if (by_seed := self._by_seed(of))}
        used = [cell.name for of in whole.values() for _, cell in of]
        outcomes = [self.outcomes.of(name, self.metric) for name in used]
        seeds = sorted(set.intersection(*map(set, outcomes))) if outcomes else []
        asked = {seed: together(of[seed] for of in outcomes) for seed in seeds}
        # One mean a seed, over the settings; only seeds that every setting has, so that all seeds mean the same.
        shared = sorted(set.intersection(*map(set, found.values()))) if found else []
        values = {seed: float(np.mean([by_seed[seed] for by_seed in found.values()])) for seed in shared}
        weights = [(sign / len(found), cell.name) for setting in found for sign, cell in whole[setting]]
        regrets = self.outcomes.between(self.metric, weights)
        contrast = replace(contrast_of(values, {"": asked}, "seeds", len(found) < len(whole)), regrets=regrets)
        means = {setting: float(np.mean(list(of.values()))) for setting, of in found.items()}
        averaged = Averaged(**vars(contrast), by_setting=means, planned=len(corners))
        return self.outcomes.marked(averaged, used, lambda _: self.before.contrast(moves))

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
        return JOINT.join(self.study.choice_label(name, cell.choices[name]) for name in rest)


def _key(choices: Mapping[str, Choice]) -> frozenset[tuple[str, str | float]]:
    """The same for choices that are the same (see reader.same): 0.001 and "1e-3"."""

    def canonical(choice: Choice) -> str | float:
        try:
            number = math.nan if choice is None else float(choice)
        except (TypeError, ValueError):
            return str(choice)
        return str(choice) if math.isnan(number) else number

    return frozenset((name, canonical(choice)) for name, choice in choices.items())


def factor_effects(factorial: Factorial, found: Sequence[Interaction]) -> list[Effect]:
    """The effects of every factor's choices against its baseline's, where at least two factors vary; [] otherwise.

    found: the study's interactions.
    """
    sure = {
        move for one in found if one.verdict in DECIDED for move in zip(one.factors, map(str, one.choices), strict=True)
    }
    return [
        Effect(
            **vars(one),
            factor=factor,
            reference=factorial.reference(factor),
            choice=choice,
            depends=(factor, str(choice)) in sure,
        )
        for (factor, choice), one in factorial.judged(factorial.changes).items()
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
    judged = factorial.judged(averaged)
    return [Interaction(**vars(one), factors=pair, choices=choices) for (pair, choices), one in judged.items()]


def unmatched(factorial: Factorial) -> list[str]:
    """Changes of one factor without a value at some setting: "warmup_steps 200 (6 of 8 settings)"."""
    study = factorial.study
    if not any(study.values(cell.name, factorial.metric) for cell in study.cells):
        return []
    used = {move: len(found.by_setting) if found.values else 0 for move, found in factorial.changes.items()}
    return [
        f"{short(factor)} {choice} ({used[factor, choice]} of {found.planned} settings)"
        for (factor, choice), found in factorial.changes.items()
        if 0 < found.planned != used[factor, choice]
    ]
