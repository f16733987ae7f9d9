"""One owner a run, and files that are readable after a kill at any instant."""

import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.training import CannotWrite, Held, RunDirectory, effective_state, read_checkpoint, read_json, write_json
from attnlab.training.loggers import JsonLines
from attnlab.training.processes import machine, process_start
from attnlab.training.run_directory import RunLog, last_lines, plain

FORK = multiprocessing.get_context("fork")


def in_process(function, *arguments):
    process = FORK.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def end(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def hold(path, claimed) -> None:
    directory = RunDirectory(path)
    attempt = directory.claim()
    write_json(directory.status_json, {"state": "running", "attempt": attempt, "heartbeat": time.time()})
    claimed.set()
    time.sleep(60)


def held_by_another(path):
    claimed = FORK.Event()
    process = in_process(hold, path, claimed)
    assert claimed.wait(10)
    return process


def test_a_run_goes_from_missing_to_finished(tmp_path):
    path = tmp_path / "study" / "cell" / "seed=0"
    assert effective_state(path) == "missing"
    directory = RunDirectory(path)
    assert directory.claim() == 1
    assert effective_state(path) == "running"
    write_json(directory.status_json, {"state": "finished", "attempt": 1})
    directory.release()
    assert effective_state(path) == "finished"
    again = RunDirectory(path).claim()
    assert isinstance(again, Held)
    assert again.state == "finished"
    assert RunDirectory(path).claim(even_if_over=True) == 2


@pytest.mark.parametrize(("state", "claimable"), [("failed", True), ("interrupted", True), ("diverged", False)])
def test_what_may_be_run_again(tmp_path, state, claimable):
    directory = RunDirectory(tmp_path)
    directory.claim()
    write_json(directory.status_json, {"state": state, "attempt": 1})
    assert effective_state(tmp_path) == state
    assert isinstance(RunDirectory(tmp_path).claim(), int) is claimable


def test_a_living_owner_keeps_its_run_and_a_dead_one_loses_it(tmp_path):
    owner = held_by_another(tmp_path)
    refused = RunDirectory(tmp_path).claim()
    assert isinstance(refused, Held)
    assert refused.owner["pid"] == owner.pid
    assert f"process {owner.pid} on {machine()['host']}" in str(refused)
    end(owner)
    assert effective_state(tmp_path) == "interrupted"
    assert RunDirectory(tmp_path).claim() == 2


def test_a_zombie_owns_nothing(tmp_path):
    owner = held_by_another(tmp_path)
    os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while effective_state(tmp_path) == "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(owner.pid, 0)  # it has not been waited for: its number still exists
    assert effective_state(tmp_path) == "interrupted"
    owner.join()


def test_another_process_with_the_number_of_a_dead_owner_owns_nothing(tmp_path):
    """Process numbers come round again: the start time tells the two apart."""
    RunDirectory(tmp_path).claim()
    attempt = tmp_path / "attempts" / "1.json"
    write_json(attempt, read_json(attempt) | {"process_start": "1"})
    assert effective_state(tmp_path) == "interrupted"


@pytest.mark.parametrize(("age", "state"), [(5, "running"), (119, "running"), (121, "interrupted")])
def test_an_owner_on_another_machine_lives_by_its_heartbeat(tmp_path, age, state):
    RunDirectory(tmp_path).claim()
    attempt = tmp_path / "attempts" / "1.json"
    write_json(attempt, read_json(attempt) | {"host": "elsewhere"})
    os.utime(attempt, (time.time() - age,) * 2)
    assert effective_state(tmp_path) == state
    write_json(tmp_path / "status.json", {"state": "running", "attempt": 1, "heartbeat": time.time()})
    assert effective_state(tmp_path) == "running"


def test_the_claim_keeps_its_own_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr("attnlab.training.run_directory.BEAT_SECONDS", 0.02)
    directory = RunDirectory(tmp_path)
    directory.claim()
    attempt = tmp_path / "attempts" / "1.json"

    def beats() -> bool:
        os.utime(attempt, (0, 0))
        time.sleep(0.2)
        return attempt.stat().st_mtime > 0

    assert beats()
    directory.release()
    time.sleep(0.05)
    assert not beats()


def race(path, start, answers) -> None:
    start.wait()
    answers.put((os.getpid(), RunDirectory(path).claim()))
    time.sleep(60)


@pytest.mark.slow
def test_of_many_racers_exactly_one_wins_every_round(tmp_path):
    """The winner of each round is killed; the next round's racers all see a dead owner at once."""
    for attempt in range(1, 9):
        start, answers = FORK.Barrier(6), FORK.Queue()
        racers = [in_process(race, tmp_path, start, answers) for _ in range(6)]
        got = dict(answers.get(timeout=20) for _ in racers)
        for racer in racers:
            end(racer)
        assert [answer for answer in got.values() if isinstance(answer, int)] == [attempt]
        assert all(answer.state == "running" for answer in got.values() if not isinstance(answer, int))


def write_for_ever(path, seed) -> None:
    directory = RunDirectory(path)
    attempt = directory.claim()
    assert isinstance(attempt, int)
    lines, step = JsonLines(directory.metrics, attempt), 0
    from attnlab.training import write_checkpoint

    while True:
        step += 1
        values = {f"metric/{i}": random.random() for i in range(50)}
        lines.log_metrics({"tokens": step, "seconds": 0.1, **values}, step)
        write_json(
            directory.status_json,
            {"state": "running", "attempt": attempt, "step": step, "latest": values},
            durable=False,
        )
        write_checkpoint(
            {"step": step, "weights": torch.full((2000,), float(step))}, directory.checkpoints / "last.ckpt"
        )


@pytest.mark.slow
def test_killed_at_any_instant_the_directory_is_readable(tmp_path):
    generator = random.Random(0)
    steps = attempt = 0
    while attempt < 30 or (steps <= 30 and attempt < 1000):  # on a busy machine most are killed before they begin
        attempt += 1
        process = in_process(write_for_ever, tmp_path, attempt)
        time.sleep(generator.uniform(0.0, 0.002 * max(30, attempt)))
        end(process)
        assert effective_state(tmp_path) in ("missing", "interrupted")
        if (tmp_path / "status.json").exists():
            assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
        if (tmp_path / "checkpoints" / "last.ckpt").exists():
            saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
            assert (saved["weights"] == saved["step"]).all()
        if (tmp_path / "metrics.jsonl").exists():
            whole = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
            steps = len([json.loads(line) for line in whole])
    assert steps > 30, "the writers were killed too early to have shown anything"
    assert isinstance(RunDirectory(tmp_path).claim(), int)
    assert not [left for left in tmp_path.rglob(".*.tmp") if left.parent.name != "attempts"]


CAUSES = [
    (errno.ENOSPC, "the disk is full"),
    (errno.EROFS, "the disk is read-only"),
    (errno.EACCES, "permission is denied"),
]


@pytest.mark.parametrize(("number", "cause"), CAUSES)
def test_a_disk_that_takes_nothing_is_told_in_one_sentence(tmp_path, monkeypatch, number, cause):
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CannotWrite, match=f"^cannot write {path}: {cause}$"):
        write_json(path, {"state": "finished"})
    with pytest.raises(CannotWrite, match=cause):
        RunDirectory(tmp_path).claim()
    assert read_json(path) == {"state": "running"}
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["status.json"]


