"""Branches: trainings of several lengths that share their first steps, which one of them, the trunk, makes for all.

It keeps its checkpoints at some steps; another run goes on from one of them to an end of its own, with the bits of one
that was trained alone (Hägele et al. 2024, arXiv 2405.18392, section 4, of cool-downs).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger

from attnlab.training.callbacks import DivergenceCheck
from attnlab.training.checkpoints import (
    BEST,
    SHOWN,
    Checkpoints,
    PathLike,
    UnusableCheckpoint,
    numbered,
    read_checkpoint,
    versions,
)
from attnlab.training.processes import StopRequest
from attnlab.training.run_directory import CHECKPOINTS, METRICS, cannot_write, differences, open_to_read, read_json

KEPT = "kept"  # a folder beside the others
END = "trainer.max_steps"  # the one field in which a branch may differ from its trunk

Say = Callable[[str], None]


class KeptCheckpoints(Checkpoints):
    """Checkpoints of which those after some `steps` stay, each with the best one of that time."""

    def __init__(
        self,
        folder: PathLike,
        every_seconds: float = 60.0,
        budget_gb: float = 0.0,
        configuration: Mapping[str, object] | None = None,
        stop: StopRequest | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        super().__init__(folder, every_seconds, budget_gb, configuration, stop)
        self.steps = frozenset(steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also keeps what a run that was killed had saved and not yet kept."""
        super().on_train_start(trainer, pl_module)
        self._keep(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step in self.steps or super()._is_due(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        super()._save_last(trainer)
        self._keep(trainer)

    def _keep(self, trainer: pl.Trainer) -> None:
        step, saved = trainer.global_step, self.folder / f"step={trainer.global_step}.ckpt"
        if trainer.is_global_zero and step in self.steps and saved.is_file():
            # The checkpoint comes last: where it is, all is there.
            for source, name in ((self.folder / BEST, f"best-at={step}.ckpt"), (saved, saved.name)):
                if source.is_file():
                    _second_name(source, self.folder / KEPT / name)


def _second_name(source: Path, target: Path) -> None:
    """A file under a second name, at one instant: it stays when the first one goes."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from error


@dataclass(frozen=True)
class Branch:
    """Where a run branches off: after a step of the trunk in the directory `run`."""

    run: Path
    step: int

    @property
    def checkpoint(self) -> Path:
        """What to go on from."""
        return self.run / CHECKPOINTS / KEPT / f"step={self.step}.ckpt"

    def bring(self, folder: Path, loggers: Iterable[Logger]) -> None:
        """Gives a run that has nothing of its own yet what it would have by that step: the best checkpoint in its
        folder of checkpoints, and the lines of its logs."""
        best = self.checkpoint.with_name(f"best-at={self.step}.ckpt")
        if best.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _second_name(best, folder / BEST)
        for step, values in _lines(self.run / METRICS):
            if step <= self.step:
                for logger in loggers:
                    logger.log_metrics(values, step)


def _lines(path: Path) -> Iterable[tuple[int, dict[str, float]]]:
    with open_to_read(path) as file:
        for raw in file.read().splitlines():
            line = json.loads(raw)
            values = dict(line["values"]) | dict.fromkeys(line.get("non_finite", []), float("nan"))
            axes = {axis: line[axis] for axis in ("tokens", "seconds") if line[axis] is not None}
            if line["step"] is not None:
                yield line["step"], {**values, **axes}


def find_branch(
    run: Path,
    configuration: Mapping[str, object],
    shared_steps: Callable[[int], int],
    computes: Mapping[str, object],
    plateau_share: float | None,
    say: Say,
) -> Branch | None:
    """The last step that the trunk in a directory kept and a run shares with it; None, once `say` is told why, where
    the run has to make all of its steps itself.

    configuration: the run's own (flat). shared_steps: how many first steps it shares with one of so many steps.
    computes: how it computes, by what run.json has of that. Raises UnusableCheckpoint where the trunk is another one.
    """
    record, steps = read_json(run / "run.json", {}), int(str(configuration[END]))
    there = {path: _at(record, path) for path in computes}
    if others := [f"{path}: {there[path]}, here {own}" for path, own in computes.items() if there[path] != own]:
        say(f"{run} computes otherwise ({'; '.join(others)}), so that all steps are made here")
        return None
    for step, path in sorted(numbered(run / CHECKPOINTS / KEPT).items(), reverse=True):
        if step >= steps:
            continue
        content = read_checkpoint(path)
        theirs = dict(content["configuration"])
        length = int(theirs[END])
        if changes := differences({**theirs, END: steps}, configuration):
            shown = "\n  ".join(changes[:SHOWN])
            raise UnusableCheckpoint(
                f"trainer.branch_from={run}: a branch may differ from its trunk in {END} alone (there -> here):\n  "
                f"{shown}"
            )
        if step <= shared_steps(length) and not _judged_otherwise(content, plateau_share, steps):
            if content["versions"] != versions():
                say(f"{run} was written by other versions: the last bits may differ")
            return Branch(run, step)
    say(f"{run} has kept no checkpoint that a run of {steps} steps shares with it, so that all steps are made here")
    return None


def _at(record: Any, path: str) -> object:
    for word in path.split("."):
        record = record.get(word) if isinstance(record, Mapping) else None
    return record


def _judged_otherwise(content: Mapping[str, Any], plateau_share: float | None, steps: int) -> bool:
    """Whether a shorter run might have been found on a plateau, at an earlier step than the trunk was looked at."""
    plateau = DivergenceCheck(plateau_share, steps).plateau
    state = content.get("callbacks", {}).get(DivergenceCheck.__name__, {})
    if plateau is None or not state:
        return False
    left_at = state.get("left_at")
    return left_at is None or left_at > plateau.judged_at
