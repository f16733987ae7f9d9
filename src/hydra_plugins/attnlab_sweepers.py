"""Hydra's sweepers of attnlab, by whatever launcher is chosen: `study` runs a compiled plan, `search` asks Optuna."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from attnlab.ranges import PositiveInt, check_ranges


class _Launching(Sweeper):
    """What both have in common: the launcher that Hydra's configuration chooses."""

    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class StudySweeper(_Launching):
    """Hydra sweeper over the cells and seeds of a plan.

    Runs in one of `states` are launched. A finished or diverged run is left alone, and so is one that another sweep is
    running or has queued.
    """

    def __init__(self, plan: str, states: list[str]) -> None:
        self.plan, self.states = plan, list(states)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every sweeper, and keeps how the launch was asked for."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        given = [str(word) for word in config.hydra.overrides.hydra]
        self.how = {"launcher": [w for w in given if w.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))]}

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """
        Launches every run of the plan in one of the states; a launcher that leaves jobs to a cluster only submits them.

        Raises: JobsFailed when it is over and a run failed.
        """
        from attnlab.config.identity import run_path
        from attnlab.studies.cluster import jobs_of, note_submission, states
        from attnlab.studies.launch import JobsFailed
        from attnlab.studies.plan import read_plan

        plan, folder = read_plan(Path(self.plan)), Path(self.plan).parent
        state = states(plan, folder.parent, jobs_of(folder))
        cells = {cell.name: cell for cell in plan.cells}
        chosen = [key for key, found in state.items() if found in self.states]
        waves = plan.waves(chosen)
        jobs = [[[*arguments, *plan.overrides(cells[name], seed)] for name, seed in wave] for wave in waves]
        if not jobs:
            return []
        if hasattr(self.launcher, "submit"):
            ready = [key for key in chosen if plan.is_ready(key, state)]  # the others when their trunks are over
            words = [[*arguments, *plan.overrides(cells[name], seed)] for name, seed in ready]
            paths = [run_path(*key) for key in ready]
            if ready:
                note_submission(folder, dict(zip(self.launcher.submit(words), paths, strict=True)), **self.how)
            return []
        returns: list[JobReturn] = []
        for wave in jobs:
            returns += self.launcher.launch(wave, initial_job_idx=len(returns))
        failed = [
            f"{name} seed={seed}: {job._return_value}"
            for (name, seed), job in zip((key for wave in waves for key in wave), returns, strict=True)
            if job.status == JobStatus.FAILED
        ]
        if failed:
            raise JobsFailed("\n".join(failed))
        return returns


class SearchSweeper(_Launching):
    """Hydra sweeper that in each cell asks an Optuna sampler for the settings of each trial and tells it what came out.

    What was tried stands in the runs' own directories: the same command asks for the same trials again, and trains
    those that are not over.
    """

    @check_ranges
    def __init__(
        self, metric: str, better: str, n_trials: PositiveInt, n_jobs: PositiveInt, sampler: object, pruner: object
    ) -> None:
        self.metric, self.n_trials, self.n_jobs, self.sampler = metric, n_trials, n_jobs, sampler
        self.worst = math.inf if better == "lower" else -math.inf
        self.launched = 0

    def sweep(self, arguments: list[str]) -> dict[str, list[dict[str, object]]]:
        """Searches in every cell; returns the trials by cell: their `params`, `state` and `value`."""
        from attnlab.studies.jobs import cells_and_space

        cells, space = cells_and_space(arguments)
        return {name: self._search(name, cell, space) for name, cell in cells.items()}

    def _search(self, name: str, cell: list[str], space: list[str]) -> list[dict[str, object]]:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        from attnlab.config.identity import literal

        optuna.logging.set_verbosity(logging.WARNING)
        distributions, _ = create_params_from_overrides(space)
        direction = "minimize" if self.worst > 0 else "maximize"
        study = optuna.create_study(direction=direction, sampler=copy.deepcopy(self.sampler))  # type: ignore[arg-type]
        trials: list[dict[str, object]] = []
        while len(trials) < self.n_trials:
            asked = [study.ask(distributions) for _ in range(min(self.n_jobs, self.n_trials - len(trials)))]
            params = [dict(trial.params) for trial in asked]
            jobs = [(*cell, *starmap(_setting, p.items()), f"study.search={literal(name)}") for p in params]
            statuses = self._launch(list(dict.fromkeys(jobs)))
            for trial, job, tried in zip(asked, jobs, params, strict=True):
                trials.append({"params": tried, **self._tell(study, trial, statuses[job])})
        return trials

    def _launch(self, jobs: list[tuple[str, ...]]) -> dict[tuple[str, ...], Mapping[str, object]]:
        """The last status of each job."""
        returns = self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)
        failed = {"state": "failed"}
        values = [failed if job.status == JobStatus.FAILED else job.return_value for job in returns]
        return dict(zip(jobs, values, strict=True))

    def _tell(self, study: Any, trial: Any, status: Mapping[str, Any]) -> dict[str, object]:
        """Tells what came out of a trial: one that diverged is as bad as can be, a pruned one as its last value."""
        from optuna.trial import TrialState

        state, pruned = status["state"], status.get("pruned")
        value = status.get("final", {}).get(self.metric) if state == "finished" else None
        if pruned:
            state, value = "pruned", pruned["value"]
            trial.report(value, pruned["step"])
            study.tell(trial, state=TrialState.PRUNED)
        elif value is not None or state == "diverged":
            study.tell(trial, self.worst if value is None else value)
        else:
            study.tell(trial, state=TrialState.FAIL)
        return {"state": state, "value": value}


def _setting(key: str, value: object) -> str:
    """A setting that was tried, as an override."""
    from attnlab.config.identity import quoted

    return f"{key}={quoted(value) if isinstance(value, str) else value}"
