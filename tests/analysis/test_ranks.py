"""Ranks: pair by pair with scipy, consistent with the differences to the baseline, and false in at most 5% of studies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.analysis.memory import study_of

from attnlab.analysis.cells import pairs_ahead, rank_intervals
from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import Metric

LOWER, HIGHER = Metric("m"), Metric("m", "higher")


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def ranks(rows, metric=LOWER, **options):
    asked = {name: set(row) for name, row in rows.items()}
    return rank_intervals(list(rows), pairs_ahead(rows, asked, metric, **options))


def test_ranks_are_given_only_what_is_sure():
    rows = {
        "best": by_seed(1.0, 1.01, 0.99, 1.0),
        "a": by_seed(2.0, 2.1, 1.9, 2.0),
        "b": by_seed(2.0, 1.9, 2.1, 2.05),
    }
    assert ranks(rows) == {"best": (1, 1), "a": (2, 3), "b": (2, 3)}
    assert ranks(rows, HIGHER) == {"best": (3, 3), "a": (1, 2), "b": (1, 2)}


@pytest.mark.parametrize("margin", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_count_pairs_that_are_sure(seed, margin):
    """Pair by pair with scipy, with seeds that one of a pair was not asked for, and cells that are the same."""
    rng = np.random.default_rng(seed)
    rows = {f"c{i}": {s: rng.normal(i // 2, 0.2) for s in range(5) if rng.random() > 0.15} for i in range(7)}
    rows = {name: row for name, row in rows.items() if row} | {"flat": {0: 9.0, 1: 9.0}, "flat too": {0: 5.0, 1: 5.0}}
    pairs = list(itertools.combinations(rows, 2))
    best, worst = dict.fromkeys(rows, 1), dict.fromkeys(rows, len(rows))
    for one, other in pairs:
        shared = sorted(set(rows[one]) & set(rows[other]))
        difference = np.array([rows[one][s] - rows[other][s] for s in shared])
        if len(shared) > 1 and np.ptp(difference) > 0:
            low, high = stats.t.interval(
                1 - 0.05 / len(pairs), len(shared) - 1, difference.mean(), stats.sem(difference)
            )
            if low * high > 0 and not (margin and -margin <= low and high <= margin):
                first, second = (one, other) if high < 0 else (other, one)
                best[second] += 1
                worst[first] -= 1
    assert ranks(rows, Metric("m", "lower", margin)) == {name: (best[name], worst[name]) for name in rows}
    assert max(best.values()) > 2
    mirrored = {name: (len(rows) + 1 - worst[name], len(rows) + 1 - best[name]) for name in rows}
    assert ranks(rows, Metric("m", "higher", margin)) == mirrored


def test_missing_runs_count_against_every_finding():
    """Sixteen seeds of which one is missing are sure all the same (p of 15 of 16 is 0.0005), six are not."""
    for seeds, found in ((16, (1, 1)), (6, (1, 2))):
        rows = {"a": {s: 1.0 + s / 100 for s in range(seeds - 1)}, "b": {s: 2.0 + s / 50 for s in range(seeds)}}
        asked = {name: set(range(seeds)) for name in rows}
        assert rank_intervals(list(rows), pairs_ahead(rows, asked, LOWER))["a"] == found


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.floats(-5, 5), min_size=1, max_size=4), min_size=1))
def test_ranks_are_consistent(samples):
    found = ranks({name: by_seed(*sample) for name, sample in samples.items()})
    for best, worst in found.values():
        assert 1 <= best <= worst <= len(samples)


@pytest.mark.parametrize("seed", range(20))
def test_with_a_baseline_the_ranks_say_what_the_differences_say(seed):
    rng = np.random.default_rng(seed)
    values = {(f"n{i}",): {s: rng.normal(0.4 * rng.integers(0, 3), 0.1) for s in range(5)} for i in range(5)}
    cells = compare(study_of(values)).cells
    baseline = next(cell for cell in cells if cell.is_baseline)
    better = sum(cell.difference.verdict == "better" for cell in cells if cell.difference)
    worse = sum(cell.difference.verdict == "worse" for cell in cells if cell.difference)
    assert baseline.rank_interval == (1 + better, 5 - worse)
    for cell in cells:
        if cell.difference and cell.difference.verdict == "better":
            assert cell.rank_interval[1] < 5
        if cell.difference and cell.difference.verdict == "worse":
            assert cell.rank_interval[0] > 1


@pytest.mark.parametrize("equal", [2, 4, 6])
def test_differences_and_ranks_together_are_seldom_false(equal):
    """Of six cells `equal` are the same as the baseline or, where that is one of the others, as one another; the others far from all."""
    rng = np.random.default_rng(equal)
    false, studies, size = 0, 1500, 5
    quantile = stats.t.ppf(1 - 0.05 / size / 2, 3)
    for _ in range(studies):
        shift = [0.0] * equal + [50.0 * (i + 1) for i in range(6 - equal)]
        order = rng.permutation(6)
        rows = {i: {s: shift[i] + rng.standard_normal() for s in range(4)} for i in order}
        names = list(rows)
        base = names[0]
        verdicts = {}
        for name in names[1:]:
            d = np.array([rows[name][s] - rows[base][s] for s in range(4)])
            half = quantile * d.std(ddof=1) / 2
            verdicts[name] = "better" if d.mean() + half < 0 else "worse" if d.mean() - half > 0 else "undecided"
        found = ranks(rows, baseline=base, verdicts=verdicts, size=size)
        same = [i for i in rows if i < equal]
        # Of cells that are the same none may be ranked behind another: all share first place, as the others are far behind.
        false += any(found[i] != (1, found[i][1]) or found[i][1] < equal for i in same)
    assert false / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
