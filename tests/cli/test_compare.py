"""`attnlab compare` and `report` in their forms, the mixtures of them that make no sense, and resampled sentences."""

from __future__ import annotations

import csv
import io

import pytest
from tests.stored_studies import cell, write_plan, write_position_study, write_run

REFERENCES = [f"the {what} runs over the grass {number}" for number, what in enumerate(["dog", "cat", "man"] * 8)]


@pytest.fixture
def study(here):
    """A synthetic study where the command is given."""
    return write_position_study(here / "runs" / "position_length", seeds=3)


def test_each_form_is_printed(attnlab, study):
    assert "alibi is best" in attnlab("compare", "position_length").out
    assert len(list(csv.DictReader(io.StringIO(attnlab("compare", "position_length", "--format", "csv").out)))) == 6
    assert attnlab("compare", "position_length", "--format", "md").out.startswith("| cell |")
    assert attnlab("compare", "position_length", "--format", "tex").out.startswith(r"\begin{tabular}")


def test_the_runs_behind_it_are_listed(attnlab, study):
    lines = attnlab("compare", "position_length", "--runs").out.splitlines()
    assert len(lines) == 19
    assert lines[1].endswith("runs/position_length/position=sinusoidal/seed=0")
    rows = list(csv.DictReader(io.StringIO(attnlab("compare", "position_length", "--runs", "--format", "csv").out)))
    assert {row["directory"] for row in rows} == {line.split()[-1] for line in lines[1:]}


def test_it_is_watched_until_it_is_over(attnlab, study):
    said = attnlab("compare", "position_length", "--watch", "--every", "0.1")
    assert said.status == 0
    assert said.out.count("18 finished") == 1
    assert said.out.endswith("report.html\n")
    assert (study / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch", "--format", "csv"], "--watch follows the table of cells"),
        (["--watch", "--runs"], "--watch follows the table of cells"),
        (["--runs", "--format", "tex"], "not tex"),
        (["--every", "3"], "give both, or neither"),
        (["--watch", "--every", "0"], "--every must be a number of seconds above 0, got 0.0"),
        (["--watch", "--every", "nan"], "--every must be a number of seconds above 0, got nan"),
    ],
)
def test_mixtures_are_refused(attnlab, study, words, message):
    said = attnlab("compare", "position_length", *words)
    assert said.status == 2
    assert message in said.err
    assert said.out == ""


# --- resampled sentences


@pytest.fixture
def translated(here):
    """A study of two cells in `runs`, of which one has lost every third word."""
    names = ["sinusoidal", "none"]
    root = write_plan(
        here / "runs" / "translated",
        factors={"position": names},
        baseline={"position": names[0]},
        cells=[cell({"position": name}) for name in names],
        seeds=[0],
        metric={"name": "test/bleu", "better": "higher"},
    )
    spoilt = [" ".join(word for i, word in enumerate(line.split()) if i % 3) for line in REFERENCES]
    for name, lines in zip(names, (REFERENCES, spoilt), strict=True):
        outputs = write_run(root, {"position": name}, 0, {"test/bleu": 50.0}) / "outputs"
        outputs.mkdir()
        for kind, texts in (("translations", lines), ("references", REFERENCES)):
            (outputs / f"test.{kind}.txt").write_text("".join(f"{line}\n" for line in texts))
    return root


def test_sentences_are_resampled_where_that_is_asked_for(attnlab, translated):
    plain, asked = attnlab("compare", "translated"), attnlab("compare", "translated", "--bootstrap-sentences")
    assert (plain.status, asked.status) == (0, 0)
    assert "resampled" not in plain.out
    assert "Against the baseline on resampled test sentences" in asked.out
    assert "0.001, at most 0.05 in 1 of 1 seeds" in asked.out
    assert "p_bleu_sentences seed=0" in attnlab("compare", "translated", "--format", "csv", "--bootstrap-sentences").out
    assert attnlab("report", "translated", "--bootstrap-sentences", "--to", "page.html").status == 0
    with open("page.html") as page:
        assert "sacreBLEU" in page.read()


def test_a_study_without_translations_says_why(attnlab, translated):
    for file in translated.glob("*/*/outputs/test.references.txt"):
        file.unlink()
    said = attnlab("compare", "translated", "--bootstrap-sentences")
    assert said.status != 0
    assert said.err.strip().endswith(
        "--bootstrap-sentences: translated: no translations to compare: seed 0: the baseline has no outputs/test.references.txt"
    )
