"""Reads run directories into a study: the plan, every run's state, its final values and its learning curve."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from attnlab.training.measures import better_of
from attnlab.training.run_directory import METRICS, RUN, STATUS, effective_state, read_json

AXES = ("step", "tokens", "seconds")


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
    choices: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    skip: str | None = None


@dataclass(frozen=True)
class Run:
    """One run directory: `record` is run.json, `status` is status.json, `state` what is true of it now."""

    cell: str
    seed: int
    directory: Path
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, float]:
        """Final values that are finite numbers, of a finished run only."""
        values = self.status.get("final") if self.state == "finished" else None
        return {name: float(value) for name, value in _mapping(values).items() if is_number(value)}

    @property
    def non_finite(self) -> list[str]:
        """Metrics of a finished run that came out as NaN or infinite (stored as null or as a non-finite number)."""
        values = self.status.get("final") if self.state == "finished" else None
        return [n for n, v in _mapping(values).items() if not is_number(v) and n not in self.cannot]

    @property
    def cannot(self) -> dict[str, str]:
        """Metrics that this run cannot have, each with the reason."""
        return {name: str(reason) for name, reason in _mapping(self.status.get("cannot")).items()}

    @property
    def error(self) -> str | None:
        """The error of a run that failed or diverged."""
        error = self.status.get("error")
        return str(error) if error else None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, flat: {"model.d_model": 64, ...}."""
        return flatten(self.record.get("config"))


@dataclass
class Study:
    """A study as its run directories tell it. `runs` has every planned (cell, seed), also those that are missing."""

    path: Path
    name: str
    question: str
    factors: dict[str, list[Any]]
    baseline: dict[str, Any]
    cells: list[Cell]
    seeds: list[int]
    metric: Metric | None
    claims: list[dict[str, Any]]
    shared: list[str]
    code: dict[str, Any]
    runs: dict[tuple[str, int], Run]

    @cached_property
    def curves(self) -> pl.DataFrame:
        """Learning curves, read when first asked for: columns cell, seed, step, tokens, seconds, and one a metric."""
        return read_curves([run for run in self.runs.values() if run.state != "missing"])

    @cached_property
    def unit(self) -> str:
        """What a term of the loss is, as the runs' data say it: token, word, text, image; "term" where they differ."""
        data = [_mapping(run.record.get("data")) for run in self.runs.values() if run.record]
        units = {str(entry.get("unit") or "token") for entry in data}
        return "token" if not units else units.pop() if len(units) == 1 else "term"

    @cached_property
    def baseline_cell(self) -> Cell | None:
        """The cell whose choices are the baseline's, or None."""
        found = self.matching(self.baseline) if self.baseline else []
        return min(found, key=lambda cell: len(cell.choices)) if found else None

    def matching(self, choices: Mapping[str, Any]) -> list[Cell]:
        """The cells that have all of `choices`."""
        missing = object()
        return [c for c in self.cells if all(same(c.choices.get(k, missing), v) for k, v in choices.items())]

    def runs_of(self, cell: str) -> list[Run]:
        """The runs of a cell by seed."""
        return sorted((run for run in self.runs.values() if run.cell == cell), key=lambda run: run.seed)

    def values(self, cell: str, metric: str) -> dict[int, float]:
        """{seed: value} of the finished runs of `cell` that have `metric`."""
        return {run.seed: run.final[metric] for run in self.runs_of(cell) if metric in run.final}

    def label(self, cell: Cell) -> str:
        """The shortest readable name of a cell: the choices in which the cells differ."""
        varying = self.varying
        if not varying or not any(name in cell.choices for name in varying):
            return cell.name
        if len(varying) == 1:
            return str(cell.choices[varying[0]])
        return ", ".join(self.choice_label(name, cell.choices[name]) for name in varying if name in cell.choices)

    def choice_label(self, name: str, choice: Any) -> str:
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
        names = {name for run in self.runs.values() for name in (*run.final, *run.non_finite, *run.cannot)}
        primary = self.metric.name if self.metric else ""
        return sorted(names, key=lambda name: (name != primary, *natural(name)))


def read_study(path: str | Path) -> Study:
    """Reads runs/<study>. Runs that are unreadable or being deleted count as missing.

    Raises:
        ValueError: `path` holds neither a plan nor a run.
    """
    path = Path(path)
    records = {directory: read_record(directory) for directory in sorted(path.glob("*/seed=*"))}
    plan = _mapping(read_json(path / "plan.json")) or _plan_of(path.name, [run for run in records.values() if run])
    if not plan:
        near = sorted(p.parent.name for p in path.parent.glob("*/plan.json")) if path.parent.is_dir() else []
        raise ValueError(f"no study at {path}: no plan.json and no run; studies there: {', '.join(near) or 'none'}")
    cells = [_cell(entry) for entry in _list(plan.get("cells")) if isinstance(entry, dict)]
    seeds = [seed for seed in _list(plan.get("seeds")) if isinstance(seed, int)]
    found = {(run.cell, run.seed): run for run in records.values() if run}
    known = {cell.name for cell in cells}
    runs = {key: run for key, run in found.items() if key[0] in known}
    for cell in cells:
        for seed in seeds if cell.skip is None else []:
            missing = Run(cell.name, seed, path / cell.name / f"seed={seed}", "missing")
            runs.setdefault((cell.name, seed), missing)
    return Study(
        path=path,
        name=str(plan.get("study") or path.name),
        question=str(plan.get("question") or ""),
        factors={name: _list(choices) for name, choices in _mapping(plan.get("factors")).items()},
        baseline=_mapping(plan.get("baseline")),
        cells=cells,
        seeds=seeds,
        metric=_metric(plan.get("metric"), runs.values()),
        claims=[claim for claim in _list(plan.get("claims")) if isinstance(claim, dict)],
        shared=[str(item) for item in _list(plan.get("shared"))],
        code=_mapping(plan.get("code")),
        runs=runs,
    )


