"""Slots: every GPU has its runs and no others, by the names that CUDA knows it by; without GPUs they are cores."""

import os
import signal
import sys
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import pytest
import torch

from attnlab.config import UsageError
from attnlab.studies import slots
from attnlab.studies.slots import VISIBLE, Slots, gpus
from attnlab.studies.workers import Job, Workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a test

PRETENDED = ["3", "GPU-5d1f", "MIG-77aa"]


@pytest.fixture
def machine(monkeypatch):
    """Pretends that there are GPUs of these names and so many cores."""

    def pretend(names: list[str], cores: int) -> None:
        monkeypatch.setattr(slots, "gpus", lambda: names)
        monkeypatch.setattr(slots, "cpu_count", lambda: cores)

    return pretend


@pytest.mark.parametrize(
    ("visible", "found", "names"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("2,0", 2, ["2", "0"]),
        ("0, 7", 1, ["0"]),  # CUDA takes none after the first that it does not have
        ("GPU-8932f937,GPU-16a5", 2, ["GPU-8932f937", "GPU-16a5"]),
        ("MIG-1b6a,MIG-2c7b,MIG-3d8c", 1, ["MIG-1b6a", "MIG-2c7b", "MIG-3d8c"]),  # torch counts those of one process
        ("MIG-1b6a", 0, []),
        ("", 0, []),
        ("-1", 0, []),
    ],
)
def test_gpus_have_the_names_that_the_environment_gives_them(monkeypatch, visible, found, names):
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert gpus() == names


@pytest.mark.parametrize(
    ("devices", "cores", "runs", "asked", "said"),
    [
        (0, 2, [0] * 24, {}, "2 runs at once, 1 thread each"),
        (0, 8, [0] * 3, {}, "3 runs at once, 2 threads each"),
        (0, 4, [0] * 9, {"n_jobs": -2}, "3 runs at once, 1 thread each"),
        (0, 2, [0], {}, "1 run at once, 2 threads each"),
        (8, 96, [1] * 24, {}, "8 runs at once, one a GPU, 12 threads each"),
        (8, 96, [1] * 3, {}, "3 runs at once, one a GPU, 32 threads each"),
        (8, 96, [1] * 64, {"runs_per_device": 4}, "32 runs at once, up to 4 a GPU, 3 threads each"),
        (8, 96, [1] * 8, {"runs_per_device": 4}, "8 runs at once, one a GPU, 12 threads each"),
        (8, 96, [2] * 24, {}, "4 runs at once, 2 GPUs each, 12 threads each"),
        (8, 96, [3] * 24, {}, "2 runs at once, 3 GPUs each, 16 threads each"),
        (8, 96, [1, 2, 1], {}, "3 runs at once, 1 to 2 GPUs each, 32 threads each"),
        (8, 96, [1] * 24, {"n_jobs": 2}, "2 runs at once, one a GPU, 48 threads each"),
        (2, 4, [1] * 24, {"n_jobs": 6}, "6 runs at once, up to 3 a GPU, 1 thread each"),
        (1, 4, [1] * 24, {}, "1 run at once, one a GPU, 4 threads each"),
    ],
)
def test_a_machine_is_filled_and_what_was_asked_for_comes_first(machine, devices, cores, runs, asked, said):
    machine([str(number) for number in range(devices)], cores)
    assert str(Slots(runs, **asked)) == said


def test_more_gpus_than_there_are_is_refused(machine):
    machine(["0", "1"], 4)
    with pytest.raises(
        UsageError, match=r"trainer\.devices must be at most 2, as many GPUs as this machine has, got 3"
    ):
        Slots([1, 3, 1])


def test_several_runs_on_a_gpu_are_spread(machine):
    machine(["0", "1"], 4)
    filled = Slots([1] * 4, runs_per_device=2)
    assert [filled.take(1) for _ in range(4)] == [("0",), ("1",), ("0",), ("1",)]
    assert not filled.has(1)
    filled.give_back(("1",))
    assert filled.has(1)
    assert not filled.has(2)
    assert filled.take(1) == ("1",)


class Seen(NamedTuple):
    """What a run saw: its GPUs, its process, when it was there."""

    job: str
    visible: str
    pid: int
    begun: float
    ended: float


def sees(folder: Path, name: str, together: int, is_killed: bool) -> None:
    """Writes what it sees, once so many have begun; is killed the first time."""
    begun, note = time.monotonic(), folder / f"{name} {time.time_ns()}"
    note.touch()
    while sum(1 for _ in folder.iterdir()) < together and time.monotonic() < begun + 60:
        time.sleep(0.01)
    time.sleep(0.2)
    is_first = sum(path.name.startswith(f"{name} ") for path in folder.iterdir()) == 1
    note.write_text(repr((name, os.environ.get(VISIBLE), os.getpid(), begun, time.monotonic())))
    if is_killed and is_first:
        os.kill(os.getpid(), signal.SIGKILL)


