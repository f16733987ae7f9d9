"""Shares of runs: intervals and tests against published figures and scipy, and how often a word about them is false."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from tests.analysis.memory import study_of
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis.claims import check_claims
from attnlab.analysis.comparison import Comparison, asked, compare
from attnlab.analysis.differences import Outcomes
from attnlab.analysis.proportions import (
    Count,
    change_of,
    clopper_pearson,
    described,
    difference_of,
    fisher_p,
    is_proportion,
    largest_fisher_p,
    mcnemar_p,
    newcombe,
    runs_to_decide,
    share_of,
    smallest_fisher_p,
    wilson,
)
from attnlab.analysis.reader import load_study
from attnlab.analysis.statistics import mean_interval
from attnlab.analysis.tables import to_csv, to_latex, to_markdown
from attnlab.analysis.terminal import print_comparison
from attnlab.report.figures.forest import Grid
from attnlab.report.figures.study import draw
from attnlab.report.figures.style import paper_style
from attnlab.report.page import render
from attnlab.tasks.answers import SUCCESS
from attnlab.training.metrics import ACCURACY

RATES = (0.0, 0.05, 0.2, 0.4, 0.5, 0.7, 0.95, 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "score", "exact"),
    [  # table I of Newcombe 1998, Two-sided confidence intervals for the single proportion
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_intervals_of_a_share_are_the_published_ones(successes, n, score, exact):
    assert wilson(successes, n) == pytest.approx(score, abs=5e-5)
    assert clopper_pearson(successes, n) == pytest.approx(exact, abs=5e-5)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_intervals_of_a_share_are_scipys(counted, level):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = stats.binomtest(*counted).proportion_ci(level, method)
        assert ours(*counted, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "published"),
    [  # table II of Newcombe 1998, Interval estimation for the difference between independent proportions, method 10
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((0, 10), (0, 10), (-0.2775, 0.2775)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
)
def test_the_interval_of_a_difference_is_newcombes(first, second, published):
    assert newcombe(Count(*first), Count(*second)) == pytest.approx(published, abs=5e-5)
    mirrored = newcombe(Count(*second), Count(*first))
    assert mirrored == pytest.approx((-published[1], -published[0]), abs=5e-5)


def test_fishers_p_is_the_sum_over_tables_that_are_no_more_likely():
    assert fisher_p(3, 4, 1, 4) == pytest.approx(34 / 70)  # the lady tasting tea, two-sided
    for n, m in ((4, 4), (3, 7), (6, 5)):
        for a, b in itertools.product(range(n + 1), range(m + 1)):
            ways = {k: math.comb(n, k) * math.comb(m, a + b - k) for k in range(max(0, a + b - m), min(n, a + b) + 1)}
            expected = sum(of for of in ways.values() if of <= ways[a]) / sum(ways.values())
            assert fisher_p(a, n, b, m) == pytest.approx(expected)


def test_the_smallest_p_and_the_runs_that_it_takes():
    for n, m in itertools.product(range(1, 7), repeat=2):
        every = [fisher_p(a, n, b, m) for a in range(n + 1) for b in range(m + 1)]
        assert smallest_fisher_p(n, m) == pytest.approx(min(every))
    assert [runs_to_decide(tests) for tests in (1, 2, 10)] == [4, 5, 6]  # 2/70, 2/252, 2/924
    assert fisher_p(4, 4, 0, 4) <= 0.05 < fisher_p(3, 3, 0, 3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_missing_runs_are_counted_in_the_worst_way(data):
    """Against all that they might have given, one by one."""
    n, m, lost, other_lost = (data.draw(st.integers(low, 5)) for low in (1, 1, 0, 0))
    first = Count(data.draw(st.integers(0, n)), n, lost)
    second = Count(data.draw(st.integers(0, m)), m, other_lost)
    whole = [
        (Count(first.successes + i, n + lost), Count(second.successes + j, m + other_lost))
        for i in range(lost + 1)
        for j in range(other_lost + 1)
    ]
    found, each = difference_of(first, second, 0.95), [difference_of(*pair, 0.95) for pair in whole]
    assert found.low == pytest.approx(min(one.low for one in each))
    assert found.high == pytest.approx(max(one.high for one in each))
    assert found.sure == pytest.approx((min(one.sure[0] for one in each), max(one.sure[1] for one in each)))
    p_values = [one.p for one in each]
    signs = {np.sign(a.share - b.share) for a, b in whole}
    assert largest_fisher_p(first, second) == pytest.approx(1.0 if len(signs) > 1 else max(p_values))
    assert found.p >= max(p_values) - 1e-12
    share = share_of(first)
    assert (share.low, share.high) == pytest.approx(
        (clopper_pearson(first.successes, n + lost)[0], clopper_pearson(first.successes + lost, n + lost)[1])
    )


def chances(n: int, rate: float) -> np.ndarray:
    return stats.binom.pmf(range(n + 1), n, rate)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 20])
def test_the_interval_of_a_share_covers_at_least_its_level(n):
    """All outcomes, with their chances."""
    for level, rate in itertools.product((0.8, 0.95, 0.99), np.linspace(0, 1, 41)):
        bounds = [clopper_pearson(k, n, level) for k in range(n + 1)]
        covers = [low - 1e-12 <= rate <= high + 1e-12 for low, high in bounds]
        assert chances(n, rate) @ covers >= level


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 4), (5, 8), (10, 10), (12, 6)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_no_word_about_a_difference_is_false_too_often(n, m, level):
    """All outcomes, with their chances: that the true difference is excluded, that it lies on the wrong side, and that
    it lies within a margin which it does not."""
    found = [[difference_of(Count(a, n), Count(b, m), level) for b in range(m + 1)] for a in range(n + 1)]
    for rate, other in itertools.product(RATES, repeat=2):
        true, chance = rate - other, np.outer(chances(n, rate), chances(m, other))

        def how_often(is_false, chance=chance):
            return float((chance * [[is_false(one) for one in row] for row in found]).sum())

        assert how_often(lambda one, true=true: one.excludes(true)) <= 1 - level + 1e-9
        assert how_often(lambda one, true=true: one.excludes(0.0) and one.mean * true <= 0) <= 1 - level + 1e-9
        margin = abs(true) - 1e-6
        if margin > 0:
            assert how_often(lambda one, margin=margin: one.within(-margin, margin)) <= 1 - level + 1e-9


def test_newcombes_interval_covers_its_level_on_average():
    """Uniform rates, by all outcomes; at single rates it may cover less, so that no word rests on it alone."""
    grid = np.linspace(0.01, 0.99, 25)
    bounds = np.array([[newcombe(Count(a, 10), Count(b, 10)) for b in range(11)] for a in range(11)])
    covered = [
        np.outer(chances(10, p), chances(10, q)).ravel()
        @ ((bounds[..., 0] <= p - q) & (p - q <= bounds[..., 1])).ravel()
        for p, q in itertools.product(grid, repeat=2)
    ]
    assert 0.95 <= np.mean(covered) <= 0.97
    assert min(covered) < 0.95


def test_a_change_of_the_same_runs_is_mcnemars_and_never_false_too_often():
    assert mcnemar_p(9, 1) == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert mcnemar_p(9, 1, missing=2) == pytest.approx(stats.binomtest(9, 12).pvalue)
    assert mcnemar_p(0, 0) == 1.0
    n = 6
    outcomes = [(up, down) for up in range(n + 1) for down in range(n + 1 - up)]
    intervals = {(u, d): change_of([1] * u + [-1] * d + [0] * (n - u - d), 0, 0.95) for u, d in outcomes}
    for rise, fall in ((0.3, 0.3), (0.1, 0.1), (0.5, 0.5), (0.8, 0.1), (0.0, 0.6), (0.3, 0.0)):
        chance = {
            (u, d): stats.multinomial.pmf([u, d, n - u - d], n, [rise, fall, 1 - rise - fall]) for u, d in outcomes
        }
        false = sum(chance[key] for key, one in intervals.items() if one.excludes(rise - fall))
        assert false <= 0.05


def by_seed(successes: int, n: int, lost: int = 0, state: str = "diverged") -> dict[int, float | str]:
    return {s: float(s < successes) for s in range(n)} | dict.fromkeys(range(n, n + lost), state)


def shares(better="higher", margin=0.0, **cells):
    values = {(name,): by_seed(*of) for name, of in cells.items()}
    return study_of(values, better=better, margin=margin, is_proportion=True)


def printed(found: Comparison, width: int) -> str:
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=width))
    return out.getvalue()


def test_a_study_of_zeros_and_ones_is_compared_by_shares():
    found = {cell.label: cell for cell in compare(shares(base=(2, 10), good=(10, 10), some=(5, 10), bad=(0, 10))).cells}
    for name, k in (("base", 2), ("good", 10), ("some", 5)):
        interval, exact = found[name].interval, stats.binomtest(k, 10).proportion_ci(0.95)
        assert interval.counted == f"{k} of 10"
        assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
    good = found["good"].difference
    assert good.p == pytest.approx(stats.fisher_exact([[10, 0], [2, 8]]).pvalue)
    assert good.p_adjusted == pytest.approx(3 * good.p)
    assert (good.interval.low, good.interval.high) == newcombe(Count(10, 10), Count(2, 10), 1 - 0.05 / 3)
    assert [found[name].difference.verdict for name in ("good", "some", "bad")] == ["better", *["undecided"] * 2]
    assert good.contrast.counts == "10 of 10 against 2 of 10"
    for figure in ("effect_size", "p_sign_flip", "p_equivalence", "smallest_effect", "seeds_to_settle"):
        assert math.isnan(getattr(good, figure))
    assert not good.bootstrap.is_bounded
    assert found["base"].rank_interval == (2, 4)
    assert found["good"].rank_interval[0] == 1


def test_fewer_are_better_where_the_metric_says_so():
    found = compare(shares("lower", base=(2, 10), other=(10, 10)))
    assert found.cells[1].difference.verdict == "worse"
    assert [cell.rank_interval for cell in found.cells] == [(1, 1), (2, 2)]


def test_both_the_interval_and_the_test_have_to_say_so():
    """Six of ten against one: Newcombe's interval alone says so. Four of five against none: both do (Fisher's p is
    0.048), and of two comparisons neither does."""
    assert newcombe(Count(6, 10), Count(1, 10))[0] > 0
    assert fisher_p(6, 10, 1, 10) > 0.05
    assert compare(shares(base=(1, 10), other=(6, 10))).cells[1].difference.verdict == "undecided"
    assert compare(shares(base=(0, 5), other=(4, 5))).cells[1].difference.verdict == "better"
    assert compare(shares(base=(0, 5), a=(4, 5), b=(1, 5))).cells[1].difference.verdict == "undecided"


def test_a_word_stands_whatever_the_lost_runs_had_given():
    for lost, verdict in ((1, "better"), (4, "undecided")):
        study = shares(base=(0, 10, lost), other=(10, 10, lost))
        cell = compare(study).cells[1]
        assert cell.difference.verdict == verdict
        assert cell.difference.p == pytest.approx(fisher_p(10, 10 + lost, lost, 10 + lost))
        assert cell.interval.counted == "10 of 10"
        assert f"{lost} of {10 + lost} runs lost" in cell.difference.reason
    running = study_of({("a",): by_seed(0, 3, 5, "running"), ("b",): by_seed(3, 3, 5, "running")}, is_proportion=True)
    assert compare(running).cells[1].difference.verdict == "undecided"


def test_no_difference_that_counts_takes_a_margin_that_holds_for_sure():
    """Newcombe's interval of none against none of 30 lies within 0.12, exact bounds of both within 0.14."""
    for margin, verdict in ((0.12, "undecided"), (0.14, "same")):
        found = compare(shares(margin=margin, base=(0, 30), other=(0, 30))).cells[1].difference
        assert found.interval.high < 0.12
        assert found.verdict == verdict


