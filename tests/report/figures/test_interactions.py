"""Two factors at once: each point is the mean over settings by seed with Student's interval, as pandas and scipy have it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tests.analysis.memory import crossed, study_of

from attnlab.analysis.comparison import compare
from attnlab.report.figures.interactions import crossing, interactions_figure
from attnlab.report.figures.study import study_figures
from attnlab.report.figures.style import paper_style

LEVELS = {"f": ["f0", "f1"], "g": [1, 2, 3], "h": ["h0", "h1"]}


def value(f, g, h, seed):
    own = np.random.default_rng([seed, g, ord(f[1]), ord(h[1])]).normal(0, 0.05)
    return 2.0 + 0.3 * (f == "f1") * (g == 2) + 0.05 * (h == "h1") * g + own


@pytest.fixture
def grid():
    return crossed(value, LEVELS, range(4))


def expected(grid, h=("h0", "h1")):
    """{(f, g): (mean, half-width)}"""
    rows = [(*choices, seed, y) for choices, of in grid.items() for seed, y in of.items() if choices[2] in h]
    table = pd.DataFrame(rows, columns=[*LEVELS, "seed", "y"])
    by_seed = table.groupby(["f", "g", "seed"])["y"].mean().groupby(["f", "g"])
    half = by_seed.sem() * stats.t.ppf(0.975, by_seed.count() - 1)
    return {pair: (mean, half[pair]) for pair, mean in by_seed.mean().items()}


def found(crossing):
    return {pair: (one.mean, one.high - one.mean) for pair, one in crossing.points.items()}


def test_points_are_means_over_settings_with_an_interval_over_seeds(grid):
    one = crossing(study_of(grid, tuple(LEVELS)), "f", "g")
    assert found(one).keys() == expected(grid).keys()
    for pair, values in expected(grid).items():
        assert found(one)[pair] == pytest.approx(values)
    assert (one.settings, one.planned) == (2, 2)


def test_a_setting_that_lacks_a_cell_s_runs_is_left_out_of_all_points(grid):
    grid["f1", 2, "h1"] = dict.fromkeys(range(4), "diverged")
    study = study_of(grid, tuple(LEVELS))
    one = crossing(study, "f", "g")
    for pair, values in expected(grid, h=["h0"]).items():
        assert found(one)[pair] == pytest.approx(values)
    assert (one.settings, one.planned) == (1, 2)
    with paper_style():
        figure = interactions_figure(compare(study))
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert "f\n1 of 2 settings" in labels


def test_a_seed_that_one_cell_lacks_is_left_out_of_all_points(grid):
    grid["f0", 1, "h0"][3] = "failed"
    one = crossing(study_of(grid, tuple(LEVELS)), "f", "g")
    without = {choices: {seed: y for seed, y in of.items() if seed != 3} for choices, of in grid.items()}
    for pair, values in expected(without).items():
        assert found(one)[pair] == pytest.approx(values)


def test_the_figure_draws_the_points_with_the_strongest_pair_first(grid):
    comparison = compare(study_of(grid, tuple(LEVELS)))
    with paper_style():
        figures = dict(study_figures(comparison))
    first, *others = [axes for axes in figures["interactions"].axes if axes.get_visible()]
    assert len(others) == 2
    assert (first.get_xlabel(), first.get_legend().get_title().get_text()) == ("f", "g")
    assert [text.get_text() for text in first.get_xticklabels()] == ["f0", "f1"]
    for line, g in zip(first.containers, LEVELS["g"], strict=True):
        assert line.get_label() == str(g)
        means = [expected(grid)[f, g][0] for f in LEVELS["f"]]
        assert line.lines[0].get_ydata() == pytest.approx(means)


def test_without_two_factors_or_without_shared_seeds_there_is_none(position):
    assert interactions_figure(position) is None
    apart = {("a", "x"): {0: 1.0}, ("a", "y"): {1: 1.0}, ("b", "x"): {0: 1.0}, ("b", "y"): {0: 1.0}}
    assert interactions_figure(compare(study_of(apart, ("f", "g")))) is None