def seen_by(folder: Path, takes: dict[str, int], together: int = 1, killed: str = "", **asked: int) -> list[Seen]:
    """What real worker processes saw of the GPUs that each job takes, in the order in which they began."""
    folder.mkdir()
    jobs = [
        Job(name, partial(sees, folder, name, together, name == killed), lambda reason: print, gpus)
        for name, gpus in takes.items()
    ]
    Workers(jobs, lambda error: error, Slots(list(takes.values()), **asked)).run()
    return sorted((Seen(*eval(path.read_text())) for path in folder.iterdir()), key=lambda seen: seen.begun)


def meet(one: Seen, other: Seen) -> bool:
    """Whether both were there at one time, on a GPU of both."""
    shared = set(one.visible.split(",")) & set(other.visible.split(","))
    return bool(shared) and one.begun < other.ended and other.begun < one.ended


@pytest.mark.slow
def test_each_run_has_a_gpu_of_its_own_and_the_successor_of_a_killed_one_the_same(machine, tmp_path):
    machine(PRETENDED, 3)
    seen = seen_by(tmp_path / "seen", dict.fromkeys("abcdefg", 1), together=3, killed="b")
    assert sorted(one.job for one in seen) == sorted("abbcdefg")
    assert {one.visible for one in seen[:3]} == set(PRETENDED)  # three began before one went on
    assert not any(meet(one, other) for one, other in combinations(seen, 2))
    killed = next(one for one in seen if one.job == "b")
    after = next(one for one in seen if one.visible == killed.visible and one.begun > killed.ended)
    assert after.pid != killed.pid
    of = {name: [one.pid for one in seen if one.visible == name] for name in PRETENDED}
    assert {name: len(set(pids)) for name, pids in of.items()} == {
        name: 1 + (name == killed.visible) for name in PRETENDED
    }  # one process a GPU does one run after the other, and a new one only what the killed one left


@pytest.mark.slow
def test_a_run_on_two_gpus_has_both_alone(machine, tmp_path):
    machine(PRETENDED[:2], 2)
    seen = seen_by(tmp_path / "seen", {"a": 1, "b": 1, "c": 2, "d": 1, "e": 2, "f": 0})
    assert {one.job: one.visible.count(",") for one in seen if one.visible} == {"a": 0, "b": 0, "c": 1, "d": 0, "e": 1}
    assert {one.visible for one in seen if one.job in "ce"} == {",".join(PRETENDED[:2])}
    assert not any(meet(one, other) for one, other in combinations([one for one in seen if one.visible], 2))
    assert next(one.visible for one in seen if one.job == "f") == os.environ.get(VISIBLE)


@pytest.mark.slow
def test_runs_that_share_a_gpu_are_no_more_than_was_asked_for(machine, tmp_path):
    machine(PRETENDED[:1], 2)
    seen = seen_by(tmp_path / "seen", dict.fromkeys("abcde", 1), together=2, runs_per_device=2)
    assert {one.visible for one in seen} == {PRETENDED[0]}
    assert (
        max(sum(meet(one, other) for other in seen if other != one and other.begun <= one.begun) for one in seen) == 1
    )


@pytest.mark.slow
def test_a_sweep_spreads_its_runs_over_the_gpus(attnlab, study, tiny, machine, tmp_path, monkeypatch):
    (tmp_path / "telling.py").write_text(
        "import os\n\nfrom attnlab.layers import ALiBi\n\n\n"
        "class Telling(ALiBi):\n"
        "    def bias(self, query_positions_BT, key_positions_BS):\n"
        f"        open(f'saw/{{os.environ[\"{VISIBLE}\"]}} {{os.getpid()}}', 'w').close()\n"
        "        return super().bias(query_positions_BT, key_positions_BS)\n"
    )
    (tmp_path / "conf" / "position").mkdir(parents=True)
    (tmp_path / "conf" / "position" / "telling.yaml").write_text("_target_: telling.Telling\n_partial_: true\n")
    (tmp_path / "saw").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine(PRETENDED[:2], 2)
    of_one = {"factors": {"position": ["telling"]}, "baseline": {"position": "telling"}}
    study("two", **of_one, seeds=2, shared=[*tiny, "trainer.devices=3"])
    refused = attnlab("sweep", "two", "--config-dir", "conf")
    assert refused.status == 2
    assert "trainer.devices must be at most 2, as many GPUs as this machine has, got 3" in refused.err
    study("one", **of_one, seeds=2)
    said = attnlab("sweep", "one", "--config-dir", "conf")
    assert said.status == 0, said.err
    assert "attnlab: 2 runs at once, one a GPU, 1 thread each\n" in said.err
    assert sorted(path.name.split()[0] for path in Path("saw").iterdir()) == PRETENDED[:2]  # a process each
