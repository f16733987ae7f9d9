"""Scores over many tasks: aggregates with stratified bootstrap intervals, performance profiles, probability of
improvement, average ranks.

Scores are normalised, more is better. The aggregates are those of Agarwal et al. 2021 (arXiv 2108.13264), as their
library rliable computes them; the ranks are those of Demsar 2006 (JMLR 7). Letters of shapes: A arms, S seeds, T tasks,
R resamples, P points of a profile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from attnlab.analysis.statistics import Interval

RESAMPLES, OF_PROFILES = 10_000, 2_000
AT_ONCE = 1 << 22  # numbers that are resampled together: some 32 MB
Statistic = Callable[[np.ndarray], np.ndarray]
Draws = np.random.Generator | np.random.RandomState


def interquartile_mean(scores_ST: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all runs of all tasks (..., S, T): a quarter, rounded down, is cut off
    either end."""
    flat = np.sort(scores_ST.reshape(*scores_ST.shape[:-2], -1), axis=-1)
    cut = int(0.25 * flat.shape[-1])
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def mean(scores_ST: np.ndarray) -> np.ndarray:
    return np.asarray(scores_ST.mean(axis=(-2, -1)))


def median(scores_ST: np.ndarray) -> np.ndarray:
    """The median over tasks of the mean over seeds."""
    return np.asarray(np.median(scores_ST.mean(axis=-2), axis=-1))


def optimality_gap(scores_ST: np.ndarray) -> np.ndarray:
    """How far runs stay below 1 on average; what is above 1 counts as 1."""
    return np.asarray(1.0 - np.minimum(scores_ST, 1.0).mean(axis=(-2, -1)))


AGGREGATES: dict[str, Statistic] = {
    "IQM": interquartile_mean,
    "mean": mean,
    "median": median,
    "optimality gap": optimality_gap,
}


def resampled(scores_ST: np.ndarray, resamples: int, draws: Draws) -> np.ndarray:
    """Resamples of the seeds within each task, independently of the other tasks: (R, S, T)."""
    seeds, tasks = scores_ST.shape
    return np.asarray(scores_ST[draws.choice(seeds, size=(resamples, seeds, tasks)), np.arange(tasks)])


def bootstrap(
    statistic: Callable[..., np.ndarray],
    scores: Sequence[np.ndarray],
    draws: Draws,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the percentile interval of a statistic of one or more arms (S, T), whose seeds are resampled within
    each task, arms independently of each other."""
    step = max(1, AT_ONCE // sum(one.size for one in scores))
    counts = [min(step, resamples - start) for start in range(0, resamples, step)]
    found = np.concatenate([statistic(*(resampled(one, count, draws) for one in scores)) for count in counts])
    low, high = np.percentile(found, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return low, high


def aggregate(statistic: Statistic, scores_ST: np.ndarray, level: float = 0.95) -> Interval:
    """An aggregate with its stratified bootstrap interval (seeded); of one seed without bounds."""
    return _with_interval(statistic, [scores_ST], level)


def probability_of_improvement(first_ST: np.ndarray, second_ST: np.ndarray) -> np.ndarray:
    """P(X > Y) of a run of the first and one of the second, ties half (Mann-Whitney), averaged over tasks: (...)."""
    own, other = first_ST[..., :, None, :], second_ST[..., None, :, :]
    return np.asarray((0.5 * ((own > other).astype(float) + (own >= other))).mean(axis=(-3, -2, -1)))


def improvement(first_ST: np.ndarray, second_ST: np.ndarray, level: float = 0.95) -> Interval:
    """`probability_of_improvement` with its stratified bootstrap interval (seeded)."""
    return _with_interval(probability_of_improvement, [first_ST, second_ST], level)


def _with_interval(statistic: Callable[..., np.ndarray], scores: Sequence[np.ndarray], level: float) -> Interval:
    value, seeds = float(statistic(*scores)), min(len(one) for one in scores)
    if seeds < 2:
        return Interval(value, -math.inf, math.inf, level, seeds, math.nan, "one seed")
    low, high = bootstrap(statistic, scores, np.random.default_rng(0), level=level)
    return Interval(value, float(low), float(high), level, seeds, math.nan)


def profile(scores_ST: np.ndarray, above_P: np.ndarray) -> np.ndarray:
    """The share of all runs with a score above each point (P,): the run-score distribution."""
    flat = np.sort(scores_ST, axis=None)
    return 1.0 - np.searchsorted(flat, above_P, side="right") / flat.size


def profile_band(scores_ST: np.ndarray, above_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pointwise 95% stratified bootstrap band of `profile` (seeded): its ends (P,)."""

    def of(scores_RST: np.ndarray) -> np.ndarray:
        return np.stack([profile(one_ST, above_P) for one_ST in scores_RST])

    return bootstrap(of, [scores_ST], np.random.default_rng(0), OF_PROFILES)


# --- ranks


@dataclass(frozen=True)
class Ranks:
    """Average ranks over tasks, 1 the best, ties sharing theirs; p of Friedman's test that all arms are alike, nan of
    two arms; the critical difference of Nemenyi's test at `alpha`.

    `fewest_tasks`: with fewer, no two of so many arms can be told apart, whatever their ranks. `groups`: arms in the
    order of their ranks that lie within the critical difference of each other, each group as large as it can be.
    """

    average: list[float]
    tasks: int
    p: float
    critical_difference: float
    fewest_tasks: int
    groups: list[list[int]]
    alpha: float


def average_ranks(means_AT: np.ndarray, alpha: float = 0.05) -> Ranks:
    """Ranks the arms within each task by their mean score. Raises ValueError for fewer than two arms."""
    from scipy.stats import rankdata  # costs as much as the rest of this package together

    arms, tasks = means_AT.shape
    if arms < 2:
        raise ValueError(f"ranks must be of at least 2 arms, got {arms}")
    average = rankdata(-means_AT, axis=0).mean(axis=1)
    apart = critical_difference(arms, tasks, alpha)
    fewest = math.ceil((critical_difference(arms, 1, alpha) / (arms - 1)) ** 2 - 1e-12)
    p = friedman_p(means_AT) if arms > 2 else math.nan
    return Ranks(average.tolist(), tasks, p, apart, fewest, _groups(average, apart), alpha)


def friedman_p(means_AT: np.ndarray) -> float:
    """p of Friedman's test (chi-squared, corrected for ties) that at least three arms are alike; 1 where all tie."""
    from scipy.stats import friedmanchisquare

    with np.errstate(all="ignore"):
        p = float(friedmanchisquare(*means_AT).pvalue)
    return 1.0 if math.isnan(p) else p


def critical_difference(arms: int, tasks: int, alpha: float = 0.05) -> float:
    """The difference of average ranks from which Nemenyi's test tells two arms apart (Demsar 2006, section 3.2.2)."""
    return _studentized_range(arms, alpha) * math.sqrt(arms * (arms + 1) / (12 * tasks))


@cache
def _studentized_range(arms: int, alpha: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - alpha, arms, math.inf))


def _groups(average: np.ndarray, apart: float) -> list[list[int]]:
    order = [int(arm) for arm in np.argsort(average, kind="stable")]
    near = [
        [arm for arm in order[start:] if average[arm] - average[first] <= apart] for start, first in enumerate(order)
    ]
    # A group that ends where the one before does is a part of it.
    ends = [None, *(group[-1] for group in near)]
    return [group for before, group in zip(ends, near, strict=False) if len(group) > 1 and group[-1] != before]
