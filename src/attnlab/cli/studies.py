"""A study: the question, its grid of cells and seeds, and what is expected; compiled to a plain Hydra multirun."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attnlab.cli.combinations import impossible
from attnlab.cli.compose import ConfigSpace, Mistake, cell_name, did_you_mean, identity, shipped
from attnlab.training.run_directory import effective_state, read_json

FIELDS = ("question", "shared", "factors", "cells", "baseline", "seeds", "metric", "claims")
CLAIM_BOUNDS = ("within", "below", "above", "between", "cannot", "state")
CLAIM_FIELDS = ("says", "cell", "metric", "against", "source", "strength", *CLAIM_BOUNDS)


@dataclass(frozen=True)
class Cell:
    """One arm of a study: the choices that tell it from the baseline."""

    name: str
    choices: dict[str, Any]
    overrides: list[str]
    skip: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a sweep will run, and what the comparison will ask of it; this is plan.json."""

    study: str
    question: str
    factors: dict[str, list[Any]]
    baseline: dict[str, Any]
    cells: list[Cell]
    seeds: list[int]
    metric: dict[str, Any]
    claims: list[dict[str, Any]] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    code: dict[str, Any] = field(default_factory=dict)

    def jobs(self) -> Iterator[tuple[Cell, int]]:
        """Every run of the plan, seed by seed, so that an early stop leaves whole pairs."""
        for seed in self.seeds:
            for cell in self.cells:
                if cell.skip is None:
                    yield cell, seed

    def overrides(self, cell: Cell, seed: int) -> list[str]:
        """The Hydra overrides of one run: `attnlab train` with them gives the same run."""
        return [*self.shared, *cell.overrides, f"study.name={self.study}", f"cell='{cell.name}'", f"seed={seed}"]

    def as_json(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        return asdict(self)


def available_studies() -> list[str]:
    """The names of the studies that come with attnlab."""
    return sorted(p.parent.name for p in shipped("experiments").glob("*/study.yaml"))


def find_study(name: str) -> Path:
    """
    The study.yaml of a study's name, folder or file.

    Raises: Mistake where there is none.
    """
    path = Path(name)
    for candidate in (
        path,
        path / "study.yaml",
        Path("experiments", name, "study.yaml"),
        shipped("experiments") / name / "study.yaml",
    ):
        if candidate.is_file():
            return candidate.resolve()
    known = available_studies()
    raise Mistake(
        f"{name}: there is no such study; give one of {', '.join(known)}, or a folder with a study.yaml.{did_you_mean(name, known)}"
    )


def load_plan(path: Path, overrides: Sequence[str], space: ConfigSpace) -> Plan:
    """
    Reads a study and compiles it under further overrides; cells that make no sense carry the reason.

    Raises: Mistake for a study.yaml that cannot be read or names what does not exist.
    """
    raw = _read(path)
    own = dict(o.split("=", 1) for o in overrides if o.startswith("study."))
    seeds = _seeds(own.get("study.seeds", raw.get("seeds", 4)))
    shared = [*map(str, raw.get("shared") or []), *(o for o in overrides if not o.startswith("study."))]
    cells = [_with_reason(cell, shared, space) for cell in _cells(raw, path)]
    name = own.get("study.name") or (path.parent.name if path.name == "study.yaml" else path.stem)
    plan = Plan(
        study=name,
        question=str(raw.get("question", "")),
        factors=raw.get("factors") or {"cell": [cell.name for cell in cells]},
        baseline=_baseline(raw, cells, path),
        cells=cells,
        seeds=seeds,
        metric=_metric(raw, path),
        claims=_claims(raw, cells, path),
        shared=shared,
    )
    return plan


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Mistake(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise Mistake(f"{path}: a study is a table with the fields {', '.join(FIELDS)}")
    for key in raw:
        if key not in FIELDS:
            raise Mistake(
                f"{path}: there is no field {key!r} in a study.{did_you_mean(str(key), FIELDS)} Fields: {', '.join(FIELDS)}."
            )
    return raw


def _seeds(given: Any) -> list[int]:
    try:
        seeds = list(range(int(given))) if not isinstance(given, list) else [int(seed) for seed in given]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds):
        raise Mistake(f"seeds={given!r}: expected how many seeds (a whole number from 1), or a list of different seeds")
    return seeds


def _cells(raw: dict[str, Any], path: Path) -> list[Cell]:
    factors = raw.get("factors") or {}
    cells = []
    for values in itertools.product(*factors.values()) if factors else ():
        choices = dict(zip(factors, values, strict=True))
        overrides = [f"{key}={_as_override(value)}" for key, value in choices.items()]
        cells.append(Cell(cell_name(overrides), choices, overrides))
    for single in raw.get("cells") or []:
        if not isinstance(single, dict) or set(single) != {"name", "overrides"}:
            raise Mistake(f"{path}: a cell is a table with name and overrides; this one is {single!r}")
        name = str(single["name"])
        cells.append(Cell(name, {"cell": name}, [str(o) for o in single["overrides"] or []]))
    names = [cell.name for cell in cells]
    if not cells or len(set(names)) != len(names):
        raise Mistake(
            f"{path}: a study needs factors or cells, each cell once; these are: {', '.join(names) or 'none'}"
        )
    return cells


def _as_override(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _with_reason(cell: Cell, shared: Sequence[str], space: ConfigSpace) -> Cell:
    reasons = "; ".join(f"{name}: {why}" for name, why in impossible(space.compose([*shared, *cell.overrides])))
    return Cell(cell.name, cell.choices, cell.overrides, reasons or None)


def _baseline(raw: dict[str, Any], cells: Sequence[Cell], path: Path) -> dict[str, Any]:
    baseline = raw.get("baseline") or cells[0].choices
    if not any(all(cell.choices.get(key) == value for key, value in baseline.items()) for cell in cells):
        raise Mistake(f"{path}: the baseline {baseline} is none of the cells: {', '.join(cell.name for cell in cells)}")
    return dict(baseline)


def _metric(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    metric = raw.get("metric")
    if not isinstance(metric, dict) or "name" not in metric or metric.get("better") not in ("lower", "higher"):
        raise Mistake(
            f"{path}: metric needs a name and better: lower or higher, as in {{name: test/nats@1x, better: lower, margin: 0.02}}"
        )
    return {"margin": None, **metric}


def _claims(raw: dict[str, Any], cells: Sequence[Cell], path: Path) -> list[dict[str, Any]]:
    claims = raw.get("claims") or []
    known = sorted({key for cell in cells for key in cell.choices})
    for claim in claims:
        for key in claim:
            if key not in CLAIM_FIELDS:
                raise Mistake(
                    f"{path}: claim {claim.get('says')!r}: there is no field {key!r}.{did_you_mean(key, CLAIM_FIELDS)}"
                )
        if sum(key in claim for key in CLAIM_BOUNDS) != 1:
            raise Mistake(f"{path}: claim {claim.get('says')!r} needs exactly one of {', '.join(CLAIM_BOUNDS)}")
        for side in (claim.get("cell") or {}, (claim.get("against") or {}).get("cell") or {}):
            if not any(all(cell.choices.get(key) == value for key, value in side.items()) for cell in cells):
                raise Mistake(
                    f"{path}: claim {claim.get('says')!r} speaks of {side}, which is none of the cells; factors: {', '.join(known)}"
                )
    return claims


def read_plan(path: Path) -> Plan:
    """
    The plan that a plan.json holds.

    Raises: Mistake where there is none.
    """
    data = read_json(path)
    if data is None:
        raise Mistake(f"{path}: there is no plan; `attnlab sweep STUDY` writes one")
    return Plan(**{**data, "cells": [Cell(**cell) for cell in data["cells"]]})


def runs_of(plan: Plan, runs_dir: Path) -> dict[tuple[str, int], Path]:
    """Where each run of the plan stands: (cell name, seed) to its directory."""
    return {(cell.name, seed): runs_dir / plan.study / cell.name / f"seed={seed}" for cell, seed in plan.jobs()}


def refuse_drift(plan: Plan, runs_dir: Path, space: ConfigSpace) -> None:
    """
    Compares every cell with the runs that already stand under this study's name.

    Raises: Mistake that shows what differs, when a cell's configuration has changed.
    """
    composed: dict[str, dict[str, Any]] = {}
    for (name, seed), directory in runs_of(plan, runs_dir).items():
        record = read_json(directory / "run.json")
        if record is None:
            continue
        if name not in composed:
            cell = next(c for c in plan.cells if c.name == name)
            composed[name] = space.compose(plan.overrides(cell, 0)).resolved
        now = identity({**composed[name], "seed": seed})
        changes = differences(identity(record["config"]), _with_seed(now, seed))
        if changes:
            raise Mistake(drift_message(directory, changes))


def _with_seed(flat: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fields that follow the seed by interpolation take the run's own."""
    return {key: seed if key.rsplit(".", 1)[-1] == "seed" else value for key, value in flat.items()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two flat configurations, one readable line each."""
    nothing = "(absent)"
    return [
        f"{key}: {before.get(key, nothing)} -> {now.get(key, nothing)}"
        for key in sorted({*before, *now})
        if before.get(key, nothing) != now.get(key, nothing)
    ]


def drift_message(directory: Path, changes: Sequence[str]) -> str:
    """The refusal to mix two configurations under one name."""
    shown = "\n  ".join(changes[:20])
    return (
        f"{directory} holds a run of another configuration (there -> now):\n  {shown}\n"
        "Give this one another name (study.name=NAME), or move the old runs away."
    )


def states(plan: Plan, runs_dir: Path) -> dict[tuple[str, int], str]:
    """The state of every run of the plan: missing, running, interrupted, finished, failed or diverged."""
    return {key: effective_state(directory) for key, directory in runs_of(plan, runs_dir).items()}
