"""Costs to a target from hand-made curves whose crossings are known, and what the comparison says of runs that never got there."""

import csv
import io
import math

import pytest
from rich.console import Console
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import asked, compare, load_study, print_comparison, to_csv, to_markdown
from attnlab.analysis.censoring import Bounds
from attnlab.analysis.headline import headline
from attnlab.analysis.reached import reached
from attnlab.analysis.tables import runs_to_csv, runs_to_text
from attnlab.report.page import render

NAME = "steps to val/loss 2.0"


def line(step, value, seconds=None, metric="val/loss"):
    seconds = step / 10 if seconds is None else seconds
    return {"step": step, "tokens": 64 * step, "seconds": seconds, "attempt": 1, "values": {metric: value}}


def falling(crossing, end=800):
    """Validations every 100 steps on two straight lines through (crossing, 2.0)."""
    return [line(step, 2.0 + (crossing - step) / 400) for step in range(100, end + 1, 100)]


def study(root, cells, metric=NAME, **plan):
    """{cell: [(curve, state), ...] by seed}; the first is the baseline."""
    seeds = max(map(len, cells.values()))
    described = [cell({"arm": name}) for name in cells]
    write_plan(
        root,
        factors={"arm": list(cells)},
        baseline={"arm": next(iter(cells))},
        cells=described,
        seeds=list(range(seeds)),
        metric={"name": metric, "better": "lower"},
        **plan,
    )
    for name, runs in cells.items():
        for seed, (curve, state) in enumerate(runs):
            final = {"val/loss": 2.1} if state == "finished" else {}
            write_run(root, {"arm": name}, seed, final, state=state, curve=curve)
    return root


CURVE = [line(100, 3.0, 10), line(200, 2.4, 20), line(300, 1.6, 60), line(400, 2.2, 70), line(500, 1.5, 80)]


@pytest.mark.parametrize(
    ("axis", "cost"), [("steps", 250), ("tokens", 250 * 64), ("flops", 250 * 64 * 900_000), ("seconds", 40)]
)
def test_the_first_crossing_is_read_on_the_axis_asked_for(tmp_path, axis, cost):
    """Half way from 2.4 to 1.6; later values above it change nothing."""
    name = f"{axis} to val/loss 2.0"
    found = load_study(study(tmp_path / "s", {"a": [(CURVE, "finished")]}, name))
    assert found.values("arm=a", name) == {0: pytest.approx(cost)}
    assert found.better(name) == "lower"


@pytest.mark.parametrize(
    ("curve", "state", "known"),
    [
        (CURVE[:2], "finished", (200, math.inf)),
        (CURVE[:2], "diverged", (math.inf, math.inf)),
        (CURVE[:3], "diverged", (250, 250)),
        (CURVE[:3], "failed", (250, 250)),
        (CURVE[:2], "failed", None),
        (CURVE[:2], "pruned", None),
        (CURVE[:3], "running", None),
        (CURVE[2:], "finished", (0, 300)),
        ([line(100, 2.5), line(200, 2.0), line(300, 1.9)], "finished", (200, 200)),
    ],
)
def test_what_is_known_of_a_run_follows_from_how_it_ended(tmp_path, curve, state, known):
    found = load_study(study(tmp_path / "s", {"a": [(curve, state)]})).costs("arm=a", NAME)
    assert found == ({0: Bounds(*known)} if known else {})


def test_what_the_first_validation_had_reached_is_no_value(tmp_path):
    """It cost at most 300, so no mean and no table may have 300 for it, and it is less than what took 400."""
    cells = {"base": [(falling(400), "finished")] * 6, "soon": [(CURVE[2:], "finished")] * 6}
    found = compare(load_study(study(tmp_path / "s", cells)))
    soon = found.cells[1]
    assert (soon.values, soon.outcome, soon.interval.counted) == ({}, "measured", "<= 300")
    assert soon.difference.verdict == "better"
    assert {run.final.get(NAME) for run in found.study.runs_of("arm=soon")} == {None}
    assert [str(row.share.count) for row in reached(found)] == ["6 of 6"] * 2


