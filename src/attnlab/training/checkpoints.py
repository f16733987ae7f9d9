"""Checkpoints of a run: the last ones to go on from, of which `last.ckpt` names the newest, what a run's final figures
are of; `best.ckpt` of the best validation. And the states of the random generators, which are part of them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from attnlab.training.checkpoint_files import (
    DamagedCheckpoint,
    read_checkpoint,
    refuse_other_configuration,
    say_other_versions,
    write_checkpoint,
)
from attnlab.training.early_stopping import any_rank
from attnlab.training.processes import StopRequest
from attnlab.training.run_directory import CHECKPOINTS, cannot_write
from attnlab.training.task import Task

LAST, BEST = "last.ckpt", "best.ckpt"
ALWAYS_KEPT = 2
GB = 1e9


class Checkpoints(Checkpoint):
    """Saves at every validation, at least every `every_seconds`, at the end, and where `stop` asks for it; `best` when
    the task's best improves.

    The oldest go when all together take more than `budget_gb`; the last two and the best stay. A run that goes on has
    the same bits as one that was never stopped: the states of the random generators and the train order are in it.
    configuration: flat; a run of another one is refused (see `find_resume`). Raises CannotWrite.
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

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes who has the signals that ask to stop, before Lightning has SIGTERM."""
        self.stop.remember()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes those signals over, also from Lightning, which would stop between the micro-batches of a step."""
        self.stop.listen()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves when it is time or asked for, between optimizer steps; where a validation follows, that will save."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0:
            return
        if any_rank(trainer, self.stop.is_made or time.monotonic() - self._saved_at >= self.every_seconds):
            self._save_last(trainer)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves, and `best` where this validation was the best so far."""
        if not trainer.validating or trainer.state.fn != "fit":
            return
        if pl_module.best is not None and pl_module.best["step"] == trainer.global_step:
            self._save_best(trainer, pl_module)
        self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end."""
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, and the states of the random generators, one a rank."""
        states: list[Any] = [random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random"], checkpoint["configuration"] = states, self.configuration

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keeps the random states for the first step; `last` may be behind, where a kill came between the two."""
        pl_module.before_next_step = partial(set_random_state, checkpoint["random"][trainer.global_rank])
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

    def _save_best(self, trainer: pl.Trainer, task: Task) -> None:
        weights = trainer.strategy.lightning_module_state_dict()  # of all ranks, where they share them out
        checkpoint: dict[str, Any] = {"state_dict": weights, "configuration": self.configuration}
        task.on_save_checkpoint(checkpoint)
        checkpoint.pop("training_weights", None)
        if trainer.is_global_zero:
            write_checkpoint(checkpoint, self.folder / BEST)

    def _rotate(self, step: int) -> None:
        """Removes what was saved after this step, by an attempt that was damaged, and the oldest above the budget."""
        numbered = _numbered(self.folder)
        for number in [number for number in numbered if number > step]:
            numbered.pop(number).unlink()
        best = self.folder / BEST
        sizes = {number: path.stat().st_size for number, path in sorted(numbered.items())}
        total = sum(sizes.values()) + (best.stat().st_size if best.is_file() else 0)
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
    """Makes `link` stand for a checkpoint beside it, at one instant: by its name, or as a copy without links."""
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
    """The newest whole checkpoint of the run in this directory, or None; `say` is told what was damaged, and of other
    versions.

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
    """Loads the weights to evaluate from a checkpoint into a task; returns what the task counted (step, tokens,
    seconds, ...).

    Raises ValueError for a file that is no checkpoint of a run, or one of another model.
    """
    try:
        checkpoint = read_checkpoint(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such checkpoint") from None
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or "attnlab" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a run: it has no weights by name")
    if others := _other_weights(task.state_dict(), state):
        more = f", and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(f"{path} is no checkpoint of this model: {', '.join(others[:3])}{more}")
    task.load_state_dict(state)
    return dict(checkpoint["attnlab"])


def _other_weights(own: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What tells the weights of a file from those that a model has."""

    def said(value: Any) -> Any:
        return list(value.shape) if hasattr(value, "shape") else type(value).__name__

    found = []
    for name in sorted({*own, *given}):
        if name not in given or name not in own:
            found.append(f"{name} is {'not there' if name in own else 'none of the model'}")
        elif said(given[name]) != said(own[name]):
            found.append(f"{name} is {said(given[name])} there and {said(own[name])} here")
    return found


def draw_apart(seed: int, rank: int) -> None:
    """Lets ranks draw numbers of their own from here on (dropout above all), which no other seed's ranks draw; the
    first one goes on as it is."""
    if rank:
        [own] = np.random.SeedSequence([seed % 2**32, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(own >> 1))
        np.random.seed(int(own % 2**32))
        random.seed(int(own))


def random_state() -> dict[str, Any]:
    """The states of the random generators of torch, its GPUs, NumPy and Python, as plain tensors and primitives."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Goes on from what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
