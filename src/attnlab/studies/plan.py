"""A study's plan: its cells and seeds, and what the comparison will ask of them; where studies and their runs stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlab.config import UsageError, shipped
from attnlab.config.identity import inherit, key_and_text, literal, quoted, run_path, without_interpolation
from attnlab.training.looks import Looks
from attnlab.training.run_directory import SETTLED, read_json
from attnlab.training.study_fields import check_plan, did_you_mean, same

Key = tuple[str, int]  # a run of a study: its cell's name and its seed


@dataclass(frozen=True)
class Cell:
    """One arm of a study: its choices, the overrides that make it, and why its parts are incompatible, if they are."""

    name: str
    choices: dict[str, object]
    overrides: list[str]
    skip: str | None = None

    def has(self, wanted: Mapping[str, object]) -> bool:
        """Whether it has all of these choices."""
        return all(key in self.choices and same(self.choices[key], value) for key, value in wanted.items())


@dataclass(frozen=True)
class Branch:
    """Where a cell's runs branch off: after a step of the runs of the cell `trunk`, each from that of its seed."""

    trunk: str
    step: int


@dataclass(frozen=True)
class Plan:
    """What a sweep will run, and what the comparison will ask of it; this is plan.json.

    automatic: how every run computes where trainer.precision or trainer.compile is auto, by field: used, asked, the
    reason, and what was measured. config_dirs: the user's own folders, in which its choices and parts are found.
    branches: the cells that share their first steps with a longer one, by name. looks: at how many seeds it is
    compared. tuned: what `tune` says, and of each cell what was tried and chosen (`training.tuning_fields.TunedCell`);
    empty without, and before all is chosen. across: the factor whose choices are tasks, as
    `training.across.checked_across` returns it. published: the published effect that it reproduces
    (`training.published`), as its file has it.
    """

    study: str
    question: str
    factors: Mapping[str, Sequence[object]]
    baseline: Mapping[str, object]
    cells: list[Cell]
    seeds: list[int]
    metric: dict[str, Any]
    claims: list[dict[str, Any]] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    code: dict[str, object] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    automatic: dict[str, dict[str, Any]] = field(default_factory=dict)
    config_dirs: list[str] = field(default_factory=list)
    branches: dict[str, Branch] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)
    tuned: dict[str, Any] = field(default_factory=dict)
    across: dict[str, Any] | None = None
    published: dict[str, Any] = field(default_factory=dict)

    def jobs(self) -> Iterator[tuple[Cell, int]]:
        """Every run of the plan, seed by seed, so that an early stop leaves whole pairs."""
        for seed in self.seeds:
            for cell in self.cells:
                if cell.skip is None:
                    yield cell, seed

    @property
    def most_runs(self) -> int:
        """How many runs there can be, with the seeds of all stages."""
        return sum(cell.skip is None for cell in self.cells) * max([len(self.seeds), *self.looks.stages])

    def overrides(self, cell: Cell, seed: int | None = None) -> list[str]:
        """The overrides of one run, by default of the first seed: `attnlab train` with them gives the same run."""
        named = [f"study.name={literal(self.study)}", f"cell={literal(cell.name)}"]
        named += [*in_words(self.automatic), *self._branching(cell.name)]
        return inherit([*self.shared, *cell.overrides, *named, f"seed={self.seeds[0] if seed is None else seed}"])

    def _branching(self, cell: str) -> list[str]:
        """The settings by which a run branches off, or keeps what others branch off."""
        if cell in self.branches:
            place = run_path(without_interpolation(self.branches[cell].trunk), "${seed}")
            return [f"trainer.branch_from={quoted(f'${{runs_dir}}/${{study.name}}/{place}')}"]
        steps = sorted({branch.step for branch in self.branches.values() if branch.trunk == cell})
        return [f"trainer.keep_checkpoints=[{','.join(map(str, steps))}]"] if steps else []

    def waves(self, keys: Iterable[Key]) -> list[list[Key]]:
        """Runs of the plan as they can be launched one wave after the other: what branches off comes last."""
        keys = list(keys)
        found = [[key for key in keys if (key[0] in self.branches) is branching] for branching in (False, True)]
        return [wave for wave in found if wave]

    def is_ready(self, key: Key, states: Mapping[Key, str]) -> bool:
        """Whether a run waits for no trunk that is still to be trained."""
        name, seed = key
        return name not in self.branches or states.get((self.branches[name].trunk, seed)) in (*SETTLED, "failed")


