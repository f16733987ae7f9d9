"""What a run leaves to look at: samples of what its model gives, a picture of its heads, what W&B and TensorBoard show.

None of it is worth a run: what cannot be shown is said, and the run goes on.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from attnlab.config import UsageError
from attnlab.data import DataModule
from attnlab.inspection.attention_maps import attention_maps, picture
from attnlab.parts import Config
from attnlab.runs.record import Record, checkpoint_of, read_record
from attnlab.training.checkpoints import read_checkpoint
from attnlab.training.loggers import View, finishing, first_line, wandb_views
from attnlab.training.run_directory import ATTENTION, OUTPUTS, SAMPLES, CannotWrite, write_bytes, write_json
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import (
    Picture,
    RunName,
    Table,
    Thumbnail,
    Tracking,
    evaluation_part,
    resolve_wandb_mode,
    restricted_figures,
)

T = TypeVar("T")
Say = Callable[[str], None]
MOST_POSITIONS = 64  # of the example whose attention is shown
AFTERWARDS = {"offline": "; `attnlab sync` sends them", "disabled": ", so nothing is kept"}


@dataclass(frozen=True)
class Examples:
    """Samples of the test part, and a picture of the heads; None for what a task or model does not have."""

    samples: Table | None = None
    attention: Picture | None = None

    def leave(self, directory: Path, say: Say) -> None:
        """Writes outputs/samples.json and outputs/attention.png of a run; what cannot be written is told."""
        samples = self.samples or Table((), [])
        rows = [[_plain(value) for value in row] for row in samples.rows]
        caption = self.attention.caption if self.attention else None
        told = {"split": "test", "columns": list(samples.columns), "rows": rows, "attention": caption}
        try:
            if self.attention:
                write_bytes(directory / OUTPUTS / ATTENTION, self.attention.as_png(), durable=False)
            if self.samples or self.attention:
                write_json(directory / OUTPUTS / SAMPLES, told, durable=False)
        except CannotWrite as error:
            say(str(error))

    def show(self, views: Iterable[View], step: int, final: Mapping[str, float], with_maps: bool) -> None:
        """Hands figures by length, samples and, where asked for, the picture of the heads to the views."""
        items: dict[str, Table | Picture] = dict(restricted_figures(final))
        if self.samples:
            items["test/samples"] = self.samples
        if with_maps and self.attention:
            items["attention"] = self.attention
        for view in views:
            view.show(items, step)


def _plain(value: object) -> object:
    return {"png": base64.b64encode(value.png).decode()} if isinstance(value, Thumbnail) else value


def examples_of(task: Task, data: DataModule, say: Say) -> Examples:
    """Those of a model that was evaluated; what cannot be shown is told. A model that is split needs all ranks."""

    def tried(make: Callable[[], T]) -> T | None:
        try:
            with task.evaluating():
                return make()
        except Exception as error:  # an example is not worth a run
            say(f"nothing to show: {type(error).__name__}: {error}")
            return None

    def attention() -> Picture | None:
        # Of the validation part: where the training order stands depends on whether the run was stopped in between.
        batch = task.on_device(first_example(next(iter(data.val_dataloader()))))
        maps = attention_maps(task.model, lambda: task.loss_sums(batch))
        return picture(maps) if maps else None

    return Examples(tried(lambda: task.samples(data)), tried(attention))


def first_example(batch: Batch) -> dict[str, Tensor]:
    """The first example of a batch, cut after MOST_POSITIONS positions; one that answers point into stays as it is."""
    example = {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
    for name, value in example.items() if "answers" not in batch else ():
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
            example[name] = value[:, :MOST_POSITIONS]
    return example


def settle_mode(configs: Iterable[Config]) -> list[str]:
    """W&B's mode for all runs of a command, decided once and said, as a setting for each; none where none asks for it.

    configs: resolved ones. Raises: UsageError for a mode that W&B does not have.
    """
    asking = [one for one in configs if one["logger"].get("wandb") and one["logger"].get("mode") == "auto"]
    if not asking:
        return []
    try:
        mode, why = resolve_wandb_mode()
    except ValueError as error:
        raise UsageError(str(error)) from error
    _say_mode(mode, why, " and ".join(dict.fromkeys(f"{one['runs_dir']}/wandb" for one in asking)))
    return [f"++logger.mode={mode}"]


def _say_mode(mode: str, why: str, places: str) -> None:
    _say(f"W&B: {mode}, as {why}; its files stand in {places}{AFTERWARDS.get(mode, '')}")


def show_evaluation(
    directory: Path, tracking: Tracking, figures: Mapping[str, float], split: str, checkpoint: str, wanted: bool = False
) -> None:
    """Hands what an evaluation found to W&B, where the training was logged there or it is `wanted`; says so.

    The same evaluation is always the same W&B run, of the job type `evaluate`. Never fails.
    """
    if not (tracking.wandb or wanted):
        return
    try:
        record = read_record(directory)
        runs_dir = _runs_dir(directory.resolve(), record)
        mode, why = tracking.mode, "the training was"
        if mode == "auto" or "WANDB_MODE" in os.environ:
            mode, why = resolve_wandb_mode()
        _say_mode(mode, why, f"{runs_dir}/wandb")
        name = RunName.of(record, "evaluate", evaluation_part(split, checkpoint))
        step = int(read_checkpoint(checkpoint_of(directory, checkpoint))["attnlab"]["step"])
        about = {**record, "split": split, "checkpoint": checkpoint, "step": step}
        with finishing():
            for view in wandb_views(replace(tracking, mode=mode), name, runs_dir, about, _say):
                view.log_metrics(dict(figures), step)
    except Exception as error:  # a view is not worth an evaluation
        _say(f"wandb: {type(error).__name__}: {first_line(error)}; the figures are not logged")


def _runs_dir(directory: Path, record: Record) -> Path:
    """Above study and cell, wherever that is now; of a run that stands elsewhere, where the others were."""
    if directory.name.startswith("seed=") and directory.parents[1].name == record["study"]:
        found = directory.parents[2]
        return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    return Path(record["config"].get("runs_dir", "runs"))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
