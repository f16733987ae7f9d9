"""A run's directory: who owns it, what state it is in, and how its files are written so that a kill at any instant leaves them readable.

One owner a run and no locks: an attempt is the file attempts/<n>.json, created exclusively; whoever creates number n owns the run until its
process ends. This module needs the standard library alone, so that reading run directories costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import secrets
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

RUN, STATUS, METRICS, CHECKPOINTS, ATTEMPTS = "run.json", "status.json", "metrics.jsonl", "checkpoints", "attempts"
SETTLED = ("finished", "diverged", "pruned")  # nothing is left to do, and nobody tries again
OVER = (*SETTLED, "failed", "interrupted")
STALE_SECONDS = 120.0
BEAT_SECONDS = 15.0


class CannotWrite(OSError):
    """A file of a run could not be written: the disk is full or read-only, or permission is missing."""


class NotOfTheRun(OSError):
    """What stands under the name of a run's file is no file of the run: a pipe, a device, a folder, a link that leads out of it."""


@dataclass(frozen=True)
class Held:
    """Why a run directory cannot be claimed: its state, and the attempt that owns it (host, pid, started, attempt)."""

    state: str
    owner: dict[str, Any]

    def __str__(self) -> str:
        where = f"process {self.owner.get('pid')} on {self.owner.get('host')} (attempt {self.owner.get('attempt')})"
        job = f"job {self.owner['job']}, " if self.owner.get("job") else ""
        return f"owned by {job}{where}" if self.state == "running" else self.state


def plain(data: Any) -> Any:
    """`data` as JSON knows it: non-finite numbers become null, paths text, and numbers of other libraries Python's own."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [plain(value) for value in data]
    if data is None or isinstance(data, (str, bool, int)):
        return data
    if hasattr(data, "item"):
        return plain(data.item())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return str(data)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replaces `path` atomically; `durable` also survives a power cut. Raises CannotWrite; the old file then stays as it was."""
    write_bytes(path, text.encode(), durable)


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """As `write_text`, of bytes."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, data, durable)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise cannot_write(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def write_json(path: Path, data: Any, durable: bool = True) -> None:
    """Writes `data` as JSON, atomically (see `write_text`); non-finite numbers become null."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n", durable)


