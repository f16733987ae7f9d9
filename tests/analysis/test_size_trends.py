"""Whether an effect grows or shrinks with size: the word, the intervals behind it, and how seldom it is false."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from tests.analysis.planted_effects import planted

from attnlab.analysis.comparison import compare
from attnlab.analysis.differences import Outcomes
from attnlab.analysis.factors import Factorial
from attnlab.analysis.size_trends import size_table, size_trends
from attnlab.analysis.tables import to_markdown
from attnlab.analysis.terminal import print_comparison
from attnlab.report.page import render


def values(small, large, seeds=6, noise=0.003, draw=None):
    """Losses of cells in which the gate changes the loss by `small` and `large`, by seeds that share most of their noise."""
    draw = draw or np.random.default_rng(0)
    of_seed = 0.05 * draw.standard_normal(seeds)
    planted_at = {("relu", 32): 2.0, ("glu", 32): 2.0 + small, ("relu", 64): 1.8, ("glu", 64): 1.8 + large}
    return {cell: mean + of_seed + noise * draw.standard_normal(seeds) for cell, mean in planted_at.items()}


def trend_of(study):
    [trend] = size_trends(Factorial(Outcomes(study)))
    return trend


@pytest.mark.parametrize(
    ("small", "large", "word"),
    [
        (-0.03, -0.08, "grows"),
        (0.03, 0.08, "grows"),  # a choice that harms, and harms more
        (-0.08, -0.03, "shrinks"),
        (0.08, 0.03, "shrinks"),
        (-0.03, -0.06, "grows"),
        (0.04, -0.04, "changes"),  # turns round: neither of them is sure to be larger
        (-0.03, 0.08, "grows"),  # turns round and is larger
        (-0.05, -0.05, "same"),
    ],
)
def test_the_word_is_that_of_what_was_planted(small, large, word):
    assert trend_of(planted(values(small, large), margin=0.02)).word == word


def test_the_intervals_are_t_intervals_of_differences_by_seed():
    found = values(-0.03, -0.08)
    trend = trend_of(planted(found))
    effects = [found["glu", size] - found["relu", size] for size in (32, 64)]
    for at, effect in zip(trend.at, effects, strict=True):
        low, high = stats.t.interval(0.95, 5, effect.mean(), stats.sem(effect))
        assert (at.mean, at.low, at.high) == pytest.approx((effect.mean(), low, high))
    change = effects[1] - effects[0]
    low, high = stats.t.interval(1 - 0.05 / 2, 5, change.mean(), stats.sem(change))  # of two tests
    interval = trend.change.interval
    assert (interval.mean, interval.low, interval.high) == pytest.approx((change.mean(), low, high))
    assert trend.change.p == pytest.approx(stats.ttest_1samp(change, 0).pvalue)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.integers(0, 1000))
def test_a_word_is_never_against_the_sizes_of_the_measured_effects(means, seed):
    small, large = means[0] / 10, means[1] / 10
    found = values(small, large, noise=0.01, draw=np.random.default_rng(seed))
    trend = trend_of(planted(found))
    first, second = (abs(at.mean) for at in trend.at)
    assert trend.word != "grows" or second > first
    assert trend.word != "shrinks" or second < first


def test_what_does_not_change_is_seldom_said_to():
    words = []
    for seed in range(200):
        found = values(-0.05, -0.05, noise=0.01, draw=np.random.default_rng(seed))
        words.append(trend_of(planted(found, margin=0.0)).word)
    assert set(words) <= {"open", "grows", "shrinks"}
    assert sum(word != "open" for word in words) / len(words) < 0.05


def test_a_lost_run_leaves_it_open_and_says_why():
    trend = trend_of(planted(values(-0.03, -0.08, seeds=4), failed=[("glu", 64, 2)]))
    assert (trend.word, "1 of 4" in trend.change.reason) == ("open", True)
    assert "1 of 4" in size_table([trend]).to_text()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_terminal_and_page_say_it_too(width):
    comparison = compare(planted(values(-0.03, -0.08)))
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    lines = console.file.getvalue().splitlines()
    at = lines.index("Grows or shrinks with size")
    assert any("grows" in line for line in lines[at : at + 6])
    assert max(map(len, lines)) <= width
    page = render(comparison)
    assert ">Grows or shrinks with size<" in page
    assert re.search(r'class="chip met".{0,80}grows', page)


def test_the_table_stands_with_those_of_cells_and_without_a_size_there_is_none():
    study = planted(values(-0.03, -0.08))
    text = to_markdown(compare(study))
    assert "Grows or shrinks with size" in text
    assert "| feed_forward: relu → glu |" in text
    study.published = None
    assert "Grows or shrinks" not in to_markdown(compare(study))
    assert size_table([]) is None