def read_record(directory: Path) -> Run | None:
    """One run directory, or None where nothing can be read of it."""
    record, status = _mapping(read_json(directory / RUN)), _mapping(read_json(directory / STATUS))
    if not record and not status:
        return None
    seed = record.get("seed", directory.name.partition("=")[2])
    if not str(seed).isdigit():
        return None
    cell = str(record.get("cell_name") or directory.parent.name)
    return Run(cell, int(seed), directory, effective_state(directory), record, status)


def read_curves(runs: Iterable[Run]) -> pl.DataFrame:
    """The metrics.jsonl of `runs` as one wide frame sorted by cell, seed and step.

    A line that is torn or no JSON is left out; of a step that was repeated after a resume the last value wins.
    """
    lines = [(run, _whole_lines(run.directory / METRICS)) for run in runs]
    rows = _rows_at_once(lines)
    if rows is None:
        frames = [_of_run(run, frame) for run, text in lines if (frame := _curve(text)) is not None]
        rows = pl.concat(frames, how="diagonal_relaxed") if frames else None
    if rows is None:
        return pl.DataFrame(schema={"cell": pl.String, "seed": pl.Int32, **dict.fromkeys(AXES, pl.Float64)})
    kept = rows.group_by("cell", "seed", "step", maintain_order=True).agg(pl.all().drop_nulls().last())
    return kept.sort("cell", "seed", "step")


def _whole_lines(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _rows_at_once(lines: list[tuple[Run, bytes]]) -> pl.DataFrame | None:
    """All files in one go, several times faster than one by one; None where any has a line that does not fit."""
    counts = [text.count(b"\n") for _, text in lines]
    frame = _parse(b"".join(text for _, text in lines))
    if frame is None or frame.height != sum(counts):
        return None
    index = pl.DataFrame({"cell": [run.cell for run, _ in lines], "seed": [run.seed for run, _ in lines]})
    return index.cast({"seed": pl.Int32})[np.repeat(np.arange(len(lines)), counts)].hstack(frame)


def _of_run(run: Run, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.lit(run.cell).alias("cell"), pl.lit(run.seed).alias("seed"), pl.all())


def _parse(lines: bytes) -> pl.DataFrame | None:
    try:
        frame = pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None)
        return frame.select(*AXES, pl.col("values").struct.unnest()).cast(pl.Float64)
    except (pl.exceptions.PolarsError, ValueError):
        return None


def _curve(lines: bytes) -> pl.DataFrame | None:
    frame = _parse(lines)
    return _curve_by_line(lines) if frame is None else frame


def _curve_by_line(lines: bytes) -> pl.DataFrame | None:
    """The slow way, for a file with a line that does not fit."""
    rows = []
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            axes = {axis: entry.get(axis) for axis in AXES}
            rows.append({**axes, **{k: float(v) for k, v in _mapping(entry.get("values")).items() if is_number(v)}})
        except (ValueError, AttributeError):
            continue
    rows = [row for row in rows if all(is_number(row[axis]) or row[axis] is None for axis in AXES)]
    rows = [row for row in rows if row["step"] is not None]
    if not rows:
        return None
    schema = dict.fromkeys([*AXES, *(name for row in rows for name in row)], pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _plan_of(name: str, runs: list[Run]) -> dict[str, Any]:
    """A plan made from the runs alone: the one that they carry, or the cells and seeds that are there."""
    for run in runs:
        if run.record.get("plan"):
            return _mapping(run.record["plan"])
    cells = {run.cell: {"name": run.cell, "choices": _mapping(run.record.get("cell"))} for run in runs}
    return {"study": name, "cells": list(cells.values()), "seeds": sorted({run.seed for run in runs})} if runs else {}


def _cell(entry: Mapping[str, Any]) -> Cell:
    overrides = tuple(str(item) for item in _list(entry.get("overrides")))
    skip = entry.get("skip")
    return Cell(str(entry.get("name")), _mapping(entry.get("choices")), overrides, str(skip) if skip else None)


def _metric(entry: Any, runs: Iterable[Run]) -> Metric | None:
    if isinstance(entry, Mapping) and entry.get("name"):
        better = "higher" if entry.get("better") == "higher" else "lower"
        return Metric(str(entry["name"]), better, float(entry["margin"]) if is_number(entry.get("margin")) else 0.0)
    names = sorted({str(_mapping(run.status.get("best")).get("metric") or "") for run in runs} - {""})
    return Metric(names[0], better_of(names[0])) if names else None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in _mapping(tree).items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def same(first: Any, second: Any) -> bool:
    """Whether two choices are the same: 0.001, 1e-3 and "1e-3" are."""
    try:
        return first == second or float(first) == float(second)
    except (TypeError, ValueError):
        return str(first) == str(second)


def short(name: str) -> str:
    """The last part of a configuration name: model.num_layers -> num_layers."""
    return name.rpartition(".")[2]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sorting key by which @16x follows @8x."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name))


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
