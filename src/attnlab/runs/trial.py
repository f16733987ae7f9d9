"""A trial of a run: what it will take, by its own first seconds in a folder that is removed afterwards.

It is the run itself (its model, data, optimizer, loggers of files, checkpoints), stopped after a few seconds of steps
and, where they take longer, a few seconds of each evaluation.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from attnlab.config.compose import Composed
from attnlab.runs.build import Parts
from attnlab.runs.run import TrainingRun
from attnlab.runs.settled import with_data
from attnlab.training.callbacks import Debugging
from attnlab.training.ranks import Ranks
from attnlab.training.run_directory import RunDirectory
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import Tracking

STEP_SECONDS, PART_SECONDS = 1.5, 0.5  # of steps that are timed, and of each part of an evaluation
LEAST_STEPS = 3  # after the first one
CLOCK = time.perf_counter
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Seconds of a run's parts: what comes before its first step, a step, a validation with its checkpoints, and what
    comes after the last step, the evaluation of the test part and all that the run writes included."""

    start: float
    step: float
    validation: float
    end: float

    def of(self, steps: float, validations: int) -> float:
        """Seconds of a run of so many steps of full size with so many validations."""
        return self.start + steps * self.step + validations * self.validation + self.end


def measure(composed: Composed, step_seconds: float = STEP_SECONDS, part_seconds: float = PART_SECONDS) -> Cost:
    """What a run takes beside all that this machine does meanwhile; leaves nothing. Raises what the run raises.

    Of steps it takes `step_seconds`, of each part of an evaluation `part_seconds`, and at least one.
    """
    begun = CLOCK()
    with alone(composed) as (by_itself, parts, directory):
        trial = Trial(by_itself, parts, directory, begun, step_seconds, part_seconds)
        trial.go()
        return trial.cost()


@contextlib.contextmanager
def alone(composed: Composed, **changes: object) -> Iterator[tuple[Composed, Parts, RunDirectory]]:
    """A run as it trains on one device, with its data, in a folder that is its own and is removed afterwards.

    Its logs are files alone, and all of its steps are of full size. changes: what else differs in its configuration,
    whole or as fields of a group.
    """
    with TemporaryDirectory(prefix="attnlab-") as folder:
        raw = {**composed.raw, "run_dir": str(Path(folder, "study", "cell", "seed=0")), "progress": "off"}
        # Each rank computes as much as one alone; what they say to one another is not measured. No least number of
        # steps stands against an early end.
        passed = {key: value for key, value in (composed.get("trainer.lightning") or {}).items() if key != "min_steps"}
        of_one = {"devices": 1, "num_nodes": 1, "strategy": "auto", "lightning": passed}
        for name, value in (("trainer", of_one), *changes.items()):
            raw[name] = {**raw[name], **value} if isinstance(value, Mapping) else value
        by_itself = replace(composed, raw=raw)
        parts, directory = replace(with_data(by_itself), tracking=Tracking()), RunDirectory(by_itself.run_dir)
        parts = replace(parts, data=parts.data.unramped())
        directory.claim()
        try:
            yield by_itself, parts, directory
        finally:
            directory.release()


class Pace(pl.Callback):
    """Times optimizer steps after the first one, for so many seconds (0: none), and ends the training."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.first, self.last, self.steps = seconds, 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.steps:  # within the micro-batches of a step
            return
        self.last, self.steps = CLOCK(), trainer.global_step
        self.first = self.first or self.last
        are_enough = self.steps > LEAST_STEPS or not self.seconds
        trainer.should_stop = are_enough and self.last - self.first >= self.seconds


class Trial(TrainingRun):
    """An attempt at a run that ends early."""

    def __init__(
        self,
        composed: Composed,
        parts: Parts,
        directory: RunDirectory,
        begun: float,
        step_seconds: float,
        part_seconds: float,
    ) -> None:
        self.validates = bool(parts.trainer.val_check_interval)  # which is timed by itself
        trainer = replace(parts.trainer, val_check_interval=0)
        super().__init__(composed, replace(parts, trainer=trainer), directory, Ranks())
        self.begun, self.pace, self.part_seconds = begun, Pace(step_seconds), part_seconds
        self.validation = self.end = 0.0

    def cost(self) -> Cost:
        """What was measured, once it is over."""
        pace = self.pace
        step = (pace.last - pace.first) / max(1, pace.steps - 1)
        return Cost(max(0.0, pace.first - self.begun - step), step, self.validation, self.end)

    def _callbacks(self) -> list[pl.Callback]:
        return [*super()._callbacks(), self.pace]

    def _evaluate(self, task: Task, loggers: Sequence[Logger], debugging: Debugging) -> None:
        self.end = CLOCK() - self.pace.last  # the last checkpoint
        if self.validates:
            part, begun = Part(task, self.part_seconds), CLOCK()
            task.score_sums(self.data.val_dataloader())
            for name in ("best", "last"):
                task.trainer.save_checkpoint(self.directory.checkpoints / f"{name}-trial.ckpt")
            self.validation = CLOCK() - begun + part.restore()
        part, begun = Part(task, self.part_seconds), CLOCK()
        try:
            super()._evaluate(task, loggers, debugging)
        except ValueError:  # of figures: what was left out may need a prediction of its own length, as tags of words do
            if not part.filled:
                raise
        self.end += CLOCK() - begun + part.restore()

    def _warn(self, line: str) -> None:
        self._log(line)


class Part:
    """While it is in place a task evaluates no more than the first seconds' batches of a loader.

    What is not evaluated counts as long as what is, a batch for a batch.
    """

    def __init__(self, task: Task, seconds: float) -> None:
        self.task, self.seconds, self.more, self.filled = task, seconds, 0.0, False
        self._score_sums, self._predictions = task.score_sums, task.predictions
        task.score_sums, task.predictions = self.score_sums, self.predictions  # type: ignore[method-assign]

    def restore(self) -> float:
        """Takes it away; returns the seconds that what was left out would have taken."""
        del self.task.score_sums, self.task.predictions
        return self.more

    def score_sums(self, loader: Iterable[Batch]) -> tuple[dict[str, float], int]:
        return self._score_sums(self._first(loader, []))

    def predictions(self, loader: Iterable[Batch], predict: Callable[[Batch], Sequence[T]]) -> dict[int, T]:
        """The examples that were left out have the prediction of another."""
        rest: list[Batch] = []
        found = self._predictions(self._first(loader, rest), predict)
        filler, self.filled = next(iter(found.values())), bool(rest)
        return dict(
            sorted((dict.fromkeys((i for batch in rest for i in batch["ids"].tolist()), filler) | found).items())
        )

    def _first(self, loader: Iterable[Batch], rest: list[Batch]) -> Iterator[Batch]:
        batches, begun = iter(loader), CLOCK()
        for count, batch in enumerate(batches, 1):
            yield batch
            if (spent := CLOCK() - begun) > self.seconds:
                rest += batches
                self.more += spent * len(rest) / count - (CLOCK() - begun - spent)
