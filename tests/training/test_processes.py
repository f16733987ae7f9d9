"""A training that is asked to stop saves at the end of its step first, whoever else waits for the signal."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
from test_checkpoints import curve
from tests.processes import program
from tiny_run import make_task, same_bits, train, weights

from attnlab.training import (
    Interrupted,
    Stopped,
    StopRequest,
    effective_state,
    find_resume,
    processes,
    read_json,
)
from attnlab.training.processes import SIGNALS, leaving, process_start


class Signal(pl.Callback):
    """Sends this process a signal in the middle of micro-batch `batch` (from 0)."""

    def __init__(self, batch: int, signum: int, rank: int = 0) -> None:
        self.batch, self.signum, self.rank = batch, signum, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def signals_are_given_back():
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("batch", [0, 4, 16, 17])
def test_it_stops_at_the_end_of_the_step_that_it_is_in_and_goes_on_with_the_same_bits(tmp_path, signum, batch):
    """Three micro-batches a step; step 2 ends in a validation. Batches 16 and 17 are of step 6."""
    straight, first, second = make_task(), make_task(), make_task()
    settings = {"accumulate_grad_batches": 3, "max_steps": 8, "val_check_interval": 2}
    train(tmp_path / "straight", straight, **settings)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "run", first, callbacks=(Signal(batch, signum),), **settings)
    step = batch // 3 + 1
    assert stopped.value.code == 128 + signum
    assert str(stopped.value).startswith(f"saved at step {step} and stopped by {signum.name}")
    assert effective_state(tmp_path / "run") == "interrupted"
    resume = find_resume(tmp_path / "run")
    assert resume.name == f"step={step}.ckpt"
    train(tmp_path / "run", second, resume=resume, **settings)
    assert same_bits(weights(straight), weights(second))
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.0)
    said = []
    with pytest.raises(Interrupted) as interrupted:
        train(
            tmp_path,
            make_task(),
            callbacks=(Signal(6, signal.SIGINT), Signal(6, signal.SIGINT)),
            stop=StopRequest(said.append),
            checkpoint_every_seconds=1e9,
        )
    assert interrupted.value.code == 130
    assert not isinstance(interrupted.value, Stopped)
    assert said == ["stopping when this step has ended and is saved; Ctrl-C again stops at once"]
    assert find_resume(tmp_path).name == "step=5.ckpt"
    assert read_json(tmp_path / "status.json")["state"] == "interrupted"


def test_one_ctrl_c_that_comes_twice_is_one(tmp_path):
    """From the terminal, and passed on by the process that started this one."""
    with pytest.raises(Stopped, match="saved at step 7 and stopped by SIGINT"):
        train(
            tmp_path,
            make_task(),
            callbacks=(Signal(6, signal.SIGINT), Signal(6, signal.SIGINT), Signal(6, signal.SIGTERM)),
        )


@pytest.mark.parametrize("error", [Stopped(signal.SIGINT, 7), Interrupted(signal.SIGTERM)], ids=["stopped", "at once"])
def test_a_worker_can_hand_an_interruption_on(error):
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), other.code, str(other)) == (type(error), error.code, str(error))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_leave_by_one_exception_and_are_given_back(signum):
    before = signal.getsignal(signum)
    with leaving(), pytest.raises(Interrupted) as interrupted:
        signal.raise_signal(signum)
    assert interrupted.value.code == 128 + signum
    assert signal.getsignal(signum) == before


def test_a_call_does_the_same_as_a_signal(tmp_path):
    stop = StopRequest()

    class Asks(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 6:
                stop.request()

    with pytest.raises(Stopped, match="saved at step 7 and stopped by SIGTERM"):
        train(tmp_path, make_task(), callbacks=(Asks(),), stop=stop)
    assert find_resume(tmp_path).name == "step=7.ckpt"


def test_whoever_waits_for_the_signal_gets_it_after_the_saving(tmp_path):
    """As submitit does, whose handler puts the job into the queue again and exits."""
    seen = []

    def requeue(signum, frame):
        seen.append((signum, find_resume(tmp_path).name))
        raise SystemExit(3)

    before = signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, make_task(), callbacks=(Signal(6, signal.SIGUSR2),))
    assert (stopped.value.code, seen) == (3, [(signal.SIGUSR2, "step=7.ckpt")])
    assert read_json(tmp_path / "status.json")["state"] == "interrupted"
    signal.signal(signal.SIGUSR2, before)


def test_where_that_returns_the_training_goes_on(tmp_path):
    """As submitit does with SIGTERM, which Slurm may send long before it kills."""
    seen = []
    before = signal.signal(signal.SIGTERM, wait := lambda signum, frame: seen.append(signum))
    straight, task = make_task(), make_task()
    train(tmp_path / "straight", straight)
    train(tmp_path / "run", task, callbacks=(Signal(6, signal.SIGTERM),))
    assert seen == [signal.SIGTERM]
    assert same_bits(weights(straight), weights(task))
    assert signal.getsignal(signal.SIGTERM) is wait
    signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    train(tmp_path, make_task(), callbacks=(Signal(6, signal.SIGUSR1),))
    assert read_json(tmp_path / "status.json")["state"] == "finished"
    signal.signal(signal.SIGUSR1, before)


RANKS = """
import sys; sys.path.insert(0, sys.argv[2])
import signal
from test_processes import Signal
from pathlib import Path
import torch; torch.set_num_threads(1)
from attnlab.training import find_resume
from tiny_run import TinyData, make_task, train
path, two = Path(sys.argv[1]), {"devices": 2, "strategy": "ddp_fork"}
train(path / "straight", make_task(), TinyData(4), **two)
try:
    train(path / "run", make_task(), TinyData(4), callbacks=(Signal(6, signal.SIGUSR1, rank=1),), **two)
