"""Worker processes: each dies alone, a run whose process is killed is tried again, and not for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
from hydra.core.utils import JobReturn, JobStatus
from tests.processes import command, wait_for

from attnlab.studies.slots import Slots
from attnlab.studies.workers import FIRST_TO_GO, LOADED, RELAUNCHES, Job, Killed, Worker, Workers, fail
from attnlab.training.processes import VARIABLE, Interrupted, Stopped, leaving
from attnlab.training.run_directory import effective_state, read_json, write_json
from hydra_plugins.attnlab_joblib_launcher import _failed

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a test


def execute(function, *arguments) -> JobReturn:
    """As Hydra's: what the function gives or raises."""
    result = JobReturn(status=JobStatus.COMPLETED)
    try:
        result.return_value = function(*arguments)
    except Exception as error:
        result.status, result.return_value = JobStatus.FAILED, error
    return result


def count(folder: Path) -> int:
    """How often this was called for a folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{time.time_ns()}").touch()
    return sum(path.name.isdigit() for path in folder.iterdir())


def trains(folder: Path) -> str:
    count(folder)
    return "trained"


def is_killed_twice(folder: Path) -> str:
    if count(folder) <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return "trained"


def is_killed(folder: Path) -> str:
    count(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def tells(folder: Path) -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


def waits(folder: Path) -> str:
    """As a training does: it saves when it is told to stop."""
    with leaving():
        try:
            (folder / "started").touch()
            time.sleep(60)
        finally:
            (folder / "saved").touch()


def stops_itself(folder: Path) -> str:
    raise Stopped(signal.SIGTERM, 7)


def run(jobs: dict, at_once: int):
    """The results of jobs, {folder: behaviour}."""
    made = [
        Job(
            f"cell={folder.name} seed=0",
            partial(execute, behave, folder),
            lambda reason, folder=folder: partial(execute, fail, reason, SimpleNamespace(run_dir=folder)),
        )
        for folder, behave in jobs.items()
    ]
    return Workers(made, _failed, Slots([0] * len(made), at_once)).run()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_fails_alone(tmp_path, capfd):
    behaviours = {"killed": is_killed, "twice": is_killed_twice, "a": trains, "b": trains, "c": tells}
    for name in behaviours:
        (tmp_path / name).mkdir()
    write_json(tmp_path / "killed" / "status.json", {"state": "running", "attempt": 1, "step": 7})
    results = run({tmp_path / name: behave for name, behave in behaviours.items()}, 2)
    killed, *others = results
    assert [result.return_value for result in others] == ["trained", "trained", "trained", FIRST_TO_GO]
    assert killed.status == JobStatus.FAILED
    assert "process was killed" in str(killed._return_value)
    assert f"{RELAUNCHES + 1} times" in str(killed._return_value)
    calls = {name: sum(path.name.isdigit() for path in (tmp_path / name).iterdir()) for name in behaviours}
    assert calls == {"killed": 3, "twice": 3, "a": 1, "b": 1, "c": 0}
    status = read_json(tmp_path / "killed" / "status.json")
    assert (status["state"], status["step"]) == ("failed", 7)
    assert status["error"] == str(killed._return_value)
    assert effective_state(tmp_path / "killed") == "failed"
    assert capfd.readouterr().err.count("it is launched again after the others") == 4


@pytest.mark.slow
def test_what_interrupts_it_is_passed_on_and_nothing_more_is_begun(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()

    def interrupt():
        while not all((folder / "started").exists() for folder in folders[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with leaving(), pytest.raises(Interrupted) as interrupted:
        run(dict.fromkeys(folders, waits), 2)
    assert interrupted.value.code == 130
    assert [(folder / "saved").exists() for folder in folders] == [True, True, False]


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_alone_has_not_been_killed(tmp_path, capfd):
    for name in ("stopped", "other"):
        (tmp_path / name).mkdir()
    stopped, other = run({tmp_path / "stopped": stops_itself, tmp_path / "other": trains}, 1)
    assert (stopped.status, str(stopped._return_value)) == (JobStatus.FAILED, str(Stopped(signal.SIGTERM, 7)))
    assert other.return_value == "trained"
    assert "killed" not in capfd.readouterr().err


def test_what_is_begun_while_it_is_stopped_stops_too(tmp_path):
    """The signal finds no process yet."""
    worker = Worker()
    worker.signal(signal.SIGTERM)
    with pytest.raises((Killed, Interrupted)):
        worker.do(waits, tmp_path)
    worker.end(at_once=True)


@pytest.mark.slow
def test_the_server_that_workers_are_forked_from_asks_nothing_of_a_gpu():
    """A driver that was asked before a fork serves no process after it, and has seen all GPUs."""
    code = (
        "import importlib, sys, torch\n"
        "def refuse(*_): raise AssertionError('a GPU was asked for')\n"
        "for name in ('_cuda_getDeviceCount', '_cuda_init', '_cuda_getCurrentRawStream'):\n"  # as of a torch with CUDA
        "    setattr(torch._C, name, refuse)\n"
        "for name in ('is_available', 'device_count', 'init', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, refuse)\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *LOADED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def left_of(mark: str) -> list[str]:
    """The processes that have a mark in their environment, by their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="it looks for processes in /proc")
def test_nothing_is_left_ten_seconds_after_a_sweep_was_killed(attnlab, study, tiny, tmp_path, monkeypatch):
    """One worker trains alone and one has started two ranks; what they have saved goes on."""
    forkserver.ensure_running()  # it stays, and so does what it inherits
    monkeypatch.setenv("ATTNLAB_TEST_MARK", str(tmp_path))
    shared = [*(word for word in tiny if not word.startswith("trainer.max_steps=")), "trainer.max_steps=100000"]
    shared.append("trainer.device=cpu")
    study("mine", seeds=1, shared=shared, factors={"trainer.devices": [1, 2]}, baseline={"trainer.devices": 1})
    sweep = command("sweep", "mine", "hydra.launcher.n_jobs=2")
    statuses = [Path(f"runs/mine/devices={devices}/seed=0/status.json") for devices in (1, 2)]
    wait_for(lambda: all(read_json(path, {}).get("step", 0) > 0 for path in statuses), sweep)
    assert len(left_of(str(tmp_path))) > 4
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    end = time.monotonic() + 10
    while left_of(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_of(str(tmp_path)) == []
    for path in statuses:
        assert effective_state(path.parent) == "interrupted"
        assert list((path.parent / "checkpoints").glob("step=*.ckpt"))
    assert VARIABLE not in os.environ
