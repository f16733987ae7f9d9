"""`attnlab positions` and `reach`: encodings and receptive fields by name and of runs, as tables, CSV and pictures."""

import csv
from pathlib import Path

import pytest
from PIL import Image


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_encodings_by_name_beyond_the_training_length(attnlab, here):
    said = attnlab(
        "positions",
        "position=alibi,learned,none",
        "model.num_heads=2",
        "data.context_length=8",
        "--to",
        "out",
        "--beyond",
        "3",
    )
    assert said.status == 0, said.err
    assert "alibi: ALiBi; * is beyond the 8 positions of training" in said.out
    assert "  distance         0        1        2        4       8*      16*      23*\n" in said.out
    assert "  head 1       0.000   -0.004   -0.008   -0.016   -0.031   -0.062   -0.090\n" in said.out
    assert "learned (not trained: drawn at random): Learned" in said.out
    assert "  it ends at 8 positions" in said.out
    assert "does nothing" in said.out
    assert said.out.endswith("out: positions.csv, positions.pdf, positions.png\n")
    found = [row for row in rows("out/positions.csv") if row["encoding"] == "alibi" and row["head"] == "0"]
    assert [float(row["mean"]) for row in found] == [-m * 2.0**-4 for m in range(24)]
    assert [row["within_training"] for row in found] == ["True"] * 8 + ["False"] * 16
    with Image.open("out/positions.png") as image:
        image.load()
    assert Path("out/positions.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_that_a_run_has_learned(attnlab, imported):
    run = imported("gpt2")
    said = attnlab("positions", str(run))
    assert said.status == 0, said.err
    assert f"{run}: Learned" in said.out
    assert "not trained" not in said.out


def test_both_stacks_of_a_model_are_told_apart(attnlab, here):
    said = attnlab("positions", "model=t5", "model.d_model=16", "model.num_heads=2", "--length", "8")
    assert said.status == 0, said.err
    assert "encoder (not trained: drawn at random): RelativeBias" in said.out
    assert "decoder (not trained: drawn at random): RelativeBias" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["position=alibbi"], "Did you mean alibi?"),
        (["model=recurrent_lm"], "there is no stack with a position encoding"),
        (["--length", "1"], "--length must be at least 2, got 1"),
        (
            ["--length", "2000"],
            "8000 positions cannot be shown; accepted: 2 to 4096; give a smaller --length or --beyond",
        ),
        (["nowhere"], "there is no run"),
        (["position=rotary", "model.num_heads=7"], "num_heads"),
    ],
)
def test_mistakes_are_said(words, message, attnlab, here):
    said = attnlab("positions", *words)
    assert said.status == 2
    assert message in said.err


# --- receptive fields

SMALL = ("model.d_model=16", "model.num_heads=2", "model.num_layers=2")


def test_windows_side_by_side(attnlab, here):
    said = attnlab("reach", "attention.window=4,6", *SMALL, "--length", "20", "--to", "out")
    assert said.status == 0, said.err
    assert "window 4: attention in a window of 4; positions that reach the output at position 19 of 20\n" in said.out
    assert "       2        7        7\n" in said.out
    assert "       2       11       11\n" in said.out
    with open("out/reach.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["reaches"] == "True" for row in rows if row["stack"] == "window 6") == 6 + 11
    with Image.open("out/reach.png") as image:
        image.load()
    assert Path("out/reach.pdf").read_bytes().startswith(b"%PDF")


def test_mistakes_about_fields_are_said(attnlab, here):
    said = attnlab("reach", "model=recurrent_lm")
    assert said.status == 2
    assert "there is no stack of attention or convolution; a recurrence is reached by all before" in said.err
    said = attnlab("reach", *SMALL, "--length", "1")
    assert said.status == 2
    assert "--length 1: accepted are 2 or more positions" in said.err
