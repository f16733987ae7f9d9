"""Factorial sweeps: what a choice changes, with every other factor held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnlab.analysis import statistics
from attnlab.analysis.reader import Cell, Study, same
from attnlab.analysis.statistics import Interval, mean_interval, paired


@dataclass(frozen=True)
class FactorEffect:
    """The mean change when `factor` goes from `reference` to `choice` and nothing else does.

    One value a seed (the mean over the settings of the other factors), so the interval is clustered by seed. `by_setting` has the mean
    change at each setting of the others: where these lie far apart, the factor interacts with another.
    """

    factor: str
    reference: Any
    choice: Any
    interval: Interval
    p_holm: float
    by_setting: dict[str, float]

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
    factors = [name for name in study.factors if name in study.varying]
    if len(factors) < 2:
        return []
    found = []
    for factor in factors:
        choices = study.factors[factor]
        reference = study.baseline.get(factor, choices[0])
        for choice in choices:
            if not same(choice, reference):
                found.append((factor, reference, choice, _matched(study, values, factor, reference, choice)))
    found = [entry for entry in found if entry[3]]
    by_seed = [_over_settings(entry[3]) for entry in found]
    p_values = [statistics.t_p(seeds) if len(seeds) > 1 else 1.0 for seeds in by_seed]
    levels = statistics.holm_levels(p_values, alpha)
    rows = zip(found, by_seed, statistics.holm(p_values), levels, strict=True)
    return [_effect(study, *entry, seeds, p, level) for entry, seeds, p, level in rows if seeds]


def _matched(
    study: Study, values: Mapping[str, Mapping[int, float]], factor: str, reference: Any, choice: Any
) -> dict[str, dict[int, float]]:
    """{setting of the other factors: {seed: choice minus reference}}."""
    pairs = {}
    for cell in study.cells:
        if same(cell.choices.get(factor), choice) and values.get(cell.name):
            other = _sibling(study, cell, factor, reference)
            differences = paired(values[cell.name], values.get(other.name, {})) if other else {}
            if differences:
                rest = [
                    study.choice_label(name, cell.choices[name])
                    for name in study.varying
                    if name in cell.choices and name != factor
                ]
                pairs[", ".join(rest)] = differences
    return pairs


def _sibling(study: Study, cell: Cell, factor: str, choice: Any) -> Cell | None:
    wanted = {**cell.choices, factor: choice}
    return next((c for c in study.matching(wanted) if set(c.choices) == set(wanted)), None)


def _over_settings(pairs: Mapping[str, Mapping[int, float]]) -> list[float]:
    """One mean a seed, over the settings; only seeds that every setting has, so that the seeds mean the same."""
    shared = set.intersection(*(set(pair) for pair in pairs.values()))
    return [float(np.mean([pair[seed] for pair in pairs.values()])) for seed in sorted(shared)]


def _effect(
    study: Study,
    factor: str,
    reference: Any,
    choice: Any,
    pairs: Mapping[str, Mapping[int, float]],
    seeds: list[float],
    p_holm: float,
    level: float,
) -> FactorEffect:
    means = {setting: float(np.mean(list(pair.values()))) for setting, pair in pairs.items()}
    return FactorEffect(factor, reference, choice, mean_interval(seeds, level), p_holm, means)
