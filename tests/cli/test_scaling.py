"""`attnlab scaling`: words in, tables, files and refusals out."""

import csv
import io
import json

import pytest
from tests.analysis.scaling.planted import write_scaling_study

ONE = "runs/planted/model.d_model=16,trainer.max_steps=450/seed=0"


@pytest.mark.slow
def test_a_study_is_fitted_printed_and_written(attnlab, here):
    write_scaling_study(here / "runs" / "planted", (16, 24, 32, 48, 64), (450, 900, 1800), seeds=1)
    said = attnlab("scaling", "planted", "--resamples", "100", "--compute", "1e12", "--to", "out/figures")
    assert said.status == 0
    assert "At your size: with 1.00e+12 operations train" in said.out
    names = {path.name for path in (here / "out" / "figures").iterdir()}
    assert names == {
        *(f"{name}.{suffix}" for name in ("loss", "isoflop", "residuals") for suffix in ("png", "pdf")),
        *("scaling.json", "runs.csv"),
    }
    assert json.loads((here / "out" / "figures" / "scaling.json").read_text())["count"] == "non_embedding"
    asked = ("--format", "csv", "--count", "total", "--metric", "val/loss")
    said = attnlab("scaling", "runs/planted", "--resamples", "100", *asked)
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert len(rows) == 15
    assert float(rows[0]["loss"]) == json.loads((here / ONE / "status.json").read_text())["final"]["val/loss"]


def test_mistakes_end_in_one_sentence(attnlab, here):
    write_scaling_study(here / "runs" / "few", (16, 24), (450, 900), seeds=1)
    for words, message in (
        (("few",), "2 sizes and 2 budgets of tokens; a law of five numbers needs at least 5 sizes"),
        (("fwe",), "fwe: no such study has run in runs; there are few. Did you mean few?"),
        (("few", "--metric", "test/loss"), "no finished run has test/loss; they have: test/loss@1x, val/loss"),
        (("few", "--resamples", "3"), "resamples=3: an interval of 95% needs at least 100"),
    ):
        said = attnlab("scaling", *words)
        assert said.status == 2
        assert message in said.err.replace("`", "")
        assert len(said.err.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_fitted(attnlab, here, monkeypatch):
    write_scaling_study(here / "runs" / "planted", (16, 24, 32, 48, 64), (450, 900, 1800), seeds=1)
    (here / "file").write_text("")
    monkeypatch.setattr("attnlab.analysis.scaling.scaling_of", None)
    said = attnlab("scaling", "planted", "--resamples", "100", "--to", "file/figures")
    assert said.status == 2
    assert "--to file/figures: Not a directory; give a folder" in said.err
