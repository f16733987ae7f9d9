"""Learning curves in one line: what each character stands for, and that all cells share a scale."""

from __future__ import annotations

import pytest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis.reader import load_study
from attnlab.analysis.sparklines import BLOCKS, PLAIN, characters_in, curve_name, sparklines
from attnlab.training.metrics import better_of


def curve(values, name="val/loss", every=10):
    return [
        {"step": every * k, "tokens": k, "seconds": k, "attempt": 1, "values": {name: value}}
        for k, value in enumerate(values)
    ]


def study_of(root, curves, metric="test/loss@8x", states=None):
    """A study of a cell each list of seeds' curves."""
    choices = [{"norm": name} for name in curves]
    write_plan(
        root, cells=[cell(c) for c in choices], seeds=[0, 1], metric={"name": metric, "better": better_of(metric)}
    )
    for name, of_seeds in curves.items():
        for seed, lines in enumerate(of_seeds):
            state = (states or {}).get((name, seed), "finished")
            write_run(root, {"norm": name}, seed, {"test/loss@8x": 1.0}, state=state, curve=lines)
    return load_study(root)


def test_levels_are_those_of_the_mean_on_one_scale(tmp_path):
    # Means 9, 7, 3, 1, 0 and 9, 7, 7, 7, 7; the first quarter (steps 0 to 9) does not count for the top, which is 7.
    curves = {"a": [curve([8, 7, 3, 2, 0]), curve([10, 7, 3, 0, 0])], "b": [curve([9, 7, 7, 7, 7])]}
    lines = sparklines(study_of(tmp_path / "s", curves), width=5)
    assert (lines.metric, lines.steps, lines.low, lines.high) == ("val/loss", (0, 40), 0.0, 7.0)
    assert lines.levels == {"norm=a": [7, 7, 3, 1, 0], "norm=b": [7, 7, 7, 7, 7]}
    assert lines.text("norm=a", "utf-8") == "██▄▂▁"
    assert lines.text("norm=a", "ascii") == "##=:."
    assert lines.text("norm=c", "utf-8") == ""


def test_what_lies_between_two_validations_is_interpolated(tmp_path):
    lines = sparklines(study_of(tmp_path / "s", {"a": [curve([7, 0], every=60), curve([7, 0], every=60)]}), width=7)
    assert lines.high == 0.0  # after the first quarter there is one value
    lines = sparklines(study_of(tmp_path / "t", {"a": [curve([7, 7, 0], every=30)]}), width=5)
    assert lines.levels["norm=a"] == [7, 7, 7, 4, 0]


def test_a_curve_ends_where_its_cell_does(tmp_path):
    curves = {"a": [curve([7, 7, 7, 7, 0])], "b": [curve([7, 7])]}
    lines = sparklines(study_of(tmp_path / "s", curves), width=5)
    assert lines.text("norm=b", "utf-8") == "██   "


@pytest.mark.parametrize(("state", "expected"), [("running", [7, 7, 0]), ("finished", [0, 0])])
def test_the_mean_is_over_finished_seeds_where_all_have_a_value(tmp_path, state, expected):
    curves = {"a": [curve([7, 7, 0]), curve([7, 7])]}
    study = study_of(tmp_path / "s", curves, states={("a", 1): state})
    assert sparklines(study, width=len(expected)).levels["norm=a"] == expected
    assert sparklines(study).steps == (0, 10 * (len(expected) - 1))


def test_one_point_and_no_spread_are_curves_too(tmp_path):
    lines = sparklines(study_of(tmp_path / "s", {"a": [curve([2.5])]}), width=3)
    assert set(lines.levels["norm=a"]) == {0}


@pytest.mark.parametrize(
    ("metric", "logged", "name"),
    [
        ("test/loss@8x", ["val/loss", "train/loss"], "val/loss"),
        ("test/sliding_loss@8x", ["val/loss"], "val/loss"),
        ("test/accuracy", ["val/loss", "val/accuracy"], "val/accuracy"),
        ("test/bleu", ["train/loss", "val/loss"], "val/loss"),
        ("test/bleu", ["train/loss"], "train/loss"),
        ("test/bleu", ["train/lr"], None),
    ],
)
def test_which_curve_it_is(tmp_path, metric, logged, name):
    study = study_of(tmp_path / "s", {"a": [[line for key in logged for line in curve([1, 2], key)]]}, metric)
    assert curve_name(study) == name
    assert (sparklines(study) is None) == (name is None)


def test_a_study_without_curves_has_no_lines(tmp_path):
    assert sparklines(study_of(tmp_path / "s", {"a": [[]]})) is None


def test_characters_follow_the_encoding():
    assert [characters_in(name) for name in ("utf-8", "cp437", "latin-1", "ascii", "no such")] == [
        BLOCKS,
        PLAIN,
        PLAIN,
        PLAIN,
        PLAIN,
    ]
    assert len(BLOCKS) == len(PLAIN) == 8