def test_claims_use_the_exact_interval_and_the_difference():
    study = shares(base=(2, 10), good=(10, 10), some=(5, 10))
    cell, against = {"norm": "good"}, {"cell": {"norm": "base"}}
    study.claims = [
        {"says": "high", "cell": cell, "metric": "m", "above": 0.5},
        {"says": "not low", "cell": cell, "metric": "m", "below": 0.5},
        {"says": "open", "cell": {"norm": "some"}, "metric": "m", "above": 0.5},
        {"says": "more", "cell": cell, "metric": "m", "against": against, "above": 0.0},
        {"says": "less", "cell": cell, "metric": "m", "against": against, "below": 0.0},
        {"says": "much more", "cell": cell, "metric": "m", "against": against, "above": 0.2},
    ]
    claims = check_claims(Outcomes(study))
    assert [claim.verdict for claim in claims] == ["met", "not met", "open", "met", "not met", "open"]
    low, high = stats.binomtest(10, 10).proportion_ci(1 - 0.05 / 6)
    assert claims[0].reason == f"10 of 10 ({low:.2f} to {high:.2f})"
    assert claims[3].reason.endswith("10 of 10 against 2 of 10")
    assert claims[5].reason.endswith("; the exact test is not sure")


def test_a_change_with_length_is_of_the_same_runs():
    """Nine of ten runs succeed at 1x alone: McNemar's test, where Fisher's of as many independent runs says the same,
    and three of ten, where it says nothing."""
    for changed, verdict in ((9, "worse"), (3, "undecided")):
        study = shares(base=(10, 10), other=(10, 10))
        runs = {}
        for (name, seed), run in study.runs.items():
            final = {"test/m@1x": 1.0, "test/m@4x": float(seed >= changed) if name == "norm=other" else 1.0}
            runs[name, seed] = replace(run, status={"final": {**run.status["final"], **final}})
        study.runs = runs
        found = compare(study)
        curves = {curve.label: curve for curve in found.lengths}
        change = curves["other"].change
        assert change.p == pytest.approx(stats.binomtest(changed, changed).pvalue)
        assert change.verdict == verdict
        assert change.contrast.counts == f"0 of 10 runs up, {changed} down"
        assert curves["base"].change.verdict == "undecided"
        assert curves["other"].points[4.0].counted == f"{10 - changed} of 10"
        for text in (printed(found, 80), render(found)):
            assert f"{10 - changed} of 10" in text
            assert "McNemar" in text