def in_words(automatic: Mapping[str, Mapping[str, object]]) -> list[str]:
    """How every run computes where that is auto, as settings of a run."""
    return [f"study.{field}={str(one['used']).lower()}" for field, one in automatic.items()]


def runs_of(plan: Plan, runs_dir: Path) -> dict[Key, Path]:
    """Where each run of the plan stands."""
    return {(cell.name, seed): runs_dir / plan.study / run_path(cell.name, seed) for cell, seed in plan.jobs()}


def read_plan(path: Path) -> Plan:
    """The plan that a plan.json holds. Raises: UsageError where there is none."""
    data = read_json(path)
    if data is None:
        raise UsageError(f"{path}: there is no plan; `attnlab sweep STUDY` writes one")
    try:
        check_plan(data)
        branches = {name: Branch(**one) for name, one in data.get("branches", {}).items()}
        built = {"cells": [Cell(**cell) for cell in data["cells"]], "branches": branches}
        return Plan(**{**data, **built, "looks": Looks.of(data.get("looks", {}))})
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no plan ({error}); remove it, and `attnlab sweep STUDY` writes it anew") from error


def plan_of_runs(folder: Path) -> Plan:
    """The plan of a study's folder: the one written there, or one made from the runs that stand in it."""
    if (folder / "plan.json").is_file():
        return read_plan(folder / "plan.json")
    from attnlab.analysis.reader import Metric, load_study

    study = load_study(folder)
    metric = study.metric or Metric("val/loss")
    cells = [Cell(cell.name, dict(cell.choices), list(cell.overrides), cell.skip) for cell in study.cells]
    primary = {"name": metric.name, "better": metric.better, "margin": None}
    return Plan(folder.name, study.question, study.factors, study.baseline, cells, study.seeds, primary)


def available_studies() -> list[str]:
    """The names of the studies that come with attnlab."""
    return sorted(p.parent.name for p in shipped("experiments").glob("*/study.yaml"))


def find_study(name: str, beside: Path | None = None) -> Path:
    """The study.yaml of a study's name, folder or file; neighbours of `beside` come first. Raises: UsageError."""
    path, known = Path(name), available_studies()
    folders = (Path("."), Path("experiments"), shipped("experiments"))
    neighbour = [beside.parent.parent / name / "study.yaml"] if beside else []
    for candidate in (*neighbour, path, *(folder / name / "study.yaml" for folder in folders)):
        if candidate.is_file():
            return candidate.resolve()
    if path.is_dir():
        raise UsageError(f"{name}: there is no study.yaml in this folder")
    near = did_you_mean(name, known)
    raise UsageError(
        f"{name}: there is no such study; give one of {', '.join(known)}, or a folder with a study.yaml.{near}"
    )


def study_folder(study: str, overrides: Sequence[str]) -> Path:
    """The directory of a study's runs. Raises: UsageError where there are none, naming those there are."""
    runs_dir = runs_dir_of(overrides)
    name = dict(map(key_and_text, overrides)).get("study.name", study)
    for folder in (runs_dir / name, Path(study)):
        if has_runs(folder):
            return folder.resolve() if folder.name in ("", "..") else folder
    known = sorted(p.name for p in runs_dir.glob("*") if has_runs(p))
    there = f"there are {', '.join(known)}" if known else "there are none yet"
    if f"{name}-tuning" in known:
        there += f"; its cells are being tuned, in {name}-tuning"
    runs_it = f" `attnlab sweep {study}` runs it." if study in available_studies() else ""
    raise UsageError(f"{name}: no such study has run in {runs_dir}; {there}.{did_you_mean(name, known)}{runs_it}")


def runs_dir_of(overrides: Sequence[str]) -> Path:
    """Where studies stand. Raises: UsageError for settings that have no meaning for runs that are there."""
    for override in overrides:
        if override.split("=", 1)[0] not in ("runs_dir", "study.name") or "=" not in override:
            raise UsageError(f"{override}: only runs_dir=DIR and study.name=NAME are taken here")
    return Path(dict(map(key_and_text, overrides)).get("runs_dir", "runs"))


def has_runs(folder: Path) -> bool:
    """Whether `folder` is that of a study: it has a plan, or runs."""
    return (folder / "plan.json").is_file() or any(folder.glob("*/seed=*/run.json"))
