"""Processes: which of them still run; how a training is asked to save at the end of its optimizer step and to stop; and
those that end with the one that started them: workers of a sweep, ranks of a run, jobs of a launcher.

Who starts others names itself in the environment that they inherit; each of them looks whether all who are named there
still run. It holds through any number of processes in between, on every system, and whatever signal ended the one
above. This module needs the standard library alone, as run_directory does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_SECONDS = 0.5  # one Ctrl-C comes twice: from the terminal, and passed on by whoever started this process
VARIABLE = "ATTNLAB_ANCESTORS"
LOOK_SECONDS = 0.5
GRACE_SECONDS = 4.0  # to end the step and save; what is saved already stays valid without
_watching: set[int] = set()  # the process's own number: a fork has the set, but not the thread


class Process(TypedDict, total=False):
    """A process as it names itself to others, in the environment or as an attempt at a run."""

    host: str
    boot: str
    processes: str
    pid: int
    process_start: str | None
    started: float
    job: str | None
    attempt: int


@functools.cache
def machine() -> Process:
    """This machine and its process table: process numbers mean something only where all of these agree."""
    identity: Process = {"host": socket.gethostname(), "boot": "", "processes": ""}
    with contextlib.suppress(OSError):
        identity["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity["processes"] = os.readlink("/proc/self/ns/pid")
    return identity


def process_start(pid: int) -> str | None:
    """When process `pid` of this machine started, in the system's own words; None where it has ended or is a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZXx" else fields[19]
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def slurm_job() -> str | None:
    """Slurm's id of the job that this process is part of (number, or number_index in an array); None elsewhere."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def this_process() -> Process:
    """What others can look for, to see whether this process still runs."""
    return {**machine(), "pid": os.getpid(), "process_start": process_start(os.getpid()), "job": slurm_job()}


class Interrupted(SystemExit):
    """A signal has ended what was under way; the exit status is the shell's for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __reduce__(self) -> tuple[object, ...]:  # so that a worker can hand it on
        return type(self), tuple(vars(self).values())

    def __str__(self) -> str:
        return "interrupted; the same command goes on from here"


class Stopped(Interrupted):
    """A training that has saved and stopped because it was asked to."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(signum)
        self.step = step

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"saved at step {self.step} and stopped by {name}; the same command goes on from here"


def leave(signum: int, frame: object = None) -> None:
    """A signal's handler that ends what is under way, so that it can say so and clean up. Raises Interrupted."""
    raise Interrupted(signum)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """In it, SIGTERM and Ctrl-C raise Interrupted, unless somebody waits for them. Only a process's main thread can."""
    mine = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    free = [one for one in mine if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler)]
    before = {signum: signal.signal(signum, leave) for signum in free}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopRequest:
    """Keeps Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 until the training has saved; a second Ctrl-C ends it at once.

    Then whoever had the signal before gets it (submitit's handler requeues the job and exits), and where it returns the
    training goes on; where nobody had it, the training stops. A signal that was ignored stays ignored. `request` asks
    the same without a signal. `say` is told at the first Ctrl-C what it will do.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.signum: int | None = None
        self._say = say
        self._asked_at = 0.0
        self._before: dict[int, object] = {}

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self.signum is not None

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Asks to save at the end of the present optimizer step and to stop."""
        if self.signum is None:
            self.signum, self._asked_at = signum, time.monotonic()

    def remember(self) -> None:
        """Notes who has the signals now, which is who gets them after the saving."""
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def listen(self) -> None:
        """Takes over the signals; Lightning gives them back at the end. Only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if self._before.get(signum) is not signal.SIG_IGN:
                    signal.signal(signum, self._hear)

    def _hear(self, signum: int, frame: object) -> None:
        if self.signum is None:
            self.request(signum)
            if signum == signal.SIGINT:
                self._say("stopping when this step has ended and is saved; Ctrl-C again stops at once")
        elif signum == signal.SIGINT and time.monotonic() - self._asked_at > PATIENCE_SECONDS:
            raise Interrupted(signum)

    def obey(self, step: int) -> None:
        """Once the training has saved: hands the signal on, or raises Stopped."""
        signum, self.signum = self.signum or signal.SIGTERM, None
        before = self._before.get(signum)
        if not callable(before) or before in (leave, signal.default_int_handler):
            raise Stopped(signum, step)
        before(signum, None)


@contextlib.contextmanager
def descendants() -> Iterator[None]:
    """What is started in it ends soon after this process does, however it does: see `end_with_ancestors`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps([*_named(), this_process()])
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def end_with_ancestors() -> None:
    """Ends this process when one that started it has: by SIGTERM, at which a training saves, then by force."""
    above = [one for one in _named() if one["pid"] != os.getpid() and _is_near(one)]
    if above and os.getpid() not in _watching:
        _watching.add(os.getpid())
        threading.Thread(target=_watch, args=(above,), name="ancestors", daemon=True).start()


def _watch(above: list[Process]) -> None:
    while all(process_start(one["pid"]) == one["process_start"] for one in above):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    for child in multiprocessing.active_children():  # such as those that load data
        child.kill()
    os._exit(128 + signal.SIGTERM)


def _named() -> list[Process]:
    with contextlib.suppress(ValueError):
        return list(json.loads(os.environ.get(VARIABLE, "[]")))
    return []


def _is_near(one: Process) -> bool:
    """Whether a process is in this machine's table, and not one that left a job to Slurm, which outlives it."""
    return all(one.get(key) == value for key, value in {**machine(), "job": slurm_job()}.items())
