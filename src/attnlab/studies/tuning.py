"""Tuning: before a study compares its cells, the same search in each of them, and of each the setting it found best.

The trials are runs of a study of their own, NAME-tuning beside NAME: a cell is a cell of the study at one setting. What
was tried stands in their directories: the same command asks for the same trials again, and trains those that are not
over. What was chosen stands in the plan of the study, which its runs follow.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnlab.analysis.censoring import Bounds
from attnlab.analysis.costs import Key, metrics_of, targets_in
from attnlab.analysis.reader import load_study
from attnlab.config import UsageError, usage_errors
from attnlab.config.check import incompatible
from attnlab.config.compose import ConfigSpace
from attnlab.config.identity import LONGEST_NAME, as_value, cell_name, for_hydra, key_and_value
from attnlab.studies.plan import Cell, Plan, runs_of
from attnlab.studies.reported import refuse_unreported
from attnlab.studies.samplers import Settings, sampler_of
from attnlab.studies.study_file import tune_of
from attnlab.training.looks import Looks
from attnlab.training.run_directory import SETTLED, effective_state, read_json
from attnlab.training.study_fields import is_finite
from attnlab.training.tuning_fields import RunOfTrial, Trial, Tuned, TunedCell, refuse_shared_seeds

NOTHING: Mapping[Key, Mapping[str, Bounds]] = {}


@dataclass(frozen=True)
class Tuning:
    """The tuning of a study; `plan` is that of the study, with each cell at its own setting."""

    plan: Plan
    tune: Tuned
    space: ConfigSpace

    @property
    def name(self) -> str:
        """The study of the trials."""
        return f"{self.plan.study}-tuning"

    @property
    def runs(self) -> int:
        """How many runs its budget is."""
        return len(self.cells) * self.tune["trials"] * len(self.tune["seeds"])

    @property
    def cells(self) -> list[Cell]:
        """The cells that are tuned."""
        return [cell for cell in self.plan.cells if cell.skip is None]

    def settled(self, runs_dir: Path) -> Plan | None:
        """The plan at the settings that were chosen, once they are; None before.

        Choices with which the study has run stand; the others are of trials that are all over, none of which failed.
        """
        written = runs_dir / self.plan.study
        before = (read_json(written / "plan.json") or {}).get("tuned") or {}
        if self._is_ours(before) and any(written.glob("*/seed=*/run.json")):
            return self._at_choices(before["cells"])
        if next(self.rounds(runs_dir), None) is not None:
            return None
        return self.chosen(runs_dir)

    def _is_ours(self, tuned: Mapping[str, Any]) -> bool:
        """Whether a record is of this search in these cells."""
        cells = tuned.get("cells") or {}
        return (
            all(tuned.get(key) == value for key, value in self.tune.items())
            and cells.keys() == {cell.name for cell in self.cells}
            and all("chosen" in one for one in cells.values())
        )

    def rounds(self, runs_dir: Path) -> Iterator[Plan]:
        """Plans to be run one after the other, each with the trials of those before it; not those that are over."""
        for trials in self._asked(runs_dir):
            plan = self.plan_of(trials, runs_dir)
            if any(effective_state(run) not in SETTLED for run in runs_of(plan, runs_dir).values()):
                yield plan

    def _asked(self, runs_dir: Path) -> Iterator[dict[str, list[Settings]]]:
        """The settings to try in each cell, more from round to round by what became of those before."""
        samplers = {cell.name: sampler_of(self.tune) for cell in self.cells}
        trials: dict[str, list[Settings]] = {cell.name: [] for cell in self.cells}
        while any(len(of_cell) < self.tune["trials"] for of_cell in trials.values()):
            asked = {name: sampler.ask() for name, sampler in samplers.items()}
            for name, settings in asked.items():
                trials[name] += settings
            yield trials
            for cell in self.cells:
                samplers[cell.name].tell([self.score(self._trial(cell, one, runs_dir)) for one in asked[cell.name]])

    def plan_of(self, trials: Mapping[str, Sequence[Settings]], runs_dir: Path) -> Plan:
        """The plan of the trials {cell: settings}, with the reason of each whose parts are incompatible."""
        tried = [trial_of(cell, settings) for cell in self.cells for settings in trials[cell.name]]
        first = next(iter(trials.values()))[0]
        search = self.tune["search"] if self.tune["how"] == "grid" else {}
        plan = replace(
            self.plan,
            study=self.name,
            question=f"Which setting is best in each cell of {self.plan.study}?",
            factors={**self.plan.factors, **{key: [*values] for key, values in search.items()}},
            baseline={**self.plan.baseline, **first},
            cells=list({one.name: one for one in tried}.values()),
            seeds=self.tune["seeds"],
            metric={**self.tune["metric"], "margin": None},
            claims=[],
            looks=Looks(),
        )
        with self.space:
            return replace(plan, cells=[self._with_reason(one, plan, runs_dir) for one in plan.cells])

    def _with_reason(self, trial: Cell, plan: Plan, runs_dir: Path) -> Cell:
        if any((runs_dir / self.name / trial.name).glob("seed=*/run.json")):  # it could be run
            return trial
        return replace(trial, skip="; ".join(incompatible(self.space.compose(plan.overrides(trial)))) or None)

    def chosen(self, runs_dir: Path) -> Plan:
        """The plan with each cell at the best of its settings. Raises: UsageError where none of a cell finished."""
        *_, trials = self._asked(runs_dir)
        found = self._found(trials, runs_dir)
        for name, one in found.items():
            scores = [self.score(trial) for trial in one["trials"]]
            usable = [at for at, score in enumerate(scores) if score is not None and math.isfinite(score)]
            if not usable:
                raise UsageError(
                    f"{name}: no trial of {self.name} has {self.tune['metric']['name']}, so no setting can be chosen; "
                    f"`attnlab status {self.name}` says why. Change what tune.search has, or take the cell out"
                )
            one["chosen"] = one["trials"][min(usable, key=lambda at: scores[at] or 0.0)]["settings"]
        automatic = (read_json(runs_dir / self.name / "plan.json") or {}).get("automatic", {})
        return replace(self._at_choices(found), automatic=automatic)

    def _at_choices(self, found: Mapping[str, TunedCell]) -> Plan:
        cells = [
            replace(cell, overrides=[*cell.overrides, *words_of(found[cell.name]["chosen"])])
            if cell.name in found
            else cell
            for cell in self.plan.cells
        ]
        return replace(self.plan, cells=cells, tuned={"study": self.name, **self.tune, "cells": dict(found)})

    def score(self, trial: Trial) -> float | None:
        """How good a trial was, the lower the better: the mean over its seeds. Infinite where a run diverged; None
        where one has no value for another reason, so that the trial is not compared."""
        metric, sign = self.tune["metric"]["name"], 1.0 if self.tune["metric"]["better"] == "lower" else -1.0
        values: list[float] = []
        for run in trial["runs"].values():
            if metric in run["final"]:
                values.append(sign * run["final"][metric])
            elif run["state"] in ("diverged", "finished"):  # finished with what is no number
                values.append(math.inf)
            else:
                return None
        return sum(values) / len(values) if values else None

    def _found(self, trials: Mapping[str, Sequence[Settings]], runs_dir: Path) -> dict[str, TunedCell]:
        """What became of all trials, by cell."""
        found: dict[str, TunedCell] = {}
        costs = self._costs(runs_dir)
        with self.space:
            own = {cell.name: self.space.compose(self.plan.overrides(cell)) for cell in self.cells}
        for cell in self.cells:
            default = {key: own[cell.name].names.get(key, own[cell.name].get(key)) for key in self.tune["search"]}
            tried = [self._trial(cell, settings, runs_dir, costs) for settings in trials[cell.name]]
            found[cell.name] = {"default": default, "trials": tried}
        return found

    def _costs(self, runs_dir: Path) -> Mapping[Key, Mapping[str, Bounds]]:
        """What is known of the trials' costs to targets, of those that the study or its claims are about."""
        if not targets_in(self._judged, []):
            return {}
        runs = load_study(runs_dir / self.name).with_costs(self._judged).runs
        return {key: run.costs for key, run in runs.items()}

    @property
    def _judged(self) -> list[str]:
        """The metrics of the study and of its claims."""
        return [self.plan.metric["name"], *metrics_of(self.plan.claims)]

    def _trial(
        self, cell: Cell, settings: Settings, runs_dir: Path, costs: Mapping[Key, Mapping[str, Bounds]] = NOTHING
    ) -> Trial:
        name = trial_of(cell, settings).name
        runs = {}
        for seed in self.tune["seeds"]:
            runs[str(seed)] = self._run(runs_dir / self.name / name / f"seed={seed}")
            if known := costs.get((name, seed)):
                runs[str(seed)]["costs"] = {
                    cost: [end if math.isfinite(end) else None for end in ends] for cost, ends in known.items()
                }
        return {"settings": settings, "runs": runs}

    def _run(self, directory: Path) -> RunOfTrial:
        state = effective_state(directory)
        final = (read_json(directory / "status.json") or {}).get("final") or {}
        names = dict.fromkeys([self.tune["metric"]["name"], *self._judged])
        kept = {name: final[name] for name in names if state == "finished" and is_finite(final.get(name))}
        return {"state": state, "final": kept}

    def said(self, plan: Plan) -> Iterator[str]:
        """A line a cell: what was chosen."""
        metric = self.tune["metric"]["name"]
        for name, one in plan.tuned["cells"].items():
            best = next(trial for trial in one["trials"] if trial["settings"] == one["chosen"])
            value = abs(self.score(best) or math.nan)
            shown = " ".join(words_of(one["chosen"]))
            yield f"tuned {name}: {shown} ({metric} {value:.4g}, best of {len(one['trials'])} settings)"


