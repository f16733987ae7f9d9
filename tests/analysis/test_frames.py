"""The frames of a study hold what its files hold, with choices as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from tests.analysis.memory import study_of
from tests.stored_studies import cell, write_grid_study, write_plan, write_position_study, write_run

from attnlab.analysis.frames import curves_frame, runs_frame
from attnlab.analysis.reader import load_study


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return load_study(write_grid_study(tmp_path_factory.mktemp("runs") / "grid"))


def test_a_row_a_run_has_what_its_files_have(grid):
    frame = runs_frame(grid)
    assert frame.columns == [
        *("cell", "seed", "residual", "model.num_layers", "optimizer.lr", "schedule.warmup_steps", "state", "val/loss"),
        *("parameters", "step", "tokens", "seconds", "problem", "directory"),
    ]
    assert frame.height == 48
    for row in frame.rows(named=True):
        run, status = (json.loads(Path(row["directory"], name).read_text()) for name in ("run.json", "status.json"))
        assert (row["cell"], row["seed"]) == (run["cell_name"], run["seed"])
        assert row["residual"] == run["cell"]["residual"]
        assert row["optimizer.lr"] == float(run["cell"]["optimizer.lr"])
        assert row["val/loss"] == status["final"].get("val/loss")  # to the last bit
        assert row["parameters"] == run["parameters"]["total"]
        assert [row[name] for name in ("state", "step", "tokens", "seconds")] == [
            status[name] for name in ("state", "step", "tokens", "seconds")
        ]
    (lost,) = frame.filter(state="diverged").rows(named=True)
    assert lost["problem"] == "loss is not finite at step 120"


def test_runs_stand_in_the_plan_s_order_and_numbers_are_numbers(grid):
    frame = runs_frame(grid)
    assert frame["cell"].unique(maintain_order=True).to_list() == [one.name for one in grid.cells]
    assert frame["seed"].to_list() == [0, 1, 2] * 16
    kinds = [frame.schema[name] for name in ("model.num_layers", "optimizer.lr", "schedule.warmup_steps", "residual")]
    assert kinds == [pl.Int64, pl.Float64, pl.Int64, pl.String]


def test_a_row_a_step_has_what_was_logged(tmp_path):
    study = load_study(write_position_study(tmp_path / "p", seeds=2))
    frame = curves_frame(study)
    assert frame.columns == ["cell", "seed", "position", "step", "tokens", "seconds", "train/loss", "val/loss"]
    lines = (tmp_path / "p" / "position=alibi" / "seed=1" / "metrics.jsonl").read_text().splitlines()
    rows = frame.filter(position="alibi", seed=1).rows(named=True)
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        assert [row[name] for name in ("step", "tokens", "seconds")] == [line[n] for n in ("step", "tokens", "seconds")]
        assert [row["train/loss"], row["val/loss"]] == [line["values"].get(f"{s}/loss") for s in ("train", "val")]


def test_what_is_missing_is_null(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"position": "none"}), cell({"norm": "rms_norm"})], seeds=[0, 1])
    write_run(root, {"position": "none"}, 0, {"val/loss": 2.0, "val/odd": None})
    frame = runs_frame(load_study(root))
    assert frame["state"].to_list() == ["finished", "missing", "missing", "missing"]
    assert frame["position"].to_list() == ["none", "none", None, None]
    assert frame["norm"].to_list() == [None, None, "rms_norm", "rms_norm"]
    assert frame["val/loss"].to_list() == [2.0, None, None, None]
    assert frame["val/odd"].null_count() == 4
    assert frame["tokens"].to_list() == [1_638_400, None, None, None]


@pytest.mark.parametrize(
    ("choices", "expected", "kind"),
    [
        ([True, False], [True, False], pl.Boolean),
        (["1e-3", 3], [0.001, 3.0], pl.Float64),
        (["12", 6], [12, 6], pl.Int64),
        ([None, 16], [None, 16], pl.Int64),
        ([16, "all"], ["16", "all"], pl.String),
        ([True, 2], ["True", "2"], pl.String),
        (["inf", "nan"], ["inf", "nan"], pl.String),
        ([10**20, 1], [1e20, 1.0], pl.Float64),
        ([None, None], [None, None], pl.String),
    ],
)
def test_choices_are_of_their_kind(choices, expected, kind):
    study = study_of({(choice, str(place)): {0: 1.0} for place, choice in enumerate(choices)}, ("f", "g"))
    column = runs_frame(study)["f"]
    assert (column.to_list(), column.dtype) == (expected, kind)


def test_pandas_reads_them(grid):
    frame = runs_frame(grid).to_pandas()
    assert frame.groupby("residual")["val/loss"].count().to_dict() == {"post_ln": 23, "pre_ln": 24}
    assert len(curves_frame(grid).to_pandas()) == 48 * 40


def test_a_study_without_runs_has_columns(tmp_path):
    study = load_study(write_plan(tmp_path / "s"))
    assert runs_frame(study).columns[:3] == ["cell", "seed", "state"]
    assert curves_frame(study).columns == ["cell", "seed", "step", "tokens", "seconds"]
