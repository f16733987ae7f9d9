"""From a checked configuration, as plain data, to parts: the data module, the model, the task; and another run's
weights as the start of a model (`model.init_from=RUN`), where they fit."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from attnlab.config import UsageError
from attnlab.config.check import is_part
from attnlab.config.engine import instantiate
from attnlab.config.identity import INIT_FROM
from attnlab.data import DataModule, Ramp, Ramps, Tokenizer
from attnlab.parts import Config, build_part
from attnlab.ranges import must_be
from attnlab.runs.record import plain_widths, read_record, read_tensors, settings_of
from attnlab.training import ranks
from attnlab.training.automatic import resolve
from attnlab.training.optimizers import Averaging, Optimization
from attnlab.training.schedules import Schedule, shared_steps
from attnlab.training.task import Task
from attnlab.training.tracking import Tracking
from attnlab.training.trainer import TrainerSettings

GROUPS = ("data", "model", "task", "optimizer", "schedule", "averaging", "trainer", "logger")
RAMPS = ("batch_ramp", "length_ramp")
UNKNOWN_STEPS = 1 << 40  # of epochs, before data are read: any warm-up is shorter
STATE = "_extra_state"  # what a model keeps beside its tensors: where they are, it is a number


@dataclass(frozen=True)
class Parts:
    """What a run is made of; the model and the task still lack what only the data can tell."""

    data: DataModule
    model: partial[nn.Module]
    task: partial[Task]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Schedule]
    averaging: Averaging
    trainer: TrainerSettings
    tracking: Tracking
    callbacks: Sequence[Callback] = ()

    def shared_steps(self, other: int, d_model: int = 1) -> int:
        """The first steps that a training of so many steps has in common with one of `other` steps: their rates are
        the same."""
        own = self.trainer.steps
        one, two = (build_part(self.schedule, total_steps=n, d_model=d_model, lr=1.0) for n in (own, other))
        return shared_steps(one, two, min(own, other))

    def build_task(self, widths: dict[str, Any]) -> Task:
        """The task around a new model, on torch's current default device; `widths` are the data's."""
        task = build_part(self.task, **widths, model=build_part(self.model, **widths))
        task.optimization = Optimization(self.optimizer, self.schedule, self.averaging)
        return task


def build(resolved: Config) -> Parts:
    """Every part that a resolved configuration names; reads no data. Raises: UsageError in the constructor's words."""
    # Where it starts is of the run: the model itself knows nothing of it.
    model = {name: value for name, value in resolved["model"].items() if name != "init_from"}
    # Lightning's loggers open files and servers when they are made, so the run itself makes them.
    others = {name: value for name, value in resolved["logger"].items() if is_part(value)}
    own = {name: value for name, value in resolved["logger"].items() if name not in others}
    nodes = {**resolved, "model": model, "logger": own}
    chosen = resolved.get("callbacks") or {}
    callbacks = [instantiate(node, f"callbacks.{name}") for name, node in chosen.items()]
    made: list[Any] = [build_data(resolved), *(instantiate(nodes[group], group) for group in GROUPS[1:]), callbacks]
    parts = Parts(*made)
    for name, node in others.items():
        parts.tracking.others[name] = instantiate({**node, "_partial_": True}, f"logger.{name}")
    return parts


def build_data(resolved: Config) -> DataModule:
    """The data module of a resolved configuration, with the ramps of its training; reads nothing."""
    data: DataModule = instantiate(resolved["data"], "data")
    ramps: list[Ramp] = [instantiate(resolved[group], group) for group in RAMPS if group in resolved]
    data.ramps = Ramps(*ramps)
    return data


def dry_build(resolved: Config) -> None:
    """Builds model, optimizer and schedule without memory for weights: impossible sizes are found before data are read.

    A model that starts from another one has the vocabulary of that one here: whether it is its own is known when the
    data are. Raises: UsageError.
    """
    parts, node = build(resolved), resolved["model"]
    widths, run = parts.data.placeholder_dims(), node.get("init_from")
    if run is not None:
        theirs = read_record(Path(run).expanduser()).get("widths", {})
        widths |= {name: rows for name, rows in theirs.items() if name in widths and name.endswith("vocabulary_size")}
    try:
        with torch.device("meta"):
            task = parts.build_task(widths)
        if run is not None:
            start(task.model, node, widths)
        optimizer = parts.optimizer(task.model)
        steps = parts.trainer.max_steps or UNKNOWN_STEPS
        schedule = build_part(parts.schedule, total_steps=steps, d_model=int(node.get("d_model", 1)), lr=1.0)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(must_be("optimizer", "a function that gives a torch.optim.Optimizer", type(optimizer)))
        first = schedule(0) if callable(schedule) else type(schedule)
        if not callable(schedule) or not 0 <= first < math.inf:
            wanted = "a function of the step that gives a multiple from 0 of the rate"
            raise ValueError(must_be("schedule", wanted, first))
    except ValueError as error:
        raise UsageError(str(error)) from error


