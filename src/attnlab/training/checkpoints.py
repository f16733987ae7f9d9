"""Checkpoints of a run: `last.ckpt` to go on from, and what a run's final figures are of; `best.ckpt` of the best validation. Plain tensors
and primitives, replaced atomically."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from attnlab.training.run_directory import cannot_write
from attnlab.training.task_base import TokenTask

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Saves `last` at every validation, at least every `every_seconds`, at the end and on SIGTERM; `best` when the task's best improves.

    A run that goes on from `last` has the same bits as one that was never stopped: the states of the random generators and the train
    order are in it. Raises CannotWrite.
    """

    def __init__(self, folder: str | os.PathLike[str], every_seconds: float = 60.0) -> None:
        self.folder, self.every_seconds = Path(folder), every_seconds
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._restored: list[dict[str, Any]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores the random generators just before the first step after a restart: nothing draws between."""
        if self._restored is not None:
            _set_random_state(self._restored[trainer.global_rank])
            self._restored = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, between optimizer steps; where a validation follows, that will save."""
        if time.monotonic() - self._saved_at < self.every_seconds and trainer.world_size == 1:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0:
            return
        if trainer.strategy.reduce_boolean_decision(time.monotonic() - self._saved_at >= self.every_seconds, all=False):
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves `last`, and `best` where this validation was the best so far."""
        if not trainer.validating or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, TokenTask)
        if pl_module.best is not None and pl_module.best["step"] == trainer.global_step:
            self._save_best(trainer, pl_module)
        self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end."""
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves when asked to stop (Lightning raises this between steps)."""
        if (
            isinstance(exception, SIGTERMException)
            and self._saved_step != trainer.global_step
            and trainer.world_size == 1
        ):
            self._save_last(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the states of the random generators, one a rank."""
        states: list[Any] = [_random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, _random_state())
        checkpoint["random"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the states of the random generators for the first step."""
        self._restored = checkpoint["random"]

    def _save_last(self, trainer: pl.Trainer) -> None:
        path = self.folder / LAST
        temporary = path.with_name(f".{LAST}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                _put_in_place(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise cannot_write(path, error) from error
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save_best(self, trainer: pl.Trainer, task: TokenTask) -> None:
        if not trainer.is_global_zero:
            return
        path = self.folder / BEST
        temporary = path.with_name(f".{BEST}.tmp")
        checkpoint: dict[str, Any] = {"state_dict": task.state_dict(), "attnlab": {}}
        task.on_save_checkpoint(checkpoint)
        checkpoint.pop("training_weights", None)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, temporary)
            _put_in_place(temporary, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise (cannot_write(path, error) if isinstance(error, OSError) else error) from error


def _put_in_place(temporary: Path, path: Path) -> None:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def find_resume(run: str | os.PathLike[str]) -> Path | None:
    """The checkpoint from which the run in this directory goes on, or None where there is none that loads."""
    path = Path(run) / "checkpoints" / LAST
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        return None
    return path


def load_weights(task: torch.nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads the weights to evaluate from a checkpoint into a task; returns what the task counted (step, tokens, seconds, ...).

    Raises ValueError for a file that is no checkpoint of a run, or one of another model.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        task.load_state_dict(checkpoint["state_dict"])
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such checkpoint") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint of this model: {str(error).strip().splitlines()[0]}") from error
    return dict(checkpoint["attnlab"])