def load_tuning(path: Path, plan: Plan, overrides: Sequence[str], space: ConfigSpace) -> Tuning | None:
    """The tuning that a study.yaml asks for, or None. Raises: UsageError."""
    tune = tune_of(path)
    if tune is None:
        return None
    for word in overrides:
        if key_and_value(word)[0] in tune["search"]:
            raise UsageError(f"{word}: tune.search looks for it in every cell; change study.yaml, or set another field")
    if tune["how"] == "tpe" and importlib.util.find_spec("optuna") is None:
        raise UsageError(f"{path}: tune.how=tpe needs Optuna: pip install 'attnlab[optuna]', or search at random")
    tuning = Tuning(plan, tune, space)
    with usage_errors(f"{path}: "):
        refuse_shared_seeds(tune["seeds"], [*plan.seeds, *range(max(plan.looks.stages, default=0))])
    with usage_errors(f"{path}: tune."):
        composed = {cell.name: space.compose(plan.overrides(cell)) for cell in tuning.cells}
        refuse_unreported(replace(plan, metric={**tune["metric"], "margin": None}, claims=[]), composed)
    return tuning


def words_of(settings: Mapping[str, object]) -> list[str]:
    """Settings as overrides of a run."""
    return [for_hydra(f"{key}={as_value(value)}") for key, value in settings.items()]


def trial_of(cell: Cell, settings: Settings) -> Cell:
    """A cell at one setting, by a name that it keeps where others are tried beside it."""
    words = words_of(settings)
    name = f"{cell.name},{cell_name(words)}"
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[:100].decode(errors='ignore')}-{digest}"
    return Cell(name, {**cell.choices, **settings}, [*cell.overrides, *words])