def open_to_read(path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> BinaryIO:
    """
    Opens a file of the run or study `within` (by default the folder that the file stands in); all reading of run directories comes here.

    Raises OSError; NotOfTheRun for what is no regular file, which may never be read to its end, and for a link out of the folder.
    """
    folder = os.path.realpath(os.path.dirname(path) if within is None else within)
    place = os.path.realpath(path)
    if not place.startswith(os.path.join(folder, "")):
        raise NotOfTheRun(errno.EPERM, f"it is a link that leads out of {folder}", os.fspath(path))
    # A pipe without a writer would be waited for.
    descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotOfTheRun(errno.EINVAL, "it is no regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_json(path: Path, default: Any = None) -> Any:
    """What a JSON file holds, or `default` where there is none or it cannot be read."""
    try:
        with open_to_read(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError):
        return default


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """
    What differs between two flat configurations, one readable line each; a field that is null is as good as absent.
    """
    nothing = "(absent)"
    return [
        f"{key}: {before.get(key, nothing)} -> {now.get(key, nothing)}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """The error with its cause in words."""
    causes = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the quota is used up",
        errno.EROFS: "the disk is read-only",
    }
    causes |= {errno.EACCES: "permission is denied", errno.EPERM: "permission is denied"}
    cause = causes.get(error.errno or 0, error.strerror or str(error))
    return CannotWrite(f"cannot write {path}: {cause}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _write_new(path: Path, data: bytes, durable: bool) -> None:
    with open(path, "xb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _create_exclusively(path: Path, data: dict[str, Any]) -> bool:
    """Creates `path` whole, or returns False where it is there already: of several racers exactly one is told True."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, json.dumps(data).encode() + b"\n", durable=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:  # a file system without hard links: exclusive creation, whole a moment later
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with contextlib.suppress(FileExistsError):
                _write_new(path, json.dumps(data).encode() + b"\n", durable=True)
                return True
            return False
        return True
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(temporary)


@functools.cache
def machine() -> dict[str, str]:
    """This machine and its process table: process numbers mean something only where all of these agree."""
    identity = {"host": socket.gethostname(), "boot": "", "processes": ""}
    with contextlib.suppress(OSError):
        identity["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity["processes"] = os.readlink("/proc/self/ns/pid")
    return identity


def process_start(pid: int) -> str | None:
    """When process `pid` of this machine started, in the system's own words; None where it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZXx" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def slurm_job() -> str | None:
    """Slurm's id of the job that this process is part of (number, or number_index in an array); None elsewhere."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


class RunDirectory:
    """The directory of one run; `claim` makes this process its one writer."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.attempt: int | None = None
        self._stop_beating: Callable[[], None] | None = None

    run_json = property(lambda self: self.path / RUN)
    status_json = property(lambda self: self.path / STATUS)
    metrics = property(lambda self: self.path / METRICS)
    checkpoints = property(lambda self: self.path / CHECKPOINTS)
    owned = property(
        lambda self: self.attempt is not None, doc="Whether this process claimed the run and so writes its files."
    )

    def claim(self, even_if_over: bool = False) -> int | Held:
        """Makes this process the run's owner and returns the attempt's number (from 1), or says who holds it.

        A settled run is Held too, unless `even_if_over`. A dead owner is superseded. Raises CannotWrite.
        """
        while True:
            number, owner = self._newest_attempt()
            state = self.state()
            if state == "running" or (state in SETTLED and not even_if_over):
                return Held(state, owner | {"attempt": number})
            mine = machine() | {"pid": os.getpid(), "process_start": process_start(os.getpid()), "started": time.time()}
            mine["job"] = slurm_job()
            if _create_exclusively(self._attempt(number + 1), mine):
                self.attempt = number + 1
                self._stop_beating = _beat(self._attempt(number + 1))
                self._sweep_temporaries()
                return number + 1

    def release(self) -> None:
        """Ends this process's ownership after the last status is written; the directory then says by itself what became of the run."""
        if self._stop_beating is not None:
            self._stop_beating()
        self.attempt = self._stop_beating = None

    def give_up(self, reason: str) -> None:
        """Says of a run whose process is gone that it has failed, and why. Nothing where it has an owner, or is over."""
        status = read_json(self.status_json, {})
        number = self.claim()
        if not isinstance(number, Held):
            ended = {"state": "failed", "attempt": number, "error": reason, "ended": time.time(), "eta": None}
            write_json(self.status_json, status | ended)
            self.release()

    def state(self) -> str:
        """missing, running, finished, failed, diverged, pruned (a search gave it up) or interrupted (it was running and its owner is gone)."""
        number, owner = self._newest_attempt()
        status = read_json(self.status_json, {})
        if number == 0:
            return "missing" if not status else _said(status)
        if status.get("attempt", 0) >= number and status.get("state") in OVER:
            return _said(status)
        return "running" if self._is_alive(owner) else "interrupted"

    def owner(self) -> dict[str, Any]:
        """What the newest attempt says of the process that made it (host, pid, started, job); nothing where there was none."""
        return self._newest_attempt()[1]

    def _attempt(self, number: int) -> Path:
        return self.path / ATTEMPTS / f"{number}.json"

    def _newest_attempt(self) -> tuple[int, dict[str, Any]]:
        try:
            numbers = [int(name[:-5]) for name in os.listdir(self.path / ATTEMPTS) if name[:-5].isdigit()]
        except OSError:
            numbers = []
        newest = max(numbers, default=0)
        return newest, read_json(self._attempt(newest), {}) if newest else {}

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        """By the process table where the owner is of this machine, otherwise by the age of the last heartbeat."""
        if owner and all(owner.get(key) == value for key, value in machine().items()):
            started = process_start(owner["pid"])
            return started is not None and started == owner["process_start"]
        return time.time() - self.last_beat() < STALE_SECONDS

    def last_beat(self) -> float:
        """When the newest attempt last said that it is alive (seconds since the epoch; 0 where there was none)."""
        number, status = self._newest_attempt()[0], read_json(self.status_json, {})
        try:
            beat = self._attempt(number).stat().st_mtime
        except OSError:
            beat = 0.0
        return max(beat, float(status.get("heartbeat") or 0)) if status.get("attempt") == number else beat

    def _sweep_temporaries(self) -> None:
        for folder in (self.path, self.path / ATTEMPTS, self.checkpoints):
            for left in folder.glob(".*.tmp"):
                if folder.name != ATTEMPTS:  # a racer may be linking its own there
                    _remove(left)


def _said(status: dict[str, Any]) -> str:
    if status.get("pruned"):  # which was called interrupted once
        return "pruned"
    return str(status["state"]) if status.get("state") in OVER else "interrupted"


def _beat(attempt: Path) -> Callable[[], None]:
    """Touches the attempt's file every BEAT_SECONDS, also while the run compiles or prepares data; returns what stops it."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(attempt)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    return stop.set


def effective_state(path: str | os.PathLike[str]) -> str:
    """The state of the run in `path`, see `RunDirectory.state`."""
    return RunDirectory(path).state()
