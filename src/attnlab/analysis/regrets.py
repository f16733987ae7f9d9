"""How much worse the setting that a tuning chose may be than the best one within what was searched: bounds on regrets.

A choice among few noisy runs may miss the best setting, and an arm that depends more on its setting then loses more: a
difference at the settings chosen is real, and still says nothing about the arms. So words about a tuned study have to
hold for the best settings of both arms.

If b is the best of a cell's settings and c the one that was chosen, c is worse by at most the mean of c minus that of b
plus what noise may have added, and so by at most the largest such sum over all settings that may be b (multiple
comparisons with the best: Hsu 1981, Ann. Statist. 9:1026), whichever was chosen and by whatever rule. The best value of
a numeric field may lie between those tried: below b by as much as the vertex of a parabola through b and its nearest
neighbours in that field, field by field, with their differences as noise may have made them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from attnlab.analysis.file_cache import listed, mapping
from attnlab.training.study_fields import is_finite
from attnlab.training.targets import target_of

OF_REGRETS = 0.2  # of a family's alpha, the bounds' share; the intervals of differences have the rest
WIDE = 5.0  # ratio of largest to smallest from which positive values of a list are taken to be on a logarithmic scale


class Spread(NamedTuple):
    """The sum of squares of what is left of runs, in a cell or several, and its degrees of freedom."""

    squares: float = 0.0
    freedom: float = 0.0

    @property
    def deviation(self) -> float:
        """Of a run; 0 where nothing is known."""
        return math.sqrt(self.squares / self.freedom) if self.freedom else 0.0

    @classmethod
    def of(cls, values_KS: np.ndarray) -> Spread:
        """What is left beside settings and seeds (two-way analysis of variance) of trials (K settings, S seeds)."""
        num_settings, num_seeds = values_KS.shape
        if num_settings < 2 or num_seeds < 2:
            return cls()
        residuals_KS = values_KS - values_KS.mean(axis=1, keepdims=True)
        residuals_KS = residuals_KS - residuals_KS.mean(axis=0, keepdims=True)
        return cls(float((residuals_KS**2).sum()), float((num_settings - 1) * (num_seeds - 1)))

    @classmethod
    def around_mean(cls, values: Sequence[float]) -> Spread:
        """What is left of a cell's runs in the comparison, seeds and all."""
        found = np.asarray(values, dtype=float)
        return cls(float(((found - found.mean()) ** 2).sum()), float(found.size - 1)) if found.size > 1 else cls()

    @classmethod
    def pooled(cls, spreads: Iterable[Spread]) -> Spread:
        """Of several together."""
        known = list(spreads)
        return cls(sum(one.squares for one in known), sum(one.freedom for one in known))


@dataclass(frozen=True)
class Axis:
    """A numeric field that was searched: its name, scale and ends."""

    name: str
    is_log: bool
    low: float
    high: float

    def at(self, value: object) -> float:
        """Where a value lies on it."""
        number = float(str(value))
        return math.log(number) if self.is_log else number


def axes_of(search: Mapping[str, object]) -> list[Axis]:
    """The numeric fields, each on the scale that it says, or that its values lie on."""
    axes = []
    for name, values in search.items():
        said = mapping(values)
        numbers = [said.get("low"), said.get("high")] if said else listed(values)
        if len(numbers) > 1 and all(map(is_finite, numbers)):
            low, high = min(numbers), max(numbers)  # type: ignore[type-var]
            is_log = said["scale"] == "log" if said else low > 0 and high / low >= WIDE  # type: ignore[operator]
            axis = Axis(name, is_log, 0.0, 0.0)
            axes.append(Axis(name, is_log, axis.at(low), axis.at(high)))
    return axes


