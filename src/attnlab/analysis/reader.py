"""Reads run directories into a study: the plan, every run's state, final values and learning curve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import polars as pl

from attnlab.analysis.censoring import Bounds
from attnlab.analysis.costs import costs_to, targets_in
from attnlab.analysis.curves import Curves, Key
from attnlab.analysis.file_cache import JsonFiles, Stamp, flatten, is_unchanged, listed, mapping, stamp_of
from attnlab.training.across import Across, across_in
from attnlab.training.looks import Looks
from attnlab.training.metrics import Metric as KnownMetric
from attnlab.training.metrics import better_of, known_metric, limits_of, natural
from attnlab.training.published import Published, published_of
from attnlab.training.run_directory import ATTEMPTS, ENDED, METRICS, RUN, STATUS, effective_state, other_format
from attnlab.training.study_fields import check_plan, is_finite, same

DIGITS, JOINT = 19, " \u00b7 "  # of a seed that no longer fits 64 bits; between the choices of a label
Choice = str | int | float | bool | None  # of a factor


@dataclass(frozen=True)
class Metric:
    """The primary metric of a study: `better` is "lower" or "higher"; differences within `margin` do not count."""

    name: str
    better: str = "lower"
    margin: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One cell of the plan; `skip` is the reason why it makes no sense, or None."""

    name: str
    choices: Mapping[str, Choice]
    overrides: tuple[str, ...] = ()
    skip: str | None = None


@dataclass(frozen=True)
class Run:
    """One run directory: `record` is run.json, `status` is status.json, `state` what is true of it now; `costs` what it
    is known to have cost to reach a target, by the cost's name (see `Study.with_costs`)."""

    cell: str
    seed: int
    directory: Path
    state: str
    record: Mapping[str, object] = field(default_factory=dict)
    status: Mapping[str, object] = field(default_factory=dict)
    costs: Mapping[str, Bounds] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, object]:
        """What run.json has under a name, empty where that is no table."""
        return mapping(self.record.get(name))

    @property
    def _ended_with(self) -> dict[str, object]:
        return mapping(self.status.get("final")) if self.state == "finished" else {}

    @cached_property
    def final(self) -> dict[str, float]:
        """Final values that are finite numbers, of a finished run only, and the costs to targets that are known."""
        found = {name: float(value) for name, value in self._ended_with.items() if is_finite(value)}
        return found | {name: cost.low for name, cost in self.costs.items() if cost.is_exact}

    @property
    def non_finite(self) -> list[str]:
        """Metrics of a finished run that came out as NaN or infinite (stored as null or as a non-finite number)."""
        return [n for n, v in self._ended_with.items() if not is_finite(v) and n not in self.unavailable]

    @property
    def unavailable(self) -> dict[str, str]:
        """Metrics that this run cannot have, each with the reason."""
        return {name: str(reason) for name, reason in mapping(self.status.get("unavailable")).items()}

    @property
    def error(self) -> str | None:
        return str(self.status["error"]) if self.status.get("error") else None

    @property
    def problem(self) -> str:
        """Why it has no result, as far as something says so."""
        return self.error or (f"not a number: {', '.join(self.non_finite)}" if self.non_finite else "")

    @property
    def config(self) -> dict[str, object]:
        return flatten(self.section("config"))


