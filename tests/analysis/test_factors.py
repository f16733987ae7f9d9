"""Interactions and average effects against linear models and repeated-measures ANOVA of statsmodels, and on grids with holes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM
from tests.analysis.memory import crossed, study_of

from attnlab.analysis.comparison import compare
from attnlab.analysis.differences import Outcomes
from attnlab.analysis.factors import Factorial, interactions
from attnlab.analysis.headline import headline
from attnlab.report.page import render

LEVELS = {"f": ["f0", "f1"], "g": ["g0", "g1", "g2"], "h": ["h0", "h1"]}
PLANTED = {("f1", "g1"): 0.5, ("f1", "g2"): -0.2}


def value(f, g, h, seed):
    """Main effects, a planted interaction of f and g, noise that a seed shares and noise of each run."""
    own = np.random.default_rng([seed, *(ord(name[1]) for name in (f, g, h))]).normal(0, 0.03)
    shared = np.random.default_rng(seed).normal(0, 0.5)
    return 2.0 + 0.3 * (f == "f1") - 0.1 * (g == "g1") + 0.2 * (h == "h1") + PLANTED.get((f, g), 0.0) + shared + own


@pytest.fixture(scope="module")
def grid():
    return crossed(value, LEVELS, range(5))


@pytest.fixture(scope="module")
def comparison(grid):
    return compare(study_of(grid, tuple(LEVELS), baseline=("f0", "g0", "h0")))


def frame(grid, **keep):
    rows = [(*choices, seed, v) for choices, by_seed in grid.items() for seed, v in by_seed.items()]
    table = pd.DataFrame(rows, columns=[*LEVELS, "seed", "y"])
    for name, choices in keep.items():
        table = table[table[name].isin(choices)]
    return table


def by_choices(comparison):
    return {frozenset(one.choices): one for one in comparison.interactions}


def test_means_are_the_coefficients_of_a_linear_model(grid, comparison):
    """Averaged over h, (f, g) has the coefficients of the model f * g + h; and so for the other pairs."""
    found = by_choices(comparison)
    assert len(found) == 2 + 1 + 2
    for pair in (("f", "g"), ("f", "h"), ("g", "h")):
        (rest,) = set(LEVELS) - set(pair)
        fit = ols(f"y ~ {pair[0]} * {pair[1]} * C({rest}, Sum) + C(seed)", frame(grid)).fit()
        for choices, one in ((c, o) for c, o in found.items() if o.factors == pair):
            first, second = sorted(choices)
            assert one.interval.mean == pytest.approx(
                fit.params[f"{pair[0]}[T.{first}]:{pair[1]}[T.{second}]"], abs=1e-9
            )
            assert (one.interval.n, one.contrast.planned, len(one.by_setting)) == (
                5,
                len(LEVELS[rest]),
                len(LEVELS[rest]),
            )


def test_p_values_are_those_of_a_repeated_measures_anova(grid):
    """On factors of two choices each, with the seed as the subject; that of an average effect, too."""
    two = {choices: row for choices, row in grid.items() if choices[1] != "g2"}
    comparison = compare(study_of(two, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    table = AnovaRM(frame(grid, g=["g0", "g1"]), "y", "seed", within=list(LEVELS)).fit().anova_table
    for one in comparison.interactions:
        row = table.loc[":".join(one.factors)]
        assert one.p == pytest.approx(row["Pr > F"], rel=1e-6)
        deviation, n = one.interval.deviation, one.interval.n
        assert (one.interval.mean / deviation) ** 2 * n == pytest.approx(row["F Value"], rel=1e-6)
    smallest = min(comparison.effects, key=lambda effect: effect.p_adjusted)
    assert smallest.p_adjusted == pytest.approx(3 * table.loc[smallest.factor, "Pr > F"], rel=1e-6)


def test_planted_interactions_are_found_and_no_other(comparison):
    for choices, one in by_choices(comparison).items():
        planted = PLANTED.get(tuple(sorted(choices)), 0.0)
        assert one.interval.low < planted < one.interval.high
        assert (one.p_adjusted <= 0.05) == (planted != 0) == one.interval.excludes(0)
    text = render(comparison)
    assert "Interactions" in text
    assert "f f1 \u00d7 g g1" in text
    (sentence,) = [s for s in headline(comparison) if "interaction" in s]
    assert sentence.startswith("The largest interaction is f f1 x g g1: together they change it by +0.5")


def test_false_alarms_of_the_family_stay_within_the_level():
    """No effect at all on 3 x 3 x 2 cells of 4 seeds: 8 interactions, one family. The closed form of many studies, and ours of a few."""
    levels = {"f": ["0", "1", "2"], "g": ["0", "1", "2"], "h": ["0", "1"]}
    y = np.random.default_rng(8).standard_normal((4000, 3, 3, 2, 4)) + np.random.default_rng(9).standard_normal(
        (4000, 1, 1, 1, 4)
    )
    changes = {
        "f x g": (y[:, 1:, 1:] - y[:, :1, 1:] - y[:, 1:, :1] + y[:, :1, :1]).mean(axis=3),
        "f x h": (y[:, 1:, :, 1] - y[:, :1, :, 1] - y[:, 1:, :, 0] + y[:, :1, :, 0]).mean(axis=2),
        "g x h": (y[:, :, 1:, 1] - y[:, :, :1, 1] - y[:, :, 1:, 0] + y[:, :, :1, 0]).mean(axis=1),
    }
    values = np.concatenate([change.reshape(4000, -1, 4) for change in changes.values()], axis=1)
    p_values = stats.ttest_1samp(values, 0, axis=2).pvalue
    alarms = (8 * p_values.min(axis=1) <= 0.05).mean()
    assert 0.02 <= alarms <= 0.05 + 3.5 * (0.05 * 0.95 / 4000) ** 0.5
    for index in [*range(6), int(p_values.min(axis=1).argmin())]:
        grid = crossed(lambda f, g, h, seed, i=index: y[i, int(f), int(g), int(h), seed], levels, range(4))
        study = study_of(grid, tuple(levels), baseline=("0", "0", "0"))
        found = interactions(Factorial(Outcomes(study)))
        assert np.allclose([list(one.values.values()) for one in found], values[index], rtol=0, atol=1e-12)
        assert any(one.p_adjusted <= 0.05 for one in found) == (8 * p_values[index].min() <= 0.05)


def test_a_hole_in_the_grid_is_left_out_and_said(grid):
    holes = {choices: row for choices, row in grid.items() if choices != ("f1", "g1", "h1")}
    comparison = compare(study_of(holes, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    one = by_choices(comparison)[frozenset({"f1", "g1"})]
    y = {choices: row for choices, row in grid.items() if choices[2] == "h0"}
    assert list(one.by_setting) == ["h0"]
    expected = [
        y["f1", "g1", "h0"][s] - y["f0", "g1", "h0"][s] - y["f1", "g0", "h0"][s] + y["f0", "g0", "h0"][s]
        for s in range(5)
    ]
    assert list(one.values.values()) == pytest.approx(expected)

    lost = grid | {("f1", "g1", "h1"): dict.fromkeys(range(5), "diverged")}
    comparison = compare(study_of(lost, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    one = by_choices(comparison)[frozenset({"f1", "g1"})]
    assert (len(one.by_setting), one.contrast.planned) == (1, 2)
    assert "1 of 2 settings" in render(comparison)
    assert any("leave out settings" in caveat and "f f1 (5 of 6 settings)" in caveat for caveat in comparison.caveats)


def test_a_lost_seed_is_left_out_everywhere_so_that_all_seeds_mean_the_same(grid):
    lost = {choices: dict(row) for choices, row in grid.items()}
    lost["f1", "g1", "h1"][2] = "failed"
    comparison = compare(study_of(lost, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    found = by_choices(comparison)
    assert list(found[frozenset({"f1", "g1"})].values) == [0, 1, 3, 4]
    assert list(found[frozenset({"f1", "g2"})].values) == [0, 1, 2, 3, 4]


def test_seeds_that_no_two_settings_share_give_no_effect_and_a_sentence():
    grid = crossed(lambda f, g, seed: float(seed), {"f": ["a", "b"], "g": ["c", "d"]}, [0, 1])
    grid = {choices: {seed + 2 * (choices[1] == "d"): v for seed, v in row.items()} for choices, row in grid.items()}
    comparison = compare(study_of(grid, ("f", "g"), baseline=("a", "c")))
    assert comparison.interactions == []
    assert [effect.factor for effect in comparison.effects] == []
    assert any("f b (0 of 2 settings)" in caveat for caveat in comparison.caveats)


@pytest.mark.parametrize("seeds", [0, 1])
def test_too_little_for_a_test_is_no_crash_and_no_finding(seeds):
    grid = crossed(lambda f, g, seed: 1.0, {"f": ["a", "b"], "g": ["c", "d"]}, range(seeds))
    comparison = compare(study_of(grid, ("f", "g"), baseline=("a", "c")))
    assert [one.interval.is_bounded for one in comparison.interactions] == [False] * seeds
    assert render(comparison)


def test_many_interactions_are_folded_away_and_one_factor_has_none(position):
    levels = {"f": list("abcd"), "g": list("efghi")}
    noise = np.random.default_rng(3).standard_normal((3, 200))
    grid = crossed(lambda f, g, seed: float(noise[seed, ord(f) + ord(g) - 190]), levels, range(3))
    text = render(compare(study_of(grid, ("f", "g"), baseline=("a", "e"))))
    assert "2 smaller interactions" in text
    assert position.interactions == []
    assert "<h2>Interactions</h2>" not in render(position)


def test_choices_that_are_written_differently_are_the_same():
    levels = {"lr": ["1e-3", 0.003], "f": ["a", "b"]}
    grid = crossed(lambda lr, f, seed: float(lr) * 100 + seed * (f == "b"), levels, range(3))
    comparison = compare(study_of(grid, ("lr", "f"), baseline=(0.001, "a")))
    assert [effect.choice for effect in comparison.effects if effect.factor == "lr"] == [0.003]
    assert len(comparison.interactions) == 1


@pytest.mark.parametrize("seeds", [1, 6])
def test_effects_that_add_up_depend_on_nothing(seeds):
    """-0.30 in one setting and -0.30 in the other is no dependence, whatever the last digits say."""
    noise = np.random.default_rng(5).normal(0, 0.002, (2, 2, seeds))
    grid = crossed(
        lambda f, g, seed: 2.0 - 0.3 * f + 0.1 * g + float(noise[f, g, seed]), {"f": [0, 1], "g": [0, 1]}, range(seeds)
    )
    comparison = compare(study_of(grid, ("f", "g"), baseline=(0, 0)))
    said = " ".join(headline(comparison))
    assert "depends" not in said
    assert "interaction" not in said
    assert ("largest average effect is that of f: 0 to 1" in said) == (seeds == 6)
    assert {effect.word for effect in comparison.effects} == ({"better", "worse"} if seeds == 6 else {"undecided"})


def test_an_effect_depends_where_an_interaction_is_sure(comparison):
    words = {(effect.factor, effect.choice): effect.word for effect in comparison.effects}
    assert words["f", "f1"] == words["g", "g1"] == words["g", "g2"] == "depends"
    assert words["h", "h1"] == "worse"
    assert "; it depends on the other settings, from +" in " ".join(headline(comparison))


def test_survivors_of_lost_runs_make_no_effect_sure(grid):
    lost = {choices: dict(row) for choices, row in grid.items()}
    for seed in (0, 2, 4):
        lost["f1", "g0", "h0"][seed] = None
    comparison = compare(study_of(lost, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    found = next(effect for effect in comparison.effects if effect.factor == "f")
    assert (found.verdict, found.reason) == ("undecided", "3 of 5 seeds lost")
    assert next(effect for effect in comparison.effects if effect.factor == "h").reason == "3 of 5 seeds lost"


def test_a_setting_that_is_lost_whole_leaves_its_effects_undecided(grid):
    lost = grid | {("f1", "g1", "h1"): dict.fromkeys(range(5), "diverged")}
    comparison = compare(study_of(lost, tuple(LEVELS), baseline=("f0", "g0", "h0")))
    found = next(effect for effect in comparison.effects if effect.factor == "f")
    assert (found.verdict, found.interval.is_bounded, len(found.by_setting)) == ("undecided", False, 5)
    assert found.interval.mean == pytest.approx(np.mean(list(found.by_setting.values())))