def regret_bounds(
    tuned: Mapping[str, object],
    metric: str,
    better: str,
    compared: Mapping[str, Sequence[float]],
    alpha: float,
) -> dict[str, float]:
    """{cell: by how much its setting may be worse than the best}, all true with a chance of 1 - alpha.

    tuned: of plan.json; compared: each cell's values in the comparison. Settings with a run that has no value are no
    candidates for the best; of a cost to a target nothing is known where what such runs cost at least may be less than
    that of the best. Spread: what is left of a cell's trials beside its settings and seeds, alike for all
    settings (two-way analysis of variance), and of its runs in the comparison: pooled over cells, or of the cell where
    that is larger, or else of the cell alone with its few degrees of freedom, whichever leaves less noise, each at half
    of the level; never less than that of the cell's trials by themselves, in which settings off the best may scatter
    more. So cells whose runs scatter do not speak for one whose runs do not. Infinite where no spread is known.
    """
    cells, axes = mapping(tuned.get("cells")), axes_of(mapping(tuned.get("search")))
    sign, found = 1.0 if better == "lower" else -1.0, dict.fromkeys(cells, math.inf)
    trials = {name: trials_of(mapping(cell), metric) for name, cell in cells.items()}
    known = {name: np.isfinite(values_KS).all(axis=1) for name, (_, values_KS, _) in trials.items()}
    of_trials = {name: Spread.of(values_KS[known[name]]) for name, (_, values_KS, _) in trials.items()}
    of_runs = {name: Spread.around_mean(values) for name, values in compared.items()}
    everything = Spread.pooled([*of_trials.values(), *of_runs.values()])
    for name, (settings, values_KS, chosen) in trials.items():
        known_K, least_K = known[name], _least_costs(mapping(cells[name]), metric)
        if chosen < 0 or not known_K[chosen]:
            continue
        # Bonferroni over pairs, on both sides. Which setting is the best is not given where later ones follow from the
        # values of earlier ones: then all pairs count.
        pairs = (known_K.sum() - 1) * (known_K.sum() if tuned.get("how") == "tpe" else 1)
        level = alpha / len(cells) / max(1, 2 * pairs)
        tried = [one for one, is_known in zip(settings, known_K, strict=True) if is_known]
        values_KS = values_KS[known_K]
        own = Spread.pooled([of_trials[name], of_runs.get(name, Spread())])
        noise = _noise(own, everything, of_trials[name].deviation, level) * math.sqrt(2 / values_KS.shape[1])
        means_K = sign * values_KS.mean(axis=1)
        bound = _bound(tried, means_K, int(known_K[:chosen].sum()), noise, axes)
        unsure = target_of(metric) and (least_K[~known_K] <= means_K.min() + noise).any()
        found[name] = math.inf if unsure else bound
    return found


def trials_of(cell: Mapping[str, object], metric: str) -> tuple[list[dict[str, object]], np.ndarray, int]:
    """A cell's different settings, their values by seed, (K settings, S seeds), and the place of the one chosen.

    NaN stands where a run has none.
    """
    tried = _settings_of(cell)
    rows = [[_value(run, metric) for run in _runs_of(one)] for one in tried.values()]
    width = max(map(len, rows), default=0)
    values_KS = np.array([row + [math.nan] * (width - len(row)) for row in rows]).reshape(len(rows), width)
    chosen = repr(cell.get("chosen"))
    place = list(tried).index(chosen) if chosen in tried else -1
    return [mapping(one["settings"]) for one in tried.values()], values_KS, place


