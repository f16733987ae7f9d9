"""Words about a tuned study hold for the best settings: bounds on what a choice among few noisy runs may have missed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from attnlab.analysis.censoring import Bounds, ahead_of
from attnlab.analysis.contrasts import Contrast, OfCosts
from attnlab.analysis.differences import ALPHA, judge
from attnlab.analysis.reader import Metric
from attnlab.analysis.regrets import OF_REGRETS, regret_bounds


def tuned(
    rows: dict[object, list[float | None]], chosen: object, how: str = "grid", **search: object
) -> dict[str, object]:
    """What a plan keeps of one cell whose field `x` was searched."""
    trials = [
        {
            "settings": {"x": value},
            "runs": {
                str(seed): {"state": "finished", "final": {} if v is None else {"m": v}}
                for seed, v in enumerate(values)
            },
        }
        for value, values in rows.items()
    ]
    return {"how": how, "search": search or {"x": [*rows]}, "cells": {"a": {"trials": trials, "chosen": {"x": chosen}}}}


def test_the_bound_of_choices_without_an_order_is_what_noise_leaves_of_the_gap_to_the_second():
    rows = {"p": [1.0, 1.2], "q": [1.5, 1.3], "r": [2.0, 2.6]}
    values = np.array(list(rows.values()))
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    deviation = math.sqrt((residuals**2).sum() / 2)  # (3 - 1)(2 - 1) degrees of freedom
    noise = t.ppf(1 - 0.01 / 2 / 2, 2) * deviation  # times sqrt(2 / 2 seeds)
    assert regret_bounds(tuned(rows, "p"), "m", "lower", {}, 0.01)["a"] == pytest.approx(max(0.0, 1.1 - 1.4 + noise))
    higher = {key: [-v for v in of] for key, of in rows.items()}
    assert regret_bounds(tuned(higher, "p"), "m", "higher", {}, 0.01)["a"] == pytest.approx(1.1 - 1.4 + noise)
    # Asked for by what came before, each may be the best because of its noise: all ordered pairs count.
    adaptive = 1.1 - 1.4 + t.ppf(1 - 0.01 / 6 / 2, 2) * deviation
    assert regret_bounds(tuned(rows, "p", "tpe"), "m", "lower", {}, 0.01)["a"] == pytest.approx(adaptive)


def test_of_trials_with_one_seed_the_spread_is_that_of_the_comparison():
    rows = {"p": [1.0], "q": [1.5]}
    compared = {"a": [1.0, 1.3, 1.6], "b": [2.0, 2.4, 2.8]}
    pooled = math.sqrt((0.18 + 0.32) / 4)  # larger than the cell's own, 0.3
    noises = [t.ppf(1 - 0.01 / 2 / 2, 4) * pooled, t.ppf(1 - 0.01 / 2 / 2, 2) * 0.3]  # each at half of the level
    assert noises[0] < noises[1]
    bound = regret_bounds(tuned(rows, "p"), "m", "lower", compared, 0.01)["a"]
    assert bound == pytest.approx(max(0.0, noises[0] * math.sqrt(2) - 0.5))
    assert regret_bounds(tuned(rows, "p"), "m", "lower", {"a": [1.0], "b": [2.0]}, 0.01)["a"] == math.inf
    assert regret_bounds(tuned({"p": [1.0]}, "p"), "m", "lower", {}, 0.01)["a"] == 0.0


def test_of_trials_with_several_seeds_the_spread_is_theirs_and_that_of_the_comparison():
    rows = {"p": [1.0, 1.2], "q": [1.5, 1.3]}
    compared = {"a": [1.0, 1.3, 1.6], "b": [2.0, 2.4, 2.8]}
    of_trials, pairs = 0.04, 1  # of seed differences +0.2 and -0.2: (0.4 / 2)^2 with one degree of freedom
    own, everything = (of_trials + 0.18) / 3, (of_trials + 0.18 + 0.32) / 5
    noises = [
        t.ppf(1 - 0.01 / 2 / pairs / 2, df) * math.sqrt(max(s, of_trials)) for df, s in ((3, own), (5, everything))
    ]
    bound = regret_bounds(tuned(rows, "p"), "m", "lower", compared, 0.01)["a"]
    assert bound == pytest.approx(max(0.0, 1.1 - 1.4 + min(noises)))
    alone = regret_bounds(tuned(rows, "p"), "m", "lower", {}, 0.01)["a"]
    assert bound < alone / 5  # one degree of freedom says little
    # Settings off the best may scatter more than the one that was chosen does in the comparison.
    rows = {"p": [1.0, 1.2], "q": [1.5, 2.9]}
    found = regret_bounds(tuned(rows, "p"), "m", "lower", {"a": [1.0, 1.0, 1.01]}, 0.01)["a"]
    assert found > math.sqrt(0.36) * t.ppf(1 - 0.01 / 2, 3) + 1.1 - 2.2


def test_a_cell_whose_runs_scatter_does_not_speak_for_one_whose_runs_do_not():
    """As where an arm learns a task in most seeds, and another never does."""
    rows = {"p": [0.02], "q": [0.01]}
    compared = {"a": [0.02, 0.01, 0.015, 0.015, 0.01, 0.01], "b": [1.0, 1.0, 0.15, 1.0, 1.0, 1.0]}
    bound = regret_bounds(tuned(rows, "p"), "m", "higher", compared, 0.01)["a"]
    own = t.ppf(1 - 0.01 / 2 / 2, 5) * np.std(compared["a"], ddof=1) * math.sqrt(2)
    assert bound == pytest.approx(own - 0.01)
    assert bound < 0.03


@given(best=st.floats(-0.95, 0.95), curvature=st.floats(0.1, 10))
def test_between_values_on_a_scale_the_best_is_that_of_the_parabola(best, curvature):
    """Without noise the bound is what the vertex of an exact parabola lies below the best value tried, on a logarithmic scale."""
    places = [-2.0, -1.0, 0.0, 1.0, 2.0]
    loss = {10**place: curvature * (place - best) ** 2 for place in places}
    rows = {rate: [value, value + 1.0] for rate, value in loss.items()}
    chosen = min(loss, key=loss.__getitem__)
    bound = regret_bounds(tuned(rows, chosen), "m", "lower", {}, 0.01)["a"]
    assert bound == pytest.approx(loss[chosen], abs=1e-6 * curvature)
    assert regret_bounds(tuned(rows, 10**2.0), "m", "lower", {}, 0.01)["a"] == pytest.approx(
        loss[10**2.0], abs=1e-6 * curvature
    )


def test_a_setting_that_diverged_is_no_candidate():
    rows = {"p": [1.0, 1.2], "q": [1.5, 1.3], "r": [0.1, None]}
    left = {key: of for key, of in rows.items() if key != "r"}
    assert regret_bounds(tuned(rows, "p"), "m", "lower", {}, 0.01) == regret_bounds(
        tuned(left, "p"), "m", "lower", {}, 0.01
    )


COST = "steps to val/loss 2.0"
OPEN, NEVER = [800.0, None], [None, None]  # more than 800 steps; diverged


def of_costs(rows: dict[object, list[list[float | None]]], chosen: object) -> dict[str, object]:
    """The same, of trials whose costs are known between bounds."""
    found = tuned({key: [0.0] * len(ends) for key, ends in rows.items()}, chosen)
    for trial in found["cells"]["a"]["trials"]:
        for seed, run in trial["runs"].items():
            run["costs"] = {COST: rows[trial["settings"]["x"]][int(seed)]}
    return found


def test_what_a_choice_costs_too_much_is_bounded_where_the_trials_got_there():
    rows = {"p": [500.0, 520.0], "q": [560.0, 530.0], "r": [600.0, 660.0]}
    exact = {key: [[cost, cost] for cost in costs] for key, costs in rows.items()}
    plain = regret_bounds(tuned(rows, "p"), "m", "lower", {}, 0.01)["a"]
    assert 0 < plain < math.inf

    def bound(**others):
        return regret_bounds(of_costs({**exact, **others}, "p"), COST, "lower", {}, 0.01)["a"]

    assert bound() == plain
    assert bound(s=[NEVER, NEVER]) == bound(s=[[9e3, None], [9e3, None]]) == bound(s=[[9e3, 9e3], NEVER])
    assert bound(s=[NEVER, NEVER]) < math.inf
    assert bound(s=[OPEN, OPEN]) == math.inf  # 800 lies within the noise, which is wide with so few trials
    assert bound(s=[[0.0, 50.0], [0.0, 50.0]]) == math.inf  # there before the first look
    assert bound(p=[[500.0, 500.0], OPEN]) == math.inf
    assert regret_bounds(tuned(rows, "p"), COST, "lower", {}, 0.01)["a"] == math.inf  # nothing is known of costs


@given(
    costs=st.lists(st.tuples(st.floats(-300, 100), st.sampled_from([0.0, 50.0, math.inf])), min_size=6, max_size=12),
    regrets=st.tuples(st.floats(0, 200), st.floats(0, 200)),
)
def test_a_word_about_costs_holds_whatever_the_regrets_within_their_bounds(costs, regrets):
    bounds = {seed: Bounds(low, low + width) for seed, (low, width) in enumerate(costs)}
    contrast = OfCosts.of(Contrast({}, regrets=regrets), bounds, is_difference=True)
    found = judge({"a": contrast}, Metric("m", "lower"))["a"]
    plain = replace(contrast, regrets=None).interval(1 - ALPHA * (1 - OF_REGRETS))
    assert (found.interval.low, found.interval.high) == pytest.approx((plain.low - regrets[0], plain.high + regrets[1]))
    if found.verdict in ("better", "worse"):
        assert found.p_adjusted <= ALPHA
        sign = -1 if found.verdict == "better" else 1
        moved = [one.high + regrets[1] if sign < 0 else one.low - regrets[0] for one in bounds.values()]
        assert sum(sign * one > 0 for one in moved) > len(moved) / 2


def test_places_of_costs_allow_for_the_regrets():
    seeds = set(range(8))
    cheap, dear = ({seed: Bounds(cost, cost) for seed in seeds} for cost in (500.0, 600.0))
    for regret_of_dear, is_ahead in ((0.0, True), (99.0, True), (101.0, False), (math.inf, False)):
        ahead = ahead_of([cheap, dear], [seeds] * 2, 0.05, [math.inf, regret_of_dear])
        assert ahead.tolist() == [[False, is_ahead], [False, False]]


def test_a_bound_holds_as_often_as_it_says():
    random, missed = np.random.default_rng(0), 0
    for _ in range(400):
        means = random.choice([0.0, 0.5, 1.0, 2.0], 5)
        values = means[:, None] + random.standard_normal((5, 2)) + random.standard_normal(2)
        chosen = int(values.mean(axis=1).argmin())
        found = regret_bounds(
            tuned({f"s{k}": row.tolist() for k, row in enumerate(values)}, f"s{chosen}"), "m", "lower", {}, 0.2
        )["a"]
        missed += found < means[chosen] - means.min()
    assert missed / 400 <= 0.2


@given(
    values=st.lists(st.floats(-3, 1), min_size=3, max_size=8, unique=True),
    regrets=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    better=st.sampled_from(["lower", "higher"]),
)
def test_a_word_holds_whatever_the_regrets_within_their_bounds(values, regrets, better):
    contrast = Contrast(dict(enumerate(values)), regrets=regrets)
    found = judge({"a": contrast}, Metric("m", better))["a"]
    plain = replace(contrast, regrets=None).interval(1 - ALPHA * (1 - OF_REGRETS))
    assert (found.interval.low, found.interval.high) == pytest.approx((plain.low - regrets[0], plain.high + regrets[1]))
    assert (found.p_adjusted <= ALPHA) == (found.verdict in ("better", "worse")) or math.isclose(
        found.p_adjusted, ALPHA, rel_tol=1e-6
    )
