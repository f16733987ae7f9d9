"""Checkpoints of a run: the last ones to go on from, of which `last.ckpt` names the newest, what a run's final figures
are of; `best.ckpt` of the best validation. And the states of the random generators, which are part of them.

A file is written whole or not at all, checked by a checksum that is part of it, and read without running code in it: it
is torch's zip archive with a comment, which says SHA-256 of all bytes before the digest. It appears under its name by
one rename, so no instant has a checkpoint without its checksum; `torch.load` and any reader of zip archives take it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from torch import nn

import attnlab
from attnlab.training.loss import any_rank
from attnlab.training.processes import StopRequest
from attnlab.training.run_directory import CHECKPOINTS, cannot_write, differences, open_to_read, write_bytes
from attnlab.training.task import Task, as_task

LAST, BEST = "last.ckpt", "best.ckpt"
ALWAYS_KEPT, GB = 2, 1e9
# Of what a checkpoint holds under which names. Raise it when that changes: a file of another format is refused.
FORMAT = 2
MARK = b"attnlab sha256 "
DIGEST = 64  # characters of SHA-256 in hexadecimal
SHOWN = 20  # fields of a configuration that differ
PathLike = str | os.PathLike[str]
Saved = dict[str, Any]  # a checkpoint's content


class UnusableCheckpoint(ValueError):
    """A checkpoint that cannot be gone on from, with the reason and what to do."""


class DamagedCheckpoint(UnusableCheckpoint):
    """One that was cut short or altered after it was written; the one before may be whole."""


def versions() -> dict[str, str]:
    """What a checkpoint is written by."""
    return {"attnlab": attnlab.__version__, "torch": str(torch.__version__)}


def write_checkpoint(content: Mapping[str, object], path: PathLike) -> None:
    """Replaces `path` atomically by `content` (tensors and primitives). Raises CannotWrite; the old file then stays."""
    buffer = io.BytesIO()
    torch.save({**content, "format": FORMAT, "versions": versions()}, buffer)
    # The checksum is the archive's comment: its last two bytes are the length of one.
    assert bytes(buffer.getbuffer()[-2:]) == b"\0\0", "torch's archive has a comment of its own"
    buffer.seek(-2, os.SEEK_END)
    buffer.write((len(MARK) + DIGEST).to_bytes(2, "little") + MARK)
    buffer.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    write_bytes(Path(path), buffer.getbuffer())


def read_checkpoint(path: PathLike) -> Saved:
    """What `write_checkpoint` was given, with tensors on the CPU, and its `format` and `versions`.

    Raises FileNotFoundError; DamagedCheckpoint; UnusableCheckpoint for a file of another format, or one with code in
    it.
    """
    path = Path(path)
    try:
        mark, digest = _digests(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    if mark and mark != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its checksum")
    content = _load(path)
    found, by = content.get("format", 1), content.get("versions", {}).get("attnlab")
    if found != FORMAT:
        raise UnusableCheckpoint(
            f"{path} is of checkpoint format {found}, this attnlab ({attnlab.__version__}) reads format {FORMAT}; use "
            f"the attnlab that wrote it{f' ({by})' if by else ''}, or train again under another name (study.name=NAME)"
        )
    if not mark:
        raise DamagedCheckpoint(f"{path} is damaged: its end, the checksum, was altered")
    return content


def _digests(path: Path) -> tuple[str, str]:
    """The checksum that a file says (empty where it says none) and that of its content."""
    with open_to_read(path, within=os.sep) as file:  # wherever a link leads: to a store of checkpoints, say
        left = file.seek(0, os.SEEK_END) - DIGEST
        file.seek(max(0, left - len(MARK)))
        end = file.read()
        if left < len(MARK) or not end.startswith(MARK):
            return "", ""
        file.seek(0)
        digest = hashlib.sha256()
        while left > 0:
            chunk = file.read(min(1 << 20, left))
            digest.update(chunk)
            left -= len(chunk)
    return end[len(MARK) :].decode("latin-1"), digest.hexdigest()


def _load(path: Path) -> Saved:
    damaged = DamagedCheckpoint(f"{path} is damaged: it was cut short, or is no checkpoint at all")
    try:
        with warnings.catch_warnings(action="ignore"):  # of the protocols of pickles, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL:? (\S+)", str(error))
        if named is None and not _is_pickle_with_code(path):
            raise damaged from error
        raise UnusableCheckpoint(
            f"{path} is refused: it holds more than tensors and numbers{f' ({named[1]})' if named else ''}, and to "
            "load that could run code. Nothing of it was run; take a checkpoint that attnlab wrote"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged from error
    return content if isinstance(content, dict) else {}


def _is_pickle_with_code(path: Path) -> bool:
    """Whether a file is a bare pickle that names functions or classes; it is read, not run."""
    try:
        with path.open("rb") as file:
            names = {operation.name for operation, _, _ in pickletools.genops(file)}
    except Exception:  # whatever stops the reading: it is no pickle
        return False
    return bool(names & {"GLOBAL", "STACK_GLOBAL", "INST"})


class CheckpointFiles(CheckpointIO):
    """How Lightning writes and reads checkpoints, on the CPU and without running code whatever it asks for."""

    def save_checkpoint(self, checkpoint: Saved, path: PathLike, storage_options: object = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: PathLike, map_location: object = None, weights_only: bool | None = None) -> Saved:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: PathLike) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves at every validation, at least every `every_seconds`, at the end, and where `stop` asks for it; `best` when
    the task's best improves.

    The oldest go when all together take more than `budget_gb`; the last two and the best stay. A run that goes on has
    the same bits as one that was never stopped: the states of the random generators and the train order are in it.
    configuration: flat; a run of another one is refused (see `find_resume`). Raises CannotWrite.
    """

    def __init__(
        self,
        folder: PathLike,
        every_seconds: float = 60.0,
        budget_gb: float = 0.0,
        configuration: Mapping[str, object] | None = None,
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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Saves when it is time or asked for, between optimizer steps; where a validation follows, that will save."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0:
            return
        if any_rank(trainer, self.stop.is_made or self._is_due(trainer)):
            self._save_last(trainer)
            self._stop_if_asked(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return time.monotonic() - self._saved_at >= self.every_seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, and `best` where this validation was the best so far."""
        if not trainer.validating or trainer.state.fn != "fit":
            return
        task = as_task(pl_module)
        if task.best is not None and task.best["step"] == trainer.global_step:
            self._save_best(trainer, task)
        self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Adds the configuration, the states of the random generators, one a rank, and whether a callback ended it."""
        checkpoint["random"] = as_task(pl_module).of_all_ranks(random_state())
        if trainer.should_stop:
            checkpoint["stopped"] = True
        checkpoint["configuration"] = self.configuration

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        """Keeps the random states for the first step; `last` may be behind, where a kill came between the two."""
        trainer.should_stop = checkpoint.get("stopped", False)  # else it would train on to the next validation
        state = checkpoint["random"][trainer.global_rank]
        as_task(pl_module).before_next_step = partial(set_random_state, state)
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
        checkpoint: dict[str, object] = {"state_dict": weights, "configuration": self.configuration}
        task.on_save_checkpoint(checkpoint)
        checkpoint.pop("training_weights", None)
        if trainer.is_global_zero:
            write_checkpoint(checkpoint, self.folder / BEST)

    def _rotate(self, step: int) -> None:
        """Removes what was saved after this step, by an attempt that was damaged, and the oldest above the budget."""
        found = numbered(self.folder)
        for number in [number for number in found if number > step]:
            found.pop(number).unlink()
        best = self.folder / BEST
        total = sum(path.stat().st_size for path in found.values()) + (best.stat().st_size if best.is_file() else 0)
        for number in sorted(found)[:-ALWAYS_KEPT]:
            if total <= self.budget_gb * GB:
                break
            total -= found[number].stat().st_size
            found[number].unlink()


def numbered(folder: Path) -> dict[int, Path]:
    """The checkpoints by the step that they are of."""
    found = {path.stem.removeprefix("step="): path for path in folder.glob("step=*.ckpt")}
    return {int(step): path for step, path in found.items() if step.isdigit()}


def _point(link: Path, path: Path) -> None:
    """Makes `link` stand for a checkpoint beside it, at one instant: by its name, or as a copy without links."""
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.symlink(path.name, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, link)
    except OSError as error:
        raise cannot_write(link, error) from error


def find_resume(
    run: PathLike, configuration: Mapping[str, object] | None = None, say: Callable[[str], None] = lambda line: None
) -> Path | None:
    """The newest whole checkpoint of the run in this directory, or None; `say` is told what was damaged, and of other
    versions.

    Raises UnusableCheckpoint for one of another (flat) configuration or format, or with code in it.
    """
    folder = Path(run) / CHECKPOINTS
    candidates = [path for _, path in sorted(numbered(folder).items(), reverse=True)]
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
        if configuration is not None and (changes := differences(content.get("configuration", {}), configuration)):
            shown = "\n  ".join(changes[:SHOWN])
            raise UnusableCheckpoint(
                f"{path} is of a run of another configuration (there -> now):\n  {shown}\n"
                "Give this run another name (study.name=NAME), or move the checkpoints away."
            )
        others = [(name, old, versions().get(name)) for name, old in content["versions"].items()]
        if other := [f"{name} {old}, now {now}" for name, old, now in others if now != old]:
            say(f"the checkpoint was written by {'; '.join(other)}: from here on the last bits may differ")
        return path
    if damaged:
        say(f"{folder}: no checkpoint is whole; the run begins anew")
    return None


def save_weights(task: nn.Module, path: PathLike) -> None:
    """Writes the weights of a task that has trained nothing, as `load_weights` reads them. Raises CannotWrite."""
    nothing = {"step": 0, "tokens": 0, "seconds": 0.0}
    write_checkpoint({"state_dict": task.state_dict(), "configuration": {}, "attnlab": nothing}, path)


def load_weights(task: nn.Module, path: PathLike) -> Saved:
    """Loads the weights to evaluate from a checkpoint into a task; returns what the task counted (step, tokens, ...).

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


def _other_weights(own: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """What tells the weights of a file from those that a model has."""

    def said(value: object) -> object:
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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
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