def test_what_is_not_zero_or_one_is_judged_as_a_mean_and_said():
    values = {(name,): {s: shift + s / 100 for s in range(4)} for name, shift in (("a", 0.2), ("b", 0.5))}
    found = compare(study_of(values, is_proportion=True))
    assert not found.is_proportion
    assert found.cells[1].interval.counted == ""
    assert any("said to be 0 or 1 a run" in caveat for caveat in found.caveats)


def test_runs_of_answers_say_that_success_is_a_proportion(tmp_path):
    """As a run's record has it, at any length; and the metric that is asked for need not be the study's own."""
    cells = [cell({"norm": name}) for name in ("a", "b")]
    baseline = {"norm": "a"}
    root = write_plan(tmp_path / "s", cells=cells, seeds=[*range(5)], metric={"name": "test/loss"}, baseline=baseline)
    said = {metric.name: metric.record() for metric in (SUCCESS, ACCURACY)}
    for seed, name in itertools.product(range(5), "ab"):
        final = {"test/loss": seed / 10, "test/accuracy@1x": 0.0, "test/success@1x": float(name == "b")}
        write_run(root, {"norm": name}, seed, final, metrics=said)
    study = load_study(root)
    assert [is_proportion(study, name) for name in study.metrics] == [False, False, True]
    study.claims = [
        {
            "says": "x",
            "cell": baseline,
            "metric": "test/success@1x",
            "against": {"metric": "test/accuracy@1x"},
            "below": 1,
        }
    ]
    found = compare(asked(study, "test/success@1x")[0])
    assert found.metric.better == "higher"
    assert found.cells[1].difference.p == pytest.approx(2 / 252)
    assert found.cells[1].difference.verdict == "better"
    assert found.claims[0].verdict == "open"
    assert "is 0 or 1 a run and the other is not" in found.claims[0].reason
    assert not compare(study).is_proportion


