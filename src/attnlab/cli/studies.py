"""A study: the question, its grid of cells and seeds, and what is expected; compiled to a plain Hydra multirun."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from attnlab.cli.check import check_fields, is_folder_name
from attnlab.cli.combinations import impossible
from attnlab.cli.compose import ConfigSpace, Mistake, cell_name, did_you_mean, identity, readable, shipped
from attnlab.cli.init_from import inherit
from attnlab.training.measures import known_better
from attnlab.training.run_directory import differences, read_json

FIELDS = ("question", "needs", "shared", "factors", "cells", "baseline", "seeds", "metric", "claims")
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
    needs: list[str] = field(default_factory=list)

    def jobs(self) -> Iterator[tuple[Cell, int]]:
        """Every run of the plan, seed by seed, so that an early stop leaves whole pairs."""
        for seed in self.seeds:
            for cell in self.cells:
                if cell.skip is None:
                    yield cell, seed

    def overrides(self, cell: Cell, seed: int) -> list[str]:
        """The Hydra overrides of one run: `attnlab train` with them gives the same run."""
        named = [f"study.name={quoted(self.study)}", f"cell={quoted(cell.name)}"]
        return inherit([*self.shared, *cell.overrides, *named, f"seed={seed}"])

    def as_json(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        return asdict(self)


def quoted(text: str) -> str:
    """Text as an override's value, whatever signs it holds."""
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and text.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    )
    return text if is_plain else '"' + text.replace('"', '\\"') + '"'


def available_studies() -> list[str]:
    """The names of the studies that come with attnlab."""
    return sorted(p.parent.name for p in shipped("experiments").glob("*/study.yaml"))


def find_study(name: str, beside: Path | None = None) -> Path:
    """
    The study.yaml of a study's name, folder or file; `beside` is a study.yaml whose neighbours are looked at first.

    Raises: Mistake where there is none.
    """
    path = Path(name)
    for candidate in (
        *([beside.parent.parent / name / "study.yaml"] if beside else []),
        path,
        path / "study.yaml",
        Path("experiments", name, "study.yaml"),
        shipped("experiments") / name / "study.yaml",
    ):
        if candidate.is_file():
            return candidate.resolve()
    known = available_studies()
    if path.is_dir():
        raise Mistake(f"{name}: there is no study.yaml in this folder")
    raise Mistake(
        f"{name}: there is no such study; give one of {', '.join(known)}, or a folder with a study.yaml.{did_you_mean(name, known)}"
    )


def load_plan(path: Path, overrides: Sequence[str], space: ConfigSpace) -> Plan:
    """
    Reads a study and compiles it under further overrides; cells that make no sense carry the reason.

    Raises: Mistake for a study.yaml that cannot be read or names what does not exist.
    """
    raw = _read(path)
    own = dict(o.split("=", 1) for o in overrides if o.startswith("study.") and "=" in o)
    seeds = _seeds(_number_or_list(own.get("study.seeds", raw.get("seeds", 4))))
    cells = _cells(raw, path)
    further = [o for o in overrides if not o.startswith("study.")]
    _refuse_overrides(overrides, cells)
    shared = readable([*map(str, _list(raw, "shared", path)), *further])
    name = own.get("study.name", "").strip("'\"") or (path.parent.name if path.name == "study.yaml" else path.stem)
    if not is_folder_name(name):
        raise Mistake(f"study.name={name!r}: expected the name of one folder, without / and not starting with a dot")
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
        needs=[str(needed) for needed in _list(raw, "needs", path)],
    )
    return replace(plan, cells=[replace(cell, skip=_reason(plan, cell, space)) for cell in cells])


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


