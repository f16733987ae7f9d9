"""The reader against files that are whole, torn, missing or strange."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stored_studies import cell, learning_curve, write_plan, write_position_study, write_run

from attnlab.analysis import file_cache as kept_files
from attnlab.analysis import reader
from attnlab.analysis.comparison import compare
from attnlab.analysis.file_cache import flatten
from attnlab.analysis.reader import StudyReader, load_study
from attnlab.training.metrics import natural
from attnlab.training.study_fields import same


@pytest.fixture
def small(tmp_path):
    """A study of two cells and two seeds whose runs a test writes."""
    cells = [cell({"norm": "layer_norm"}), cell({"norm": "rms_norm"})]
    metric = {"name": "val/loss", "better": "lower", "margin": None}
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
    study = load_study(write_position_study(tmp_path / "position_length"))
    assert study.question.startswith("Which position encoding")
    assert (len(study.cells), study.seeds, len(study.runs)) == (6, [0, 1, 2, 3], 24)
    assert (study.metric.name, study.metric.better, study.metric.margin) == ("test/loss@8x", "lower", 0.02)
    assert study.baseline_cell.name == "position=sinusoidal"
    assert set(study.values("position=alibi", "test/loss@8x")) == {0, 1, 2, 3}
    assert study.values("position=learned", "test/loss@8x") == {}
    assert "table ends" in study.runs["position=learned", 0].unavailable["test/loss@8x"]
    assert study.metrics[0] == "test/loss@8x"


def test_a_run_that_is_not_there_is_missing(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    study = load_study(small)
    assert {key: run.state for key, run in study.runs.items()} == {
        ("norm=rms_norm", 0): "finished",
        ("norm=rms_norm", 1): "missing",
        ("norm=layer_norm", 0): "missing",
        ("norm=layer_norm", 1): "missing",
    }


def test_no_margin_means_that_every_difference_counts(small):
    assert load_study(small).metric.margin == 0.0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("metric", {"name": "m", "better": "lower", "margin": "1e-2"}, "metric.margin must be a finite number from 0"),
        ("metric", {"name": "m", "better": "lower", "margin": -1}, "metric.margin must be"),
        ("metric", {"name": "m", "better": "up"}, "metric.better must be lower or higher, got 'up'"),
        ("metric", {"name": 3}, "metric.name must be text"),
        ("metric", "val/loss", "metric must be a table"),
        ("seeds", [0, "1"], "seeds must be whole numbers, got '1'"),
        ("seeds", 4, "seeds must be a list"),
        ("baseline", "norm", "baseline must be a table"),
        ("factors", ["norm"], "factors must be a table"),
        ("claims", "none", "claims must be a list"),
        ("cells", [{"choices": {}}], "cells[0] must be a table with a name"),
        ("automatic", {"precision": "bf16"}, "automatic.precision must be one of precision, compile, with used, asked"),
        ("automatic", "bf16", "automatic must be a table"),
    ],
)
def test_what_a_plan_cannot_mean_is_refused_and_turned_into_no_default(small, field, value, words):
    plan = json.loads((small / "plan.json").read_text()) | {field: value}
    (small / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"plan\.json: ") as caught:
        load_study(small)
    assert words in str(caught.value)


def test_a_run_whose_process_is_gone_is_interrupted_and_has_no_final_values(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0}, state="running")
    run = load_study(small).runs["norm=rms_norm", 0]
    assert run.state == "interrupted"
    assert run.final == {}


def test_null_and_non_numbers_are_no_values(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": None, "val/accuracy": 0.5})
    run = load_study(small).runs["norm=rms_norm", 0]
    assert run.final == {"val/accuracy": 0.5}
    assert run.non_finite == ["val/loss"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"state": 3, "final": 7}'])
def test_broken_files_do_not_stop_the_reader(small, content):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    write_run(small, {"norm": "layer_norm"}, 0, {"val/loss": 2.0})
    (directory / "status.json").write_bytes(content)
    (directory / "metrics.jsonl").write_bytes(content)
    study = load_study(small)
    assert study.runs["norm=rms_norm", 0].final == {}
    assert study.values("norm=layer_norm", "val/loss") == {0: 2.0}
    assert study.curves.height == 0


def test_directories_that_are_no_runs_are_left_alone(small):
    (small / "norm=rms_norm" / "seed=abc").mkdir(parents=True)
    (small / "norm=rms_norm" / "seed=abc" / "status.json").write_text('{"state": "finished"}')
    (small / "notes" / "seed=0").mkdir(parents=True)
    write_run(small, {"norm": "dynamic_tanh"}, 0, {"val/loss": 2.0})  # of no cell in the plan
    assert {run.state for run in load_study(small).runs.values()} == {"missing"}


def test_the_study_is_rebuilt_from_its_runs_without_a_plan(small):
    write_run(small, {"norm": "rms_norm"}, 3, {"val/loss": 2.0})
    (small / "plan.json").unlink()
    study = load_study(small)
    assert [c.choices for c in study.cells] == [{"norm": "rms_norm"}]
    assert (study.seeds, study.metric.name) == ([3], "val/loss")


def test_a_plan_that_a_run_carries_serves_too(small):
    plan = json.loads((small / "plan.json").read_text())
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0}, plan=plan)
    (small / "plan.json").unlink()
    assert len(load_study(small).runs) == 4


def test_a_folder_without_a_study_names_those_beside_it(small):
    with pytest.raises(ValueError, match=r"no study at .*nrms.*; studies there: norms"):
        load_study(small.parent / "nrms")


def test_curves_are_one_sorted_frame(small):
    for seed in (1, 0):
        write_run(
            small,
            {"norm": "rms_norm"},
            seed,
            {},
            curve=[line(10, **{"train/loss": 3.0 + seed}), line(20, **{"train/loss": 2.5, "val/loss": 2.6})],
        )
    curves = load_study(small).curves
    assert curves.select("seed", "step").rows() == [(0, 10.0), (0, 20.0), (1, 10.0), (1, 20.0)]
    assert curves["train/loss"].to_list() == [3.0, 2.5, 4.0, 2.5]
    assert curves["val/loss"].to_list() == [None, 2.6, None, 2.6]
    assert curves["tokens"].to_list() == [100.0, 200.0, 100.0, 200.0]


def test_the_last_line_of_a_repeated_step_wins(small):
    lines = [
        line(10, loss=3.0),
        line(20, loss=2.0, other=7.0),
        line(10, attempt=2, loss=3.5),
        line(20, attempt=2, loss=2.5),
    ]
    write_run(small, {"norm": "rms_norm"}, 0, {}, curve=lines)
    curves = load_study(small).curves
    assert curves.select("step", "loss", "other").rows() == [(10.0, 3.5, None), (20.0, 2.5, 7.0)]


@pytest.mark.parametrize(
    "torn", ['{"step": 30, "tok', '{"step": 30, "tokens": 3, "seconds": 1, "attempt": 1, "values": {"loss": 9.0}}']
)
def test_a_torn_last_line_is_left_out(small, torn):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, loss=3.0)])
    with open(directory / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert load_study(small).curves["step"].to_list() == [10.0]


def test_lines_that_do_not_fit_are_left_out(small):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {})
    good = [json.dumps(line(step, loss=float(step))) for step in (1, 2)]
    odd = [
        "nonsense",
        "[1]",
        '{"step": null, "values": {"loss": 1}}',
        '{"step": 5, "tokens": "x", "values": {"loss": 1}}',
        '{"step": 6, "values": {"loss": "NaN"}}',
    ]
    (directory / "metrics.jsonl").write_text("\n".join([good[0], *odd, good[1]]) + "\n")
    curves = load_study(small).curves
    assert curves.filter(pl.col("loss").is_not_null()).select("step", "loss").rows() == [(1.0, 1.0), (2.0, 2.0)]


def test_null_values_are_gaps(small):
    write_run(
        small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, loss=3.0), {**line(20, loss=None), "non_finite": ["loss"]}]
    )
    assert load_study(small).curves["loss"].to_list() == [3.0, None]


def test_runs_with_different_metrics_share_the_frame(small):
    write_run(small, {"norm": "rms_norm"}, 0, {}, curve=[line(10, a=1)])
    write_run(small, {"norm": "layer_norm"}, 0, {}, curve=[line(10, b=0.5)])
    curves = load_study(small).curves
    assert curves.select("cell", "a", "b").rows() == [("norm=layer_norm", None, 0.5), ("norm=rms_norm", 1.0, None)]


def test_a_directory_deleted_while_it_is_read_does_no_harm(small):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {}, curve=learning_curve(2.0, 0))
    study = load_study(small)
    shutil.rmtree(directory)
    assert study.curves.height == 0


def test_labels_say_what_differs(tmp_path):
    choices = [
        {"norm": "rms_norm", "model.num_layers": 6, "data": "kjv"},
        {"norm": "layer_norm", "model.num_layers": 12, "data": "kjv"},
    ]
    study = load_study(write_plan(tmp_path / "s", cells=[cell(c) for c in choices], seeds=[0]))
    assert [study.label(c) for c in study.cells] == ["rms_norm \u00b7 num_layers 6", "layer_norm \u00b7 num_layers 12"]
    assert study.varying == ["norm", "model.num_layers"]


def test_choices_are_the_same_however_they_are_written():
    assert same(0.001, "1e-3")
    assert same("alibi", "alibi")
    assert not same("alibi", "none")
    assert not same(None, 0)
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}  # an empty table says nothing
    assert sorted(["n@16x", "n@8x", "n@1x"], key=natural) == ["n@1x", "n@8x", "n@16x"]


# Reading again what changes.


class Changes:
    """Changes the files of a small study; with `settled`, as if each change were long ago and at a time of its own."""

    def __init__(self, root: Path, settled: bool) -> None:
        self.root, self.settled, self.clock = root, settled, 10**18
        choices = [{"norm": "a"}, {"norm": "b"}]
        write_plan(root, cells=[cell(c) for c in choices], seeds=[0, 1], metric={"name": "m"}, baseline=choices[0])
        self._aged(root / "plan.json")

    def _aged(self, *paths: Path) -> None:
        for path in paths:
            self.clock += 10**9
            if self.settled and path.exists():
                os.utime(path, ns=(self.clock, self.clock))

    def directory(self, where: tuple[str, int]) -> Path:
        return self.root / f"norm={where[0]}" / f"seed={where[1]}"

    def run(self, where, value, state):
        directory = write_run(self.root, {"norm": where[0]}, where[1], {"m": value}, state=state)
        self._aged(directory / "run.json", directory / "status.json")

    def append(self, where, value, torn):
        directory = self.directory(where)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line(int(value), **{"m": value / 3, f"n{value}": 1.0}))
        with open(directory / "metrics.jsonl", "a") as file:
            file.write(text[:-9] if torn else text + "\n")
        self._aged(directory / "metrics.jsonl")

    def cut(self, where, size, name):
        path = self.directory(where) / name
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))
            self._aged(path)

    def rewrite(self, where, value, in_place):
        path = self.directory(where) / "metrics.jsonl"
        if path.exists():
            text = "".join(json.dumps(line(step, m=value)) + "\n" for step in range(9))
            (path if in_place else path.with_name("new")).write_text(text)
            if not in_place:
                os.replace(path.with_name("new"), path)
            self._aged(path)

    def claim(self, where, number, is_alive):
        directory = self.directory(where) / "attempts"
        directory.mkdir(parents=True, exist_ok=True)
        owner = {"pid": os.getpid(), "host": "elsewhere"}
        (directory / f"{number}.json").write_text(json.dumps(owner))
        os.utime(directory / f"{number}.json", None if is_alive else (1, 1))
        self._aged(directory)

    def delete(self, where, name):
        path = self.directory(where) / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if path.is_file() else None

    def replan(self, seeds):
        write_plan(self.root, cells=[cell({"norm": "b"})], seeds=seeds, metric={"name": "n1"})
        self._aged(self.root / "plan.json")


WHERE = st.tuples(st.sampled_from("abc"), st.integers(0, 1))
NAMES = st.sampled_from(["run.json", "status.json", "metrics.jsonl"])
CHANGE = st.one_of(
    st.tuples(st.just("run"), WHERE, st.sampled_from([1.0, 2.0, None]), st.sampled_from(["finished", "running"])),
    st.tuples(st.just("append"), WHERE, st.integers(0, 3), st.sampled_from([False, False, True])),
    st.tuples(st.just("cut"), WHERE, st.integers(0, 300), NAMES),
    st.tuples(st.just("rewrite"), WHERE, st.sampled_from([1.0, 2.0]), st.booleans()),
    st.tuples(st.just("claim"), WHERE, st.integers(1, 2), st.booleans()),
    st.tuples(st.just("delete"), WHERE, st.sampled_from([".", "attempts"]) | NAMES),
    st.tuples(st.just("replan"), st.sampled_from([[0], [1, 2]])),
)


@pytest.mark.slow
@pytest.mark.parametrize("settled", [True, False])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CHANGE, min_size=1, max_size=4), min_size=2, max_size=8))
def test_what_is_read_again_is_what_is_read_anew(settled, rounds):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if settled:
            patch.setattr(kept_files, "SETTLED_NS", -(10**18))
        changes = Changes(Path(folder) / "s", settled)
        live = StudyReader(changes.root)
        for number, round_ in enumerate(rounds):
            for name, *words in round_:
                getattr(changes, name)(*words)
            fresh, again = load_study(changes.root), live.read()
            assert again == fresh
            if number % 2:  # curves may be asked for every time, or later
                assert again.curves.equals(fresh.curves)
                assert again.curves.schema == fresh.curves.schema


@pytest.fixture
def settled(monkeypatch):
    """Files count as unchanged as soon as they are written."""
    monkeypatch.setattr(kept_files, "SETTLED_NS", -(10**18))


def test_nothing_is_opened_while_nothing_changes(small, settled, monkeypatch):
    for seed in (0, 1):
        write_run(small, {"norm": "rms_norm"}, seed, {"val/loss": 2.0}, curve=[line(10, loss=3.0)])
    live = StudyReader(small)
    study = live.read()
    curves = study.curves
    monkeypatch.setattr(os, "open", lambda *words: pytest.fail(f"opened {words}"))
    assert live.read() is study
    assert live._read_curves((r.cell, r.seed, str(r.directory)) for r in study.runs.values() if r.status) is curves


def test_of_runs_that_did_not_change_the_objects_stay(small, settled):
    for seed in (0, 1):
        write_run(small, {"norm": "rms_norm"}, seed, {"val/loss": 2.0})
    live = StudyReader(small)
    before = live.read()
    write_run(small, {"norm": "rms_norm"}, 1, {"val/loss": 2.25})
    after = live.read()
    assert after is not before
    assert after.runs["norm=rms_norm", 0] is before.runs["norm=rms_norm", 0]
    assert after.values("norm=rms_norm", "val/loss") == {0: 2.0, 1: 2.25}


def test_a_file_that_changed_just_now_is_looked_at_again(small):
    """Of the same size and, as far as its file system's clock can tell, of the same time."""
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    live = StudyReader(small)
    live.read()
    times = (directory / "status.json").stat()
    with open(directory / "status.json", "r+") as file:
        text = file.read().replace('"val/loss": 2.0', '"val/loss": 3.0')
        file.seek(0)
        file.write(text)
    os.utime(directory / "status.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert live.read().values("norm=rms_norm", "val/loss") == {0: 3.0}


def test_a_run_whose_process_dies_is_told_without_a_change_of_its_files(small, settled, monkeypatch):
    write_run(small, {"norm": "rms_norm"}, 0, {}, state="running")
    monkeypatch.setattr(reader, "effective_state", lambda directory: "running")
    live = StudyReader(small)
    assert live.read().runs["norm=rms_norm", 0].state == "running"
    monkeypatch.setattr(reader, "effective_state", lambda directory: "interrupted")
    assert live.read().runs["norm=rms_norm", 0].state == "interrupted"


def test_a_run_that_is_over_never_lacks_its_last_status(small, monkeypatch):
    """It ends between two files being read: what is told then is the state before, or all of the state after."""
    write_run(small, {"norm": "rms_norm"}, 0, {}, state="running")
    real = reader.effective_state

    def ends_meanwhile(directory):
        write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
        return real(directory)

    monkeypatch.setattr(reader, "effective_state", ends_meanwhile)
    run = load_study(small).runs["norm=rms_norm", 0]
    assert (run.state, run.final) == ("finished", {"val/loss": 2.0})


def test_a_run_that_is_deleted_between_being_found_and_being_read_is_missing(small, monkeypatch):
    gone = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    write_run(small, {"norm": "rms_norm"}, 1, {"val/loss": 2.5})
    live = StudyReader(small)
    live.read()

    def deleted(directory):
        shutil.rmtree(gone, ignore_errors=True)
        return "finished"

    monkeypatch.setattr(reader, "effective_state", deleted)
    for study in (live.read(), load_study(small)):
        assert study.runs["norm=rms_norm", 0].state == "missing"
        assert study.values("norm=rms_norm", "val/loss") == {1: 2.5}
        assert study.unreadable == []


def test_runs_that_come_and_go_while_a_reader_looks(small):
    stop, failed = threading.Event(), []

    def come_and_go():
        try:
            while not stop.is_set():
                directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0}, curve=[line(10, loss=3.0)])
                stop.wait(0.001)
                shutil.rmtree(directory.parent)
                stop.wait(0.001)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    live, states, end = StudyReader(small), [], time.monotonic() + 20
    while time.monotonic() < end and not (len(states) > 200 and {"missing", "finished"} <= {*states}):
        study = live.read()
        run = study.runs["norm=rms_norm", 0]
        states.append(run.state)
        assert run.final in ({}, {"val/loss": 2.0})
        assert study.curves.height <= 1
    stop.set()
    thread.join()
    assert failed == []
    assert {"missing", "finished"} <= {*states}
    assert live.read().runs["norm=rms_norm", 0].state == "missing"