def test_factors_are_left_out_with_the_reason():
    values = {(a, b): by_seed(9 if (a, b) == ("y", "v") else 2, 10) for a in "xy" for b in "uv"}
    found = compare(study_of(values, ("f", "g"), "higher", is_proportion=True))
    assert (found.effects, found.interactions) == ([], [])
    assert any("average effects and interactions" in caveat for caveat in found.caveats)
    assert compare(study_of(values, ("f", "g"), "higher")).effects


def test_nothing_is_drawn_of_means_over_factors():
    values = {(a, b): by_seed(5, 10) for a in "xy" for b in "uv"}
    found = compare(study_of(values, ("f", "g"), "higher", is_proportion=True))
    for kind in ("effects", "interactions"):
        with pytest.raises(ValueError, match="a metric that is not 0 or 1 a run"):
            draw(found, kind)
    with paper_style():
        texts = [text.get_text() for text in Grid.of(found).figure().axes[0].texts]
    assert texts == ["5 of 10\nbaseline", *["5 of 10"] * 3]


def test_few_runs_are_told_that_they_cannot_show_anything():
    caveats = compare(shares(base=(0, 3), other=(3, 3))).caveats
    assert any("cannot give p below 0.1 whatever the data: 1 comparison would need 4 runs a cell" in c for c in caveats)
    assert not any("seeds would settle" in caveat or "t intervals" in caveat for caveat in caveats)


