"""What a study will take, said before it runs: runs, parameters, tokens and disk at once; time by runs of the same
cells that ended on this machine, else by a trial of each shape of run, as many at once as will train at once."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from rich.console import Console

from attnlab.analysis.formatting import quantity
from attnlab.analysis.table import Column, Table
from attnlab.config.compose import Composed, ConfigSpace
from attnlab.data import DataModule
from attnlab.data.cache import key_of
from attnlab.models import count_parameters, idle_parameters
from attnlab.parts import Config
from attnlab.runs.build import build, data_key
from attnlab.runs.settled import shape_of
from attnlab.studies.monitor import roughly, say
from attnlab.studies.plan import Branch, Key, Plan, runs_of
from attnlab.studies.remaining import FILE, MEASURED, makespan
from attnlab.studies.slots import Slots, gpus_of
from attnlab.studies.workers import Job, Workers
from attnlab.training.run_directory import effective_state, read_json, write_json

if TYPE_CHECKING:
    from attnlab.runs.trial import Cost
    from attnlab.studies.jobs import Launcher

MOST_MEASURED = 6  # shapes of runs; the time of others follows from their operations
GB = 1e9
NUMBER_BYTES, LINE_BYTES = 4, 250  # of a parameter, of a line of metrics.jsonl
CHECKPOINT_BYTES, OUTPUT_BYTES = 30_000, 150_000  # of what is in a checkpoint beside weights, and of all other files
ADAM_STATES = 2  # numbers that an optimizer keeps of a parameter

Measure = Callable[[Sequence[Composed], Slots], Sequence["Cost | str"]]


@dataclass(frozen=True)
class Size:
    """What a run of a cell is, known without training it. tokens: terms of the loss, called `unit`; disk: bytes;
    operations: 6 x active parameters without embeddings x tokens (Kaplan et al. 2020, section 2.1); shape: alike for
    runs whose steps take equally long; idle: parameters that a token does not meet, in a mixture of experts;
    full_steps: how many steps of full size have as many tokens, fewer than `steps` with a ramp."""

    parameters: int
    tokens: int
    unit: str
    steps: int
    full_steps: float
    validations: int
    disk: float
    operations: float
    shape: str
    threads: int | None = None
    idle: int = 0


def sizes_of(
    composed: Iterable[Composed], data: Mapping[str, DataModule], branches: Mapping[str, Branch] | None = None
) -> dict[str, Size]:
    """The sizes of runs by their cells; `data`: prepared, by `data_key`; `branches`: those that make no step before the
    one at which they branch off."""
    first = {name: branch.step for name, branch in (branches or {}).items()}
    return {one.cell: _size(one.resolved, data[data_key(one.resolved)], first.get(one.cell, 0)) for one in composed}


def _size(resolved: Config, data: DataModule, first: int = 0) -> Size:
    parts = replace(build(resolved), data=data)
    settings = parts.trainer.in_steps(data.steps_in)
    with torch.device("meta"):
        model = parts.build_task(data.dims()).model
    (total, embedding), idle = count_parameters(model), idle_parameters(model)
    whole_steps, every = settings.steps, settings.val_check_interval
    steps = whole_steps - first
    batches = settings.accumulate_grad_batches * settings.world_size
    tokens = data.tokens_in(whole_steps, batches) - data.tokens_in(first, batches)
    validations = whole_steps // every - first // every if every else 0
    numbers = 1 + ADAM_STATES + (not str(resolved["averaging"]["_target_"]).endswith(".Averaging"))
    saved, budget = validations + bool(not every or whole_steps % every), settings.checkpoint_budget_gb * GB
    whole = NUMBER_BYTES * total * numbers + CHECKPOINT_BYTES
    best = (NUMBER_BYTES * total + CHECKPOINT_BYTES) * bool(validations)
    kept = min(saved, max(2, int((budget - best) // whole)))
    kept += len(settings.keep_checkpoints)
    disk = kept * whole + best + LINE_BYTES * whole_steps / settings.log_every_n_steps + OUTPUT_BYTES
    operations = 6.0 * max(1, total - embedding - idle) * tokens
    how = [settings.precision, settings.compile, settings.accumulate_grad_batches, settings.diagnostics_every]
    shape = key_of([*how, bool(every), *shape_of(resolved, parts)])
    full, threads = tokens / data.tokens_per_step(batches), settings.threads
    return Size(total, tokens, data.unit, steps, full, validations, disk, operations, shape, threads, idle)


@dataclass(frozen=True)
class Preflight:
    """What the runs of a plan will take that are still to run. pending: those, in order; sizes: of their cells; slots:
    how many train at once here; takes: of what a run takes how many, where that is all that is known (on a cluster)."""

    plan: Plan
    runs_dir: Path
    pending: Sequence[Key]
    sizes: Mapping[str, Size]
    slots: Slots
    takes: tuple[int, str] | None = None

    def line(self, seconds: Mapping[str, float]) -> str:
        """Runs, parameters, tokens and disk in one line; with the time where that of a run of each cell is given."""
        found = [self.sizes[cell] for cell, _ in self.pending]
        total = sum(1 for _ in self.plan.jobs())
        most = f"; at most {self.plan.most_runs} in all" if self.plan.looks.stages else ""
        words = [
            f"{total} runs ({total - len(found)} done{most})",
            f"{_range(one.parameters for one in found)} parameters",
        ]
        for unit in dict.fromkeys(one.unit for one in found):
            words.append(f"{quantity(sum(one.tokens for one in found if one.unit == unit))} {unit}s")
        words.append(f"about {in_gb(sum(one.disk for one in found))}")
        return ", ".join([*words, *([self.time(seconds)] if seconds.keys() >= self.sizes.keys() else [])])

    def time(self, seconds: Mapping[str, float]) -> str:
        """How long all of it takes, by the seconds of a run of each cell."""
        waves = [[seconds[cell] for cell, _ in wave] for wave in self.plan.waves(self.pending)]
        runs = [each for wave in waves for each in wave]
        if self.takes is not None:
            number, unit = self.takes
            return (
                f"about {quantity(sum(runs) * number / 3600)} {unit}-hours at this machine's speed (how fast the nodes "
                "are and how many runs train at once is not known here)"
            )
        workers = f"{self.slots.at_once} worker{'s' if self.slots.at_once > 1 else ''}"
        return (
            f"about {roughly(sum(makespan(wave, self.slots.at_once) for wave in waves))} on this machine with {workers}"
        )

    def write_costs(self) -> None:
        """Leaves in the study's folder what the estimate of what is left rests on."""
        workers = None if self.takes else self.slots.at_once
        cells = {cell: size.operations for cell, size in self.sizes.items()}
        write_json(self.runs_dir / self.plan.study / FILE, {"workers": workers, "cells": cells}, durable=False)

    def say_all(self, composed: Sequence[Composed], space: ConfigSpace, console: Console) -> None:
        """The line with the time, and each cell by itself; what no run of the same cell tells is tried."""
        seconds = self.recorded()
        left = {one.cell: one for one in composed if one.cell not in seconds}
        costs, failed = self.measured(left, try_out(space, self.plan)) if left else ({}, {})
        seconds |= {
            cell: cost.of(self.sizes[cell].full_steps, self.sizes[cell].validations) for cell, cost in costs.items()
        }
        say(console, self.line(seconds))
        for cell, reason in failed.items():
            say(console, f"how long {cell} takes is not known: {reason}")
        console.print(self.table(costs, seconds).to_rich(), highlight=False)

    def recorded(self) -> dict[str, float]:
        """Seconds of a run by cell, where runs of it have ended on this machine with as many threads."""
        found: dict[str, list[float]] = {}
        for cell, size in self.sizes.items():
            for path in (self.runs_dir / self.plan.study / cell).glob("seed=*"):
                if (seconds := _seconds_here(path, size.threads or self.slots.threads)) is not None:
                    found.setdefault(cell, []).append(seconds)
        return {cell: mean(seconds) for cell, seconds in found.items()}

    def measured(self, composed: Mapping[str, Composed], measure: Measure) -> tuple[dict[str, Cost], dict[str, str]]:
        """What a run of each of these cells costs, and why one could not be tried, by the cells' names.

        One cell of each shape is tried, or the smallest, the largest and some between by operations a step; others cost
        what lies between.
        """
        chosen = self._chosen(list(composed))
        answers = dict(zip(chosen, measure([composed[cell] for cell in chosen], self.slots), strict=True))
        costs = {cell: answer for cell, answer in answers.items() if not isinstance(answer, str)}
        failed = {cell: answer for cell, answer in answers.items() if isinstance(answer, str)}
        if not costs:
            return {}, failed
        ordered = sorted(costs, key=self._operations_a_step)
        by_shape = {self.sizes[cell].shape: costs[cell] for cell in ordered}
        at = [self._operations_a_step(cell) for cell in ordered]
        names = [one.name for one in fields(costs[ordered[0]])]
        kind = type(costs[ordered[0]])

        def between(cell: str) -> Cost:
            values = ([getattr(costs[one], name) for one in ordered] for name in names)
            return kind(*(float(np.interp(self._operations_a_step(cell), at, found)) for found in values))

        tried = {self.sizes[cell].shape for cell in failed}
        others = [cell for cell in composed if self.sizes[cell].shape not in tried]
        return {cell: by_shape.get(self.sizes[cell].shape) or between(cell) for cell in others}, failed

    def _operations_a_step(self, cell: str) -> float:
        return self.sizes[cell].operations / self.sizes[cell].full_steps

    def _chosen(self, cells: Sequence[str]) -> list[str]:
        shapes = {self.sizes[cell].shape: cell for cell in reversed(cells)}
        ordered = sorted(shapes.values(), key=self._operations_a_step)
        count = min(MOST_MEASURED, len(ordered))
        return [ordered[at * (len(ordered) - 1) // max(1, count - 1)] for at in range(count)]

    def table(self, costs: Mapping[str, Cost], seconds: Mapping[str, float]) -> Table:
        """The cells still to run: their runs, sizes, and the times of a step, of a run and of all of its runs."""
        runs = {cell: sum(name == cell for name, _ in self.pending) for cell in self.sizes}

        labels = {one.name: ", ".join(map(str, one.choices.values())) for one in self.plan.cells}

        def time(cell: str, times: float) -> str:
            return f"{seconds[cell] * times:,.0f} s" if cell in seconds else "?"

        def active(cell: str) -> str:
            return f"{self.sizes[cell].parameters - self.sizes[cell].idle:,}"

        columns = [
            Column[str]("cell", lambda cell: labels[cell], "l"),
            Column[str]("runs", lambda cell: str(runs[cell])),
            Column[str]("parameters", lambda cell: f"{self.sizes[cell].parameters:,}"),
            *([Column[str]("active", active)] if any(one.idle for one in self.sizes.values()) else []),
            Column[str](f"{_units(self.sizes)} a run", lambda cell: f"{self.sizes[cell].tokens:,}"),
            Column[str]("steps", lambda cell: f"{self.sizes[cell].steps:,}"),
            Column[str]("a step", lambda cell: _short(costs[cell].step) if cell in costs else ""),
            Column[str]("a run", lambda cell: time(cell, 1)),
            Column[str]("all runs", lambda cell: time(cell, runs[cell])),
        ]
        return Table.of(columns, self.sizes)


def preflight_of(
    plan: Plan,
    runs_dir: Path,
    pending: Iterable[Key],
    sizes: Mapping[str, Size],
    composed: Sequence[Composed],
    space: ConfigSpace,
    launcher: Launcher,
) -> Preflight:
    """The preflight of the runs that a sweep will launch by this launcher."""
    gpus_each = {one.cell: gpus_of(one.resolved["trainer"]) for one in composed}
    runs = [key for key in runs_of(plan, runs_dir) if key in set(pending)]
    node = space.with_hydra([*plan.overrides(plan.cells[0]), *launcher.words]).hydra.launcher
    kind, gpus = str(node._target_).rpartition(".")[2], [gpus_each[cell] for cell, _ in runs]
    n_jobs, a_device = (node.n_jobs, node.runs_per_device) if kind == "JoblibLauncher" else (1, 1)
    slots = Slots(gpus, n_jobs, a_device)
    if kind in ("JoblibLauncher", "BasicLauncher"):
        return Preflight(plan, runs_dir, runs, sizes, slots)
    slots.threads = min(slots.threads, launcher.threads or slots.threads)
    takes = (max(gpus), "GPU") if any(gpus) else (slots.threads, "core")
    return Preflight(plan, runs_dir, runs, sizes, slots, takes)


def try_out(space: ConfigSpace, plan: Plan) -> Measure:
    """A way to measure cells of a plan: by trials in workers, as many at once as will train at once."""
    cells = {cell.name: cell for cell in plan.cells}

    def measure(composed: Sequence[Composed], slots: Slots) -> list[Cost | str]:
        # The trunk that a run goes on from may not be there yet.
        threads, alone = f"trainer.threads={slots.threads}", "trainer.branch_from=null"
        as_trained = [space.compose([threads, *plan.overrides(cells[one.cell]), alone]) for one in composed]
        # The first thing that a process does takes longer. What is tried last keeps the others company to the end.
        warm, whole = [_job(one, 0.0, 0.0) for one in as_trained[:1] * slots.at_once], [*map(_job, as_trained)]
        rounds = math.ceil(len(whole) / slots.at_once) * slots.at_once
        company = [_job(one) for one in islice(cycle(as_trained), len(whole), rounds)]
        Workers([*warm, *whole, *company], str, slots).run()
        answers = [cast("Cost | str", job.result) for job in whole]
        start = median([one.start for one in answers if not isinstance(one, str)] or [0.0])
        return [one if isinstance(one, str) else replace(one, start=start) for one in answers]

    return measure


def _job(composed: Composed, *seconds: float) -> Job:
    name, gpus = f"trial of {composed.cell}", gpus_of(composed.resolved["trainer"])
    return Job(name, partial(_trial, composed, *seconds), lambda reason: partial(str, reason), gpus)


def _trial(composed: Composed, *seconds: float) -> Cost | str:
    """What a run costs, in a worker's process; or why it cannot be tried."""
    from attnlab.runs.trial import measure

    try:
        return measure(composed, *seconds)
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]


def _seconds_here(run: Path, threads: int) -> float | None:
    """Seconds that a run took in one attempt on this machine, with so many threads; None where it did not."""
    status, record = read_json(run / "status.json", {}), read_json(run / "run.json", {})
    is_alike = status.get("host") == socket.gethostname() and record.get("device", {}).get("threads") == threads
    if not is_alike or status.get("attempt") != 1 or effective_state(run) not in MEASURED:
        return None
    return float(status["ended"] - status["started"])


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _range(values: Iterable[int]) -> str:
    found = sorted(values)
    return " to ".join(dict.fromkeys(map(quantity, (found[0], found[-1]))))


def _units(sizes: Mapping[str, Size]) -> str:
    return " or ".join(dict.fromkeys(f"{one.unit}s" for one in sizes.values()))


def in_gb(size: float) -> str:
    """Bytes as 12 MB or 0.4 GB."""
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{max(1, round(size / 1e6))} MB"
