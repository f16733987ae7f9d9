"""A study: the question, its grid of cells and seeds, and what is expected; compiled to a plain Hydra multirun."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf._utils import get_yaml_loader

from attnlab.cli.check import is_folder_name, senseless
from attnlab.cli.compose import (
    MANY_JOBS,
    Composed,
    ConfigSpace,
    Mistake,
    cell_name,
    identity,
    outside_identity,
    read_yaml,
    shipped,
    twins,
)
from attnlab.cli.init_from import inherit
from attnlab.cli.overrides import as_value, key_and_text, literal, readable
from attnlab.training.run_directory import differences, read_json
from attnlab.training.study_fields import check_plan, checked_seeds, checked_study, did_you_mean, same

MOST_CELLS, MANY_CELLS = (
    1000,
    50,
)  # of a study; and from when on its check is announced, for it takes a fifth of a second each


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
        named = [f"study.name={literal(self.study)}", f"cell={literal(cell.name)}"]
        return inherit([*self.shared, *cell.overrides, *named, f"seed={seed}"])

    def as_json(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        return asdict(self)


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
    own = dict(key_and_text(o) for o in overrides if o.startswith("study.") and "=" in o)
    name = own.get("study.name", path.parent.name if path.name == "study.yaml" else path.stem)
    if not is_folder_name(name):
        raise Mistake(f"study.name={name!r}: expected the name of one folder, without / and not starting with a dot")
    with _of_file(path):
        raw = _read(path)
        _refuse_identity(raw)
        cells = _cells(raw)
        baseline = _choices_of("baseline", raw["baseline"] or cells[0].choices, cells)
        claims = [_of_cells(claim, cells) for claim in raw["claims"]]
    _refuse_overrides(overrides, cells)
    further = [o for o in overrides if not o.startswith("study.")]
    plan = Plan(
        study=name,
        question=raw["question"],
        factors=raw["factors"] or {"cell": [cell.name for cell in cells]},
        baseline=baseline,
        cells=cells,
        seeds=_seeds(own["study.seeds"]) if "study.seeds" in own else raw["seeds"],
        metric=raw["metric"],
        claims=claims,
        shared=readable([*raw["shared"], *further]),
        needs=raw["needs"],
    )
    for needed in plan.needs:
        find_study(needed, beside=path)
    return _with_reasons(plan, path, space)


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[None]:
    """What is wrong with a study is said of its file."""
    try:
        yield
    except ValueError as error:
        raise Mistake(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    try:
        json.dumps(raw)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"a study must hold texts, numbers, lists and tables alone: {error}") from error
    return checked_study(raw)


def _refuse_identity(raw: dict[str, Any]) -> None:
    """What a run is called, where it stands and what launches it follow from the study, and are no setting in it."""
    places = {"shared": raw["shared"], "factors": [f"{key}=x" for key in raw["factors"]]}
    places |= {f"cell {cell['name']!r}": cell["overrides"] for cell in raw["cells"]}
    for place, words in places.items():
        for word in words:
            key = _key_of_one_choice(place, word)
            if key == "seed":
                raise ValueError(f"{place} must not set seed, for seeds says which seeds every cell has; leave it out")
            if key in ("cell", "run_dir") or key.split(".")[0] == "study" or (key == "runs_dir" and place != "shared"):
                raise ValueError(f"{place} must not set {key}, which every run has of its own; leave it out")
            if key.startswith("hydra"):
                raise ValueError(f"{place} must not set {key}, which belongs on the command line of `attnlab sweep`")
            if place == "factors" and outside_identity(key):
                raise ValueError(f"factors must not set {key}, which changes nothing that a run computes")


def _key_of_one_choice(place: str, word: str) -> str:
    """The field that a word sets, or takes away. Raises: ValueError for what is no setting of one value."""
    try:
        parsed = OverridesParser.create().parse_override(readable([word])[0])
    except HydraException as error:
        raise ValueError(f"{place} must set fields by their names, as in model.d_model=64, got {word!r}") from error
    if parsed.is_sweep_override():
        raise ValueError(f"{place} must set one value of each field, got {word!r}; choices to compare are factors")
    if not parsed.key_or_group or (place == "factors" and parsed.is_delete()):
        raise ValueError(f"{place} must set fields by their names, as in model.d_model=64, got {word!r}")
    return parsed.key_or_group


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


def _seeds(given: str) -> list[int]:
    """The seeds that the command line asks for."""
    try:
        return checked_seeds(yaml.load(given, get_yaml_loader()))
    except (ValueError, yaml.YAMLError) as error:
        reason = error if isinstance(error, ValueError) else f"seeds must be a number or a list, got {given!r}"
        raise Mistake(f"study.seeds={given}: {reason}") from error


def _cells(raw: dict[str, Any]) -> list[Cell]:
    factors = raw["factors"]
    count = len(raw["cells"]) + (math.prod(map(len, factors.values())) if factors else 0)
    if not 1 <= count <= MOST_CELLS:
        raise ValueError(
            f"factors and cells must make 1 to {MOST_CELLS:,} cells, got {count:,}; "
            + ("list the cells worth comparing under cells" if count else "a study needs factors or cells")
        )
    cells = []
    for values in itertools.product(*factors.values()) if factors else ():
        choices = dict(zip(factors, values, strict=True))
        overrides = [f"{key}={as_value(value)}" for key, value in choices.items()]
        cells.append(Cell(cell_name(overrides), choices, overrides))
    for single in raw["cells"]:
        name = single["name"]
        if not is_folder_name(name):
            raise ValueError(f"{name!r} is no name of a cell; expected the name of one folder, without /")
        cells.append(Cell(name, {"cell": name}, readable(single["overrides"])))
    names = [cell.name for cell in cells]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise ValueError(f"each cell must have a name of its own, got {twice} twice")
    return cells


def _with_reasons(plan: Plan, path: Path, space: ConfigSpace) -> Plan:
    """
    The plan with the reason of each cell that makes no sense.

    Raises: Mistake for cells that cannot be composed or come to one configuration, and for metrics that none reports.
    """
    if len(plan.cells) > MANY_JOBS:
        print(f"{plan.study}: checking {len(plan.cells):,} cells", file=sys.stderr)
    composed = {cell.name: space.compose(plan.overrides(cell, plan.seeds[0])) for cell in plan.cells}
    cells = [replace(cell, skip="; ".join(senseless(composed[cell.name])) or None) for cell in plan.cells]
    with _of_file(path):
        if alike := twins((cell.name, composed[cell.name]) for cell in cells if cell.skip is None):
            raise ValueError(
                f"{alike[0]} and {alike[1]} must be different cells, and are one configuration; leave one out"
            )
        plan = replace(plan, cells=cells)
        _refuse_unreported(plan, composed)
    return plan


def _choices_of(where: str, wanted: Mapping[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """The choices that are wanted, as the cells write them. Raises: ValueError where no cell has them."""
    found = next((cell for cell in cells if _has(cell, wanted)), None)
    if found is not None:
        return {key: found.choices[key] for key in wanted}
    known = sorted({key for cell in cells for key in cell.choices})
    for key, value in wanted.items():
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ValueError(f"{where} must name factors of the study ({', '.join(known)}), got {_in_line(key)}.{near}")
        values = list(dict.fromkeys(_in_line(cell.choices[key]) for cell in cells if key in cell.choices))
        if not any(_has(cell, {key: value}) for cell in cells):
            near = did_you_mean(_in_line(value), values)
            raise ValueError(
                f"{where} must be one of the cells: {key} is one of {', '.join(values)}, got {_in_line(value)}.{near}"
            )
    raise ValueError(f"{where} must be one of the cells, and none has {_shown(wanted)}")


def _has(cell: Cell, wanted: Mapping[str, Any]) -> bool:
    return all(key in cell.choices and same(cell.choices[key], value) for key, value in wanted.items())


def _of_cells(claim: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """A claim whose choices are written as the cells write them. Raises: ValueError where there are none."""
    where, against = f"claim {claim['says']!r}", claim.get("against", {})
    if claim.get("cell"):
        claim = claim | {"cell": _choices_of(f"{where}: cell", claim["cell"], cells)}
    if not against.get("cell"):
        return claim
    other = _choices_of(f"{where}: against.cell", against["cell"], cells)
    speaks_of = [cell for cell in cells if _has(cell, claim.get("cell", {}))]
    for cell in speaks_of:
        wanted = {**cell.choices, **other}
        if not any(one.choices == wanted for one in cells):
            raise ValueError(f"{where}: against.cell must be one of the cells, and none has {_shown(wanted)}")
    if "metric" not in against and all(_has(cell, other) for cell in speaks_of):
        raise ValueError(f"{where}: against must name another cell, got {_shown(other)}, which is the claim's own")
    return claim | {"against": against | {"cell": other}}


def _shown(choices: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_in_line(value)}" for key, value in choices.items())


def _in_line(value: Any) -> str:
    return " ".join(str(value).split())


def _refuse_unreported(plan: Plan, composed: Mapping[str, Composed]) -> None:
    """Raises: ValueError for a metric that no run which it is asked of can report."""
    from attnlab.training import TokenTask  # here: it brings torch with it

    asked: list[tuple[str, str, Mapping[str, Any]]] = [("metric.name", plan.metric["name"], {})]
    for claim in plan.claims:
        where, cell = f"claim {claim['says']!r}", claim.get("cell", {})
        if "metric" in claim:
            asked.append((f"{where}: metric", claim["metric"], cell))
        if "metric" in claim.get("against", {}):
            asked.append(
                (f"{where}: against.metric", claim["against"]["metric"], {**cell, **claim["against"].get("cell", {})})
            )
    for where, metric, wanted in asked:
        configs = [composed[cell.name].resolved for cell in plan.cells if cell.skip is None and _has(cell, wanted)]
        tasks = [(get_object(config["task"]["_target_"]), config) for config in configs]
        if not tasks or any(not issubclass(task, TokenTask) or task.reports(metric, config) for task, config in tasks):
            continue
        names = list(dict.fromkeys(name for task, config in tasks for name in task.metric_names(config)))
        near = did_you_mean(metric, names)
        raise ValueError(
            f"{where} must be one of what these runs report, got {metric}.{near} They report {', '.join(names)}"
        )


def read_plan(path: Path) -> Plan:
    """
    The plan that a plan.json holds.

    Raises: Mistake where there is none.
    """
    data = read_json(path)
    if data is None:
        raise Mistake(f"{path}: there is no plan; `attnlab sweep STUDY` writes one")
    try:
        check_plan(data)
        return Plan(**{**data, "cells": [Cell(**cell) for cell in data["cells"]]})
    except (AttributeError, TypeError, KeyError, ValueError) as error:
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
