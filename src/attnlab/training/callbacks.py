"""What a run says about itself while it trains: status.json for other processes, a line of progress for whoever looks."""

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

from attnlab.training.divergence import Diverged
from attnlab.training.pruning import Pruned
from attnlab.training.run_directory import RunDirectory, write_json
from attnlab.training.stop_request import Interrupted
from attnlab.training.task_base import TokenTask


def remaining_seconds(started: tuple[int, float], step: int, max_steps: int) -> float | None:
    """The seconds left at the pace since `started` (step, time.monotonic()), or None before the first step."""
    done = step - started[0]
    return (time.monotonic() - started[1]) / done * (max_steps - step) if done > 0 else None


class StatusWriter(pl.Callback):
    """Keeps status.json: on the start of the training, every `every_seconds`, at validations; `finish` and `fail` write the last one.

    `final` and `cannot` (metric: reason) are what a finished run leaves for the comparison; `divergence` (step, reason, layer) what one that
    diverged does, `pruned` (step, metric, value) what a search gave up. Only the run's owner, which is rank 0, writes.
    """

    def __init__(self, directory: RunDirectory, every_seconds: float = 2.0) -> None:
        self.directory, self.every_seconds = directory, every_seconds
        self.status: dict[str, Any] = {
            "state": "running",
            "attempt": directory.attempt,
            "step": 0,
            "max_steps": None,
            "tokens": 0,
            "seconds": 0.0,
            "heartbeat": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
            "ended": None,
            "eta": None,
            "latest": {},
            "best": None,
            "final": {},
            "cannot": {},
            "notes": {},
            "divergence": None,
            "pruned": None,
            "error": None,
        }
        self._next, self._from = 0.0, (0, time.monotonic())

    def start(self) -> None:
        """Says that the run is being prepared, before there is a trainer."""
        self._write()

    def finish(
        self,
        final: dict[str, float] | None = None,
        cannot: dict[str, str] | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        """The run's good end, with its final metrics, those that it cannot have, and how some were computed."""
        self._end("finished", final=final or {}, cannot=cannot or {}, notes=notes or {})

    def fail(self, exception: BaseException) -> None:
        """The run's end by an exception: diverged, pruned, interrupted (by a signal) or failed, with the error's text."""
        if self.status["state"] != "running":
            return
        exception = in_words(exception)
        state = "interrupted" if isinstance(exception, (KeyboardInterrupt, SystemExit)) else "failed"
        if isinstance(exception, Pruned):
            state = "pruned"
            self.status["pruned"] = {"step": exception.step, "metric": exception.metric, "value": exception.value}
        if isinstance(exception, Diverged):
            state = "diverged"
            self.status["step"] = exception.step
            found = {"step": exception.step, "reason": exception.reason, "layer": exception.layer}
            self.status["divergence"] = found
        # In attnlab's own words the class says no more.
        is_said = isinstance(exception, Interrupted | OutOfMemory)
        self._end(state, error=str(exception) if is_said else _last_line(exception))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first status of the training."""
        self._from = (trainer.global_step, time.monotonic())
        self.note(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The heartbeat."""
        if time.monotonic() >= self._next:
            self.note(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation's values."""
        self.note(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last values of the training; the run goes on until `finish`."""
        self.note(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run's end by an exception."""
        if trainer.is_global_zero:
            self._take(trainer, pl_module)
            self.fail(exception)

    def note(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Where the training stands."""
        if trainer.is_global_zero:
            self._take(trainer, task)
            self._write()

    def _take(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, TokenTask)
        eta = remaining_seconds(self._from, trainer.global_step, trainer.max_steps)
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


def _last_line(exception: BaseException) -> str:
    return "".join(traceback.format_exception_only(exception)).strip()


class Progress(pl.Callback):
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
        self.every_seconds = 0.2 if self.live else every_seconds
        self._next, self._from, self._tokens_before = 0.0, (0, time.monotonic()), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts measuring the pace."""
        assert isinstance(pl_module, TokenTask)
        self._from, self._tokens_before = (trainer.global_step, time.monotonic()), pl_module.tokens
        self._next = time.monotonic() + self.every_seconds

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line when it is time."""
        if time.monotonic() >= self._next:
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line with the validation's values."""
        if trainer.state.fn == "fit":
            self._say(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last line stays."""
        if self.live and trainer.is_global_zero:
            self._say(trainer, pl_module)
            self.stream.write("\n")

    def line(self, trainer: pl.Trainer, task: TokenTask) -> str:
        """Step, losses, pace and what is left, in one line."""
        step, elapsed = trainer.global_step, time.monotonic() - self._from[1]
        parts = [f"{self.name} step {step}/{trainer.max_steps}".strip()]
        parts += [f"{name} {task.latest[name]:.3f}" for name in ("train/nats", task.monitor) if name in task.latest]
        parts.append(f"{(task.tokens - self._tokens_before) / max(elapsed, 1e-9):,.0f} {self.unit}s/s")
        left = remaining_seconds(self._from, step, trainer.max_steps)
        return " · ".join([*parts, f"{duration(left)} left"] if left else parts)

    def _say(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._next = time.monotonic() + self.every_seconds
        if not trainer.is_global_zero:
            return
        assert isinstance(task, TokenTask)
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
