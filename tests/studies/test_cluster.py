"""What a study makes of Slurm's answers; Slurm's commands are stand-ins here, see tests/cluster for a real one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from attnlab.studies.cluster import Job, NoAnswer, ask, jobs_of, note_submission, submissions
from attnlab.training import RunDirectory, processes, run_directory
from hydra_plugins.attnlab_slurm_launcher import _Leave


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a command of Slurm on the path, which prints and fails as told."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def make(name: str, prints: str = "", error: str = "", status: int = 0) -> None:
        path = tmp_path / "bin" / name
        script = [f"cat <<'E'\n{prints}\nE"] if prints else []
        path.write_text("\n".join(["#!/bin/sh", *script, f"echo '{error}' >&2", f"exit {status}"]))
        path.chmod(0o755)

    for other in ("squeue", "sacct", "scancel", "sbatch"):  # what may be installed here says nothing
        make(other)
    return make


def test_every_job_is_told_by_its_id_and_one_that_slurm_forgot_is_gone(command):
    command("squeue", "7_0|RUNNING|n2|None\n7_1|PENDING||Priority\n8|COMPLETED||None")
    found = ask(["7_0", "7_1", "7_2", "8"])
    assert {id: str(job) for id, job in found.items()} == {
        "7_0": "running on n2",
        "7_1": "pending (Priority)",
        "7_2": "gone",
        "8": "completed",
    }
    assert [id for id, job in found.items() if job.is_live] == ["7_0", "7_1"]


def test_what_the_controller_forgot_the_accounting_may_know(command):
    command("squeue", error="slurm_load_jobs error: Invalid job id specified", status=1)
    command("sacct", "7_0|TIMEOUT\n7_1|CANCELLED by 1000\n7_2|NODE_FAIL")
    assert {id: str(job) for id, job in ask(["7_0", "7_1", "7_2", "9"]).items()} == {
        "7_0": "out of time",
        "7_1": "cancelled",
        "7_2": "node lost",
        "9": "gone",
    }


def test_an_array_that_was_cancelled_before_its_turn_is_kept_as_one(command):
    command("squeue", "7|CANCELLED||JobHeldUser")
    assert str(ask(["7_3"])["7_3"]) == "cancelled"


def test_a_slurm_that_does_not_answer_has_not_lost_anything(command):
    command("squeue", error="Unable to contact slurm controller", status=1)
    with pytest.raises(NoAnswer, match=r"Slurm does not answer: .*Unable to contact"):
        ask(["7"])


def test_a_run_that_was_submitted_twice_is_in_the_hands_of_the_job_that_lives(command, tmp_path):
    note_submission(tmp_path, {"7_0": "a/seed=0", "7_1": "b/seed=0"}, launcher=["hydra/launcher=slurm"])
    note_submission(tmp_path, {"8": "a/seed=0"}, launcher=[])
    assert [one["job"] for one in submissions(tmp_path)] == ["7", "8"]
    command("squeue", "7_0|RUNNING|n1|None\n7_1|FAILED||None\n8|COMPLETED||None")
    assert jobs_of(tmp_path) == {"a/seed=0": Job("7_0", "RUNNING", "n1"), "b/seed=0": Job("7_1", "FAILED", "None")}


def test_a_machine_without_slurm_knows_of_no_jobs(tmp_path, monkeypatch):
    note_submission(tmp_path, {"7": "a/seed=0"}, launcher=[])
    monkeypatch.setenv("PATH", "")
    assert jobs_of(tmp_path) == {}


@pytest.fixture
def on_another_node(study, attnlab, monkeypatch):
    """A study of one run, which a job on another node has claimed and heartbeats; returns the run's directory."""
    study("mine", factors={"position": ["none"]}, seeds=1)
    run = Path("runs/mine/position=none/seed=0")
    with monkeypatch.context() as there:
        there.setenv("SLURM_JOB_ID", "7")
        there.setattr(processes, "machine", lambda: {"host": "n2", "boot": "other", "processes": "other"})
        directory = RunDirectory(run)
        directory.claim()
        directory.release()
    plan = {"study": "mine", "question": "Which?", "factors": {}, "baseline": {}, "seeds": [0], "metric": {"name": "m"}}
    cell = {"name": "position=none", "choices": {}, "overrides": ["position=none"], "skip": None}
    Path("runs/mine/plan.json").write_text(json.dumps(plan | {"cells": [cell]}))
    note_submission(Path("runs/mine"), {"7": "position=none/seed=0"}, launcher=["hydra/launcher=slurm"])
    return run


@pytest.mark.parametrize(
    ("squeue", "state", "said"),
    [
        ("7|RUNNING|n2|None", "1 running", "running on n2"),
        ("7|PENDING||BeginTime", "1 running", "preempted, to start again"),
        ("7|NODE_FAIL||None", "1 lost", "node lost"),
        ("6|RUNNING|n2|None", "1 lost", "gone"),
        ("7|TIMEOUT||TimeLimit", "1 lost", "out of time"),
    ],
)
def test_a_run_whose_job_is_gone_does_not_run_for_ever(on_another_node, attnlab, command, squeue, state, said):
    command("squeue", squeue)
    shown = attnlab("status", "mine").out
    assert state in shown, shown
    assert said in shown, shown
    assert ("attnlab retry mine" in shown) == ("lost" in state)


