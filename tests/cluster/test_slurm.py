"""Sweeps on a real Slurm: what is killed, fails, is requeued, preempted or out of time, and what comes out of it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.processes import command, wait_for

from attnlab.studies.cluster import ask, is_being_preempted, submissions
from attnlab.training.checkpoints import read_checkpoint
from attnlab.training.run_directory import RunDirectory, effective_state, read_json

pytestmark = pytest.mark.slow

ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.array_parallelism=4"]
# Runs that are caught in the middle: they wait as long as there is a file `gate`, and go on slowly. And one that fails.
PARTS = """
import os, time
from attnlab.layers import ALiBi


class Slow(ALiBi):
    calls = 0

    def bias(self, query_positions_BT, key_positions_BS):
        self.calls += 1
        while self.calls > 20 and os.path.exists("gate"):
            time.sleep(0.05)
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return super().bias(query_positions_BT, key_positions_BS)


class Broken(ALiBi):
    def bias(self, query_positions_BT, key_positions_BS):
        raise RuntimeError("this part is broken")
"""
CELLS = {
    "killed": ["position=slow"],
    "requeued": ["position=slow", "optimizer.lr=0.002"],
    "out_of_time": ["position=slow", "optimizer.lr=0.003"],
    "broken": ["position=broken"],
    "none": ["position=none"],
}


SETTINGS = ["trainer.max_steps=60", "trainer.val_check_interval=15", "trainer.log_every_n_steps=1", "model.dropout=0.1"]
SETTINGS += ["trainer.precision=32", "trainer.compile=false"]  # what settles them by trying calls the parts, too


def longer(tiny: list[str]) -> list[str]:
    """The settings of a short run, with those of a longer one in place of its own."""
    own = {word.partition("=")[0] for word in SETTINGS}
    return [*(word for word in tiny if word.partition("=")[0] not in own), *SETTINGS]


@pytest.fixture
def parts(slurm, monkeypatch):
    """The choices position=slow and position=broken, which nodes find by their folder alone."""
    (slurm / "team" / "conf" / "position").mkdir(parents=True)
    (slurm / "team" / "odd_parts.py").write_text(PARTS)
    for name in ("Slow", "Broken"):
        choice = slurm / "team" / "conf" / "position" / f"{name.lower()}.yaml"
        choice.write_text(f"_target_: odd_parts.{name}\n_partial_: true\n")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def five(study, tiny, parts):
    """A study of five cells, three of them slow on the cluster and one broken."""
    cells = [{"name": name, "overrides": overrides} for name, overrides in CELLS.items()]
    study("five", shared=longer(tiny), factors={}, cells=cells, baseline={"cell": "none"}, seeds=1)


def rows(run: Path) -> dict[tuple[int, tuple[str, ...]], dict[str, float]]:
    """The logged values by step and names, of a step that was repeated the last; without what a clock says."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], tuple(line["values"])): line["values"] | {"tokens": line["tokens"]} for line in lines}


def logged_steps(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "train/loss" in line["values"]]