@dataclass
class Study:
    """A study as its run directories tell it. `runs` has every planned (cell, seed), also those that are missing, and
    of other seeds those that are over. `unreadable` are files and folders that cannot be opened, each with the reason;
    `apart` says which runs cannot be compared with these (see `comparison.parts_of_study`); baseline_named: somebody
    chose the baseline; across: which factor's choices are tasks."""

    path: Path
    name: str
    question: str
    factors: dict[str, list[Choice]]
    baseline: dict[str, Choice]
    cells: list[Cell]
    seeds: list[int]
    metric: Metric | None
    claims: list[dict[str, object]]
    shared: list[str]
    code: dict[str, object]
    runs: dict[tuple[str, int], Run]
    tuned: dict[str, object] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    baseline_named: bool = True
    looks: Looks = field(default_factory=Looks)
    across: Across | None = None
    published: Published | None = None
    read_curves: Callable[[Iterable[Key]], pl.DataFrame] = field(
        default=lambda keys: Curves().read(keys), repr=False, compare=False
    )

    @cached_property
    def curves(self) -> pl.DataFrame:
        """Learning curves, read when first asked for; see `Curves.read`."""
        there = [run for run in self.runs.values() if run.state != "missing"]
        return self.read_curves((run.cell, run.seed, str(run.directory)) for run in there)

    @cached_property
    def unit(self) -> str:
        """What a term of the loss is, as the runs' data say it: token, word, text, image; "term" where they differ."""
        units = {str(run.section("data").get("unit") or "token") for run in self.runs.values() if run.record}
        return "token" if not units else units.pop() if len(units) == 1 else "term"

    @cached_property
    def _of_metrics(self) -> dict[str, object]:
        return _metrics_of(self.runs.values())

    def known_metric(self, name: str) -> KnownMetric | None:
        """What the runs have recorded of a metric, given by its full name, else what attnlab knows of it, or None."""
        return known_metric(name, self._of_metrics)

    def limits(self, name: str) -> tuple[float, float]:
        """Between which values a metric lies, infinite where nobody has said."""
        return limits_of(name, self._of_metrics)

    def better(self, name: str) -> str:
        """Which values of a metric are better, "lower" or "higher"; "lower" of one that nobody has said."""
        return better_of(name, self._of_metrics)

    @cached_property
    def baseline_cell(self) -> Cell | None:
        found = self.matching(self.baseline) if self.baseline else []
        return min(found, key=lambda cell: len(cell.choices)) if found else None

    def matching(self, choices: Mapping[str, Choice]) -> list[Cell]:
        return [c for c in self.cells if all(k in c.choices and same(c.choices[k], v) for k, v in choices.items())]

    def runs_of(self, cell: str) -> list[Run]:
        return self._by_cell.get(cell, [])

    @cached_property
    def _by_cell(self) -> dict[str, list[Run]]:
        found: dict[str, list[Run]] = {}
        for run in sorted(self.runs.values(), key=attrgetter("seed")):
            found.setdefault(run.cell, []).append(run)
        return found

    def values(self, cell: str, metric: str) -> dict[int, float]:
        """{seed: value} of the finished runs of `cell` that have `metric`."""
        return {run.seed: run.final[metric] for run in self.runs_of(cell) if metric in run.final}

    def with_costs(self, names: Iterable[str] = ()) -> Study:
        """The study whose runs have these costs to targets, and those that its metric and its claims are about."""
        targets = targets_in([*names, *([self.metric.name] if self.metric else [])], self.claims)
        if not targets:
            return self
        ends = {key: (run.state, run.record.get("flops_per_token")) for key, run in self.runs.items()}
        found = {
            name: costs_to(target, self.curves, self.better(target.metric) == "lower", ends)
            for name, target in targets.items()
        }
        new = {key: {name: costs[key] for name, costs in found.items() if key in costs} for key in ends}
        return replace(self, runs={k: replace(run, costs={**run.costs, **new[k]}) for k, run in self.runs.items()})

    def costs(self, cell: str, metric: str) -> dict[int, Bounds]:
        """{seed: what is known} of the runs of `cell` of which something is known of the cost `metric`."""
        return {run.seed: run.costs[metric] for run in self.runs_of(cell) if metric in run.costs}

    def label(self, cell: Cell) -> str:
        """The shortest readable name of a cell: the choices in which the cells differ."""
        varying = self.varying
        if not varying or not any(name in cell.choices for name in varying):
            return cell.name
        if len(varying) == 1:
            return str(cell.choices[varying[0]])
        return JOINT.join(self.choice_label(name, cell.choices[name]) for name in varying if name in cell.choices)

    def choice_label(self, name: str, choice: Choice) -> str:
        """A choice among others: a word stands for itself, a number or a switch needs its factor's name."""
        return str(choice) if isinstance(choice, str) and choice.isidentifier() else f"{short(name)} {choice}"

    @cached_property
    def varying(self) -> list[str]:
        """The choices that are not the same in all cells, in the plan's order."""
        names = dict.fromkeys([*self.factors, *(name for cell in self.cells for name in cell.choices)])
        return [name for name in names if len({str(cell.choices.get(name)) for cell in self.cells}) > 1]

    @cached_property
    def metrics(self) -> list[str]:
        """Every final metric of any run, finished or not able to have it; the primary one first."""
        names = {
            name for run in self.runs.values() for name in (*run.final, *run.costs, *run.non_finite, *run.unavailable)
        }
        primary = self.metric.name if self.metric else ""
        return sorted(names, key=lambda name: (name != primary, *natural(name)))


