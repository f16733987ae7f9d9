"""What a run could be tuned to, by its own first steps in a folder that is removed afterwards: the range test of its
learning rate, and how many examples its batches can hold."""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from attnlab.config import UsageError
from attnlab.config.compose import Composed
from attnlab.parts import unwrapped
from attnlab.ranges import PositiveFloat, PositiveInt, check_ranges
from attnlab.runs.build import Parts, build
from attnlab.runs.run import TrainingRun
from attnlab.runs.trial import Pace, alone
from attnlab.training.callbacks import Debugging, DivergenceCheck, OutOfMemory
from attnlab.training.ranks import Ranks
from attnlab.training.run_directory import RunDirectory
from attnlab.training.schedules import Noam, Schedule
from attnlab.training.task import Batch, Task, as_task

SMOOTHING, MANY_TIMES = 0.98, 4.0  # of the loss, and of its least from where on it has diverged, as in fastai
SHARE = 0.8  # of the memory that is there
PROCESS, MACHINE, GROUPS = Path("/proc/self"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Of a training that ends by what it is watched for.
TRAINER = {"max_epochs": None, "val_check_interval": 0, "plateau_share": None, "diagnostics_every": None}
LOW = 1e-6  # a rate at which nothing diverges
FEWEST, ENOUGH = 10, 1000  # steps, of which the first ones are timed; where a run says how many it has, as many


class Short(TrainingRun):
    """A run that one callback watches and ends, and that evaluates nothing."""

    def __init__(self, composed: Composed, parts: Parts, directory: RunDirectory, watcher: pl.Callback) -> None:
        super().__init__(composed, replace(parts, callbacks=()), directory, Ranks())
        self.watcher = watcher

    def _callbacks(self) -> list[pl.Callback]:
        return [self.status, DivergenceCheck(), self.watcher]

    def _evaluate(self, task: Task, loggers: Sequence[Logger], debugging: Debugging) -> None:
        for logger in loggers:
            logger.finalize("success")

    def _warn(self, line: str) -> None:
        self._log(line)


# --- the learning rate


@check_ranges
class Rising(Schedule):
    """The rate from `first` to `last`, by the same factor at each step, whatever the optimizer's own."""

    def __init__(self, total_steps: PositiveInt, lr: PositiveFloat, first: PositiveFloat, last: PositiveFloat) -> None:
        super().__init__(total_steps)
        self.lr, self.first, self.last = lr, first, last

    def __call__(self, step: int) -> float:
        share = step / max(1, self.total_steps - 1)
        rate: float = self.first ** (1 - share) * self.last**share
        return rate / self.lr


class RangeTest(pl.Callback):
    """Keeps rate and loss of each step; ends the training where the smoothed loss is four times its least.

    The loss is that of the step, a token; smoothed: its exponential average, without the bias of its start (as in
    fastai and in Lightning's `lr_find`).
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._average = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == len(self.rates):  # within the micro-batches of a step
            return
        task = as_task(pl_module)
        self.add(task.latest["train/lr"], task.latest[f"train/{task.loss_name}"])
        trainer.should_stop = trainer.should_stop or self.is_over

    def add(self, rate: float, loss: float) -> None:
        """Takes in a step."""
        self.rates.append(rate)
        self.losses.append(loss)
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        self.smoothed.append(self._average / (1 - SMOOTHING ** len(self.rates)))

    @property
    def is_over(self) -> bool:
        return self.smoothed[-1] > MANY_TIMES * min(self.smoothed)

    def suggestion(self) -> float | None:
        """The rate of the steepest descent of the smoothed loss by the logarithm of the rate, without the first tenth
        of the steps and the last one; None where the loss does not fall.

        By the rate itself, as Lightning's `suggestion` has it, any noise at the lowest rates would be the steepest.
        """
        kept = slice(len(self.rates) // 10, -1)
        rates, losses = (torch.tensor(values[kept], dtype=torch.double) for values in (self.rates, self.smoothed))
        if len(rates) < 2:
            return None
        (slopes,) = torch.gradient(losses, spacing=(rates.log(),))
        at = int(slopes.argmin())
        return self.rates[kept][at] if slopes[at] < 0 else None


def range_test(composed: Composed, first: float, last: float, steps: int) -> RangeTest:
    """The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3) of a run: so many steps of its training,
    with a rate that rises from `first` to `last`. Raises: UsageError, or what the run raises.

    Not by Lightning's `Tuner.lr_find`: it sets the rate by a schedule of Lightning's, of which a task knows none.
    """
    if "lr" not in composed.get("optimizer"):
        raise UsageError(f"optimizer={composed.names['optimizer']} has no field lr, so there is no rate to look for")
    kind = unwrapped(build(composed.resolved).schedule)
    if isinstance(kind, type) and issubclass(kind, Noam):
        raise UsageError(
            f"schedule={composed.names['schedule']} sets the learning rate itself, and a rate that is found would have "
            "no effect; choose another one, such as schedule=inverse_sqrt"
        )
    trainer = {**TRAINER, "max_steps": steps, "log_every_n_steps": 1}
    with alone(composed, trainer=trainer, optimizer={"lr": last}, debug=None) as (by_itself, parts, directory):
        parts = replace(parts, schedule=partial(Rising, first=first, last=last))
        test = RangeTest()
        status = Short(by_itself, parts, directory, test).go()
    if not test.rates:
        raise ValueError(f"the first step failed: {status['error']}")
    return test


# --- the size of a batch


@dataclass(frozen=True)
class Tried:
    """What a size of batches takes: bytes at most, seconds a step, tokens a second; fits: within the limit."""

    size: int
    bytes: float
    step: float = math.nan
    pace: float = math.nan
    fits: bool = True
    why: str = ""

    @property
    def said(self) -> str:
        """Its memory and its pace, or why it has none, in words."""
        memory = f"{self.bytes / 1e9:.2f} GB"
        if self.why:
            return f"{self.why} ({memory})"
        too_much = "" if self.fits else ", more than the limit"
        return f"{memory}{too_much}, {1000 * self.step:.1f} ms a step"


class Throughput(Pace):
    """Counts the tokens of the steps that are timed."""

    tokens_before = tokens = 0

    def on_train_batch_end(self, trainer: pl.Trainer, *given: object) -> None:
        steps = self.steps
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        super().on_train_batch_end(trainer, *given)
        if self.steps > steps:
            self.tokens = as_task(trainer.lightning_module).tokens
            self.tokens_before = self.tokens_before or self.tokens


def size_field(composed: Composed) -> str:
    """The field of the data that says how large a batch is. Raises: UsageError."""
    for field in ("batch_size", "batch_tokens"):
        if isinstance(composed.get(f"data.{field}"), int):
            return field
    raise UsageError(f"data={composed.names['data']} has neither batch_size nor batch_tokens; nothing can be doubled")


def batch_sizes(
    composed: Composed, most_bytes: float | None = None, most: int | None = None, seconds: float = 1.0
) -> Iterator[Tried]:
    """Tries the run's own size of batches, then twice as many, and so on, until one does not fit (it is the last one),
    is above `most`, or a step has seen the whole training part. Raises: what the run raises.

    most_bytes: by default, on a CPU, four fifths of the memory that is there, and on a GPU all of its own. Memory is
    that of the process on a CPU, and of tensors on a GPU. No size is tried that would need more than there is.
    """
    field, size = size_field(composed), int(composed.get(f"data.{size_field(composed)}"))
    steps = max(FEWEST, composed.get("trainer.max_steps") or ENOUGH)
    before, growth, trainer = 0.0, 0.0, {**TRAINER, "max_steps": steps}
    while most is None or size <= most:
        with alone(composed, trainer=trainer, data={field: size}, debug=None) as (by_itself, parts, directory):
            memory = Memory(parts.trainer.device_type)
            tokens, whole = parts.data.tokens_per_step(parts.trainer.accumulate_grad_batches), parts.data.train_tokens
            if before and tokens > whole:
                return
            limit = memory.there() if most_bytes is None else most_bytes
            start = memory.now()
            if before and memory.is_of_process and before + growth > max(limit, memory.there()):
                yield Tried(size, before + growth, fits=False, why="expected, not tried")
                return
            watcher, parts = Throughput(seconds), replace(parts, schedule=partial(Rising, first=LOW, last=LOW))
            memory.reset()
            try:
                status = Short(by_itself, parts, directory, watcher).go()
            except OutOfMemory:
                yield Tried(size, memory.most(), fits=False, why="out of memory")
                return
            found = memory.most()
        if watcher.steps < 2:
            raise ValueError(f"data.{field}={size}: {status['error']}")
        # A batch twice as large adds at most twice as much again.
        growth, before = 2 * (found - before) if before else found - start, found
        elapsed = watcher.last - watcher.first
        pace = (watcher.tokens - watcher.tokens_before) / elapsed
        yield Tried(size, found, elapsed / (watcher.steps - 1), pace, found <= limit)
        if found > limit or tokens >= whole:
            return
        size *= 2


class Memory:
    """The memory that this process takes on a kind of device: on a GPU its tensors, elsewhere all of it."""

    def __init__(self, kind: str) -> None:
        self.is_of_process = kind != "cuda"

    def now(self) -> float:
        return _kilobytes(PROCESS / "status", "VmRSS") if self.is_of_process else torch.cuda.memory_allocated()

    def reset(self) -> None:
        """What is the most counts from here on, where the system can do that."""
        gc.collect()
        if self.is_of_process:
            with suppress(OSError):
                (PROCESS / "clear_refs").write_text("5")
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def most(self) -> float:
        if not self.is_of_process:
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        seen = _kilobytes(PROCESS / "status", "VmHWM")
        return seen or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def there(self) -> float:
        """What may be taken: on a GPU everything, elsewhere a share of what is available now and of what this takes."""
        if not self.is_of_process:
            return math.inf
        available = _kilobytes(MACHINE, "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
        return SHARE * (min([available, *_left_to_groups()]) + self.now())


def _left_to_groups() -> Iterator[float]:
    """What the control groups of this process (of a container, of a job of Slurm's) may still take, in bytes."""
    with suppress(OSError):
        own = (PROCESS / "cgroup").read_text().strip().rpartition("::/")[2]
        for group in (GROUPS / own, *(GROUPS / own).parents):
            with suppress(OSError, ValueError):  # no limit reads "max"
                yield float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())


def _kilobytes(file: Path, name: str) -> float:
    """A line of a file of Linux's, in bytes; 0 where there is none."""
    with suppress(OSError):
        found = (line.split() for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
        return next((float(words[1]) * 1024 for words in found), 0.0)
    return 0.0
