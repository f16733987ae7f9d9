"""How a run computes where `trainer.precision` or `trainer.compile` is auto: settled by a measurement that is kept in
the cache; once for all runs of a study, and for a run once and for all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import attnlab
from attnlab.config.compose import Composed
from attnlab.config.engine import instantiate
from attnlab.config.identity import flatten
from attnlab.data.cache import DataError, cache_root, kept, key_of
from attnlab.parts import Config, Prepared, find
from attnlab.runs.build import Parts, build
from attnlab.runs.record import own_sources, plain_widths
from attnlab.training.automatic import (
    BUDGET_SECONDS,
    Compilation,
    Measure,
    Precision,
    Steps,
    Timings,
    Way,
    resolve,
    resolve_compilation,
    sum_of,
    without_instructions,
)
from attnlab.training.machine import machine_of
from attnlab.training.run_directory import read_json, write_json
from attnlab.training.study_fields import AUTOMATIC
from attnlab.training.task import Task
from attnlab.training.trainer import TrainerSettings, apply_to_model

SHELF, FILE, FORMAT = "step_seconds", "timings.json", 1
FIRST = "settled.json"  # in a study's folder: what the first of its runs settled for all
MOST_MEASURED = 3  # of the cells of a study
NO_SHAPE = ("seed", "cache", "init_from", "pretrained")  # of a configuration, what no step's time depends on

# What was auto and how it was settled, by the field of the trainer: used, asked, reason, and the timings (`measured`).
Automatic = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes: in which number format, compiled or not."""

    precision: Precision
    compilation: Compilation

    def record(self) -> Automatic:
        """As run.json has it, by the field of the trainer."""
        both = {"precision": asdict(self.precision), "compile": asdict(self.compilation)}
        return {field: {key: one[key] for key in one if one[key] is not None} for field, one in both.items()}

    def automatic(self) -> Automatic:
        """As plan.json has it: of what was auto alone."""
        return {field: one for field, one in self.record().items() if one["asked"] == "auto"}


def in_lines(automatic: Automatic) -> list[str]:
    """What was auto and how it was settled, in a line each."""
    return [f"{field}: {str(one['used']).lower()} ({one['reason']})" for field, one in automatic.items()]


def settle(settings: TrainerSettings, measure: Measure, before: Automatic | None = None) -> Arithmetic:
    """How to compute under these settings: where they say auto, as it was settled `before`, else by what `measure`
    gives. Raises ValueError for a precision that the device does not serve."""
    before = before or {}
    if str(settings.precision) == "auto" and "precision" in before:
        precision = Precision(**before["precision"])
    else:
        precision = resolve(settings.precision, settings.device_type, measure, settings.compile is True)
    if settings.compile == "auto" and "compile" in before:
        return Arithmetic(precision, Compilation(**before["compile"]))
    steps = settings.steps * settings.accumulate_grad_batches
    return Arithmetic(precision, resolve_compilation(settings.compile, precision.used, steps, measure))


def automatic_fields(settings: TrainerSettings) -> list[str]:
    """The fields that are to be settled."""
    asked = {"precision": str(settings.precision), "compile": settings.compile}
    return [field for field in AUTOMATIC if asked[field] == "auto"]


# --- one run


def settle_run(composed: Composed, parts: Parts, batch: Prepared) -> Arithmetic:
    """How a run computes: as its study's command settled it, as an earlier attempt did, as the first run of a plan did,
    else by measuring its own step on `batch`."""
    settings, folder = parts.trainer, composed.run_dir.parent.parent
    measure = partial(measured, composed.resolved, parts, batch)
    if not automatic_fields(settings):
        return settle(settings, measure)
    told = _told(composed, read_json(folder / "plan.json", {}).get("automatic", {}))
    before = told or recorded(composed.run_dir)
    if not before and (folder / "plan.json").is_file():
        before = _first(folder / FIRST, lambda: settle(settings, measure).automatic())
    return settle(settings, measure, before)


def _told(composed: Composed, planned: Automatic) -> Automatic:
    """What the command settled for all of its runs, with the reason that stands in the plan."""
    told: Automatic = {}
    for field in AUTOMATIC:
        used, known = composed.get(f"study.{field}"), planned.get(field, {})
        used = str(used) if field == "precision" and used is not None else used
        if used is not None:
            alone = {"used": used, "asked": "auto", "reason": "settled for all runs of the command"}
            told[field] = known if known.get("used") == used else alone
    return told


def recorded(directory: Path) -> Automatic:
    """What an earlier attempt at a run settled, as far as its run.json says it."""
    record = read_json(directory / "run.json") or {}
    return {field: record[field] for field in AUTOMATIC if (record.get(field) or {}).get("asked") == "auto"}


def _first(path: Path, make: Callable[[], Automatic]) -> Automatic:
    """What a file of a study's folder holds; whoever comes first writes it, whole, and nobody after."""
    if (found := read_json(path)) is None:
        aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        write_json(aside, make())
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links: between two, the last one stands
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        found = read_json(path, {})
    automatic: Automatic = found
    return automatic


# --- all runs of a command


