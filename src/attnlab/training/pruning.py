"""Trials of a search that are given up: at each validation an Optuna pruner compares a run with the trials of its search that have finished."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from attnlab.training.measures import better_of
from attnlab.training.run_directory import open_to_read


class Pruned(Exception):
    """A trial was given up at a validation."""

    def __init__(self, step: int, metric: str, value: float) -> None:
        super().__init__(step, metric, value)
        self.step, self.metric, self.value = step, metric, value

    def __str__(self) -> str:
        return f"pruned at step {self.step}: {self.metric} was {self.value:.4f}, worse than other trials at this step"


def validations(metrics: Path, metric: str) -> dict[int, float]:
    """The finite values of a metric in a run's metrics.jsonl, by step; of a step that was trained twice the later one."""
    found: dict[int, float] = {}
    try:
        with open_to_read(metrics) as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return found
    for line in lines:
        if line.endswith(b"\n"):  # the last one of a killed run may be cut
            read = json.loads(line)
            value = read["values"].get(metric)
            if value is not None and math.isfinite(value):
                found[int(read["step"])] = float(value)
    return found


class Pruning(pl.Callback):
    """
    Raises Pruned where `pruner` (one of Optuna's) gives a trial up.

    metrics: the run's own metrics.jsonl. peers: gives those of the trials that have finished. Every rank stops, by the first one's word.
    """

    def __init__(self, pruner: Any, metric: str, metrics: Path, peers: Callable[[], Iterable[Path]]) -> None:
        self.pruner, self.metric, self.metrics, self.peers = pruner, metric, metrics, peers

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks the pruner, but not at the end of the training."""
        if trainer.state.fn != "fit" or trainer.global_step >= trainer.max_steps:
            return
        value = self._given_up() if trainer.is_global_zero else None
        value = trainer.strategy.broadcast(value)
        if value is not None:
            raise Pruned(trainer.global_step, self.metric, value)

    def _given_up(self) -> float | None:
        """The last value of a run that is given up."""
        import optuna
        from optuna.trial import TrialState, create_trial

        own = validations(self.metrics, self.metric)
        if not own:
            return None
        warnings.filterwarnings(
            "ignore", category=optuna.exceptions.ExperimentalWarning
        )  # of trials that are made up from files
        direction = "minimize" if better_of(self.metric) == "lower" else "maximize"
        study = optuna.create_study(direction=direction)
        for path in self.peers():
            values = validations(path, self.metric)
            if values:
                study.add_trial(create_trial(value=values[max(values)], intermediate_values=values))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=own)
        return own[max(own)] if self.pruner.prune(study, trial) else None
