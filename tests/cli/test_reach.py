"""`attnlab reach`: receptive fields of models by their settings."""

import csv
from pathlib import Path

from PIL import Image

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


def test_mistakes_are_said(attnlab, here):
    said = attnlab("reach", "model=recurrent_lm")
    assert said.status == 2
    assert "there is no stack of attention or convolution; a recurrence is reached by all before" in said.err
    said = attnlab("reach", *SMALL, "--length", "1")
    assert said.status == 2
    assert "--length 1: accepted are 2 or more positions" in said.err
