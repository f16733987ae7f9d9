"""Thirteen stored studies whose truth is known: terminal, page, tables and the list of studies say one thing of each, and nothing false."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from rich.console import Console
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import formatting as wording
from attnlab.analysis.comparison import compare
from attnlab.analysis.headline import headline
from attnlab.analysis.reader import load_study
from attnlab.analysis.table import typographic
from attnlab.analysis.tables import to_csv, to_markdown
from attnlab.analysis.terminal import print_comparison
from attnlab.report.live.live_study import overview_of
from attnlab.report.page import render

METRIC = "test/loss@8x"
EQUAL = {"a": 2.0, "b": 2.0, "c": 2.0}
APART = {"a": 2.0, "b": 1.5, "c": 2.5}
ULP = float(np.spacing(2.0))
# name: (true means, seeds, {cell: state or NaN of its runs, by seed}, plan)
STUDIES = {
    "null": (EQUAL, 6, {}, {}),
    "apart": (APART, 6, {}, {}),
    "one seed": (APART, 1, {}, {}),
    "two of four": (APART, 4, {name: {2: "missing", 3: "running"} for name in "abc"}, {}),
    "fourteen of sixteen": (APART, 16, {name: {14: "missing", 15: "running"} for name in "abc"}, {}),
    "best of survivors": ({"a": 2.3, "b": 2.3, "c": 2.3}, 6, {"b": {1: "nan", 3: "nan", 5: "nan"}}, {}),
    "half diverged": (APART, 6, {"b": dict.fromkeys((0, 2, 4), "diverged")}, {}),
    "baseline lost": (APART, 6, {"a": dict.fromkeys((1, 2), "failed")}, {}),
    "one of sixteen": (APART, 16, {"b": {7: "failed"}}, {}),
    "no baseline": (APART, 6, {}, {"baseline": {}}),
    "within the margin": ({"a": 2.0, "b": 2.004, "c": 1.996}, 6, {}, {"metric": {"margin": 0.02}}),
    "rounding": ({"a": 2.0, "b": 2.0 + ULP, "c": 2.0 - 2 * ULP}, 6, {}, {}),
    "a diverged cell": (APART, 6, {"c": dict.fromkeys(range(6), "diverged")}, {}),
}


def write_study(root: Path, name: str) -> Path:
    """One study; what it claims beforehand is true where it is met, and false where it is not."""
    means, seeds, lost, plan = STUDIES[name]
    metric = {"name": METRIC, "better": "lower", "margin": 0.0, **plan.get("metric", {})}
    claims = [
        {"says": "b below a", "cell": {"norm": "b"}, "against": {"cell": {"norm": "a"}}, "below": 0.0},
        {"says": "c below a", "cell": {"norm": "c"}, "against": {"cell": {"norm": "a"}}, "below": 0.0},
    ]
    choices = [{"norm": label} for label in means]
    write_plan(
        root,
        factors={"norm": list(means)},
        baseline=plan.get("baseline", {"norm": "a"}),
        cells=[cell(choice) for choice in choices],
        seeds=list(range(seeds)),
        metric=metric,
        claims=claims,
    )
    for (index, label), seed in itertools.product(enumerate(means), range(seeds)):
        rng = np.random.default_rng([seed, index])
        noise = 0.0 if name == "rounding" else 0.002 * rng.standard_normal()
        shared = np.random.default_rng(seed).integers(0, 8) / 16
        value = means[label] + shared + noise
        state = lost.get(label, {}).get(seed, "finished")
        if state == "missing":
            continue
        final = {METRIC: value, "test/loss@1x": value - 0.3 + 0.001 * rng.standard_normal()}
        final = dict.fromkeys(final) if state == "nan" else final
        state = "finished" if state == "nan" else state
        write_run(root, {"norm": label}, seed, final if state == "finished" else {}, state=state)
    return root


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """{name: (comparison, terminal, page, overview)}."""
    root, told = tmp_path_factory.mktemp("runs"), {}
    for name in STUDIES:
        study = load_study(write_study(root / name.replace(" ", "_"), name))
        comparison = compare(study)
        console = Console(file=io.StringIO(), width=130, color_system=None)
        print_comparison(comparison, console)
        told[name] = comparison, console.file.getvalue(), render(comparison), overview_of(name, study)
    return told


def told_of(story, label):
    comparison = story[0]
    return next(summary for summary in comparison.cells if summary.label == label)


@pytest.mark.parametrize("name", STUDIES)
def test_every_face_says_the_same_sentences_and_words(stories, name):
    comparison, terminal, page, overview = stories[name]
    text = " ".join(terminal.split())
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}
    markdown = to_markdown(comparison)
    for sentence in headline(comparison, with_reasons=False):
        assert sentence in text
        assert escape(typographic(sentence)) in page
    assert overview.best in text
    assert escape(typographic(overview.best)) in page
    for summary in comparison.cells:
        if summary.difference:
            said = str(wording.verdict(summary.difference))
            (row,) = [line for line in terminal.splitlines() if re.match(rf"{summary.label}\s+[\d-]", line)][:1]
            assert row.rstrip().endswith(said)
            assert rows[summary.cell.name]["verdict"] == summary.difference.verdict
            assert said in markdown


@pytest.mark.parametrize("name", STUDIES)
def test_no_sentence_contradicts_another(stories, name):
    comparison = stories[name][0]
    sentences = " ".join(headline(comparison))
    verdicts = {summary.label: summary.difference.verdict for summary in comparison.cells if summary.difference}
    ranks = {summary.label: summary.rank_interval for summary in comparison.cells if summary.rank_interval}
    best = re.search(r"(\w+) is best", sentences)
    if best:
        assert ranks[best[1]] == (1, 1)
        assert all(places[0] > 1 for label, places in ranks.items() if label != best[1])
        assert verdicts.get(best[1], "better") == "better"
        assert best[1] in verdicts or set(verdicts.values()) <= {"worse"} or not verdicts
    open_to = re.search(
        r"(\w+) \([\d.]+\) has the best mean.* cannot rule out that (.*?) (?:is|are) as good", sentences
    )
    if open_to:
        others = re.findall(r"(\w+) \(", open_to[2])
        assert all(ranks[label][0] == 1 for label in [open_to[1], *others])
        assert verdicts.get(open_to[1]) != "better" or "a" not in others
    baseline = next((summary.label for summary in comparison.cells if summary.is_baseline), None)
    for label, verdict in verdicts.items():
        if verdict in ("better", "worse"):
            front, back = (label, baseline) if verdict == "better" else (baseline, label)
            assert ranks[front][0] < ranks[back][0] or ranks[front][1] < ranks[back][1]
            assert ranks[front] != ranks[back]
        assert not re.search(rf"(better|worse|no difference that counts): [^;.]*\b{label} \(", sentences) or (
            verdict != "undecided"
        )
    for claim, label in zip(comparison.claims, "bc", strict=True):
        if claim.verdict == "met" and label in verdicts:
            assert verdicts[label] != "worse"


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_that_is_said_is_false(stories, name):
    comparison, (means, _, _, plan) = stories[name][0], STUDIES[name]
    margin = plan.get("metric", {}).get("margin", 0.0)
    for summary in comparison.cells:
        if summary.difference and summary.difference.verdict in ("better", "worse"):
            assert (means[summary.label] < means["a"]) == (summary.difference.verdict == "better")
            assert abs(means[summary.label] - means["a"]) > max(margin, 1e-9)
        if summary.difference and summary.difference.verdict == "same":
            assert abs(means[summary.label] - means["a"]) <= margin
    best = re.search(r"(\w+) is best", " ".join(headline(comparison)))
    assert best is None or means[best[1]] == min(means.values()) < sorted(means.values())[1]


def test_survivors_of_lost_runs_are_neither_best_nor_better(stories):
    story = stories["best of survivors"]
    found = told_of(story, "b").difference
    assert (found.verdict, found.reason, found.contrast.failed) == ("undecided", "3 of 6 runs lost", 3)
    assert "undecided: 3 of 6 runs lost" in story[1]
    assert told_of(story, "b").rank_interval[1] == 3
    assert told_of(story, "b").probability_better <= 0.75
    assert "is best" not in " ".join(headline(story[0]))
    half = stories["half diverged"]
    assert told_of(half, "b").difference.verdict == "undecided"
    assert [claim.verdict for claim in half[0].claims] == ["open", "not met"]


def test_a_baseline_that_loses_runs_says_so_in_every_row(stories):
    story = stories["baseline lost"]
    for label in "bc":
        assert told_of(story, label).difference.reason == "2 of 6 runs of the baseline lost"
    assert story[1].count("undecided: 2 of 6 runs of the baseline lost") == 2


def test_a_loss_that_cannot_turn_the_verdict_does_not(stories):
    found = told_of(stories["one of sixteen"], "b").difference
    assert (found.verdict, found.reason) == ("better", "1 of 16 runs lost")
    assert found.interval.high < -0.49


@pytest.mark.parametrize(
    ("name", "said"), [("two of four", "2 of 4 seeds in"), ("fourteen of sixteen", "14 of 16 seeds in")]
)
def test_words_wait_for_the_runs_that_were_planned(stories, name, said):
    """Fourteen differences of one sign would be sure whatever the last two gave; no face says so before they are in."""
    comparison, terminal, page, overview = stories[name]
    for label in "bc":
        found = told_of(stories[name], label).difference
        assert (found.verdict, found.interval.unbounded) == ("undecided", said)
        assert math.isnan(found.p)
    assert f"undecided: {said}" in terminal
    assert any("wait until the planned seeds of both cells are in" in caveat for caveat in comparison.caveats)
    assert any("study.seeds=N takes N of them" in caveat for caveat in comparison.caveats)
    assert {curve.verdict for curve in comparison.lengths} == {"undecided"}
    assert {claim.verdict for claim in comparison.claims} == {"open"}
    assert {cell.rank_interval for cell in comparison.cells} == {(1, 3)}
    assert {row["verdict"] for row in csv.DictReader(io.StringIO(to_csv(comparison)))} == {"baseline", "undecided"}
    judging = re.compile(r"(?<!is )better|worse|no difference that counts|degrade|improve|is best|\bmet\b")
    for text in (terminal.partition("\n! ")[0], *headline(comparison), overview.best):
        assert not judging.search(text)
    assert not re.search(r'class="chip (better|worse|same|met|not-met)"', page)


def test_what_is_apart_is_found(stories):
    assert headline(stories["apart"][0])[1].startswith("b is best: test/loss@8x 1.")
    assert [claim.verdict for claim in stories["apart"][0].claims] == ["met", "not met"]
    assert {told_of(stories["within the margin"], label).difference.verdict for label in "bc"} == {"same"}
    assert {told_of(stories["rounding"], label).difference.verdict for label in "bc"} == {"undecided"}
