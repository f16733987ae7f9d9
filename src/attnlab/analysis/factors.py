"""Factorial sweeps: what a choice changes, with every other factor held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlab.analysis import statistics
from attnlab.analysis.crossing import Crossing, over_settings
from attnlab.analysis.reader import Study
from attnlab.analysis.statistics import Interval, paired_interval


@dataclass(frozen=True)
class FactorEffect:
    """The mean change when `factor` goes from `reference` to `choice` and nothing else does.

    One value a seed (the mean over the settings of the other factors), so the interval is clustered by seed; it is drawn at the level
    that Holm's method gives it among all effects. `by_setting` has the mean change at each setting of the others: where these lie far
    apart, the factor interacts with another. `planned` counts the settings of the plan, with those that have no values.
    """

    factor: str
    reference: Any
    choice: Any
    interval: Interval
    p_holm: float
    by_setting: dict[str, float]
    planned: int

    @property
    def lowest(self) -> tuple[str, float]:
        """The setting with the smallest change, and that change."""
        return min(self.by_setting.items(), key=lambda item: item[1])

    @property
    def highest(self) -> tuple[str, float]:
        """The setting with the largest change, and that change."""
        return max(self.by_setting.items(), key=lambda item: item[1])

    def is_mixed(self, margin: float) -> bool:
        """Whether the change goes beyond the margin upwards in one setting and downwards in another."""
        return margin > 0 and self.lowest[1] < -margin and self.highest[1] > margin


def factor_effects(study: Study, values: Mapping[str, Mapping[int, float]], alpha: float = 0.05) -> list[FactorEffect]:
    """The effects of every factor's choices against its baseline's, for a study with at least two varying factors; [] otherwise."""
    crossing = Crossing(study, values)
    factors = crossing.factors()
    if len(factors) < 2:
        return []
    moves = [(factor, choice) for factor in factors for choice in crossing.others(factor)]
    contrasts = [crossing.contrast({factor: choice}) for factor, choice in moves]
    by_seed = [list(over_settings(found).values()) for found, _ in contrasts]
    kept = [index for index, seeds in enumerate(by_seed) if seeds]
    p_values = [statistics.t_p(by_seed[index]) for index in kept]
    effects = []
    for index, p, level in zip(kept, statistics.holm(p_values), statistics.holm_levels(p_values, alpha), strict=True):
        (factor, choice), (found, planned) = moves[index], contrasts[index]
        means = {setting: float(np.mean(list(pair.values()))) for setting, pair in found.items()}
        interval = paired_interval(by_seed[index], level)
        effects.append(FactorEffect(factor, crossing.reference(factor), choice, interval, p, means, planned))
    return effects