def test_an_accuracy_is_reached_from_below(tmp_path):
    name = "steps to val/accuracy 0.5"
    curve = [line(100, 0.1, metric="val/accuracy"), line(200, 0.7, metric="val/accuracy")]
    found = load_study(study(tmp_path / "s", {"a": [(curve, "finished")]}, name))
    assert found.values("arm=a", name) == {0: pytest.approx(100 + 100 * 0.4 / 0.6)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """8 seeds: fast is 100 steps ahead; some is ahead in 2 and never gets there in 6; none diverges or ends early."""
    base = [(falling(500 + seed), "finished") for seed in range(8)]
    cells = {
        "base": base,
        "fast": [(falling(400 + 2 * seed), "finished") for seed in range(8)],
        "some": [(falling(450), "finished")] * 2 + [(falling(1000), "finished")] * 6,
        "none": [(falling(900, 300), "diverged")] * 4 + [(falling(1000), "finished")] * 4,
    }
    claims = [
        {"says": "fast", "cell": {"arm": "fast"}, "against": {"cell": {"arm": "base"}}, "below": 0.0},
        {"says": "long", "cell": {"arm": "none"}, "above": 700},
        {"says": "short", "cell": {"arm": "none"}, "metric": NAME, "below": 600},
        {"says": "mixed", "cell": {"arm": "some"}, "below": 600},
        {"says": "odd", "cell": {"arm": "some"}, "against": {"metric": "val/loss"}, "below": 600},
    ]
    return compare(load_study(study(tmp_path_factory.mktemp("runs") / "s", cells, claims=claims)))


def test_medians_and_verdicts_respect_what_is_censored(comparison):
    base, fast, some, none = comparison.cells
    assert (base.interval.mean, fast.interval.mean) == (pytest.approx(503.5), pytest.approx(407))
    assert [cell.interval.counted for cell in (some, none)] == ["> 800", "> 800"]
    assert [cell.outcome for cell in comparison.cells] == ["measured", "measured", "measured", "censored"]
    assert [cell.n_failed for cell in comparison.cells] == [0] * 4
    assert [cell.difference.verdict for cell in (fast, some, none)] == ["better", "undecided", "worse"]
    assert fast.difference.interval.mean == pytest.approx(-96.5)
    assert fast.difference.p_adjusted == pytest.approx(3 * 2 * 0.5**8)
    assert some.difference.contrast.counts == "less in 2 of 8 seeds, more in 6"
    assert [cell.rank_interval for cell in comparison.cells] == [(2, 3), (1, 1), (2, 4), (3, 4)]
    shares = {row.label: str(row.share.count) for row in reached(comparison)}
    assert shares == {"base": "8 of 8", "fast": "8 of 8", "some": "2 of 8", "none": "0 of 8"}
    assert not comparison.effects


def test_claims_take_costs(comparison):
    assert [claim.verdict for claim in comparison.claims] == ["met", "met", "not met", "open", "open"]
    assert "not counted alike" in comparison.claims[4].reason


def test_every_view_says_never_and_none_says_a_bound_for_a_value(comparison):
    assert "> 800 (450 to inf, 6 of 8 never)" in to_markdown(comparison).replace("\\", "")
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}
    some = rows["arm=some"]
    assert (some["mean"], some["high"], some["reached"], some["known"]) == ("", "", "2", "8")
    assert (some["seed=7"], some["seed=7 at least"], some["seed=7 at most"]) == ("", "800.0", "inf")
    runs = [row for row in csv.DictReader(io.StringIO(runs_to_csv(comparison))) if row["cell"] == "arm=none"]
    assert (runs[0][NAME], runs[0][f"{NAME} at least"], runs[0]["state"]) == ("", "inf", "diverged")
    assert "> 800" in runs_to_text(comparison)
    page = render(comparison)
    for words in ("&gt; 800", "6 of 8 never", "Reaching the target", "p log-rank", '"pareto"'):
        assert words in page
    assert any("14 of 32 runs never reached val/loss 2" in c for c in comparison.caveats)


def test_a_cell_that_ended_early_without_getting_there_does_not_stand_first(tmp_path):
    """It ended at 300, before any other got there at 500: its cost may be the least of all, and nobody has seen it."""
    cells = {"base": [(falling(500), "finished")] * 8, "short": [(falling(500, 300), "finished")] * 8}
    found = compare(load_study(study(tmp_path / "s", cells)))
    assert [cell.label for cell in found.measured] == ["base", "short"]
    assert found.cells[1].difference.verdict == "undecided"
    assert headline(found)[0].startswith("No single best")


def test_where_no_run_got_there_it_is_said_with_how_near_they_came(tmp_path):
    found = compare(load_study(study(tmp_path / "s", {name: [(falling(1000), "finished")] * 3 for name in "ab"})))
    assert headline(found) == [
        "None of the 6 runs that ended reached val/loss 2, so no cost can be compared; the best of any run is 2.5000 (a)."
    ]
    printed = io.StringIO()
    print_comparison(found, Console(file=printed, width=100))
    assert "median" not in printed.getvalue().partition("!")[0]


def test_a_cost_is_asked_of_runs_that_were_compared_on_something_else(tmp_path):
    folder = study(tmp_path / "s", {name: [(falling(at), "finished")] * 2 for name, at in (("a", 350), ("b", 450))})
    found = compare(asked(load_study(folder), "tokens_to val/loss 2.0")[0])
    assert found.metric.name == "tokens to val/loss 2.0"
    assert [cell.interval.mean for cell in found.cells] == [pytest.approx(350 * 64), pytest.approx(450 * 64)]
    for wrong, words in (("steps to val/bleu 3", "there are val/loss"), ("steps to test/loss 3", "validations during")):
        with pytest.raises(ValueError, match=words):
            asked(load_study(folder), wrong)


def test_what_has_not_ended_keeps_every_word_back(tmp_path):
    """Seven sure seeds would do for a word, were the eighth there."""
    runs = [(falling(300), "finished")] * 7
    cells = {"base": [(falling(500), "finished")] * 8, "fast": [*runs, (falling(300), "running")]}
    found = compare(load_study(study(tmp_path / "s", cells))).cells[1].difference
    assert math.isnan(found.p)
    assert found.verdict == "undecided"
    assert found.reason == "7 of 8 seeds in"