def assert_same(run: Path, quiet: Path) -> None:
    """Two runs logged, ended with and learned the same bits."""
    assert rows(run) == rows(quiet), run
    assert read_json(run / "status.json")["final"] == read_json(quiet / "status.json")["final"]
    theirs = parameters(quiet)
    assert all(torch.equal(value, theirs[key]) for key, value in parameters(run).items()), run


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.timeout(900)  # on two idle cores it takes a tenth of that
def test_a_sweep_in_which_everything_happens_ends_as_one_in_which_nothing_does(attnlab, five, slurm, monkeypatch):
    words = ["five", "--config-dir", "team/conf"]
    (slurm / "gate").touch()
    with monkeypatch.context() as slowly:
        slowly.setenv("STEP_SECONDS", "0.1")
        sweep = command("sweep", *words, *ON_SLURM)
    runs = {name: Path("runs/five", name, "seed=0") for name in CELLS}
    wait_for(lambda: submissions(Path("runs/five")), sweep)
    (submission,) = submissions(Path("runs/five"))
    assert len(submission["runs"]) == len(CELLS)
    ids = {Path(place).parent.name: id for id, place in submission["runs"].items()}
    assert all(re.fullmatch(rf"{submission['job']}_\d+", id) for id in ids.values())  # one array

    caught = [runs[name] / "checkpoints" / "last.ckpt" for name in ("killed", "requeued", "out_of_time")]
    wait_for(lambda: all(path.exists() for path in caught), sweep)
    # A second sweep finds every run in the first one's hands, but for the one that may have failed by now.
    other = attnlab("sweep", *words, *ON_SLURM, "--detach")
    assert other.status == 0, other.err
    assert all(list(one["runs"].values()) == ["broken/seed=0"] for one in submissions(Path("runs/five"))[1:])
    shown = attnlab("status", "five")
    assert shown.out.count("1 running on n") >= 3, shown.out

    # scancel goes on asking for as long as a job that got its signal is on its way out.
    signalled = subprocess.Popen(["timeout", "2", "scancel", "--signal=USR2", ids["out_of_time"]])
    subprocess.run(["scontrol", "requeue", ids["requeued"]], check=True, timeout=20)
    os.kill(RunDirectory(runs["killed"]).owner()["pid"], signal.SIGKILL)
    (slurm / "gate").unlink()
    signalled.wait(timeout=20)
    assert sweep.wait(600) == 1, sweep.said
    assert "killed seed=0 was lost" in sweep.said
    assert "1 runs failed and 0 are not over" in sweep.said
    state = {name: effective_state(run) for name, run in runs.items()}
    assert state.pop("broken") == "failed"
    assert set(state.values()) == {"finished"}
    assert "this part is broken" in read_json(runs["broken"] / "status.json")["error"]
    attempts = {name: len(list((run / "attempts").iterdir())) for name, run in runs.items() if name != "broken"}
    assert {name: n for name, n in attempts.items() if n > 1} == {"killed": 2, "requeued": 2, "out_of_time": 2}
    for name in ("requeued", "out_of_time"):  # they saved before they went: no step was trained twice
        assert logged_steps(runs[name]) == list(range(1, 61))
    assert ask([ids["broken"]])[ids["broken"]].state == "COMPLETED"  # Slurm's word for it; the run's own is the truth

    assert attnlab("sweep", *words, "hydra/launcher=basic", "study.name=quiet").status == 1
    for name in state:
        assert_same(runs[name], Path("runs/quiet", name, "seed=0"))


@pytest.mark.timeout(600)
def test_what_an_urgent_job_preempts_saves_and_goes_on_exactly_when_it_has_ended(
    attnlab, study, tiny, parts, slurm, monkeypatch
):
    cells = [{"name": f"lr={lr}", "overrides": ["position=slow", f"optimizer.lr={lr}"]} for lr in (0.001, 0.002)]
    names = [cell["name"] for cell in cells]
    study("taken", shared=longer(tiny), factors={}, cells=cells, baseline={"cell": names[0]}, seeds=1)
    words, held, urgent = ["taken", "--config-dir", "team/conf"], slurm / "gate", slurm / "urgent"
    held.touch()
    urgent.touch()
    with monkeypatch.context() as slowly:
        slowly.setenv("STEP_SECONDS", "0.1")
        sweep = command("sweep", *words, *ON_SLURM)
    runs = [Path("runs/taken", name, "seed=0") for name in names]
    wait_for(lambda: all((run / "checkpoints" / "last.ckpt").exists() for run in runs), sweep)
    ids = list(submissions(Path("runs/taken"))[0]["runs"])

    script = "while [ -e urgent ]; do sleep 0.1; done"
    submit = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    job = subprocess.run([*submit, f"--wrap={script}"], check=True, timeout=20, capture_output=True, text=True)
    wait_for(lambda: all(is_being_preempted(id) for id in ids), sweep)
    held.unlink()
    wait_for(lambda: all(str(one) == "preempted, to start again" for one in ask(ids).values()), sweep)
    shown = attnlab("status", "taken").out
    assert "2 runs: 2 queued" in shown, shown
    assert shown.count("preempted, to start again") == 2, shown
    assert all(effective_state(run) == "interrupted" for run in runs)
    wait_for(lambda: ask([job.stdout.strip()])[job.stdout.strip()].state == "RUNNING", sweep)
    urgent.unlink()
    assert sweep.wait(300) == 0, sweep.said
    assert "all runs finished" in sweep.said
    assert len(submissions(Path("runs/taken"))) == 1  # Slurm brought them back, no second submission did
    assert attnlab("sweep", *words, "hydra/launcher=basic", "study.name=quiet").status == 0
    for name, run in zip(names, runs, strict=True):
        assert len(list((run / "attempts").iterdir())) == 2
        assert logged_steps(run) == list(range(1, 61))  # no step was trained twice
        assert_same(run, Path("runs/quiet", name, "seed=0"))


