"""`attnlab compare` in its forms, and the mixtures of them that make no sense."""

from __future__ import annotations

import csv
import io

import pytest
from tests.analysis.studies import write_position_study


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch", "--format", "csv"], "--watch follows the table of cells"),
        (["--watch", "--runs"], "--watch follows the table of cells"),
        (["--runs", "--format", "tex"], "not tex"),
        (["--every", "3"], "give both, or neither"),
        (["--watch", "--every", "0"], "--every 0: give a number of seconds above 0"),
        (["--watch", "--every", "nan"], "--every nan: give a number of seconds above 0"),
    ],
)
def test_mixtures_are_refused(attnlab, study, words, message):
    said = attnlab("compare", "position_length", *words)
    assert said.status == 2
    assert message in said.err
    assert said.out == ""