def test_a_full_device_is_told_by_the_json_lines():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    lines = JsonLines("/dev/full")
    with pytest.raises(CannotWrite, match="cannot write /dev/full: the disk is full"):
        lines.log_metrics({"loss": 1.0}, 1)


def test_what_cannot_be_read_counts_as_not_there(tmp_path):
    (tmp_path / "status.json").write_bytes(b'{"state": "runn')
    assert read_json(tmp_path / "status.json") is None
    assert read_json(tmp_path / "none.json", {}) == {}
    assert effective_state(tmp_path) == "missing"


def test_a_process_is_known_by_when_it_started():
    assert process_start(os.getpid()) == process_start(os.getpid())
    sleeper = subprocess.Popen(["sleep", "60"])
    assert process_start(sleeper.pid) is not None
    sleeper.kill()
    sleeper.wait()
    assert process_start(sleeper.pid) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_anything_plain_is_strict_json(value):
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text, parse_constant=refuse) == plain(value)


def test_plain_takes_other_libraries_numbers_and_paths(tmp_path):
    data = {"a": torch.tensor(2.5), "b": float("inf"), "c": tmp_path, 3: (1, 2), "d": torch.tensor(float("nan"))}
    assert plain(data) == {"a": 2.5, "b": None, "c": str(tmp_path), "3": [1, 2], "d": None}


def test_reading_a_run_directory_loads_neither_torch_nor_lightning():
    program = (
        "import sys; from attnlab.training import effective_state, read_json; effective_state('nowhere');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_lines_have_their_time_and_the_last_are_read(tmp_path):
    log = RunLog(tmp_path / "run")
    for number in range(5):
        log.say(f"line {number}\nand more")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert len(lines) == 10
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .+", line) for line in lines)
    assert last_lines(tmp_path / "run", 2, 1000) == "\u2026" + "\n".join(lines[-2:])
    assert last_lines(tmp_path / "run", 100, 1000) == "\n".join(lines)
    assert last_lines(tmp_path / "run", 100, 10) == "\u2026" + lines[-1][-10:]
    assert last_lines(tmp_path / "run", 100, 0) == ""


def test_bytes_that_are_no_text_are_read(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"\xff torn \xe2\x82")
    assert "torn" in last_lines(tmp_path, 5, 100)


def test_no_log_is_an_empty_one(tmp_path):
    assert last_lines(tmp_path, 5, 100) == ""


def test_whoever_cannot_write_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    RunLog(tmp_path / "file").say("nobody reads this")
    assert (tmp_path / "file").read_text() == ""
