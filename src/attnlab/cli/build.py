"""From a checked configuration to parts: the data module, the model, the task."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from attnlab.cli.compose import Mistake
from attnlab.cli.init_from import start
from attnlab.cli.overrides import as_it_stands
from attnlab.cli.records import read_record, widths_of
from attnlab.data import DataModule
from attnlab.layers.parts import complete
from attnlab.ranges import must_be
from attnlab.training import Averaging, TokenTask, Tracking, TrainerSettings, ranks, resolve


@dataclass(frozen=True)
class Parts:
    """What a run is made of; the model and the task still lack what only the data can tell."""

    data: DataModule
    model: partial[torch.nn.Module]
    task: partial[TokenTask]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Any]
    averaging: Averaging
    trainer: TrainerSettings
    tracking: Tracking

    def build_task(self, widths: dict[str, Any]) -> TokenTask:
        """The task around a new model, on torch's current default device; `widths` are the data's."""
        given = {"model": complete(self.model, **widths), "optimizer": self.optimizer, "schedule": self.schedule}
        task = complete(self.task, **widths, **given, log_every=self.trainer.log_every)
        task.averaging = self.averaging
        return task


def build(config: DictConfig) -> Parts:
    """
    Instantiates every part that a configuration names; reads no data.

    Raises: Mistake with the constructor's own message.
    """
    # Lists become Python lists, so that no class has to know the configuration's own types.
    return Parts(
        *(
            _instantiate(config, group)
            for group in ("data", "model", "task", "optimizer", "schedule", "averaging", "trainer", "logger")
        )
    )


def _instantiate(config: DictConfig, group: str) -> Any:
    node: Any = OmegaConf.to_container(config[group], resolve=True)
    if group == "model":
        node.pop("init_from", None)  # of the run: the model itself knows nothing of where it starts
    try:
        # Hydra resolves twice, and a path may have ${ in it.
        return instantiate(as_it_stands(as_it_stands(node)), _convert_="all")
    except InstantiationException as error:
        # Hydra wraps what a constructor raised; its own words are the ones that help.
        cause = error.__cause__ or error
        said = str(cause)
        raise Mistake(said if said.startswith((f"{group}.", f"{group}=")) else f"{group}: {said}") from error


def rehearse(config: DictConfig) -> None:
    """
    Builds model, optimizer and schedule without memory for weights, so that impossible sizes are found before any data are read.

    A model that starts from another one has the vocabulary of that one here: whether it is its own is known when the data are. Raises:
    Mistake.
    """
    parts = build(config)
    widths = parts.data.rehearsal_widths()
    run = config.model.get("init_from")
    if run is not None:
        theirs = widths_of(read_record(Path(run).expanduser()))
        widths |= {name: rows for name, rows in theirs.items() if name in widths and name.endswith("vocabulary_size")}
    try:
        with torch.device("meta"):
            task = parts.build_task(widths)
        if run is not None:
            node: Any = OmegaConf.to_container(config.model, resolve=True)
            start(task.model, node, widths)
        optimizer = task.make_optimizer(task.model)
        schedule = complete(
            task.make_schedule, total_steps=parts.trainer.max_steps, d_model=int(config.model.get("d_model", 1)), lr=1.0
        )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(must_be("optimizer", "a function that gives a torch.optim.Optimizer", type(optimizer)))
        if not callable(schedule) or not 0 <= (first := schedule(0)) < math.inf:
            given = first if callable(schedule) else type(schedule)
            raise ValueError(
                must_be("schedule", "a function of the step that gives a multiple from 0 of the rate", given)
            )
    except ValueError as error:
        raise Mistake(str(error)) from error


def refuse_for_this_machine(config: DictConfig) -> None:
    """Refuses a run whose devices or precision this machine does not have; one that trains elsewhere is not asked. Raises: Mistake."""
    settings = _instantiate(config, "trainer")
    there = {
        "cpu": os.cpu_count() or 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    known = ["auto", *(name for name, devices in there.items() if devices)]
    if not there.get(settings.device, 1):
        raise Mistake(must_be("trainer.device", f"one that this machine has, {', '.join(known)}", settings.device))
    kind = settings.device_type
    if kind in ("cuda", "mps") and settings.devices > there[kind]:
        wanted = f"at most {there[kind]}, as many as this machine has of {kind}"
        raise Mistake(must_be("trainer.devices", wanted, settings.devices))
    try:
        ranks.are_missing(settings)
        resolve(settings.precision, kind, int(config.model.get("d_model", 0)))
    except ValueError as error:
        raise Mistake(str(error)) from error


def prepare_data(configs: Sequence[DictConfig]) -> list[str]:
    """Prepares each data set once; returns a line about each."""
    seen: dict[str, DataModule] = {}
    for config in configs:
        key = OmegaConf.to_yaml(OmegaConf.create({"data": config.data}), resolve=False)
        if key not in seen:
            seen[key] = build(config).data
            seen[key].prepare_data()
            seen[key].setup()
    return [module.describe() for module in seen.values()]