@pytest.mark.parametrize(("n", "rate"), [(3, 0.5), (5, 0.2), (5, 0.5), (10, 0.5), (10, 0.9), (20, 0.5)])
def test_studies_of_equal_rates_seldom_have_a_false_word(n, rate):
    """Whole studies of four cells and a baseline, all alike, some with lost runs: differences and ranks are one family,
    claims are another."""
    rng, studies = np.random.default_rng(n), 400
    false, false_claims = 0, 0
    for _ in range(studies):
        drawn = rng.random((5, n)) < rate
        lost = rng.random((5, n)) < 0.1 * (rng.random() < 0.5)
        values = {(f"c{i}",): {s: "diverged" if lost[i, s] else float(drawn[i, s]) for s in range(n)} for i in range(5)}
        study = study_of(values, better="higher", is_proportion=True)
        study.claims = [
            {"says": "x", "cell": {"norm": f"c{i}"}, "metric": "m", "against": {"cell": {"norm": "c0"}}, "above": 0.0}
            for i in range(1, 5)
        ]
        found = compare(study)
        words = any(cell.difference and cell.difference.verdict != "undecided" for cell in found.cells)
        ranked = [cell.rank_interval for cell in found.cells if cell.rank_interval]
        false += words or any(ranks != (1, len(ranked)) for ranks in ranked)
        false_claims += any(claim.verdict != "open" for claim in found.claims)
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert false / studies <= bound
    assert false_claims / studies <= bound


def faces() -> Comparison:
    study = shares(base=(2, 10), good=(10, 10), some=(5, 10), bad=(0, 10), lost=(8, 8, 2))
    study.claims = [{"says": "x", "cell": {"norm": "good"}, "metric": "m", "above": 0.5}]
    return compare(study)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_counts_and_no_figure_of_a_mean(width):
    text = printed(faces(), width)
    assert max(map(len, text.splitlines())) <= width
    text = " ".join(text.split())
    for part in (
        "10 of 10 (0.69 to 1.00)",
        "Clopper-Pearson",
        "Newcombe's interval",
        "Fisher's exact test",
        "m is 0 or 1",
    ):
        assert part in text
    for part in ("+-", "wins", "p flip", " t test", "80% chance", "sign test"):
        assert part not in text


def test_tables_show_counts_and_no_figure_of_a_mean():
    found = faces()
    for text in (to_markdown(found), to_latex(found)):
        assert "10 of 10 (0.69 to 1.00)" in text
        assert "5 of 10 (0.19 to 0.81)" in text
        assert "Newcombe's interval; p: Fisher's exact test; both adjusted (Bonferroni) for 4 comparisons" in text
        assert "g_z" not in text.partition("\n\n")[0]
        assert "+-" not in text
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(to_csv(found)))}
    good = rows["norm=good"]
    assert float(good["p"]) == pytest.approx(fisher_p(10, 10, 2, 10))
    empty = ("deviation", "effect_size", "p_sign_flip", "p_equivalence", "smallest_effect", "seeds_to_see")
    assert {good[name] for name in (*empty, "bootstrap_low", "bootstrap_high")} == {""}


