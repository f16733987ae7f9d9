"""`attnlab positions`: encodings by name and of runs, as tables, CSV and pictures."""

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
        "data.context=8",
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
        (["--length", "1"], "accepted are lengths from 2 on"),
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
