"""The reader against files that are whole, torn, missing or strange."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
from studies import cell, learning_curve, write_plan, write_position_study, write_run

from attnlab.analysis.reader import flatten, natural, read_study, same


@pytest.fixture
def small(tmp_path):
    """A study of two cells and two seeds whose runs a test writes."""
    cells = [cell({"norm": "layer_norm"}), cell({"norm": "rms_norm"})]
    metric = {"name": "val/nats", "better": "lower", "margin": None}
    return write_plan(
        tmp_path / "norms",
        cells=cells,
        seeds=[0, 1],
        factors={"norm": ["layer_norm", "rms_norm"]},
        metric=metric,
        baseline={"norm": "layer_norm"},
    )


def line(step, attempt=1, **values):
    return {"step": step, "tokens": 10 * step, "seconds": 0.1 * step, "attempt": attempt, "values": values}


def test_plan_and_runs_are_read(tmp_path):
    study = read_study(write_position_study(tmp_path / "position_length"))
    assert study.question.startswith("Which position encoding")
    assert (len(study.cells), study.seeds, len(study.runs)) == (6, [0, 1, 2, 3], 24)
    assert (study.metric.name, study.metric.better, study.metric.margin) == ("test/nats@8x", "lower", 0.02)
    assert study.baseline_cell.name == "position=sinusoidal"
    assert set(study.values("position=alibi", "test/nats@8x")) == {0, 1, 2, 3}
    assert study.values("position=learned", "test/nats@8x") == {}
    assert "table ends" in study.runs["position=learned", 0].cannot["test/nats@8x"]
    assert study.metrics[0] == "test/nats@8x"


def test_a_run_that_is_not_there_is_missing(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/nats": 2.0})
    study = read_study(small)
    assert {key: run.state for key, run in study.runs.items()} == {
        ("norm=rms_norm", 0): "finished",
        ("norm=rms_norm", 1): "missing",
        ("norm=layer_norm", 0): "missing",
        ("norm=layer_norm", 1): "missing",
    }


def test_no_margin_means_that_every_difference_counts(small):
    assert read_study(small).metric.margin == 0.0


def test_a_run_whose_process_is_gone_is_interrupted_and_has_no_final_values(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/nats": 2.0}, state="running")
    run = read_study(small).runs["norm=rms_norm", 0]
    assert run.state == "interrupted"
    assert run.final == {}


def test_null_and_non_numbers_are_no_values(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/nats": None, "val/accuracy": 0.5})
    run = read_study(small).runs["norm=rms_norm", 0]
    assert run.final == {"val/accuracy": 0.5}
    assert run.non_finite == ["val/nats"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"state": 3, "final": 7}'])
def test_broken_files_do_not_stop_the_reader(small, content):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/nats": 2.0})
    write_run(small, {"norm": "layer_norm"}, 0, {"val/nats": 2.0})
    (directory / "status.json").write_bytes(content)
    (directory / "metrics.jsonl").write_bytes(content)
    study = read_study(small)
    assert study.runs["norm=rms_norm", 0].final == {}
    assert study.values("norm=layer_norm", "val/nats") == {0: 2.0}
    assert study.curves.height == 0


def test_directories_that_are_no_runs_are_left_alone(small):
    (small / "norm=rms_norm" / "seed=abc").mkdir(parents=True)
    (small / "norm=rms_norm" / "seed=abc" / "status.json").write_text('{"state": "finished"}')
    (small / "notes" / "seed=0").mkdir(parents=True)
    write_run(small, {"norm": "dynamic_tanh"}, 0, {"val/nats": 2.0})  # of no cell in the plan
    assert {run.state for run in read_study(small).runs.values()} == {"missing"}


def test_the_study_is_rebuilt_from_its_runs_without_a_plan(small):
    write_run(small, {"norm": "rms_norm"}, 3, {"val/nats": 2.0})
    (small / "plan.json").unlink()
    study = read_study(small)
    assert [c.choices for c in study.cells] == [{"norm": "rms_norm"}]
    assert (study.seeds, study.metric.name) == ([3], "val/nats")


def test_a_plan_that_a_run_carries_serves_too(small):
    plan = json.loads((small / "plan.json").read_text())
    write_run(small, {"norm": "rms_norm"}, 0, {"val/nats": 2.0}, plan=plan)
    (small / "plan.json").unlink()
    assert len(read_study(small).runs) == 4


def test_a_folder_without_a_study_names_those_beside_it(small):
    with pytest.raises(ValueError, match=r"no study at .*nrms.*; studies there: norms"):
        read_study(small.parent / "nrms")


def test_curves_are_one_sorted_frame(small):
    for seed in (1, 0):
        write_run(
            small,
            {"norm": "rms_norm"},
            seed,
            {},
            curve=[line(10, **{"train/nats": 3.0 + seed}), line(20, **{"train/nats": 2.5, "val/nats": 2.6})],
        )
    curves = read_study(small).curves
    assert curves.select("seed", "step").rows() == [(0, 10.0), (0, 20.0), (1, 10.0), (1, 20.0)]
    assert curves["train/nats"].to_list() == [3.0, 2.5, 4.0, 2.5]
    assert curves["val/nats"].to_list() == [None, 2.6, None, 2.6]
    assert curves["tokens"].to_list() == [100.0, 200.0, 100.0, 200.0]


def test_the_last_line_of_a_repeated_step_wins(small):
    lines = [
        line(10, nats=3.0),
        line(20, nats=2.0, other=7.0),
        line(10, attempt=2, nats=3.5),
        line(20, attempt=2, nats=2.5),
    ]
    write_run(small, {"norm": "rms_norm"}, 0, {}, curve=lines)
    curves = read_study(small).curves
    assert curves.select("step", "nats", "other").rows() == [(10.0, 3.5, None), (20.0, 2.5, 7.0)]


@pytest.mark.parametrize(
    "torn", ['{"step": 30, "tok', '{"step": 30, "tokens": 3, "seconds": 1, "attempt": 1, "values": {"nats": 9.0}}']
)
def test_a_torn_last_line_is_left_out(small, torn):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, nats=3.0)])
    with open(directory / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert read_study(small).curves["step"].to_list() == [10.0]


def test_lines_that_do_not_fit_are_left_out(small):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {})
    good = [json.dumps(line(step, nats=float(step))) for step in (1, 2)]
    odd = [
        "nonsense",
        "[1]",
        '{"step": null, "values": {"nats": 1}}',
        '{"step": 5, "tokens": "x", "values": {"nats": 1}}',
        '{"step": 6, "values": {"nats": "NaN"}}',
    ]
    (directory / "metrics.jsonl").write_text("\n".join([good[0], *odd, good[1]]) + "\n")
    curves = read_study(small).curves
    assert curves.filter(pl.col("nats").is_not_null()).select("step", "nats").rows() == [(1.0, 1.0), (2.0, 2.0)]


def test_null_values_are_gaps(small):
    write_run(
        small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, nats=3.0), {**line(20, nats=None), "non_finite": ["nats"]}]
    )
    assert read_study(small).curves["nats"].to_list() == [3.0, None]


def test_runs_with_different_metrics_share_the_frame(small):
    write_run(small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, a=1)])
    write_run(small, {"norm": "layer_norm"}, 0, {}, curve=[line(10, b=0.5)])
    curves = read_study(small).curves
    assert curves.select("cell", "a", "b").rows() == [("norm=layer_norm", None, 0.5), ("norm=rms_norm", 1.0, None)]


def test_a_directory_deleted_while_it_is_read_does_no_harm(small):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {}, curve=learning_curve(2.0, 0))
    study = read_study(small)
    shutil.rmtree(directory)
    assert study.curves.height == 0


def test_labels_say_what_differs(tmp_path):
    choices = [
        {"norm": "rms_norm", "model.num_layers": 6, "data": "kjv"},
        {"norm": "layer_norm", "model.num_layers": 12, "data": "kjv"},
    ]
    study = read_study(write_plan(tmp_path / "s", cells=[cell(c) for c in choices], seeds=[0]))
    assert [study.label(c) for c in study.cells] == ["rms_norm, num_layers 6", "layer_norm, num_layers 12"]
    assert study.varying == ["norm", "model.num_layers"]


def test_choices_are_the_same_however_they_are_written():
    assert same(0.001, "1e-3")
    assert same("alibi", "alibi")
    assert not same("alibi", "none")
    assert not same(None, 0)
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert sorted(["n@16x", "n@8x", "n@1x"], key=natural) == ["n@1x", "n@8x", "n@16x"]
