"""What checkpoints cost a run at the default interval: the share of a training's time that saving takes, and the seconds of one saving.

python experiments/checkpoint_cost/measure.py [--steps 300] [--rounds 5] [--d-model 64] [--threads 2]

Both figures are of one process and one training, so that what else the machine does falls on both: the clock runs while a checkpoint is written, and
from the first step's end to the last one's. A validation every 100 steps, which saves, and a checkpoint at least every 60 seconds are the defaults.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from attnlab.data import Byte, TextData, TextFiles
from attnlab.layers import GELU, Rotary
from attnlab.models import GPT
from attnlab.tasks import CausalLanguageModelling
from attnlab.training import (
    Checkpoints,
    Cosine,
    DivergenceCheck,
    JsonLines,
    Optimization,
    RunDirectory,
    StatusWriter,
    TrainerSettings,
    adamw,
    build_trainer,
    resolve,
)


class TimedCheckpoints(Checkpoints):
    """Counts the seconds within its own hooks, in which all of the saving happens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds, self.savings = 0.0, 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Times the saving by the clock."""
        self._timed(super().on_train_batch_end, arguments)

    def on_validation_end(self, *arguments: Any) -> None:
        """Times the saving after a validation."""
        self._timed(super().on_validation_end, arguments)

    def _timed(self, hook: Any, arguments: tuple[Any, ...]) -> None:
        before, started = self._saved_step, time.perf_counter()
        hook(*arguments)
        self.seconds += time.perf_counter() - started
        self.savings += self._saved_step != before


class Clock(pl.Callback):
    """The seconds from the end of the first step to the end of the last."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Notes when the first step ended."""
        if trainer.global_step == 1:
            self.started = time.perf_counter()

    def on_train_end(self, *_: object) -> None:
        """Notes when the last one did, its validation included."""
        self.seconds = time.perf_counter() - self.started


def one_training(arguments: argparse.Namespace, data: TextData, folder: Path) -> tuple[float, float, float]:
    """(share of the time, seconds of one saving, megabytes of a checkpoint)."""
    settings = TrainerSettings(max_steps=arguments.steps, precision="32", threads=arguments.threads, device="cpu")
    directory = RunDirectory(folder)
    directory.claim()
    torch.manual_seed(0)
    model = GPT(256, arguments.context, arguments.d_model, 4, 4, position=Rotary, feed_forward=GELU)
    task = CausalLanguageModelling(model)
    task.optimization = Optimization(adamw, partial(Cosine, warmup_steps=2))
    clock, every = Clock(), settings.checkpoint_every_seconds
    checkpoints = TimedCheckpoints(directory.checkpoints, every, settings.checkpoint_budget_gb)
    check = DivergenceCheck(settings.plateau_share, settings.max_steps)
    callbacks = [clock, StatusWriter(directory), check, checkpoints]
    precision = resolve("32", "cpu")
    build_trainer(settings, precision, [JsonLines(directory.metrics)], callbacks, folder).fit(task, datamodule=data)
    directory.release()
    size = (directory.checkpoints / "last.ckpt").stat().st_size / 1e6
    return checkpoints.seconds / clock.seconds, checkpoints.seconds / checkpoints.savings, size


def main() -> None:
    """Prints the share of each round and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    shares = []
    with tempfile.TemporaryDirectory() as name:
        text = Path(name, "text.txt")
        text.write_text("the quick brown fox jumps over the lazy dog. " * 5000)
        data = TextData(
            partial(TextFiles, str(text)), Byte(), arguments.context, batch_size=arguments.batch_size, cache=name
        )
        data.setup()
        for number in range(arguments.rounds):
            share, seconds, size = one_training(arguments, data, Path(name, f"run{number}"))
            shares.append(share)
            print(
                f"round {number}: {100 * share:.2f}% of the training; {1e3 * seconds:.1f} ms a saving of {size:.1f} MB"
            )
    print(f"share of the training: median {100 * statistics.median(shares):.2f}%, at most {100 * max(shares):.2f}%")


if __name__ == "__main__":
    main()
