"""What watches a training: status.json for other processes, a line of progress for whoever looks, and what ends a
training before its last step. See `diagnostics` for what looks inside, `checkpoints` for what saves."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import lightning.pytorch as pl
import torch

from attnlab.training.loss import Diverged, Plateau, any_rank
from attnlab.training.processes import Interrupted
from attnlab.training.run_directory import RunDirectory, open_to_read, write_json
from attnlab.training.task import Batch, Task, as_task

if TYPE_CHECKING:
    from lightning.pytorch.profilers import Profiler
    from optuna.pruners import BasePruner

# As fairseq's --min-loss-scale: 30 halvings of torch's first scale without a step between that counts.
MIN_LOSS_SCALE = 1e-4
PLATEAU_STEPS = 500  # the least that a model is given to learn more than frequencies


class Watcher(pl.Callback):
    """Calls `note` when a training starts and ends, at validations, and every `every_seconds` between its batches."""

    def __init__(self, every_seconds: float) -> None:
        self.every_seconds, self._next = every_seconds, 0.0
        self._from = (0, time.monotonic())  # the step and the time that the training started at

    def note(self, trainer: pl.Trainer, task: Task) -> None:
        """Where the training stands."""
        raise NotImplementedError

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._from = (trainer.global_step, time.monotonic())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if time.monotonic() >= self._next:
            self.note(trainer, as_task(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(trainer, as_task(pl_module))

    def seconds_left(self, trainer: pl.Trainer) -> float | None:
        """At the pace since the training started; None before its first step."""
        done = trainer.global_step - self._from[0]
        left = trainer.max_steps - trainer.global_step
        return (time.monotonic() - self._from[1]) / done * left if done > 0 else None


class StatusWriter(Watcher):
    """Keeps status.json; `start` writes the first one, `finish` and `fail` the last. Only the run's owner writes.

    `final`, `unavailable` (metric: reason) and `notes` are what a finished run leaves for the comparison; `divergence`
    (step, reason, layer) what one that diverged does, `pruned` (step, metric, value) what a search gave up.
    """

    def __init__(self, directory: RunDirectory, every_seconds: float = 2.0) -> None:
        super().__init__(every_seconds)
        self.directory = directory
        self.status: dict[str, object] = {"state": "running", "attempt": directory.attempt, "step": 0}
        self.status |= {"max_steps": None, "tokens": 0, "seconds": 0.0, "heartbeat": None}
        self.status |= {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "ended": None}
        self.status |= {"eta": None, "latest": {}, "best": None, "final": {}, "unavailable": {}, "notes": {}}
        self.status |= {"divergence": None, "pruned": None, "error": None}

    def start(self) -> None:
        """Says that the run is being prepared, before there is a trainer."""
        self._write()

    def finish(self, **found: object) -> None:
        """The run's good end."""
        self._end("finished", **found)

    def fail(self, exception: BaseException) -> None:
        """The run's end by an exception: diverged, pruned, interrupted (by a signal) or failed, with the error's
        text."""
        if self.status["state"] != "running":
            return
        exception = in_words(exception)
        # In attnlab's own words the class says no more.
        is_said = isinstance(exception, Interrupted | OutOfMemory)
        said = str(exception) if is_said else "".join(traceback.format_exception_only(exception)).strip()
        match exception:
            case KeyboardInterrupt() | SystemExit():
                self._end("interrupted", error=said)
            case Pruned(step=step, metric=metric, value=value):
                self._end("pruned", error=said, pruned={"step": step, "metric": metric, "value": value})
            case Diverged(step=step, reason=reason, layer=layer):
                divergence = {"step": step, "reason": reason, "layer": layer}
                self._end("diverged", error=said, step=step, divergence=divergence)
            case _:
                self._end("failed", error=said)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.note(trainer, as_task(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(trainer, as_task(pl_module))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            self._take(trainer, as_task(pl_module))
            self.fail(exception)

    def note(self, trainer: pl.Trainer, task: Task) -> None:
        if trainer.is_global_zero:
            self._take(trainer, task)
            self._write()

    def _take(self, trainer: pl.Trainer, task: Task) -> None:
        self.status |= {"step": trainer.global_step, "max_steps": trainer.max_steps, "tokens": task.tokens}
        self.status |= {"eta": self.seconds_left(trainer), "seconds": task.seconds}
        self.status |= {"latest": dict(task.latest), "best": task.best}

    def _end(self, state: str, **more: object) -> None:
        self.status |= {"state": state, "ended": time.time(), "eta": None} | more
        self._write(durable=True)

    def _write(self, durable: bool = False) -> None:
        if self.directory.owned:
            self.status["heartbeat"] = time.time()
            write_json(self.directory.status_json, self.status, durable)
            self._next = time.monotonic() + self.every_seconds


class OutOfMemory(RuntimeError):
    """A run needed more memory than there was: of the machine, or of its accelerator."""


def in_words(exception: BaseException) -> BaseException:
    """The same exception, or for one of the many that say that memory ran out OutOfMemory, with what to do."""
    said = str(exception).strip().partition("\n")[0]
    if not isinstance(exception, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in said:
        return exception
    return OutOfMemory(
        f"memory ran out{f' ({said})' if said else ''}; smaller batches (and trainer.accumulate_grad_batches as many "
        "times larger), trainer.checkpoint_activations=true or a smaller model need less"
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
        self.name, self.unit, self.stream = name, unit, stream or sys.stderr
        self.live = self.stream.isatty() if live is None else live
        super().__init__(0.2 if self.live else every_seconds)
        self._tokens_before = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._tokens_before, self._next = as_task(pl_module).tokens, time.monotonic() + self.every_seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.live and trainer.is_global_zero:  # the last line stays
            self.note(trainer, as_task(pl_module))
            self.stream.write("\n")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.live and trainer.is_global_zero:  # what is said of it begins a line of its own
            self.stream.write("\n")

    def line(self, trainer: pl.Trainer, task: Task) -> str:
        """Step, losses, pace and what is left, in one line."""
        elapsed = time.monotonic() - self._from[1]
        parts = [f"{self.name} step {trainer.global_step}/{trainer.max_steps}".strip()]
        shown = ("train/loss", f"val/{task.monitor.name}")
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


class DivergenceCheck(pl.Callback):
    """Ends a training that has diverged without a loss that is not finite, by a plateau or the collapse of the loss
    scale.

    plateau_share: of the steps, and at least 500 of them, after which the loss must once have been below the entropy of
    the frequencies of its targets (see Plateau); None: no check. Tasks without target tokens are not checked.
    """

    def __init__(self, plateau_share: float | None = None, max_steps: int = 0) -> None:
        judged_at = 0 if plateau_share is None else max(PLATEAU_STEPS, math.ceil(plateau_share * max_steps))
        self.plateau = Plateau(judged_at) if 0 < judged_at <= max_steps else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Looks at a batch, and at its step when that is over. Raises Diverged."""
        task, step = as_task(pl_module), trainer.global_step
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.plateau is not None and not self.plateau.is_left:
            self._watch(self.plateau, trainer, task, batch, is_step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and is_step and task.is_logged(step) and (scale := scaler.get_scale()) < MIN_LOSS_SCALE:
            raise Diverged(step, f"the loss scale of fp16 fell to {scale:.1e}", task.first_not_finite([batch]))

    def state_dict(self) -> dict[str, object]:
        return {} if self.plateau is None else self.plateau.state_dict()

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        if self.plateau is not None:
            self.plateau.load_state_dict(state_dict)

    def _watch(self, plateau: Plateau, trainer: pl.Trainer, task: Task, batch: Batch, is_step: bool) -> None:
        targets_N = task.targets(batch)
        if targets_N is None:
            self.plateau = None
            return
        assert task.sums.last is not None
        plateau.add(task.cross_entropy(task.sums.last), targets_N)
        if is_step and (reason := plateau.close(trainer.global_step, partial(any_rank, trainer))):
            raise Diverged(trainer.global_step, reason)


class Debugging:
    """What a debug preset adds to a run, and the base of the presets (see `attnlab.runs.debugging`): nothing."""

    callbacks: Sequence[pl.Callback] = ()

    def profiler(self, folder: Path) -> Profiler | None:
        """What times the training, and writes into a run's folder."""
        return None

    def before(self, data: Any) -> None:
        """Changes the data before the training."""
        return

    def evaluate(self, task: Task, data: Any) -> dict[str, float]:
        """The final figures, of the validation and the test part."""
        return task.validate(data) | task.evaluate(data, "test")

    def fault(self) -> str | None:
        """Why a training has failed that ran to its end; None where it has not."""
        return None

    def lines(self, folder: Path) -> list[str]:
        """What is to be said at the end."""
        return []


class Pruned(Exception):
    """A trial of a search was given up at a validation."""

    def __init__(self, step: int, metric: str, value: float) -> None:
        super().__init__(step, metric, value)
        self.step, self.metric, self.value = step, metric, value

    def __str__(self) -> str:
        return f"pruned at step {self.step}: {self.metric} was {self.value:.4f}, worse than other trials at this step"


class Pruning(pl.Callback):
    """Raises Pruned where an Optuna pruner gives a trial up, compared with those of its search that have finished.

    better: which values of `metric` are, lower or higher. metrics: the run's own metrics.jsonl. peers: gives those of
    the trials that have finished. Every rank stops, by the first one's word.
    """

    def __init__(
        self, pruner: BasePruner, metric: str, better: str, metrics: Path, peers: Callable[[], Iterable[Path]]
    ) -> None:
        self.pruner, self.metric, self.better, self.metrics, self.peers = pruner, metric, better, metrics, peers

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks the pruner, but not at the end of the training."""
        if trainer.state.fn != "fit" or trainer.global_step >= trainer.max_steps:
            return
        value = trainer.strategy.broadcast(self._given_up() if trainer.is_global_zero else None)
        if value is not None:
            raise Pruned(trainer.global_step, self.metric, value)

    def _given_up(self) -> float | None:
        """The last value of a run that is given up."""
        import optuna
        from optuna.trial import TrialState, create_trial

        own = validations(self.metrics, self.metric)
        if not own:
            return None
        # Of trials that are made up from files.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="minimize" if self.better == "lower" else "maximize")
        for path in self.peers():
            if values := validations(path, self.metric):
                study.add_trial(create_trial(value=values[max(values)], intermediate_values=values))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=own)
        return own[max(own)] if self.pruner.prune(study, trial) else None


def validations(metrics: Path, metric: str) -> dict[int, float]:
    """The finite values of a metric in a run's metrics.jsonl, by step; of a step trained twice the later one."""
    try:
        with open_to_read(metrics) as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    whole = (json.loads(line) for line in lines if line.endswith(b"\n"))  # the last one of a killed run may be cut
    values = ((int(line["step"]), line["values"].get(metric)) for line in whole)
    return {step: float(value) for step, value in values if value is not None and math.isfinite(value)}