except Exception as error:
    print(error)
print(find_resume(path / "run").name)
train(path / "run", make_task(), TinyData(4), find_resume(path / "run"), **two)
"""


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(tmp_path):
    done = program(RANKS, str(tmp_path), str(Path(__file__).parent))
    assert done.wait(120) == 0, done.said
    stopped, saved = (line for line in done.said.splitlines() if line.startswith(("process ", "step=")))
    code = 128 + (signal.SIGUSR1 if stopped.startswith("process 1") else signal.SIGTERM)  # whichever ended first
    assert stopped.endswith(f"exit code {code}")
    assert saved == "step=7.ckpt"
    assert curve(tmp_path / "straight") == curve(tmp_path / "run")


# Waits as a training does that the signal cannot stop at once, or (with "deaf") that nothing stops.
CHILD = """
import signal, sys, time
from attnlab.training import processes
processes.LOOK_SECONDS, processes.GRACE_SECONDS = 0.05, 0.3
if sys.argv[1:] == ["deaf"]: signal.signal(signal.SIGTERM, signal.SIG_IGN)
processes.end_with_ancestors()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from attnlab.training.processes import descendants
with descendants():
    between = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    started = subprocess.Popen([sys.executable, "-c", between, *sys.argv[1:]], stdout=sys.stdout)
time.sleep(60)
"""


def children_of(pid):
    """All processes below one, the nearest first."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    own = [int(word) for word in found.stdout.split()]
    return [*own, *(below for child in own for below in children_of(child))]


@pytest.mark.parametrize("how", [[], ["deaf"]], ids=["hears", "deaf"])
def test_it_ends_when_the_one_far_above_was_killed(how):
    above = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, *how], stdout=subprocess.PIPE, text=True)
    assert above.stdout.readline() == "ready\n"
    below = children_of(above.pid)
    assert len(below) == 2
    time.sleep(0.3)
    assert all(map(process_start, below))  # it does not end while they run
    above.kill()
    above.wait()
    end = time.monotonic() + 10
    while any(map(process_start, below)) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in below if process_start(pid)] == []
    above.stdout.close()


def test_the_environment_is_as_before_outside(monkeypatch):
    monkeypatch.setenv(processes.VARIABLE, "no list")
    with processes.descendants():
        assert [one["pid"] for one in processes._named()] == [os.getpid()]
    assert os.environ[processes.VARIABLE] == "no list"


def test_a_job_of_slurm_outlives_who_submitted_it(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with processes.descendants():
        [one] = processes._named()
    assert processes._is_near(one)
    assert not processes._is_near(one | {"boot": "another"})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not processes._is_near(one)


def test_a_process_does_not_wait_for_its_own_end(monkeypatch):
    monkeypatch.setattr(processes, "_watching", set())
    with processes.descendants():
        processes.end_with_ancestors()
    assert processes._watching == set()
