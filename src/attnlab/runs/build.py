"""From a checked configuration, as plain data, to parts: the data module, the model, the task."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attnlab.config import UsageError
from attnlab.config.engine import instantiate
from attnlab.data import DataModule
from attnlab.parts import build_part
from attnlab.ranges import must_be
from attnlab.runs.record import read_record, widths_of
from attnlab.runs.warm_start import start
from attnlab.training import Averaging, Optimization, Schedule, Task, Tracking, TrainerSettings, ranks, resolve

GROUPS = ("data", "model", "task", "optimizer", "schedule", "averaging", "trainer", "logger")


@dataclass(frozen=True)
class Parts:
    """What a run is made of; the model and the task still lack what only the data can tell."""

    data: DataModule
    model: partial[torch.nn.Module]
    task: partial[Task]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Schedule]
    averaging: Averaging
    trainer: TrainerSettings
    tracking: Tracking

    def build_task(self, widths: dict[str, Any]) -> Task:
        """The task around a new model, on torch's current default device; `widths` are the data's."""
        task = build_part(self.task, **widths, model=build_part(self.model, **widths))
        task.optimization = Optimization(self.optimizer, self.schedule, self.averaging)
        return task


def build(resolved: Mapping[str, Any]) -> Parts:
    """Every part that a resolved configuration names; reads no data. Raises: UsageError in the constructor's words."""
    # Where it starts is of the run: the model itself knows nothing of it.
    model = {name: value for name, value in resolved["model"].items() if name != "init_from"}
    return Parts(*(instantiate(model if group == "model" else resolved[group], group) for group in GROUPS))


def dry_build(resolved: Mapping[str, Any]) -> None:
    """
    Builds model, optimizer and schedule without memory for weights: impossible sizes are found before data are read.

    A model that starts from another one has the vocabulary of that one here: whether it is its own is known when the
    data are. Raises: UsageError.
    """
    parts, node = build(resolved), resolved["model"]
    widths, run = parts.data.placeholder_dims(), node.get("init_from")
    if run is not None:
        theirs = widths_of(read_record(Path(run).expanduser()))
        widths |= {name: rows for name, rows in theirs.items() if name in widths and name.endswith("vocabulary_size")}
    try:
        with torch.device("meta"):
            task = parts.build_task(widths)
        if run is not None:
            start(task.model, node, widths)
        optimizer = parts.optimizer(task.model)
        schedule = build_part(
            parts.schedule, total_steps=parts.trainer.max_steps, d_model=int(node.get("d_model", 1)), lr=1.0
        )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(must_be("optimizer", "a function that gives a torch.optim.Optimizer", type(optimizer)))
        first = schedule(0) if callable(schedule) else type(schedule)
        if not callable(schedule) or not 0 <= first < math.inf:
            wanted = "a function of the step that gives a multiple from 0 of the rate"
            raise ValueError(must_be("schedule", wanted, first))
    except ValueError as error:
        raise UsageError(str(error)) from error


def refuse_for_this_machine(resolved: Mapping[str, Any]) -> None:
    """Refuses devices or a precision that this machine does not have. Raises: UsageError."""
    settings: TrainerSettings = instantiate(resolved["trainer"], "trainer")
    there = {
        "cpu": os.cpu_count() or 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    known = ["auto", *(name for name, devices in there.items() if devices)]
    if not there.get(settings.device, 1):
        raise UsageError(must_be("trainer.device", f"one that this machine has, {', '.join(known)}", settings.device))
    kind = settings.device_type
    if kind in ("cuda", "mps") and settings.devices > there[kind]:
        wanted = f"at most {there[kind]}, as many as this machine has of {kind}"
        raise UsageError(must_be("trainer.devices", wanted, settings.devices))
    try:
        ranks.are_missing(settings)
        resolve(settings.precision, kind, int(resolved["model"].get("d_model", 0)))
    except ValueError as error:
        raise UsageError(str(error)) from error


def prepare_data(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Prepares the data of resolved configurations, the same ones once; returns a line about each."""
    seen: dict[str, DataModule] = {}
    for resolved in configs:
        key = json.dumps(resolved["data"], sort_keys=True, default=str)
        if key not in seen:
            seen[key] = instantiate(resolved["data"], "data")
            seen[key].prepare_data()
            seen[key].setup()
    return [module.describe() for module in seen.values()]
