"""Factorial sweeps: what a choice changes with every other factor held fixed, and how far that depends on the choice of another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from attnlab.analysis.crossing import Crossing
from attnlab.analysis.differences import DECIDED, Judged, judge
from attnlab.analysis.reader import short


@dataclass(frozen=True)
class Effect(Judged):
    """The mean change when `factor` goes from `reference` to `choice` and nothing else does.

    One value a seed (the mean over the settings of the other factors), so that the interval is clustered by seed, and simultaneous with those
    of all effects. `by_setting` has the mean change at each setting of the others, `planned` counts the settings of the plan;
    `depends` says that an interaction with it is sure (see `interactions`), so that its average says little.
    """

    factor: str
    reference: Any
    choice: Any
    by_setting: dict[str, float]
    planned: int
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
    def lowest(self) -> tuple[str, float]:
        """The setting with the smallest change, and that change."""
        return min(self.by_setting.items(), key=lambda item: item[1])

    @property
    def highest(self) -> tuple[str, float]:
        """The setting with the largest change, and that change."""
        return max(self.by_setting.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Interaction(Judged):
    """The difference of differences of two factors: what both choices change together, minus what each changes alone.

    For factors f and g it is (f and g changed - only g) - (only f - neither), the interaction term of a linear model with treatment coding.
    One value a seed, the mean over the settings of the remaining factors; the interval is simultaneous with those of all interactions.
    Settings and seeds of which one of the four cells has no value are left out: `by_setting` has the means of those used, `planned` counts all.
    """

    factors: tuple[str, str]
    references: tuple[Any, Any]
    choices: tuple[Any, Any]
    by_setting: dict[str, float]
    planned: int

    @property
    def label(self) -> str:
        """ "residual post_ln x warmup_steps 200"."""
        return " x ".join(
            f"{short(factor)} {choice}" for factor, choice in zip(self.factors, self.choices, strict=True)
        )


def factor_effects(crossing: Crossing, found: list[Interaction]) -> list[Effect]:
    """The effects of every factor's choices against its baseline's, for a study with at least two varying factors; [] otherwise.

    found: the study's interactions.
    """
    metric, averaged = crossing.study.metric, crossing.changes
    if metric is None:
        return []
    judged = judge({move: one.contrast for move, one in averaged.items()}, metric, crossing.outcomes.alpha)
    sure = {
        move for one in found if one.verdict in DECIDED for move in zip(one.factors, map(str, one.choices), strict=True)
    }
    return [
        Effect(
            **vars(one),
            factor=factor,
            reference=crossing.reference(factor),
            choice=choice,
            by_setting=averaged[factor, choice].by_setting,
            planned=averaged[factor, choice].planned,
            depends=(factor, str(choice)) in sure,
        )
        for (factor, choice), one in judged.items()
    ]


def interactions(crossing: Crossing) -> list[Interaction]:
    """The interactions of every pair of factors and of their choices with the baseline's choices; [] where there are none.

    A contrast is left out where no seed has all of its cells: it then has no value.
    """
    metric = crossing.study.metric
    if metric is None:
        return []
    averaged = {
        (pair, choices): crossing.contrast(dict(zip(pair, choices, strict=True)))
        for pair in combinations(crossing.factors(), 2)
        for choices in product(*map(crossing.others, pair))
    }
    judged = judge({move: one.contrast for move, one in averaged.items()}, metric, crossing.outcomes.alpha)
    return [
        Interaction(
            **vars(one),
            factors=pair,
            references=(crossing.reference(pair[0]), crossing.reference(pair[1])),
            choices=choices,
            by_setting=averaged[pair, choices].by_setting,
            planned=averaged[pair, choices].planned,
        )
        for (pair, choices), one in judged.items()
    ]


def unmatched(crossing: Crossing) -> list[str]:
    """The changes of one factor that have no value, or not one at every setting of the plan: "warmup_steps 200 (6 of 8 settings)"."""
    study, names = crossing.study, []
    is_measured = any(study.values(cell.name, crossing.metric) for cell in study.cells)
    for (factor, choice), found in crossing.changes.items():
        used = len(found.by_setting) if found.contrast.values else 0
        if 0 < found.planned != used and is_measured:
            names.append(f"{short(factor)} {choice} ({used} of {found.planned} settings)")
    return names
