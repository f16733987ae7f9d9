"""The cache folder, atomic writing into it, and the one error that data raises for what a user can mend."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


class DataError(ValueError):
    """Something about the data that the user can mend; the message says what was given, what is accepted and what to do."""


def cache_root(cache: str | Path | None = None) -> Path:
    """The folder for downloads and prepared corpora: `cache`, else $ATTNLAB_CACHE, else $XDG_CACHE_HOME/attnlab, else ~/.cache/attnlab."""
    if cache or os.environ.get("ATTNLAB_CACHE"):
        return Path(cache or os.environ["ATTNLAB_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attnlab"


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {path}: {error.strerror or error}; the cache has to be a writable folder with free space: "
            "free some, or name another one with the environment variable ATTNLAB_CACHE"
        ) from error


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A private folder on the disk of `beside`, so that what is made there can be renamed to it; gone at the end whatever happens."""
    with writing_to(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        folder = (
            beside.parent / f".making-{uuid.uuid4().hex}"
        )  # not mkdtemp: others may use the same cache, so umask decides
        folder.mkdir()
    try:
        yield folder
    except OSError as error:
        # NumPy says of a full disk how much of an array it could write, and gives no number.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error):
            with writing_to(beside):
                raise OSError(errno.ENOSPC, "the disk is full") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(scratch: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    """Renames a finished folder into place in one step; where another process was first, its equal work stays."""
    try:
        os.rename(scratch, folder)
    except OSError:
        if not is_whole(folder):  # in the way lies nothing that can be read: a leftover of a broken disk
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(scratch, folder)
