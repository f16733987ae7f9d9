"""Checkpoints of a run: the last ones to go on from, of which `last.ckpt` names the newest, what a run's final figures are of; `best.ckpt` of
the best validation."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from attnlab.training.checkpoint_files import (
    DamagedCheckpoint,
    read_checkpoint,
    refuse_other_configuration,
    say_other_versions,
    write_checkpoint,
)
from attnlab.training.divergence import any_rank
from attnlab.training.random_state import random_state, set_random_state
from attnlab.training.run_directory import CHECKPOINTS, cannot_write
from attnlab.training.stop_request import StopRequest
from attnlab.training.task_base import TokenTask

LAST, BEST = "last.ckpt", "best.ckpt"
ALWAYS_KEPT = 2
GB = 1e9


class Checkpoints(Checkpoint):
    """
    Saves at every validation, at least every `every_seconds`, at the end, and where `stop` asks for it; `best` when the task's best improves.

    The oldest go when all together take more than `budget_gb`; the last two and the best stay. A run that goes on has the same bits as
    one that was never stopped: the states of the random generators and the train order are in it. configuration: flat; a run of
    another one is refused (see `find_resume`). Raises CannotWrite.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every_seconds: float = 60.0,
        budget_gb: float = 0.0,
        configuration: Mapping[str, Any] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.folder, self.every_seconds, self.budget_gb = Path(folder), every_seconds, budget_gb
        self.configuration, self.stop = dict(configuration or {}), stop or StopRequest()
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._restored: list[dict[str, Any]] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes who has the signals that ask to stop, before Lightning has SIGTERM."""
        self.stop.remember()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over those signals, also from Lightning, which would stop between the micro-batches of a step."""
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores the random generators just before the first step after a restart: nothing draws between."""
        if self._restored is not None:
            set_random_state(self._restored[trainer.global_rank])
            self._restored = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time or asked for, between optimizer steps; where a validation follows, that will save."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0:
            return
        if any_rank(trainer, self.stop.is_made or time.monotonic() - self._saved_at >= self.every_seconds):
            self._save_last(trainer)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, and `best` where this validation was the best so far."""
        if not trainer.validating or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, TokenTask)
        if pl_module.best is not None and pl_module.best["step"] == trainer.global_step:
            self._save_best(trainer, pl_module)
        self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end."""
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the configuration, and the states of the random generators, one a rank."""
        states: list[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random"], checkpoint["configuration"] = states, self.configuration

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the states of the random generators for the first step; `last` may be behind, where a kill came between the two."""
        self._restored = checkpoint["random"]
        path = Path(str(trainer.ckpt_path))
        if trainer.is_global_zero and path.parent == self.folder and path.name != LAST:
            _point(self.folder / LAST, path)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if any_rank(trainer, self.stop.is_made):
            self.stop.obey(trainer.global_step)

    def _save_last(self, trainer: pl.Trainer) -> None:
        path = self.folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _point(self.folder / LAST, path)
            self._rotate(trainer.global_step)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save_best(self, trainer: pl.Trainer, task: TokenTask) -> None:
        weights = trainer.strategy.lightning_module_state_dict()  # of all ranks, where they share them out
        checkpoint: dict[str, Any] = {"state_dict": weights, "configuration": self.configuration}
        task.on_save_checkpoint(checkpoint)
        checkpoint.pop("training_weights", None)
        if trainer.is_global_zero:
            write_checkpoint(checkpoint, self.folder / BEST)

    def _rotate(self, step: int) -> None:
        """Removes what was saved after this step, by an attempt that ended in damage, and the oldest above the budget."""
        numbered = _numbered(self.folder)
        for number in [number for number in numbered if number > step]:
            numbered.pop(number).unlink()
        others = self.folder / BEST
        sizes = {number: path.stat().st_size for number, path in sorted(numbered.items())}
        total = sum(sizes.values()) + (others.stat().st_size if others.is_file() else 0)
        for number in list(sizes)[:-ALWAYS_KEPT]:
            if total <= self.budget_gb * GB:
                break
            numbered[number].unlink()
            total -= sizes[number]


def _numbered(folder: Path) -> dict[int, Path]:
    """The checkpoints by the step that they are of."""
    found = {path.stem.removeprefix("step="): path for path in folder.glob("step=*.ckpt")}
    return {int(step): path for step, path in found.items() if step.isdigit()}


def _point(link: Path, path: Path) -> None:
    """Makes `link` stand for a checkpoint beside it, at one instant: by its name, or as a copy where a file system has no links."""
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            os.symlink(path.name, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, link)
    except OSError as error:
        raise cannot_write(link, error) from error


def find_resume(
    run: str | os.PathLike[str],
    configuration: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """
    The newest whole checkpoint of the run in this directory, or None where there is none. `say` is told what was damaged, and of other versions.

    Raises UnusableCheckpoint for one of another (flat) configuration or format, or with code in it.
    """
    folder = Path(run) / CHECKPOINTS
    numbered = _numbered(folder)
    candidates = [numbered[step] for step in sorted(numbered, reverse=True)]
    if not (folder / LAST).is_symlink():  # a copy, or a directory that was copied
        candidates.insert(0, folder / LAST)
    damaged = False
    for path in candidates:
        try:
            content = read_checkpoint(path)
        except FileNotFoundError:
            continue
        except DamagedCheckpoint as error:
            say(f"{error}; going back to the one before")
            damaged = True
            continue
        if configuration is not None:
            refuse_other_configuration(path, content, configuration)
        say_other_versions(content, say)
        return path
    if damaged:
        say(f"{folder}: no checkpoint is whole; the run begins anew")
    return None


def save_weights(task: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a task that has trained nothing, as `load_weights` reads them. Raises CannotWrite."""
    counts = {"step": 0, "tokens": 0, "seconds": 0.0}
    write_checkpoint({"state_dict": task.state_dict(), "configuration": {}, "attnlab": counts}, path)


def load_weights(task: torch.nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads the weights to evaluate from a checkpoint into a task; returns what the task counted (step, tokens, seconds, ...).

    Raises ValueError for a file that is no checkpoint of a run, or one of another model.
    """
    try:
        checkpoint = read_checkpoint(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such checkpoint") from None
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or "attnlab" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a run: it has no weights by name")
    if others := list(_other_weights(task.state_dict(), state)):
        more = f", and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(f"{path} is no checkpoint of this model: {', '.join(others[:3])}{more}")
    task.load_state_dict(state)
    return dict(checkpoint["attnlab"])


def _other_weights(own: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """What tells the weights of a file from those that a model has."""
    for name in sorted({*own, *given}):
        if name not in given or name not in own:
            yield f"{name} is {'not there' if name in own else 'none of the model'}"
        elif getattr(given[name], "shape", None) != own[name].shape:
            there = (
                list(getattr(given[name], "shape", [])) if hasattr(given[name], "shape") else type(given[name]).__name__
            )
            yield f"{name} is {there} there and {list(own[name].shape)} here"