def test_two_sweeps_at_once_train_each_run_once_and_what_is_cancelled_is_tried_again(attnlab, study, slurm):
    study("both", seeds=1)
    sweeps = [command("sweep", "both", *ON_SLURM) for _ in range(2)]
    for sweep in sweeps:
        assert sweep.wait() == 0, sweep.said
        assert "all runs finished" in sweep.said
    runs = [Path("runs/both", cell, "seed=0") for cell in ("position=none", "position=alibi")]
    assert [effective_state(run) for run in runs] == ["finished", "finished"]
    assert [len(list((run / "attempts").iterdir())) for run in runs] == [1, 1]

    held = ["study.seeds=[1]", "study.name=held", "+hydra.launcher.additional_parameters.hold=true"]
    said = attnlab("sweep", "both", *ON_SLURM, *held, "--detach")
    assert said.status == 0, said.err
    assert "submitted 2 runs to Slurm as job" in said.out
    assert "2 runs: 2 queued" in attnlab("status", "held").out
    cancelled = attnlab("cancel", "held")
    assert "cancelled 2 jobs of held" in cancelled.out
    assert "Slurm has no job of held" in attnlab("cancel", "held").out
    assert "2 runs: 2 missing" in attnlab("status", "held").out
    again = attnlab("retry", "held", "--detach")  # as they were launched: held
    assert "submitted 2 runs to Slurm as job" in again.out, again.err
    assert "2 runs: 2 queued" in attnlab("status", "held").out


def test_cells_are_tuned_and_compared_by_the_same_words_also_detached(attnlab, study, slurm):
    study("tuned", seeds=1, tune={"search": {"optimizer.lr": [1e-4, 3e-3]}})
    said = attnlab("sweep", "tuned", *ON_SLURM, "--detach")
    assert said.status == 0, said.err
    assert "submitted 4 runs to Slurm as job" in said.out
    assert "4 runs of tuned-tuning are not over; the same command goes on when they are" in said.out
    again = attnlab("sweep", "tuned", *ON_SLURM)  # waits for these trials, and submits none of them again
    assert again.status == 0, again.err
    assert again.out.count("runs to Slurm as job") == 1
    plan = read_json(Path("runs/tuned/plan.json"))
    for cell in plan["cells"]:
        chosen = plan["tuned"]["cells"][cell["name"]]["chosen"]["optimizer.lr"]
        run = read_json(Path("runs/tuned", cell["name"], "seed=0/run.json"))
        assert run["config"]["optimizer"]["lr"] == chosen


def test_tpe_asks_for_one_setting_after_another_and_seeds_come_in_stages(attnlab, study, slurm):
    study(
        "searched",
        seeds=2,
        stop={"when": "settled", "at_most": 3, "step": 1},
        metric={"name": "val/loss", "better": "lower"},
        tune={
            "search": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}},
            "how": "tpe",
            "trials": 2,
            "metric": {"name": "val/loss", "better": "lower"},
        },
    )
    said = attnlab("sweep", "searched", *ON_SLURM)
    assert said.status == 0, said.err
    looks = [line for line in said.out.splitlines() if line.startswith("searched: look")]
    assert len(looks) in (1, 2)  # whether two seeds settle it is chance
    plan = read_json(Path("runs/searched/plan.json"))
    seeds = range(2 + ("3 seeds are next" in looks[0]))
    for name, found in plan["tuned"]["cells"].items():
        assert len(list(Path("runs/searched-tuning").glob(f"{name},lr=*/seed=10000/run.json"))) == 2
        runs = [read_json(Path("runs/searched", name, f"seed={seed}/run.json")) for seed in seeds]
        assert {run["config"]["optimizer"]["lr"] for run in runs} == {found["chosen"]["optimizer.lr"]}
        assert all((Path("runs/searched", name, f"seed={seed}") / "attempts").is_dir() for seed in seeds)


def test_two_nodes_train_as_one_process_with_twice_the_batch(attnlab, tiny, slurm):
    two = attnlab(
        "train", "-m", *tiny, *ON_SLURM, "trainer.num_nodes=2", "trainer.strategy=ddp", "cell=c", "study.name=two"
    )
    assert two.status == 0, two.err
    run = Path("runs/two/c/seed=0")
    assert len(list((run / "attempts").iterdir())) == 1
    assert attnlab("train", *tiny, "data.batch_size=8", "cell=c", "study.name=one").status == 0
    ours, other = (read_json(Path("runs", name, "c/seed=0/status.json")) for name in ("two", "one"))
    assert ours["tokens"] == other["tokens"]
    assert ours["final"] == pytest.approx(other["final"], rel=1e-4)


def test_what_slurm_refuses_is_said_in_its_own_words(attnlab, tiny, slurm):
    said = attnlab("train", "-m", *tiny, *ON_SLURM, "hydra.launcher.partition=nowhere")
    assert said.status == 2
    assert said.err.count("Invalid partition name specified") == 1
    assert said.err.startswith("attnlab: Slurm refused the jobs: ")
