"""Two-factor interactions of a factorial sweep: by how much the change of one factor depends on the choice of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from attnlab.analysis import statistics
from attnlab.analysis.crossing import Crossing, over_settings
from attnlab.analysis.reader import Study, short
from attnlab.analysis.statistics import Interval, paired_interval


@dataclass(frozen=True)
class Interaction:
    """The difference of differences of two factors: what both choices change together, minus what each changes alone.

    For factors f and g it is (f and g changed - only g) - (only f - neither), the interaction term of a linear model with treatment coding.
    `values` has one a seed, the mean over the settings of the remaining factors, so that the interval is clustered by seed; it is
    drawn at the level that Holm's method gives it in the family of all interactions of the study. Settings and seeds of which one of the
    four cells has no value are left out: `by_setting` has the means of those used, `planned` counts all.
    """

    factors: tuple[str, str]
    references: tuple[Any, Any]
    choices: tuple[Any, Any]
    values: dict[int, float]
    interval: Interval
    p_t: float
    p_holm: float
    by_setting: dict[str, float]
    planned: int

    @property
    def label(self) -> str:
        """ "residual post_ln x warmup_steps 200"."""
        return " x ".join(
            f"{short(factor)} {choice}" for factor, choice in zip(self.factors, self.choices, strict=True)
        )


def interactions(study: Study, values: Mapping[str, Mapping[int, float]], alpha: float = 0.05) -> list[Interaction]:
    """The interactions of every pair of factors and of their choices with the baseline's choices; [] where there are none.

    A contrast is left out where no seed has all of its cells: it then has no value.
    """
    crossing = Crossing(study, values)
    contrasts = []
    for first, second in combinations(crossing.factors(), 2):
        for choices in product(crossing.others(first), crossing.others(second)):
            found, planned = crossing.contrast(dict(zip((first, second), choices, strict=True)))
            by_seed = over_settings(found)
            if by_seed:
                contrasts.append(((first, second), choices, by_seed, found, planned))
    p_values = [statistics.t_p(list(by_seed.values())) for _, _, by_seed, _, _ in contrasts]
    adjusted, levels = statistics.holm(p_values), statistics.holm_levels(p_values, alpha)
    return [
        Interaction(
            factors=pair,
            references=(crossing.reference(pair[0]), crossing.reference(pair[1])),
            choices=choices,
            values=by_seed,
            interval=paired_interval(list(by_seed.values()), level),
            p_t=p,
            p_holm=p_holm,
            by_setting={setting: float(np.mean(list(of.values()))) for setting, of in found.items()},
            planned=planned,
        )
        for (pair, choices, by_seed, found, planned), p, p_holm, level in zip(
            contrasts, p_values, adjusted, levels, strict=True
        )
    ]


def unmatched(study: Study, values: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The changes of one factor that have no value, or not one at every setting of the plan: "warmup_steps 200 (6 of 8 settings)"."""
    crossing = Crossing(study, values)
    factors = crossing.factors()
    if len(factors) < 2:
        return []
    names = []
    for factor in factors:
        for choice in crossing.others(factor):
            found, planned = crossing.contrast({factor: choice})
            used = len(found) if over_settings(found) else 0
            if 0 < planned != used and any(values.values()):
                names.append(f"{short(factor)} {choice} ({used} of {planned} settings)")
    return names
