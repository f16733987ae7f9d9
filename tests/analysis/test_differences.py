"""The decision as a whole: its errors by simulation, its symmetries, and what it says where there is too little to judge by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired
from tests.analysis.memory import study_of

from attnlab.analysis.comparison import compare
from attnlab.analysis.differences import Contrast, Difference, judge, verdict_of
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import Metric
from attnlab.analysis.statistics import equivalence_p, smallest_visible_effect
from attnlab.analysis.tables import to_csv, to_latex, to_markdown
from attnlab.report.page import render

STUDIES = 10_000
TOLERANCE = 3.5 * math.sqrt(0.05 * 0.95 / STUDIES)  # of a rate of 5%, binomial: 0.0076


def families(cells, seeds, rng, effects=0.0, noise="normal"):
    """Differences (STUDIES, cells, seeds) to one baseline that all share; runs have a spread of 1, and seeds one that pairing takes out."""
    draw = {"normal": rng.standard_normal, "heavy": lambda size: rng.standard_t(3, size)}[noise]
    runs = draw((STUDIES, cells + 1, seeds)) + 2 * rng.standard_normal((STUDIES, 1, seeds))
    return runs[:, 1:] + np.broadcast_to(effects, cells)[None, :, None] - runs[:, :1]


def contrasts(pairs):
    return {name: Contrast(dict(pair)) for name, pair in pairs.items()}


def decide(differences, margin=0.0, alpha=0.05):
    """The rule, once more and for all studies at once: -1 lower, 1 higher, 0 undecided, 2 same."""
    seeds, count = differences.shape[2], differences.shape[1]
    mean, error = differences.mean(axis=2), differences.std(axis=2, ddof=1) / math.sqrt(seeds)
    half = stats.t.ppf(1 - alpha / count / 2, seeds - 1) * error
    decided = np.where(mean - half > 0, 1, np.where(mean + half < 0, -1, 0))
    return np.where((mean - half >= -margin) & (mean + half <= margin), 2, decided) if margin else decided


@pytest.mark.parametrize("margin", [0.0, 2.5])
def test_the_decision_is_the_rule_that_is_simulated_here(margin):
    words = {-1: "better", 1: "worse", 0: "undecided", 2: "same"}
    differences = families(5, 6, np.random.default_rng(1), [0, 0.5, 2, 4, -4])[:80]
    rules = decide(differences, margin)
    assert set(rules.ravel()) == ({-1, 1, 0, 2} if margin else {-1, 1, 0})
    for family, rule in zip(differences, rules, strict=True):
        pairs = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(family)}
        judged = judge(contrasts(pairs), Metric("m", "lower", margin))
        assert [found.verdict for found in judged.values()] == [words[int(code)] for code in rule]
        assert all(
            found.interval.excludes(0) == (found.p_adjusted <= 0.05)
            and found.verdict == verdict_of(found.interval, Metric("m", "lower", margin))
            for found in judged.values()
        )


@pytest.mark.parametrize("noise", ["normal", "heavy"])
@pytest.mark.parametrize(("cells", "seeds"), [(1, 4), (5, 4), (5, 8), (15, 6)])
def test_without_any_effect_a_false_alarm_is_as_rare_as_promised(cells, seeds, noise):
    alarms = (decide(families(cells, seeds, np.random.default_rng(2), noise=noise)) != 0).any(axis=1).mean()
    assert alarms <= 0.05 + TOLERANCE
    assert alarms >= 0.01  # a rule that never speaks would be worth nothing


def test_effects_elsewhere_do_not_make_false_alarms_more_frequent():
    differences = families(6, 6, np.random.default_rng(3), [20, 20, 20, 0, 0, 0])
    decided = decide(differences)
    assert (decided[:, :3] == 1).mean() > 0.99
    alarms = (decided[:, 3:] != 0).any(axis=1).mean()
    assert 0.01 <= alarms <= 0.05 + TOLERANCE


@pytest.mark.parametrize("cells", [1, 5, 15])
def test_a_difference_of_the_margin_is_seldom_called_none(cells):
    called = (decide(families(cells, 8, np.random.default_rng(4), 4.0), margin=4.0) == 2).any(axis=1).mean()
    assert 0.01 <= called <= 0.025 + TOLERANCE


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_all_intervals_of_a_family_hold_at_once(margin):
    """So no word is false, whatever is true: here with effects below, at and beyond the margin."""
    effects = np.array([0.0, 0.5, 1.0, 1.5, 4.0, -1.0])
    differences = families(6, 6, np.random.default_rng(9), effects)
    mean, error = differences.mean(axis=2), differences.std(axis=2, ddof=1) / math.sqrt(6)
    missed = np.abs(mean - effects) > stats.t.ppf(1 - 0.05 / 12, 5) * error
    words = decide(differences, margin)
    false = (words == 2) & (np.abs(effects) >= margin) if margin else np.zeros_like(words, dtype=bool)
    false |= (np.abs(words) == 1) & (words != np.sign(effects))
    assert 0.03 <= missed.any(axis=1).mean() <= 0.05 + TOLERANCE
    assert not (false.any(axis=1) & ~missed.any(axis=1)).any()


def test_tost_errs_as_often_as_its_level_says():
    differences = families(1, 8, np.random.default_rng(5), 4.0)[:6000, 0]
    rate = np.mean([equivalence_p(row, 4.0) <= 0.05 for row in differences.tolist()])
    assert rate == pytest.approx(0.05, abs=3.5 * math.sqrt(0.05 * 0.95 / 6000))


@pytest.mark.parametrize(("cells", "seeds"), [(1, 4), (5, 4), (5, 8)])
def test_the_smallest_effect_is_seen_in_at_least_four_of_five_studies(cells, seeds):
    spread = math.sqrt(2)  # of a difference of two runs of spread 1
    effect = spread * smallest_visible_effect(seeds, 0.05 / cells)
    decided = decide(families(cells, seeds, np.random.default_rng(6), [effect] + [0.0] * (cells - 1)))
    seen = (decided[:, 0] == 1).mean()
    assert 0.8 - 3.5 * math.sqrt(0.8 * 0.2 / STUDIES) <= seen <= 0.84


def test_figures_of_a_family_are_those_of_statsmodels_and_scipy():
    rows = np.random.default_rng(7).normal(0.01, 0.02, (4, 7))
    pairs = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(rows)}
    judged = {name: Difference.of(one) for name, one in judge(contrasts(pairs), Metric("m", "lower", 0.03)).items()}
    p_same = [ttost_paired(row, np.zeros(7), -0.03, 0.03)[0] for row in rows]
    adjusted = multipletests(p_same, method="bonferroni")[1]
    for found, row, p, p_all in zip(judged.values(), rows, p_same, adjusted, strict=True):
        assert found.p_equivalence == pytest.approx(p, rel=1e-8)
        assert found.p_equivalence_adjusted == pytest.approx(p_all, rel=1e-8)
        drawn = stats.bootstrap((row,), np.mean, confidence_level=found.interval.level, rng=0).confidence_interval
        assert (found.bootstrap.low, found.bootstrap.high) == pytest.approx((drawn.low, drawn.high))
        assert found.smallest_effect == pytest.approx(row.std(ddof=1) * smallest_visible_effect(7, 0.05 / 4))


# Exact in floating point, so that a shift changes no bit of a difference.
number = st.integers(-640, 640).map(lambda k: k / 64)
cells_of = st.lists(st.dictionaries(st.integers(0, 7), number, max_size=6), min_size=1, max_size=5)


def summaries(values, **plan):
    study = study_of({(f"n{name}",): by_seed for name, by_seed in values}, baseline=("n0",), **plan)
    return {cell.label: cell for cell in compare(study).cells}


def figures(cell):
    """What is judged of a cell, as text, so that NaN equals NaN."""
    found = cell.difference
    return (
        repr((cell.rank_interval, cell.probability_better, found))
        if found
        else repr((cell.rank_interval, cell.probability_better))
    )


@settings(max_examples=60, deadline=None)
@given(cells_of, st.randoms(use_true_random=False))
def test_the_order_of_cells_and_seeds_changes_nothing(rows, draw):
    values = list(enumerate(rows))
    mixed = [(name, dict(draw.sample(sorted(row.items()), len(row)))) for name, row in draw.sample(values, len(values))]
    first, second = summaries(values), summaries(mixed)
    assert {label: figures(cell) for label, cell in first.items()} == {
        label: figures(cell) for label, cell in second.items()
    }


@settings(max_examples=60, deadline=None)
@given(cells_of, st.integers(-1000, 1000))
def test_a_shift_of_all_values_changes_no_difference(rows, shift):
    first = summaries(enumerate(rows), margin=0.5)
    second = summaries(
        ((name, {seed: value + shift for seed, value in row.items()}) for name, row in enumerate(rows)), margin=0.5
    )
    for label, cell in first.items():
        assert repr(cell.difference) == repr(second[label].difference)


@settings(max_examples=60, deadline=None)
@given(cells_of)
def test_the_other_sign_with_the_other_direction_is_the_same_decision(rows):
    first = summaries(enumerate(rows), margin=0.5)
    negative = ((name, {seed: -value for seed, value in row.items()}) for name, row in enumerate(rows))
    second = summaries(negative, better="higher", margin=0.5)
    for label, cell in first.items():
        other = second[label]
        assert (cell.rank_interval, repr(cell.probability_better)) == (
            other.rank_interval,
            repr(other.probability_better),
        )
        if cell.difference:
            one, two = cell.difference, other.difference
            assert (one.verdict, one.wins) == (two.verdict, two.wins)
            for name in (
                "p_adjusted",
                "p_sign_flip_adjusted",
                "p_equivalence_adjusted",
                "seeds_to_see",
                "seeds_to_equate",
            ):
                assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9, nan_ok=True)
            assert one.interval.low == pytest.approx(-two.interval.high, rel=1e-9)
            assert one.effect_size == pytest.approx(-two.effect_size, rel=1e-9, nan_ok=True)


FOUR = {0: 2.0, 1: 2.1, 2: 1.9, 3: 2.05}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "No run is planned or there yet."),
        ({"a": {0: 2.0}, "b": {0: 1.0}}, "A comparison with one seed has no interval"),
        (
            {"a": FOUR, "b": {s: v + 0.25 for s, v in FOUR.items()}},
            "b differs from the baseline by the same amount in every seed",
        ),
        ({"a": FOUR, "b": FOUR, "c": FOUR}, "b and c have exactly the baseline's value in every seed"),
        (
            {"a": {0: 2.0, 1: 2.1}, "b": {2: 1.0, 3: 1.1}},
            "b has no seed in common with the baseline, a, so no difference",
        ),
        ({"a": {0: None, 1: None}, "b": {0: 1.0, 1: 1.1}}, "The baseline, a, has no value"),
        (
            {"a": FOUR, "b": dict.fromkeys(range(4), "diverged")},
            "Lost runs, against 0 of 4 of the baseline: b 4 of 4 (p 0.029)",
        ),
        (
            {"a": FOUR, "b": {0: 2.1, 1: 1.9, 2: 2.2, 3: 2.0}},
            "seeds would settle b, if the true differences are those measured",
        ),
        ({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 1.5}}, "not even 10,000 would settle b"),
    ],
)
def test_what_cannot_be_judged_is_said_and_decides_nothing(values, sentence):
    comparison = compare(study_of({(name,): by_seed for name, by_seed in values.items()}))
    assert any(sentence in caveat for caveat in comparison.caveats), comparison.caveats
    for cell in comparison.cells:
        if cell.difference:
            assert cell.difference.verdict == "undecided"
            assert not cell.difference.p_adjusted <= 0.05
    assert headline(comparison)
    for text in (
        render(comparison).partition("plotly.js v")[0],
        *(to(comparison) for to in (to_csv, to_markdown, to_latex)),
    ):
        assert not any(word in text.split() for word in ("nan", "inf", "None"))


def test_one_cell_alone_is_shown_and_not_judged():
    comparison = compare(study_of({("a",): FOUR}))
    assert comparison.caveats == []
    assert [cell.difference for cell in comparison.cells] == [None]


def test_the_sentence_on_power_names_seeds_and_what_they_would_settle():
    values = {("a",): dict.fromkeys(range(4), 2.0)}
    noise = [0.01, -0.02, 0.015, -0.001]
    values |= {(name,): {s: 2.0 + shift + x for s, x in enumerate(noise)} for name, shift in (("b", 0.02), ("c", 0.4))}
    comparison = compare(study_of(values))
    cells = {cell.label: cell.difference for cell in comparison.cells}
    deviation = np.std(noise, ddof=1)
    smallest = deviation * smallest_visible_effect(4, 0.025)
    assert cells["c"].verdict == "worse"
    assert (
        f"With 4 seeds, differences in m below about {smallest:.2g} will mostly not be seen" in comparison.caveats[-1]
    )
    assert comparison.caveats[-1].endswith(
        f"; {cells['b'].seeds_to_see:.0f} seeds would settle b, if the true differences are those measured."
    )
    decided = compare(study_of({key: row for key, row in values.items() if key != ("b",)}))
    assert not any("will mostly not be seen" in caveat for caveat in decided.caveats)
    assert "will mostly not be seen" in render(decided)
