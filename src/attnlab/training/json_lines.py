"""metrics.jsonl: one line a logging step, appended whole, so that a reader at any instant finds complete lines."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from attnlab.training.run_directory import cannot_write


def cut_partial_line(path: Path) -> None:
    """Removes what a killed writer left of its last line, if it left anything."""
    try:
        with open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, error) from error


class JsonLines(Logger):
    """Appends {"step", "tokens", "seconds", "attempt", "values"} lines, each by one write; a value that is not finite is null, and named in
    "non_finite". `tokens` and `seconds` are taken out of the values. Raises CannotWrite."""

    def __init__(self, path: str | os.PathLike[str], attempt: int = 1) -> None:
        super().__init__()
        self.path, self.attempt = Path(path), attempt
        self._descriptor: int | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> int:
        """The attempt."""
        return self.attempt

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: run.json holds the configuration."""
        return None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Appends one line."""
        values: dict[str, float | None] = {
            name: float(value) for name, value in metrics.items() if name not in ("tokens", "seconds")
        }
        line: dict[str, Any] = {"step": step, "tokens": metrics.get("tokens"), "seconds": metrics.get("seconds")}
        line |= {"attempt": self.attempt, "values": values}
        wrong = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
        if wrong:
            values |= dict.fromkeys(wrong)
            line["non_finite"] = wrong
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            if self._descriptor is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                cut_partial_line(self.path)
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            written = os.write(self._descriptor, line)
            if written < len(line):
                self._append_rest(line, written)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _append_rest(self, line: bytes, written: int) -> None:
        """The disk filled up within a line: all of it, or nothing of it."""
        assert self._descriptor is not None
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise

    def save(self) -> None:
        """Makes what was appended survive a power cut."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def finalize(self, status: str) -> None:
        """Saves and closes; a later line opens the file again."""
        if self._descriptor is not None:
            self.save()
            os.close(self._descriptor)
            self._descriptor = None