def load_study(path: str | Path) -> Study:
    """Reads runs/<study> once: see `StudyReader.read`."""
    return StudyReader(path).read()


class StudyReader:
    """Reads runs/<study> again and again, and of it only what has changed. Several threads may use one reader. Nothing
    is written or locked: a run directory that is being written, moved or deleted is read as far as it can be."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = JsonFiles()
        self._found: dict[str, _Found] = {}
        self._curves = Curves()
        self._study: Study | None = None
        self._seen: object = None
        self._lock = threading.RLock()

    def read(self) -> Study:
        """The study as it is now; the same object as before while nothing has changed. Runs that cannot be read count
        as missing. Raises ValueError where there is neither a plan nor a run, or they are not of this attnlab."""
        with self._lock:
            self._files.next_round()
            self._found = {directory: self._look(directory) for directory in self._directories()}
            plan = self._files.read_table(f"{self.path}/plan.json")
            runs = [found.run for found in self._found.values() if found.run]
            curves = [found.curve for found in self._found.values() if found.run]
            unreadable = [f"{path}: {reason}" for path, reason in sorted(self._files.refused.items())]
            seen = plan, runs, curves, unreadable
            if self._study is None or seen != self._seen or not all(map(is_unchanged, curves, curves)):
                self._study = _study(self.path, plan, runs, unreadable, self._read_curves)
            self._seen = seen
            return self._study

    def _read_curves(self, keys: Iterable[Key]) -> pl.DataFrame:
        with self._lock:
            return self._curves.read(keys)

    def _directories(self) -> list[str]:
        """The run directories, by cell and seed as their names are written."""
        cells = sorted((cell.name, cell.path) for cell in self._files.entries(str(self.path)))
        seeds = [sorted((seed.name, seed.path) for seed in self._files.entries(cell)) for _, cell in cells]
        return [path for of_cell in seeds for name, path in of_cell if name.startswith("seed=")]

    def _look(self, directory: str) -> _Found:
        """What there is in a run directory now; parts that have not changed are the same objects as before."""
        before = self._found.get(directory)
        stamps = stamp_of(f"{directory}/{STATUS}"), stamp_of(f"{directory}/{ATTEMPTS}")
        if before and before.state in ("missing", *ENDED) and all(map(is_unchanged, before.stamps, stamps)):
            state = before.state
        else:  # that of a run that is not over changes without its files, when its process dies
            state = _state(directory)
        # Read after the state: of what is over by then, the status has all that there is to say.
        record, status = (self._files.read_table(f"{directory}/{name}") for name in (RUN, STATUS))
        run = before.run if before else None
        if run is None or run.record is not record or run.status is not status or run.state != state:
            run = _run(Path(directory), state, record, status)
        return _Found(stamps, state, run, stamp_of(f"{directory}/{METRICS}"))


class _Found(NamedTuple):
    """A run directory as last seen: stamps of status and attempts, state, the run if it is one, stamp of its curve."""

    stamps: tuple[Stamp | None, Stamp | None]
    state: str
    run: Run | None
    curve: Stamp | None


def _state(directory: str) -> str:
    try:
        return effective_state(directory)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # its files are not what attnlab writes
        return "interrupted"


def _run(directory: Path, state: str, record: Mapping[str, object], status: Mapping[str, object]) -> Run | None:
    seed = str(record.get("seed", directory.name.partition("=")[2]))
    if not (record or status) or not (seed.isascii() and seed.isdecimal() and len(seed) < DIGITS):
        return None
    return Run(str(record.get("cell_name") or directory.parent.name), int(seed), directory, state, record, status)


def _study(
    path: Path,
    plan: Mapping[str, object],
    found: Sequence[Run],
    unreadable: list[str],
    read_curves: Callable[[Iterable[Key]], pl.DataFrame],
) -> Study:
    if reason := next(filter(None, (other_format(run.record, run.directory) for run in found)), None):
        raise ValueError(reason)
    is_planned = bool(plan) or any(run.record.get("plan") for run in found)
    plan = plan or _plan_of(path.name, found)
    if not plan:
        near = sorted(p.parent.name for p in path.parent.glob("*/plan.json")) if path.parent.is_dir() else []
        raise ValueError(f"no study at {path}: no plan.json and no run; studies there: {', '.join(near) or 'none'}")
    try:
        check_plan(plan)
        across, published = across_in(plan), published_of(plan.get("published"))
    except ValueError as error:
        raise ValueError(f"{path / 'plan.json'}: {error}") from error
    cells = [_cell(mapping(entry)) for entry in listed(plan.get("cells"))]
    seeds = [seed for seed in listed(plan.get("seeds")) if isinstance(seed, int)]
    known = {cell.name for cell in cells}
    asked = (run for run in found if run.cell in known and (run.seed in seeds or run.state in ENDED))
    runs = {(run.cell, run.seed): run for run in asked}
    for cell in cells if is_planned else []:  # without a plan nobody has asked for what is not there
        for seed in seeds if cell.skip is None else []:
            runs.setdefault((cell.name, seed), Run(cell.name, seed, path / cell.name / f"seed={seed}", "missing"))
    return Study(
        path=path,
        name=str(plan.get("study") or path.name),
        question=str(plan.get("question") or ""),
        factors={name: [*map(_choice, listed(choices))] for name, choices in mapping(plan.get("factors")).items()},
        baseline=choices_of(plan.get("baseline")),
        baseline_named=is_planned,
        across=across,
        cells=cells,
        seeds=seeds,
        metric=metric_of(plan.get("metric"), list(runs.values())),
        claims=[mapping(claim) for claim in listed(plan.get("claims")) if isinstance(claim, dict)],
        published=published,
        shared=[*map(str, listed(plan.get("shared")))],
        code=mapping(plan.get("code")),
        runs=runs,
        tuned=mapping(plan.get("tuned")),
        unreadable=unreadable,
        looks=Looks.of(mapping(plan.get("looks"))),
        read_curves=read_curves,
    ).with_costs()


def _plan_of(name: str, runs: Sequence[Run]) -> dict[str, object]:
    """A plan made from the runs alone: the one that they carry, or the cells and seeds that are there."""
    for run in runs:
        if run.record.get("plan"):
            return run.section("plan")
    cells = {run.cell: {"name": run.cell, "choices": run.section("cell")} for run in runs}
    first, seeds = next((run.section("cell") for run in runs if run.record.get("cell")), {}), {run.seed for run in runs}
    return {"study": name, "cells": [*cells.values()], "seeds": sorted(seeds), "baseline": first} if runs else {}


def _cell(entry: Mapping[str, object]) -> Cell:
    overrides, skip = tuple(map(str, listed(entry.get("overrides")))), entry.get("skip")
    return Cell(str(entry.get("name")), choices_of(entry.get("choices")), overrides, str(skip) if skip else None)


def choices_of(value: object) -> dict[str, Choice]:
    """What a plan has as choices; what is no scalar stands as text."""
    return {name: _choice(choice) for name, choice in mapping(value).items()}


def _choice(value: object) -> Choice:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _metrics_of(runs: Iterable[Run]) -> dict[str, object]:
    return {name: entry for run in runs for name, entry in run.section("metrics").items()}


def metric_of(entry: object, runs: Collection[Run]) -> Metric | None:
    """The metric that a plan names, or the one that the runs watched."""
    said, given = _metrics_of(runs), mapping(entry)
    if entry is not None:
        name, margin = str(given["name"]), given.get("margin")
        better = str(given.get("better") or better_of(name, said))
        return Metric(name, better, float(margin) if is_finite(margin) else 0.0)
    names = sorted({str(mapping(run.status.get("best")).get("metric") or "") for run in runs} - {""})
    return Metric(names[0], better_of(names[0], said)) if names else None


def short(name: str) -> str:
    return name.rpartition(".")[2]