def _settings_of(cell: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return {repr(one["settings"]): one for one in map(mapping, listed(cell.get("trials"))) if "settings" in one}


def _runs_of(trial: Mapping[str, object]) -> list[object]:
    return [run for _, run in sorted(mapping(trial.get("runs")).items(), key=_by_seed)]


def _value(run: object, metric: str) -> float:
    if target_of(metric):
        low, high = _ends_of_cost(run, metric)
        return low if low == high else math.nan
    value = mapping(mapping(run).get("final")).get(metric)
    return float(value) if is_finite(value) else math.nan


def _ends_of_cost(run: object, metric: str) -> tuple[float, float]:
    """Between what a trial's cost lies; infinite where it never got there, or nothing is known of it."""
    ends = listed(mapping(mapping(run).get("costs")).get(metric))
    low, high = (float(end) if is_finite(end) else math.inf for end in (ends if len(ends) == 2 else (None, None)))
    return low, high


def _least_costs(cell: Mapping[str, object], metric: str) -> np.ndarray:
    """What each setting's runs cost in the mean at least."""
    rows = [[_ends_of_cost(run, metric)[0] for run in _runs_of(one)] for one in _settings_of(cell).values()]
    return np.array([float(np.mean(row)) if row else math.inf for row in rows])


def _by_seed(run: tuple[str, object]) -> int:
    return int(run[0]) if run[0].isdecimal() else 0


def _noise(own: Spread, everything: Spread, least: float, level: float) -> float:
    """What noise adds to one run at most, but for a chance of `level`, by the spread of a cell or that of all cells.
    least: the deviation of a run at least."""
    spreads = {own.freedom: max(own.deviation, least)}
    spreads[everything.freedom] = max(everything.deviation, own.deviation, least)
    spreads.pop(0.0, None)
    share = level / max(1, len(spreads))
    noises = (float(stdtrit(freedom, 1 - share)) * deviation for freedom, deviation in spreads.items())
    return min(noises, default=math.inf)


def _bound(
    settings: Sequence[Mapping[str, object]], means_K: np.ndarray, chosen: int, noise: float, axes: Sequence[Axis]
) -> float:
    """noise: of the difference of two settings at most."""
    num_settings = len(settings)
    if num_settings < 2:
        return 0.0
    if not math.isfinite(noise):
        return math.inf
    candidates = [k for k in range(num_settings) if means_K[k] <= means_K.min() + noise]
    bounds = [
        means_K[chosen] - means_K[k] + noise * (k != chosen) + _between(settings, means_K, k, noise, axes)
        for k in {*candidates, chosen}
    ]
    return max(0.0, float(max(bounds)))


def _between(
    settings: Sequence[Mapping[str, object]], means_K: np.ndarray, best: int, noise: float, axes: Sequence[Axis]
) -> float:
    """How far below the best setting tried the best may lie between it and its neighbours, in all numeric fields."""
    depth = 0.0
    for axis in axes:
        others = {name: value for name, value in settings[best].items() if name != axis.name}
        here = axis.at(settings[best][axis.name])
        line = sorted(
            (axis.at(one[axis.name]) - here, float(mean - means_K[best]))
            for one, mean in zip(settings, means_K, strict=True)
            if all(one[name] == value for name, value in others.items())
        )
        place = [offset for offset, _ in line].index(0.0)
        depth += _depth(line[:place], line[place + 1 :], noise, (axis.low - here, axis.high - here))
    return depth


def _depth(
    left: Sequence[tuple[float, float]],
    right: Sequence[tuple[float, float]],
    noise: float,
    ends: tuple[float, float],
) -> float:
    """How far a parabola through the best setting, at 0, and two neighbours (offset, rise) falls below it: on either
    side as far as the first of them or, where there is none, the end of the range."""
    near = [*left[-1:], *right[:1]] if left and right else [*left[::-1][:2], *right[:2]]
    if len(near) < 2:
        return 0.0
    (u, rise), (v, other) = near
    low, high = left[-1][0] if left else ends[0], right[0][0] if right else ends[1]
    found = [0.0]
    for a, b in itertools.product(_ends(rise, noise), _ends(other, noise)):
        curvature = (a / u - b / v) / (u - v)
        slope = a / u - curvature * u
        vertex = -slope / (2 * curvature) if curvature > 0 else math.copysign(math.inf, -slope)
        at = min(max(vertex, low), high)
        found.append(-(slope * at + curvature * at**2))
    return max(found)


def _ends(rise: float, noise: float) -> Iterator[float]:
    """How large a rise above the best may be, which is none below it."""
    yield max(0.0, rise - noise)
    yield max(0.0, rise + noise)