def _list(raw: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = raw.get(key) or []
    if not isinstance(value, list):
        raise Mistake(f"{path}: {key} is a list, as in {key}: [...]; this one is {value!r}")
    return value


def _refuse_overrides(overrides: Sequence[str], cells: Sequence[Cell]) -> None:
    """A further override changes all cells alike: what tells them from one another, and each run's own identity, it cannot be."""
    varied = {o.split("=", 1)[0].lstrip("+~") for cell in cells for o in cell.overrides}
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key.startswith("study.") and key not in ("study.name", "study.seeds"):
            raise Mistake(
                f"{override}: of a study, study.name and study.seeds can be set here.{did_you_mean(key, ['study.name', 'study.seeds'])}"
            )
        if key == "seed":
            raise Mistake(f"{override}: a study's seeds are set together, as in study.seeds=4 or study.seeds=[0,1]")
        if key in ("run_dir", "cell"):
            raise Mistake(f"{override}: every run of a study has its own; set runs_dir or study.name")
        if key in varied:
            raise Mistake(
                f"{override}: {key} is what the cells of this study differ in; change study.yaml, or set another field"
            )


def _number_or_list(given: Any) -> Any:
    """What was written on the command line, as the YAML that it is."""
    try:
        return yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError:
        return given


def _seeds(given: Any) -> list[int]:
    try:
        seeds = list(range(int(given))) if not isinstance(given, list) else [int(seed) for seed in given]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise Mistake(f"seeds={given!r}: expected how many seeds (a whole number from 1), or a list of different seeds")
    return seeds


def _cells(raw: dict[str, Any], path: Path) -> list[Cell]:
    factors = raw.get("factors") or {}
    if not isinstance(factors, dict) or not all(isinstance(choices, list) for choices in factors.values()):
        raise Mistake(
            f"{path}: factors is a table of lists, as in {{position: [rotary, alibi]}}; this one is {factors!r}"
        )
    cells = []
    for values in itertools.product(*factors.values()) if factors else ():
        choices = dict(zip(factors, values, strict=True))
        overrides = readable([f"{key}={_as_override(value)}" for key, value in choices.items()])
        cells.append(Cell(cell_name(overrides), choices, overrides))
    for single in _list(raw, "cells", path):
        if not isinstance(single, dict) or set(single) != {"name", "overrides"}:
            raise Mistake(f"{path}: a cell is a table with name and overrides; this one is {single!r}")
        name = str(single["name"])
        if not is_folder_name(name):
            raise Mistake(f"{path}: {name!r} is no name of a cell; expected the name of one folder, without /")
        cells.append(Cell(name, {"cell": name}, readable(list(map(str, _list(single, "overrides", path))))))
    names = [cell.name for cell in cells]
    if not cells or len(set(names)) != len(names):
        raise Mistake(
            f"{path}: a study needs factors or cells, each cell once; these are: {', '.join(names) or 'none'}"
        )
    return cells


def _as_override(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _reason(plan: Plan, cell: Cell, space: ConfigSpace) -> str | None:
    """Why a cell makes no sense, or None."""
    composed = space.compose(plan.overrides(cell, plan.seeds[0]))
    try:
        return "; ".join(f"{name}: {why}" for name, why in impossible(composed)) or None
    except (TypeError, ValueError):
        check_fields(composed)  # a rule that cannot read a field: the field's own message is the one that helps
        raise


def _baseline(raw: dict[str, Any], cells: Sequence[Cell], path: Path) -> dict[str, Any]:
    baseline = raw.get("baseline") or cells[0].choices
    if not isinstance(baseline, dict):
        raise Mistake(f"{path}: baseline is a table, as in {cells[0].choices}; this one is {baseline!r}")
    if not any(all(cell.choices.get(key) == value for key, value in baseline.items()) for cell in cells):
        raise Mistake(f"{path}: the baseline {baseline} is none of the cells: {', '.join(cell.name for cell in cells)}")
    return dict(baseline)


def _metric(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    metric = raw.get("metric")
    if not isinstance(metric, dict) or "name" not in metric or metric.get("better") not in ("lower", "higher"):
        raise Mistake(
            f"{path}: metric needs a name and better: lower or higher, as in {{name: test/nats@1x, better: lower, margin: 0.02}}"
        )
    better = known_better(str(metric["name"]))
    if better is not None and metric["better"] != better:
        raise Mistake(
            f"{path}: metric says better: {metric['better']}, but of {metric['name']} {better} values are better; write better: {better}"
        )
    return {"margin": None, **metric}


def _claims(raw: dict[str, Any], cells: Sequence[Cell], path: Path) -> list[dict[str, Any]]:
    claims = _list(raw, "claims", path)
    known = sorted({key for cell in cells for key in cell.choices})
    for claim in claims:
        if not isinstance(claim, dict):
            raise Mistake(f"{path}: a claim is a table with {', '.join(CLAIM_FIELDS)}; this one is {claim!r}")
        for key in claim:
            if key not in CLAIM_FIELDS:
                raise Mistake(
                    f"{path}: claim {claim.get('says')!r}: there is no field {key!r}.{did_you_mean(key, CLAIM_FIELDS)}"
                )
        if sum(key in claim for key in CLAIM_BOUNDS) != 1:
            raise Mistake(f"{path}: claim {claim.get('says')!r} needs exactly one of {', '.join(CLAIM_BOUNDS)}")
        for side in (claim.get("cell") or {}, (claim.get("against") or {}).get("cell") or {}):
            if not isinstance(side, dict) or not any(
                all(cell.choices.get(key) == value for key, value in side.items()) for cell in cells
            ):
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
    try:
        return Plan(**{**data, "cells": [Cell(**cell) for cell in data["cells"]]})
    except (TypeError, KeyError) as error:
        raise Mistake(
            f"{path} is no plan ({error}); `attnlab sweep STUDY` writes it anew where it is removed"
        ) from error


def plan_of_runs(folder: Path) -> Plan:
    """The plan of a study's folder: the one written there, or one made from the runs that stand in it."""
    if (folder / "plan.json").is_file():
        return read_plan(folder / "plan.json")
    from attnlab.analysis.reader import Metric, read_study

    study = read_study(folder)
    metric = study.metric or Metric("val/nats")
    return Plan(
        study=folder.name,
        question=study.question,
        factors=study.factors,
        baseline=study.baseline,
        cells=[Cell(cell.name, dict(cell.choices), list(cell.overrides), cell.skip) for cell in study.cells],
        seeds=study.seeds,
        metric={"name": metric.name, "better": metric.better, "margin": None},
    )


def runs_of(plan: Plan, runs_dir: Path) -> dict[tuple[str, int], Path]:
    """Where each run of the plan stands: (cell name, seed) to its directory."""
    return {(cell.name, seed): runs_dir / plan.study / cell.name / f"seed={seed}" for cell, seed in plan.jobs()}


def refuse_drift(plan: Plan, runs_dir: Path, space: ConfigSpace) -> None:
    """
    Compares every cell with the runs that already stand under this study's name.

    Raises: Mistake that shows what differs, when a cell's configuration has changed.
    """
    cells = {cell.name: cell for cell in plan.cells}
    for (name, seed), directory in runs_of(plan, runs_dir).items():
        record = read_json(directory / "run.json")
        if record is None:
            continue
        composed = space.compose(plan.overrides(cells[name], plan.seeds[0]))
        changes = differences(identity(record["config"]), identity(composed.with_seed(seed)))
        if changes:
            raise Mistake(drift_message(directory, changes))


def drift_message(directory: Path, changes: Sequence[str]) -> str:
    """The refusal to mix two configurations under one name."""
    shown = "\n  ".join(changes[:20])
    return (
        f"{directory} holds a run of another configuration (there -> now):\n  {shown}\n"
        "Give this one another name (study.name=NAME), or move the old runs away."
    )
