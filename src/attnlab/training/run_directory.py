"""A run's directory: who owns it, what state it is in, and how its files are written so that a kill at any instant
leaves them readable.

One owner a run and no locks: an attempt is the file attempts/<n>.json, created exclusively; whoever creates number n
owns the run until its process ends. This module needs the standard library alone, so that reading run directories costs
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import mmap
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attnlab.training.processes import Process, machine, process_start, this_process

RUN, STATUS, METRICS, CHECKPOINTS, ATTEMPTS = "run.json", "status.json", "metrics.jsonl", "checkpoints", "attempts"
FORMAT = 2  # of run.json; the first one, which did not say so, had other names of fields and metrics
LOG = "log.txt"  # what a run says while it trains and, where it fails, the traceback
OUTPUTS, SAMPLES, ATTENTION = "outputs", "samples.json", "attention.png"  # what a run leaves to look at
SETTLED = ("finished", "diverged", "pruned")  # nothing is left to do, and nobody tries again
ENDED = ("finished", "failed", "diverged", "pruned")
OVER = (*ENDED, "interrupted")
STALE_SECONDS = 120.0
BEAT_SECONDS = 15.0


class CannotWrite(OSError):
    """A file of a run could not be written: the disk is full or read-only, or permission is missing."""


class NotOfTheRun(OSError):
    """What stands under the name of a run's file is none of it: a pipe, a device, a folder, a link that leads out."""


@dataclass(frozen=True)
class Held:
    """Why a run directory cannot be claimed: its state, and the attempt that owns it (host, pid, started, attempt)."""

    state: str
    owner: Process

    def __str__(self) -> str:
        where = f"process {self.owner.get('pid')} on {self.owner.get('host')} (attempt {self.owner.get('attempt')})"
        job = f"job {self.owner['job']}, " if self.owner.get("job") else ""
        return f"owned by {job}{where}" if self.state == "running" else self.state


def plain(data: object) -> object:
    """`data` as JSON has it: non-finite numbers become null, paths text, numbers of other libraries Python's own."""
    match data:
        case dict():
            return {str(key): plain(value) for key, value in data.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(value) for value in data]
        case None | str() | bool() | int():
            return data
        case _ if hasattr(data, "item"):
            return plain(data.item())
        case float():
            return data if math.isfinite(data) else None
    return str(data)


def write_bytes(path: Path, data: bytes | memoryview, durable: bool = True) -> None:
    """Replaces `path` atomically; `durable` also survives a power cut. Raises CannotWrite; the old file then stays."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, data, durable)
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """As `write_bytes`, of text."""
    write_bytes(path, text.encode(), durable)


def write_json(path: Path, data: object, durable: bool = True) -> None:
    """As `write_bytes`, of data as JSON; non-finite numbers become null."""
    write_text(path, json.dumps(plain(data), indent=1, allow_nan=False) + "\n", durable)


def open_to_read(path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> BinaryIO:
    """Opens a file of the run or study `within` (by default its folder); all reading of run directories comes here.

    Raises OSError; NotOfTheRun for what is no regular file, which may never be read to its end, and for a link out of
    it.
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


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two flat configurations, a readable line each; a field that is null is as good as absent."""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key, '(absent)')} -> {now.get(key, '(absent)')}" for key in changed]


def other_format(record: Mapping[str, Any], directory: Path) -> str | None:
    """What is to be said of a run that another version of attnlab wrote: its names of fields and metrics are others."""
    found = record.get("format", 1)
    if not isinstance(record.get("config"), Mapping) or found == FORMAT:
        return None
    version = f" ({record['attnlab']})" if isinstance(record.get("attnlab"), str) else ""
    return (
        f"{directory}: run.json must have format {FORMAT}, got {found}: another version of attnlab{version} wrote it, "
        "which names fields and metrics differently; use that version, or move the old runs away and train again"
    )


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """The error with its cause in words."""
    causes = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
    causes |= {errno.EROFS: "the disk is read-only", errno.EPERM: "permission is denied"}
    causes[errno.EACCES] = causes[errno.EPERM]
    cause = causes.get(error.errno or 0, error.strerror or str(error))
    return CannotWrite(f"cannot write {path}: {cause}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _write_new(path: Path, data: bytes | memoryview, durable: bool) -> None:
    with open(path, "xb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class AppendedLines:
    """A file to which whole lines are appended, each by one write, so that a reader at any instant finds complete ones.
    What a killed writer left of its last line is removed. Raises CannotWrite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, line: bytes) -> None:
        """All of a line, or nothing where the disk fills up within it."""
        try:
            if self._descriptor is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                cut_partial_line(self.path)
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            written = 0
            try:
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
            except OSError:
                if written:
                    os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def save(self) -> None:
        """Makes what was appended survive a power cut."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Saves and closes; a later line opens the file again."""
        if self._descriptor is not None:
            self.save()
            os.close(self._descriptor)
            self._descriptor = None