def refusing(monkeypatch, target: Path, error: int = errno.EACCES):
    """Whoever opens `target` is refused; permissions do not bind the user that tests may run as."""
    real = os.open

    def opened(path, *words, **named):
        if Path(path) == target:
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *words, **named)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_may_not_be_read_is_named_and_read_when_it_may(small, error):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    live = StudyReader(small)
    with pytest.MonkeyPatch.context() as patch:
        refusing(patch, directory / "status.json", error)
        study = live.read()
    assert study.values("norm=rms_norm", "val/loss") == {}
    assert study.unreadable == [f"{directory}/status.json: {os.strerror(error)}"]
    study = live.read()
    assert study.values("norm=rms_norm", "val/loss") == {0: 2.0}
    assert study.unreadable == []


def test_a_folder_that_may_not_be_listed_is_named(small, monkeypatch):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    write_run(small, {"norm": "layer_norm"}, 0, {"val/loss": 2.0})
    real = os.scandir

    def listed(path):
        if str(path).endswith("rms_norm"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", listed)
    study = load_study(small)
    assert study.unreadable == [f"{small}/norm=rms_norm: Permission denied"]
    assert study.values("norm=layer_norm", "val/loss") == {0: 2.0}


def test_folders_in_the_place_of_files_are_named(small):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    for name in ("run.json", "metrics.jsonl"):
        (directory / name).unlink(missing_ok=True)
        (directory / name).mkdir()
    study = load_study(small)
    assert study.values("norm=rms_norm", "val/loss") == {0: 2.0}
    assert study.unreadable == [f"{directory}/run.json: it is no regular file"]
    assert study.curves.height == 0


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\x1b[2Jb", "a\nb", "[red]x[/]", "'\"; DROP", "ä" * 80])
def test_names_are_taken_as_they_are(tmp_path, name):
    safe = name.replace("/", "_")
    root = write_plan(tmp_path / "s", cells=[cell({"norm": safe})], seeds=[0], metric={"name": "m"})
    write_run(root, {"norm": safe}, 0, {"m": 1.5}, curve=[line(1, m=2.0)])
    study = load_study(root)
    assert study.values(f"norm={safe}", "m") == {0: 1.5}
    assert study.curves["cell"].to_list() == [f"norm={safe}"]


def test_names_that_no_encoding_can_write_do_no_harm(small):
    os.makedirs(os.fsencode(small) + b"/norm=\xff/seed=0")
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**record, "command": "\ud800 😀"}))
    study = load_study(small)
    assert study.runs["norm=rms_norm", 0].record["command"] == "? 😀"
    assert study.unreadable == [f"{small}/norm=?: its name is no text"]