def refuse_for_this_machine(resolved: Config) -> None:
    """Refuses devices or a precision that this machine does not have. Raises: UsageError."""
    settings: TrainerSettings = instantiate(resolved["trainer"], "trainer")
    there = {"cpu": os.cpu_count() or 1, "cuda": torch.cuda.device_count()}
    there["mps"] = int(torch.backends.mps.is_available())
    known = ["auto", *(name for name, devices in there.items() if devices)]
    if not there.get(settings.device, 1):
        raise UsageError(must_be("trainer.device", f"one that this machine has, {', '.join(known)}", settings.device))
    kind = settings.device_type
    if kind in ("cuda", "mps") and settings.devices > there[kind]:
        wanted = f"at most {there[kind]}, as many as this machine has of {kind}"
        raise UsageError(must_be("trainer.devices", wanted, settings.devices))
    try:
        ranks.are_missing(settings)
        resolve(settings.precision, kind)
    except ValueError as error:
        raise UsageError(str(error)) from error


def prepare_data(configs: Iterable[Config]) -> dict[str, DataModule]:
    """Prepares the data of resolved configurations, the same ones once; returns the modules by `data_key`."""
    seen: dict[str, DataModule] = {}
    for resolved in configs:
        key = data_key(resolved)
        if key not in seen:
            seen[key] = build_data(resolved)
            seen[key].prepare_data()
            seen[key].setup()
    return seen


def data_key(resolved: Config) -> str:
    """What tells the data of one resolved configuration from those of another."""
    return json.dumps([resolved.get(group) for group in ("data", *RAMPS)], sort_keys=True, default=str)


def start(model: nn.Module, node: Mapping[str, Any], widths: Mapping[str, object]) -> list[str]:
    """Gives a new model the weights of the run in `init_from`; says in lines what was kept, converted, fresh and left.

    model: with or without memory for its weights. node: its own in the resolved configuration. widths: the data's.
    Raises: UsageError where the two do not fit.
    """
    from attnlab.interop import CannotConvert, build, canonical, different, start_from
    from attnlab.models import CLIP, ViT
    from attnlab.tasks.pretrained import weights_file

    run = str(node["init_from"])
    directory = Path(run).expanduser()
    record = read_record(directory)
    try:
        path = weights_file(run, INIT_FROM)
    except ValueError as error:
        raise UsageError(str(error)) from error
    there = settings_of(record, directory)
    try:
        here, device = canonical(dict(node), **plain_widths(widths)), next(model.parameters()).device
        # Without memory for weights, their shapes alone tell whether they fit.
        read = read_tensors(path).items()
        given = {name: tensor if name.endswith(STATE) else tensor.to(device) for name, tensor in read}
        told: list[str] = []
        same = all(here.get(name) == there.get(name) for name in ("model", "patch_size"))
        if isinstance(model, ViT | CLIP) and same:
            with torch.device(device):
                other = build(there)
            assert isinstance(other, ViT | CLIP)
            other.load_state_dict(given)
            given = other.at_size(here["image_size"]).state_dict()  # Dosovitskiy et al. 2021, section 3.2
            before, now = (m.image.grid if isinstance(m, CLIP) else m.grid for m in (other, model))
            told = [] if before == now else [f"positions {before} -> {now}"]
        begun = start_from(model, here, given, there)
    except KeyError as error:
        raise UsageError(f"{INIT_FROM}={run}: {error.args[0]}, so nothing is known of what it computes") from error
    except CannotConvert as error:
        raise UsageError(f"{INIT_FROM}={run}: {error}") from error
    if changes := different(here, there):
        told = [f"this model and that one differ in {'; '.join(changes)}", *told]
    return [f"started from {path}", *told, *begun.lines()]


def refuse_other_tokenizer(run: str, own: Mapping[str, Tokenizer], field: str) -> None:
    """Raises: UsageError where the run that `field` names has another tokenizer: its numbers mean other sub-words."""
    for name, tokenizer in own.items():
        path = Path(run).expanduser() / name
        if path.is_file() and path.read_text(encoding="utf-8") != tokenizer.as_json():
            raise UsageError(
                f"{field}={run}: {path.name} there is not this run's, so each token would get the weights of another; "
                "leave data.tokenizer_from and tokenizer out to take that run's tokenizer"
            )
