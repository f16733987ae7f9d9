"""What Lightning and logging cost over a bare training loop: same model, same batches, alternating rounds in one process.

python experiments/overhead/measure.py [--steps 10] [--rounds 9] [--d-model 256] [--threads 2] [--diagnostics-every 50]

With --diagnostics-every it measures what looking inside costs instead: runs of that many steps with one look, against the same runs without.

Two clocks: wall time, and this process's processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.nn import functional as F

from attnlab.data import Byte, TextData, TextFiles
from attnlab.layers import GELU, Rotary
from attnlab.models import GPT
from attnlab.tasks import CausalLanguageModelling
from attnlab.training import (
    Checkpoints,
    Cosine,
    Diagnostics,
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


def make_model(arguments: argparse.Namespace) -> GPT:
    """The same model each time: 4 layers on a vocabulary of bytes."""
    torch.manual_seed(0)
    return GPT(256, arguments.context, arguments.d_model, 4, 4, position=Rotary, feed_forward=GELU)


def clocks() -> torch.Tensor:
    """Wall time and this process's processor time, in seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def bare_seconds(arguments: argparse.Namespace, data: TextData) -> torch.Tensor:
    """Seconds a step (wall, processor) of the plainest loop: forward, backward, clip, step, and the loss read every tenth step."""
    model = make_model(arguments)
    optimizer, schedule = adamw(model), Cosine(arguments.steps, 2)
    batches = data.train_dataloader()
    for step in range(arguments.steps + 1):
        if step == 1:
            started = clocks()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step)
        batch = next(batches)
        loss = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            loss.item()
    return (clocks() - started) / arguments.steps


class Clock(pl.Callback):
    """Times the steps of a training from the end of its first one."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Notes when the first and the last step ended."""
        self.ended = clocks()
        if trainer.global_step == 1:
            self.started = self.ended


def attnlab_seconds(
    arguments: argparse.Namespace, data: TextData, folder: Path, looks: Sequence[Diagnostics] = ()
) -> tuple[torch.Tensor, float]:
    """(seconds a step by both clocks, wall seconds from nothing to the first step's end) of a run with everything that is on by default."""
    begun = time.perf_counter()
    settings = TrainerSettings(
        max_steps=arguments.steps + 1, precision="32", val_check_interval=0, threads=arguments.threads
    )
    directory = RunDirectory(folder)
    directory.claim()
    task = CausalLanguageModelling(make_model(arguments))
    task.optimization = Optimization(adamw, partial(Cosine, warmup_steps=2))
    clock = Clock()
    check = DivergenceCheck(settings.plateau_share, settings.max_steps)
    callbacks = [StatusWriter(directory), check, *looks, Checkpoints(directory.checkpoints), clock]
    precision = resolve("32", "cpu")
    trainer = build_trainer(settings, precision, [JsonLines(directory.metrics)], callbacks, folder)
    trainer.fit(task, datamodule=data)
    directory.release()
    return (clock.ended - clock.started) / arguments.steps, float(clock.started[0]) - begun


def main() -> None:
    """Prints the ratio of each round, their median, and how long a second run takes to start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--diagnostics-every", type=int)
    arguments = parser.parse_args()
    every = arguments.diagnostics_every
    arguments.steps = every or arguments.steps
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        text = Path(name, "text.txt")
        text.write_text("the quick brown fox jumps over the lazy dog. " * 5000)
        source = partial(TextFiles, str(text))
        data = TextData(source, Byte(), arguments.context, batch_size=arguments.batch_size, cache=name)
        data.setup()
        bare_seconds(arguments, data)
        ratios, starts = [], []

        def without(folder: str) -> torch.Tensor:
            return attnlab_seconds(arguments, data, Path(name, folder))[0] if every else bare_seconds(arguments, data)

        for i in range(arguments.rounds):
            before = without(f"before{i}")
            looks = [Diagnostics(every)] if every else []
            ours, start = attnlab_seconds(arguments, data, Path(name, f"run{i}"), looks)
            after = without(f"after{i}")
            bare = (before + after) / 2
            ratios.append(ours / bare)
            starts.append(start)
            wall, processor = ratios[-1].tolist()
            print(
                f"round {i}: {'without looks' if every else 'bare'} {bare[0] * 1e3:.1f} ms, attnlab {ours[0] * 1e3:.1f} ms a step; ratio {wall:.4f}, processor {processor:.4f}"
            )
    for clock, values in zip(("wall", "processor"), torch.stack(ratios).T.tolist(), strict=True):
        print(
            f"ratio, {clock} time: median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}"
        )
    print(f"a second run in one process: its first step ends after {statistics.median(starts[1:]):.2f} s")


if __name__ == "__main__":
    main()