def settle_all(
    configs: Sequence[Composed],
    threads: int | None,
    begun: Iterable[Path],
    baseline: str | None = None,
    measures: bool = True,
) -> tuple[Automatic, list[str]]:
    """How all of these runs compute where they say auto, and what is to be said of it, in lines.

    As most of those in the directories `begun` already do; else by the sum of the steps of a few of them, the baseline
    (a cell's name) among them. threads: of each run that does not say so itself. Nothing is settled for runs on
    several kinds of device, nor where they do not run here, so that nothing `measures`: then the first of them does.
    Said is also that a precision which runs ask for is slow here.
    """
    trainers: dict[int, TrainerSettings] = {id(one): instantiate(one.resolved["trainer"], "trainer") for one in configs}
    asked = {(str(one.precision), one.device_type) for one in trainers.values() if measures}
    slow = [f"precision: {one} ({why})" for one, device in sorted(asked) if (why := without_instructions(one, device))]
    asking = [one for one in configs if automatic_fields(trainers[id(one)])]
    kinds = {(trainers[id(one)].device_type, *automatic_fields(trainers[id(one)])) for one in asking}
    if len(kinds) != 1:
        return {}, slow
    before, settings = _most_common(map(recorded, begun)), trainers[id(asking[0])]
    if not measures and (left := [field for field in automatic_fields(settings) if field not in before]):
        return before, [f"{field}: auto, settled by the first run that begins, for all" for field in left]
    first = next((one for one in asking if one.cell == baseline), asking[0])
    chosen = [first, *(one for one in _spread(asking, MOST_MEASURED) if one is not first)][:MOST_MEASURED]
    settings = trainers[id(first)]
    settings = settings if settings.max_epochs is None else with_data(first).trainer
    automatic = settle(settings, partial(_measured_sum, chosen, threads), before).automatic()
    return automatic, [*slow, *(f"{line}, in all runs" for line in in_lines(automatic))]


def _spread(items: Sequence[Composed], most: int) -> list[Composed]:
    """At most so many, evenly from the first to the last."""
    count = min(most, len(items))
    return [items[at * (len(items) - 1) // max(1, count - 1)] for at in range(count)]


def _most_common(found: Iterable[Automatic]) -> Automatic:
    runs, common = list(found), {}
    for field in AUTOMATIC:
        ones = [one[field] for one in runs if field in one]
        values = [one["used"] for one in ones]
        if ones:
            common[field] = max(ones, key=lambda one: values.count(one["used"]))
    return common


def _measured_sum(configs: Sequence[Composed], threads: int | None, ways: Sequence[Way]) -> Timings:
    return sum_of([_measured_alone(one, threads, ways, BUDGET_SECONDS / len(configs)) for one in configs])


def with_data(composed: Composed) -> Parts:
    """A run's parts with its data prepared and read, and with epochs as steps."""
    parts = build(composed.resolved)
    parts.data.prepare_data()
    parts.data.setup()
    parts.data.order_seed = composed.seed
    return replace(parts, trainer=parts.trainer.in_steps(parts.data.steps_in))


def _measured_alone(composed: Composed, threads: int | None, ways: Sequence[Way], budget: float) -> Timings:
    parts = with_data(composed)
    parts = replace(parts, trainer=replace(parts.trainer, threads=parts.trainer.threads or threads))
    return measured(composed.resolved, parts, parts.data.example_batch(), ways, budget)


# --- the measurement, in the cache


def measured(
    resolved: Config,
    parts: Parts,
    batch: Prepared,
    ways: Sequence[Way],
    budget: float = BUDGET_SECONDS,
) -> Timings:
    """The seconds of a training step of this run in these ways: out of the cache, else measured and kept there."""
    settings = parts.trainer
    timings: list[Timings] = []
    threads = settings.threads or torch.get_num_threads()

    def task() -> Task:
        made = parts.build_task(parts.data.dims())
        apply_to_model(replace(settings, compile=False), made.model)
        return made

    def time_once() -> Timings:
        if not timings:
            kind, clip = settings.device_type, settings.gradient_clip_val
            torch.set_float32_matmul_precision(settings.float32_matmul_precision)
            timings.append(Steps(task, batch, kind, threads, clip, settings.steps).timed(ways, budget))
        return timings[0]

    by = [FORMAT, attnlab.__version__, torch.__version__, threads, list(map(str, ways))]
    folder = cache_root(find(resolved, "data.cache")) / SHELF / key_of([*by, *shape_of(resolved, parts)])
    try:
        found = kept(folder, lambda scratch: (scratch / FILE).write_text(json.dumps(time_once())), _read)
    except DataError:  # a cache that takes nothing costs no more than measuring again
        return time_once()
    return time_once() if found["failed"] else found  # what failed may have been mended since


def _read(folder: Path) -> Timings:
    timings: Timings = json.loads((folder / FILE).read_text())
    return timings


def shape_of(resolved: Config, parts: Parts) -> Iterator[object]:
    """What decides the time of a step: the machine, and of a configuration, whose data are set up, what shapes it."""
    name, facts = machine_of(parts.trainer.device_type)
    yield {"machine": name, **facts}
    for group in ("model", "task", "data"):
        fields = flatten(resolved[group])
        yield {key: value for key, value in fields if not set(key.split(".")) & set(NO_SHAPE)}
    yield resolved["optimizer"].get("_target_")
    settings = parts.trainer
    yield [settings.checkpoint_activations, settings.gradient_clip_val is None, settings.float32_matmul_precision]
    yield plain_widths(parts.data.dims())
    yield own_sources(resolved)