@pytest.mark.parametrize(
    ("squeue", "comes_back"),
    [
        ("RUNNING|1700000100|1700000000|", True),
        ("RUNNING|1700000000|1700000000|", True),
        ("RUNNING|1700000000|1700000100|", False),  # it was preempted before it started again
        ("RUNNING|N/A|1700000000|", False),  # somebody signalled it
        ("CANCELLED|1700000100|1700000000|", False),  # preempted, and then cancelled
        ("PENDING|1700000100|1700000000|", False),  # Slurm has requeued it
        ("", False),
    ],
)
def test_at_sigterm_what_slurm_preempts_is_requeued_once_and_nothing_else(command, monkeypatch, squeue, comes_back):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("squeue", squeue)
    asked = []

    def requeue(signum: int, _: object) -> None:
        asked.append(signum)
        command("squeue", squeue.replace("RUNNING", "PENDING"))

    leave = _Leave(requeue)
    with pytest.raises(SystemExit, match="143"):
        leave(signal.SIGTERM, None)
    leave(signal.SIGTERM, None)  # on its way out already
    assert asked == [signal.SIGUSR2] * comes_back


def test_what_may_not_be_requeued_leaves_as_one_that_was_stopped(command, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("squeue", "RUNNING|1700000100|1700000000|")

    def refused(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])

    with pytest.raises(SystemExit, match="143"):
        _Leave(refused)(signal.SIGTERM, None)


def test_a_slurm_that_is_silent_at_sigterm_requeues_nothing(command, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("squeue", error="Unable to contact slurm controller", status=1)
    with pytest.raises(SystemExit, match="143"):
        _Leave(lambda *_: pytest.fail("requeued"))(signal.SIGTERM, None)


def test_a_silent_slurm_is_said_and_shown_is_what_the_directories_say(on_another_node, attnlab, command):
    command("squeue", error="Unable to contact slurm controller", status=1)
    said = attnlab("status", "mine")
    assert "1 running" in said.out
    assert "Unable to contact slurm controller; shown is what the runs' directories say" in said.err
    refused = attnlab("retry", "mine")
    assert refused.status == 2
    assert "none was launched" in refused.err


def test_a_job_that_starts_again_outwaits_an_owner_that_is_silent(on_another_node, attnlab, tiny, monkeypatch):
    monkeypatch.setattr("attnlab.runs.run.LOOK_AGAIN_SECONDS", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = ["train", *tiny, "position=none", f"run_dir={on_another_node}", "cell=position=none"]
    attempt = on_another_node / "attempts" / "1.json"
    dies = time.time() - run_directory.STALE_SECONDS + 1
    os.utime(attempt, (dies, dies))
    assert attnlab(*words).status == 0
    assert RunDirectory(on_another_node).state() == "finished"
    assert len(list(attempt.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.launcher.nodes=2"], "hydra.launcher.nodes=2 does not fit trainer.num_nodes=1"),
        (["hydra.launcher.tasks_per_node=4"], "hydra.launcher.tasks_per_node=4 does not fit trainer.devices=1"),
        (["trainer.devices=2", "hydra.launcher.tasks_per_node=1"], "does not fit trainer.devices=2"),
        (["trainer.devices=1,2"], "have one shape, but these runs differ"),
    ],
)
def test_a_shape_that_does_not_fit_is_explained_before_anything_is_submitted(attnlab, tiny, command, words, message):
    said = attnlab("train", "-m", *tiny, "hydra/launcher=slurm", *words)
    assert said.status == 2
    assert message in said.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_machine_that_cannot_submit_says_where_to_go(attnlab, study, monkeypatch):
    study("mine")
    monkeypatch.setenv("PATH", "/nowhere")
    for launcher in ("slurm", "slurm_gpu"):
        said = attnlab("sweep", "mine", f"hydra/launcher={launcher}")
        assert said.status == 2
        assert "has no sbatch" in said.err
        assert "login node" in said.err
    said = attnlab("sweep", "mine", "--detach")
    assert "add hydra/launcher=slurm" in said.err
    assert not Path("runs").exists()


def test_a_job_for_a_run_that_another_job_has_ends_at_the_owners_next_beat_and_says_whose_it_is(
    on_another_node, attnlab, tiny, monkeypatch
):
    attempt = on_another_node / "attempts" / "1.json"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setattr("attnlab.runs.run.time.sleep", lambda seconds: os.utime(attempt))
    said = attnlab(
        "train", *tiny, "progress=plain", "position=none", f"run_dir={on_another_node}", "cell=position=none"
    )
    assert said.status == 1
    assert f"{on_another_node}: owned by job 7, process {os.getpid()} on n2 (attempt 1); left to it" in said.err
    assert len(list(attempt.parent.iterdir())) == 1