def cut_partial_line(path: Path) -> None:
    """Removes what a killed writer left of its last line, if it left anything."""
    try:
        with open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    end = content.rfind(b"\n") + 1
            if end < size:
                file.truncate(end)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, error) from error


class RunLog(io.TextIOBase):
    """Appends lines with their time to log.txt, each by one write. Whoever cannot write goes on without a log."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOG

    def say(self, text: str) -> None:
        """Appends a text, which may have several lines."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{stamp} {line}\n" for line in text.splitlines())
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without waiting for whoever reads, where a pipe stands in the log's place.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
            with open(os.open(self.path, flags, 0o666), "ab", buffering=0) as file:
                file.write(lines.encode("utf-8", "replace"))

    def write(self, text: str, /) -> int:
        self.say(text)
        return len(text)


def last_lines(directory: Path, lines: int, characters: int) -> str:
    """The end of a run's log, at most so many lines and characters, an ellipsis before it; "" where there is none."""
    try:
        with open_to_read(directory / LOG) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * characters))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    kept = "\n".join(text.rstrip("\n").split("\n")[-lines:])[-characters:] if characters else ""
    return kept if len(kept.encode()) >= size - 1 or not kept else f"\u2026{kept}"


def _create_exclusively(path: Path, data: Process) -> bool:
    """Creates `path` whole, or returns False where it is there already: of several racers exactly one is told True."""
    temporary, content = _temporary(path), json.dumps(data).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, content, durable=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError as error:  # a file system without hard links: exclusive creation, whole a moment later
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            _write_new(path, content, durable=True)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(temporary)


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

    @property
    def owned(self) -> bool:
        """Whether this process claimed the run and so writes its files."""
        return self.attempt is not None

    def claim(self, even_if_over: bool = False) -> int | Held:
        """Makes this process the run's owner and returns the attempt's number (from 1), or says who holds it.

        A settled run is Held too, unless `even_if_over`. A dead owner is superseded. Raises CannotWrite.
        """
        while True:
            number, owner = self._newest_attempt()
            state = self.state()
            if state == "running" or (state in SETTLED and not even_if_over):
                return Held(state, {**owner, "attempt": number})
            if _create_exclusively(self._attempt(number + 1), {**this_process(), "started": time.time()}):
                self.attempt = number + 1
                self._stop_beating = _beat(self._attempt(number + 1))
                for folder in (self.path, self.checkpoints):  # in that of attempts a racer may be linking its own
                    for left in folder.glob(".*.tmp"):
                        _remove(left)
                return number + 1

    def release(self) -> None:
        """Ends this process's ownership after the last status is written, which says what became of the run."""
        if self._stop_beating is not None:
            self._stop_beating()
        self.attempt = self._stop_beating = None

    def give_up(self, reason: str) -> None:
        """Says of a run whose process is gone that it has failed, and why; not where it has an owner, or is over."""
        status = read_json(self.status_json, {})
        number = self.claim()
        if not isinstance(number, Held):
            ended = {"state": "failed", "attempt": number, "error": reason, "ended": time.time(), "eta": None}
            write_json(self.status_json, status | ended)
            self.release()

    def state(self) -> str:
        """missing, running, interrupted (it was running and its owner is gone), or what it ended as (see OVER)."""
        number, owner = self._newest_attempt()
        status = read_json(self.status_json, {})
        is_over = status.get("state") in OVER
        if is_over and status.get("attempt", 0) >= number:
            return str(status["state"])
        if number == 0:
            return "interrupted" if status else "missing"
        return "running" if self._is_alive(owner) else "interrupted"

    def owner(self) -> Process:
        """What the newest attempt says of its process (host, pid, started, job); nothing where there was none."""
        return self._newest_attempt()[1]

    def _attempt(self, number: int) -> Path:
        return self.path / ATTEMPTS / f"{number}.json"

    def _newest_attempt(self) -> tuple[int, Process]:
        try:
            numbers = [int(name[:-5]) for name in os.listdir(self.path / ATTEMPTS) if name[:-5].isdigit()]
        except OSError:
            numbers = []
        newest = max(numbers, default=0)
        return newest, read_json(self._attempt(newest), {}) if newest else {}

    def _is_alive(self, owner: Process) -> bool:
        """By the process table where the owner is of this machine, otherwise by the age of the last heartbeat."""
        if owner and all(owner.get(key) == value for key, value in machine().items()):
            started = process_start(owner["pid"])
            return started is not None and started == owner["process_start"]
        return time.time() - self.last_beat() < STALE_SECONDS

    def last_beat(self) -> float:
        """When the newest attempt last said that it is alive (seconds since the epoch; 0 where there was none)."""
        number, status, beat = self._newest_attempt()[0], read_json(self.status_json, {}), 0.0
        with contextlib.suppress(OSError):
            beat = self._attempt(number).stat().st_mtime
        return max(beat, float(status.get("heartbeat") or 0)) if status.get("attempt") == number else beat


def _beat(attempt: Path) -> Callable[[], None]:
    """Touches the attempt's file every BEAT_SECONDS, also while data are prepared; returns what stops it."""
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