@pytest.mark.parametrize("seed", ["²", "٣", "1" * 30, "-1", "1.5", ""])
def test_seeds_that_are_no_numbers_of_seeds_are_no_runs(small, seed):
    directory = small / "norm=rms_norm" / f"seed={seed}"
    directory.mkdir(parents=True)
    (directory / "status.json").write_text('{"state": "finished", "final": {"val/loss": 1}}')
    assert {run.state for run in load_study(small).runs.values()} == {"missing"}


@pytest.mark.parametrize(
    "status", ["[1]", "3", '{"state": "finished", "attempt": "x"}', '{"attempt": null}', "[" * 9999]
)
@pytest.mark.parametrize("attempt", [None, "{}", "[]", '{"pid": "x"}'])
def test_files_that_attnlab_does_not_write_are_survived(small, status, attempt):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {})
    (directory / "status.json").write_text(status)
    if attempt is not None:
        (directory / "attempts").mkdir()
        (directory / "attempts" / "1.json").write_text(attempt)
    study = load_study(small)
    assert study.runs["norm=rms_norm", 0].state in ("interrupted", "running", "missing", "finished")
    assert compare(study).measured == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_not_finite_are_gaps_and_told(small, text):
    directory = write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 7.25}, curve=[line(1, loss=7.25, other=1.0)])
    for name in ("status.json", "metrics.jsonl"):
        path = directory / name
        path.write_text(path.read_text().replace("7.25", text))
    study = load_study(small)
    assert study.runs["norm=rms_norm", 0].non_finite == ["val/loss"]
    assert study.curves.select("step", "other").rows() == [(1.0, 1.0)]
    assert "loss" not in study.curves.columns


def test_a_plan_that_is_being_deleted_leaves_what_the_runs_say(small):
    write_run(small, {"norm": "rms_norm"}, 0, {"val/loss": 2.0})
    live = StudyReader(small)
    assert len(live.read().runs) == 4
    (small / "plan.json").unlink()
    assert len(live.read().runs) == 1
    shutil.rmtree(small)
    with pytest.raises(ValueError, match="no study at"):
        live.read()


def test_seeds_that_nobody_asked_for_are_not_missing(tmp_path):
    """Runs without a plan: a cell with more seeds than another leaves none of the other's open."""
    root = tmp_path / "s"
    for position, seeds in (("none", 2), ("alibi", 4)):
        for seed in range(seeds):
            write_run(root, {"position": position}, seed, {"m": 2.0 + seed})
    assert {run.state for run in load_study(root).runs.values()} == {"finished"}
    write_plan(root, cells=[cell({"position": name}) for name in ("none", "alibi")], seeds=[0, 1, 2, 3])
    assert sum(run.state == "missing" for run in load_study(root).runs.values()) == 2
