"""What a run says about itself: its status to other processes, its progress to whoever looks."""

import io
import os
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_run import make_task, train

from attnlab.training import Progress, RunDirectory, StatusWriter, effective_state, read_json
from attnlab.training.callbacks import duration

FIELDS = [
    "state",
    "attempt",
    "step",
    "max_steps",
    "tokens",
    "seconds",
    "heartbeat",
    "host",
    "pid",
    "started",
    "ended",
    "eta",
    "latest",
    "best",
    "final",
    "unavailable",
    "notes",
    "divergence",
    "pruned",
    "error",
]


def test_a_finished_run_has_every_field_that_readers_expect(tmp_path):
    before = time.time()
    task = make_task()
    train(tmp_path, task)
    status = read_json(tmp_path / "status.json")
    assert list(status) == FIELDS
    assert (status["state"], status["attempt"], status["step"], status["max_steps"]) == ("finished", 1, 20, 20)
    assert (status["pid"], status["error"], status["eta"]) == (os.getpid(), None, None)
    assert before <= status["started"] <= status["heartbeat"] <= status["ended"] + 1 <= time.time() + 1
    assert status["tokens"] == task.tokens > 0
    assert status["latest"] == task.latest
    assert {"train/loss", "train/lr", "train/gradient_norm", "val/loss"} == set(status["latest"])


class Fails(Exception):
    """A mistake in the middle of a training."""


@pytest.mark.parametrize(
    ("raised", "state", "said"),
    [(Fails("no such thing"), "failed", "no such thing"), (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt")],
)
def test_an_exception_ends_the_status(tmp_path, raised, state, said):
    task = make_task()

    def break_off(batch):
        raise raised

    task.loss_sums = break_off
    with pytest.raises((Fails, SystemExit)):
        train(tmp_path, task)
    status = read_json(tmp_path / "status.json")
    assert (status["state"], effective_state(tmp_path)) == (state, state)
    assert said in status["error"]
    assert status["ended"] is not None


def test_the_first_error_is_the_one_that_stays(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim()
    status = StatusWriter(directory)
    status.start()
    assert read_json(tmp_path / "status.json")["state"] == "running"
    status.fail(Fails("first"))
    status.fail(ValueError("second"))
    assert read_json(tmp_path / "status.json")["error"].endswith("first")


def test_finishing_keeps_final_values_and_what_cannot_be_had(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim()
    final = {"test/loss@1x": 1.5, "test/loss@2x": float("nan")}
    StatusWriter(directory).finish(final=final, unavailable={"test/loss@8x": "the table ends"})
    status = read_json(tmp_path / "status.json")
    assert status["final"] == {"test/loss@1x": 1.5, "test/loss@2x": None}
    assert status["unavailable"] == {"test/loss@8x": "the table ends"}


def test_the_status_is_not_written_at_every_step(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim()
    status, task = StatusWriter(directory, every_seconds=3600), make_task()
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, max_steps=10)
    status.on_train_start(trainer, task)
    (tmp_path / "status.json").unlink()
    status.on_train_batch_end(trainer, task, None, None, 3)
    assert not (tmp_path / "status.json").exists()
    status.on_validation_end(trainer, task)
    assert read_json(tmp_path / "status.json")["step"] == 3


def test_the_time_left_is_that_of_the_pace_so_far(tmp_path):
    """Steps of earlier attempts do not count: 10 steps took 5 seconds, 30 are left."""
    directory = RunDirectory(tmp_path)
    directory.claim()
    status, task = StatusWriter(directory), make_task()
    status.on_train_start(SimpleNamespace(is_global_zero=True, global_step=60, max_steps=100), task)
    assert status.status["eta"] is None
    status._from = (60, time.monotonic() - 5)
    status.on_validation_end(SimpleNamespace(is_global_zero=True, global_step=70, max_steps=100), task)
    assert status.status["eta"] == pytest.approx(15, abs=0.5)


def test_plain_progress_is_a_line_a_validation(tmp_path):
    stream = io.StringIO()
    train(tmp_path, make_task(), callbacks=(Progress("alibi s0", stream=stream),))
    lines = stream.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"alibi s0 step {step}/20" for step in (5, 10, 15, 20)]
    assert all("train/loss" in line and "val/loss" in line and "tokens/s" in line for line in lines)
    assert "\x1b" not in stream.getvalue()


def test_live_progress_rewrites_one_line(tmp_path):
    stream = io.StringIO()
    train(tmp_path, make_task(), callbacks=(Progress("alibi s0", live=True, stream=stream),))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\r") >= 4


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (185, "3:05"), (7384.9, "2:03:05")]
)
def test_durations_are_read_at_a_glance(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
    ids=["Python", "CUDA", "CPU"],
)
def test_memory_that_ran_out_is_said_with_what_to_do(tmp_path, error):
    directory = RunDirectory(tmp_path)
    directory.claim()
    StatusWriter(directory).fail(error)
    status = read_json(tmp_path / "status.json")
    assert status["state"] == "failed"
    assert status["error"].startswith("memory ran out")
    assert str(error).partition("\n")[0] in status["error"]
    assert "trainer.accumulate_grad_batches" in status["error"]
    directory.release()
