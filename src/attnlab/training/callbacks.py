"""What a run says of itself while it trains: status.json for other processes, a line of progress for whoever looks."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
import traceback
from typing import Any, TextIO

import lightning.pytorch as pl
import torch

from attnlab.training.early_stopping import Diverged, Pruned
from attnlab.training.processes import Interrupted
from attnlab.training.run_directory import RunDirectory, write_json
from attnlab.training.task import Task


class Watcher(pl.Callback):
    """Calls `note` when a training starts and ends, at validations, and every `every_seconds` between its batches."""

    def __init__(self, every_seconds: float) -> None:
        self.every_seconds, self._next = every_seconds, 0.0
        self._from = (0, time.monotonic())  # the step and the time that the training started at

    def note(self, trainer: pl.Trainer, task: Task) -> None:
        """Where the training stands."""
        raise NotImplementedError

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._from = (trainer.global_step, time.monotonic())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() >= self._next:
            self.note(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.note(trainer, pl_module)

    def seconds_left(self, trainer: pl.Trainer) -> float | None:
        """At the pace since the training started; None before its first step."""
        done = trainer.global_step - self._from[0]
        left = trainer.max_steps - trainer.global_step
        return (time.monotonic() - self._from[1]) / done * left if done > 0 else None


class StatusWriter(Watcher):
    """Keeps status.json; `finish` and `fail` write the last one.

    `final` and `cannot` (metric: reason) are what a finished run leaves for the comparison; `divergence` (step, reason,
    layer) what one that diverged does, `pruned` (step, metric, value) what a search gave up. Only the run's owner,
    which is rank 0, writes.
    """

    def __init__(self, directory: RunDirectory, every_seconds: float = 2.0) -> None:
        super().__init__(every_seconds)
        self.directory = directory
        now = {"heartbeat": None, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        counts = {"step": 0, "max_steps": None, "tokens": 0, "seconds": 0.0}
        self.status: dict[str, Any] = {"state": "running", "attempt": directory.attempt, **counts, **now}
        self.status |= {"ended": None, "eta": None, "latest": {}, "best": None, "final": {}, "cannot": {}, "notes": {}}
        self.status |= {"divergence": None, "pruned": None, "error": None}

    def start(self) -> None:
        """Says that the run is being prepared, before there is a trainer."""
        self._write()

    def finish(self, **found: dict[str, Any]) -> None:
        """The run's good end: its `final` metrics, those that it `cannot` have, and `notes` how some were computed."""
        self._end("finished", **found)

    def fail(self, exception: BaseException) -> None:
        """The run's end by an exception: diverged, pruned, interrupted (by a signal) or failed, with the error's
        text."""
        if self.status["state"] != "running":
            return
        exception = in_words(exception)
        state = "failed"
        more: dict[str, Any] = {}
        match exception:
            case KeyboardInterrupt() | SystemExit():
                state = "interrupted"
            case Pruned(step=step, metric=metric, value=value):
                state, more = "pruned", {"pruned": {"step": step, "metric": metric, "value": value}}
            case Diverged(step=step, reason=reason, layer=layer):
                found = {"step": step, "reason": reason, "layer": layer}
                state, more = "diverged", {"step": step, "divergence": found}
        # In attnlab's own words the class says no more.
        is_said = isinstance(exception, Interrupted | OutOfMemory)
        said = str(exception) if is_said else "".join(traceback.format_exception_only(exception)).strip()
        self._end(state, error=said, **more)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.note(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The last values of the training; the run goes on until `finish`."""
        self.note(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """The run's end by an exception."""
        if trainer.is_global_zero:
            self._take(trainer, pl_module)
            self.fail(exception)

    def note(self, trainer: pl.Trainer, task: Task) -> None:
        if trainer.is_global_zero:
            self._take(trainer, task)
            self._write()

    def _take(self, trainer: pl.Trainer, task: Task) -> None:
        eta = self.seconds_left(trainer)
        counts = {"step": trainer.global_step, "max_steps": trainer.max_steps, "tokens": task.tokens, "eta": eta}
        self.status |= counts | {"seconds": task.seconds, "latest": dict(task.latest), "best": task.best}

    def _end(self, state: str, **more: Any) -> None:
        self.status |= {"state": state, "ended": time.time(), "eta": None} | more
        self._write(durable=True)

    def _write(self, durable: bool = False) -> None:
        if not self.directory.owned:
            return
        self.status["heartbeat"] = time.time()
        write_json(self.directory.status_json, self.status, durable)
        self._next = time.monotonic() + self.every_seconds


class OutOfMemory(RuntimeError):
    """A run needed more memory than there was: of the machine, or of its accelerator."""


def in_words(exception: BaseException) -> BaseException:
    """The same exception, or for one of the many that say that memory ran out OutOfMemory, with what to do."""
    said = str(exception).strip().partition("\n")[0]
    is_out = isinstance(exception, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said
    if not is_out:
        return exception
    return OutOfMemory(
        f"memory ran out{f' ({said})' if said else ''}; smaller batches (and trainer.accumulate as many times larger), "
        "trainer.checkpoint_activations=true or a smaller model need less"
    )


class Progress(Watcher):
    """One line a run: live on a terminal, otherwise a plain line at validations and at most every `every_seconds`.

    unit: what a term of the loss is called.
    """

    def __init__(
        self,
        name: str = "",
        live: bool | None = None,
        every_seconds: float = 10.0,
        stream: TextIO | io.TextIOBase | None = None,
        unit: str = "token",
    ) -> None:
        self.name, self.unit = name, unit
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() if live is None else live
        super().__init__(0.2 if self.live else every_seconds)
        self._tokens_before = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._tokens_before, self._next = pl_module.tokens, time.monotonic() + self.every_seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self.note(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The last line stays."""
        if self.live and trainer.is_global_zero:
            self.note(trainer, pl_module)
            self.stream.write("\n")

    def line(self, trainer: pl.Trainer, task: Task) -> str:
        """Step, losses, pace and what is left, in one line."""
        elapsed = time.monotonic() - self._from[1]
        parts = [f"{self.name} step {trainer.global_step}/{trainer.max_steps}".strip()]
        shown = ("train/nats", f"val/{task.monitor.name}")
        parts += [f"{name} {task.latest[name]:.3f}" for name in shown if name in task.latest]
        parts.append(f"{(task.tokens - self._tokens_before) / max(elapsed, 1e-9):,.0f} {self.unit}s/s")
        left = self.seconds_left(trainer)
        return " · ".join([*parts, f"{duration(left)} left"] if left else parts)

    def note(self, trainer: pl.Trainer, task: Task) -> None:
        self._next = time.monotonic() + self.every_seconds
        if trainer.is_global_zero:
            line = self.line(trainer, task)
            self.stream.write(f"\r\x1b[2K{line}" if self.live else f"{line}\n")
            self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3:05 or 2:03:05."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
