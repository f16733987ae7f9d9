"""Files that are read again only when they have changed, so that a live study costs what has changed of it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from attnlab.training.run_directory import open_to_read

# A change within the same tick of a file system's clock cannot be seen: ticks are 4 ms on Linux, up to 2 s elsewhere.
SETTLED_NS = 2_000_000_000
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
GONE = (FileNotFoundError, NotADirectoryError)
NOTHING: Mapping[str, object] = {}


def printable(text: str) -> str:
    """`text` without the halves of characters that a file name or JSON may hold and no encoding can write."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Stamp(NamedTuple):
    """What changes when a file changes; `is_settled` where a later change is sure to change the rest of it."""

    inode: int
    size: int
    modified: int
    changed: int
    is_settled: bool


def stamp_of(path: str) -> Stamp | None:
    """The stamp of a file or folder, None where there is none that can be asked."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    age = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns)
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, age > SETTLED_NS)


def is_unchanged(before: Stamp | None, now: Stamp | None) -> bool:
    """Whether the file is sure to hold what it held when its stamp was `before`."""
    return before == now and (before is None or before.is_settled)


class JsonFiles:
    """The content of JSON files, kept by their stamps. `next_round` forgets those that were not asked for in the round
    before.

    `refused` says of each file of this round that is there and cannot be opened, why.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Stamp | None, object]] = {}
        self._before: dict[str, tuple[Stamp | None, object]] = {}
        self.refused: dict[str, str] = {}

    def next_round(self) -> None:
        self._before, self._kept, self.refused = self._kept, {}, {}

    def read(self, path: str) -> object:
        """What `path` holds, None where nothing can be read. The same object as before while that does not change."""
        stamp = stamp_of(path)
        before = self._before.get(path)
        if before is not None and is_unchanged(before[0], stamp):
            self._kept[path] = before
            return before[1]
        value = self._read(path)
        if before is not None and before[1] == value:
            value = before[1]
        if path not in self.refused:
            self._kept[path] = stamp, value
        return value

    def read_table(self, path: str) -> Mapping[str, object]:
        """`read`: the very object, by which a change is told; always the same nothing where it is no object."""
        value = self.read(path)
        return value if isinstance(value, dict) else NOTHING

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What there is in a folder, nothing where it cannot be opened."""
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except GONE:
            return []
        except OSError as error:
            self.refused[folder] = error.strerror or str(error)
            return []
        named = [entry for entry in entries if printable(entry.name) == entry.name]
        for entry in set(entries) - set(named):
            self.refused[printable(entry.path)] = "its name is no text"
        return named

    def _read(self, path: str) -> object:
        try:
            with open_to_read(path) as file:
                data = file.read()
            value: object = json.loads(data)
            # Halves of characters are fine in JSON and nowhere else: nothing that holds one can be printed.
            if SURROGATE.search(data):
                value = json.loads(printable(json.dumps(value, ensure_ascii=False)))
            return value
        except GONE:
            return None
        except OSError as error:
            self.refused[path] = error.strerror or str(error)
            return None
        except (ValueError, RecursionError):
            return None


def mapping(value: object) -> dict[str, object]:
    """What JSON has as an object, empty for anything else."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def listed(value: object) -> list[object]:
    """What JSON has as a list, empty for anything else."""
    return list(value) if isinstance(value, list | tuple) else []


def flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, object] = {}
    for key, value in mapping(tree).items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
