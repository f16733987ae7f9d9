"""log.txt: what a run says while it trains and, where it fails, the traceback. The page shows its last lines."""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path

from attnlab.training.run_directory import open_to_read

LOG = "log.txt"


class RunLog(io.TextIOBase):
    """Appends lines with their time, each by one write. Whoever cannot write goes on without a log: the run is not lost for it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOG

    def say(self, text: str) -> None:
        """Appends `text`, which may have several lines."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{stamp} {line}\n" for line in text.splitlines())
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0, opener=_at_once) as file:
                file.write(lines.encode("utf-8", "replace"))

    def write(self, text: str, /) -> int:
        """`say`, as a stream of text has it."""
        self.say(text)
        return len(text)


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for whoever reads, where a pipe stands in the log's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def last_lines(directory: Path, lines: int, characters: int) -> str:
    """The end of a run's log, at most so many lines and characters; empty where there is none. What is left out is marked by an ellipsis."""
    try:
        with open_to_read(directory / LOG) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * characters))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    kept = "\n".join(text.rstrip("\n").split("\n")[-lines:])[-characters:] if characters else ""
    return kept if len(kept.encode()) >= size - 1 or not kept else f"\u2026{kept}"