def test_the_page_shows_counts_and_no_figure_of_a_mean():
    text = re.sub(r"<script.*", "", render(faces()), flags=re.S)
    shown, _, reading = text.partition("How to read this</h2>")
    for part in ("10 of 10 against 2 of 10", "p (Fisher)", "0.69 to 1.00", "Differences of shares to the baseline"):
        assert part in shown
    for part in ("sign flip</th>", "bootstrap</th>", "effect size</th>", "seeds to settle</th>", "\u00b1", "sign test"):
        assert part not in shown
    assert "0 or 1 a run" in reading


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        ("test/accuracy", [1.0, 1.0, 1.0, 0.2], (None, 1.0)),
        ("test/accuracy", [0.0, 0.0, 0.0, 0.2], (0.0, None)),
        ("test/bleu", [99.0, 100.0, 98.0], (None, 100.0)),
        ("test/wer", [0.0, 0.0, 0.3], (0.0, None)),
        ("test/loss", [0.0, 0.0, 0.3], (0.0, None)),
        ("test/perplexity", [1.1, 1.0, 3.0], (1.0, None)),
        ("test/accuracy", [0.5, 0.6], (0.0, 1.0)),
        ("test/accuracy", [0.5, 0.51, 0.52], (None, None)),
        ("test/accuracy", [1.0], (None, None)),
        ("test/accuracy", [55.0, 57.0, 60.0], (None, None)),  # somebody's percent
        ("test/regret", [0.0, 0.0, 0.3], (None, None)),
    ],
)
def test_an_interval_of_a_mean_ends_where_the_metric_does(tmp_path, metric, values, ends):
    root = write_plan(
        tmp_path / "s",
        cells=[cell({"arm": "a"})],
        seeds=[*range(len(values))],
        metric={"name": metric},
        claims=[{"says": "it is there", "cell": {"arm": "a"}, "metric": metric, "between": [-1e3, 1e3]}],
    )
    for seed, value in enumerate(values):
        write_run(root, {"arm": "a"}, seed, {metric: value})
    study, plain = load_study(root), mean_interval(values)
    expected = tuple(one if end is None else end for one, end in zip((plain.low, plain.high), ends, strict=True))
    found = described(study, "arm=a", metric)
    claimed = compare(study).claims[0].cells[0].interval  # one claim: at 95%, too
    assert [(one.low, one.high, one.mean) for one in (found, claimed)] == [(*expected, plain.mean)] * 2


@pytest.mark.parametrize(
    ("of_a", "of_b", "ends"), [(1.0, 0.0, (None, 1.0)), (0.0, 1.0, (-1.0, None)), (0.5, 0.4, (None, None))]
)
def test_a_difference_of_means_ends_where_the_metrics_do(tmp_path, of_a, of_b, ends):
    name, seeds = "test/accuracy", [0, 1, 2]
    arms = {"a": of_a, "b": of_b}
    plan = {"cells": [cell({"arm": arm}) for arm in arms], "baseline": {"arm": "b"}, "seeds": seeds}
    root = write_plan(tmp_path / "s", metric={"name": name, "better": "higher", "margin": 0.0}, **plan)
    noise = (0.0, 0.03, 0.01)
    for arm, level in arms.items():
        for seed in seeds:
            own = noise[seed] if arm == "a" else 0.0
            write_run(root, {"arm": arm}, seed, {name: level - own if level == 1 else level + own})
    differences = [(of_a - of_b) - own if of_a == 1 else (of_a - of_b) + own for own in noise]
    plain = mean_interval(differences)
    (found,) = (one.difference.interval for one in compare(load_study(root)).cells if not one.is_baseline)
    expected = [one if end is None else end for one, end in zip((plain.low, plain.high), ends, strict=True)]
    assert [found.low, found.high] == pytest.approx(expected)
