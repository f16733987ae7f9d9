"""A process ends with those that started it, through any number of processes in between, and with no others."""

import os
import subprocess
import sys
import time

import pytest

from attnlab.training import ancestors
from attnlab.training.run_directory import process_start

# Waits as a training does that the signal cannot stop at once, or (with "deaf") that nothing stops.
CHILD = """
import signal, sys, time
from attnlab.training import ancestors
ancestors.LOOK_SECONDS, ancestors.GRACE_SECONDS = 0.05, 0.3
if sys.argv[1:] == ["deaf"]: signal.signal(signal.SIGTERM, signal.SIG_IGN)
ancestors.end_with_ancestors()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from attnlab.training.ancestors import descendants
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
    monkeypatch.setenv(ancestors.VARIABLE, "no list")
    with ancestors.descendants():
        assert [one["pid"] for one in ancestors._named()] == [os.getpid()]
    assert os.environ[ancestors.VARIABLE] == "no list"


def test_a_job_of_slurm_outlives_who_submitted_it(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with ancestors.descendants():
        [one] = ancestors._named()
    assert ancestors._is_near(one)
    assert not ancestors._is_near(one | {"boot": "another"})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not ancestors._is_near(one)


def test_a_process_does_not_wait_for_its_own_end(monkeypatch):
    monkeypatch.setattr(ancestors, "_watching", set())
    with ancestors.descendants():
        ancestors.end_with_ancestors()
    assert ancestors._watching == set()
