"""The `search` sweeper: in each cell of a multirun Optuna looks for good settings, trial by trial, by whatever launcher is chosen."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from itertools import starmap
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from attnlab.ranges import PositiveInt, check_ranges


class SearchSweeper(Sweeper):
    """
    Hydra sweeper that asks an Optuna sampler for the settings of each trial and tells it what came out.

    What was tried stands in the runs' own directories: the same command asks for the same trials again, and trains those that are not over.
    """

    @check_ranges
    def __init__(self, metric: str, n_trials: PositiveInt, n_jobs: PositiveInt, sampler: Any, pruner: Any) -> None:
        self.metric, self.n_trials, self.n_jobs, self.sampler = metric, n_trials, n_jobs, sampler
        self.launcher: Launcher | None = None
        self.launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every sweeper."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, list[dict[str, Any]]]:
        """Searches in every cell; returns the trials by cell: their `params`, `state` and `value`."""
        from attnlab.cli.search import cells_and_space

        cells, space = cells_and_space(arguments)
        return {name: self._search(name, cell, space) for name, cell in cells.items()}

    def _search(self, name: str, cell: list[str], space: list[str]) -> list[dict[str, Any]]:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides

        from attnlab.cli.overrides import literal
        from attnlab.training.measures import better_of

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions, _ = create_params_from_overrides(space)
        self.worst = math.inf if better_of(self.metric) == "lower" else -math.inf
        direction = "minimize" if self.worst > 0 else "maximize"
        study = optuna.create_study(direction=direction, sampler=copy.deepcopy(self.sampler))
        trials: list[dict[str, Any]] = []
        while len(trials) < self.n_trials:
            asked = [study.ask(distributions) for _ in range(min(self.n_jobs, self.n_trials - len(trials)))]
            params = [dict(trial.params) for trial in asked]
            jobs = [(*cell, *starmap(_setting, p.items()), f"study.search={literal(name)}") for p in params]
            statuses = self._launch(list(dict.fromkeys(jobs)))
            for trial, job, tried in zip(asked, jobs, params, strict=True):
                trials.append({"params": tried, **self._tell(study, trial, statuses[job])})
        return trials

    def _launch(self, jobs: list[tuple[str, ...]]) -> dict[tuple[str, ...], Mapping[str, Any]]:
        """The last status of each job."""
        assert self.launcher is not None
        returns = self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)
        failed = {"state": "failed"}
        values = [failed if job.status == JobStatus.FAILED else job.return_value for job in returns]
        return dict(zip(jobs, values, strict=True))

    def _tell(self, study: Any, trial: Any, status: Mapping[str, Any]) -> dict[str, Any]:
        """Tells what came out of a trial: one that diverged is as bad as can be, a pruned one as good as its last validation."""
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


def _setting(key: str, value: Any) -> str:
    """A setting that was tried, as an override."""
    from attnlab.cli.overrides import quoted

    return f"{key}={quoted(value) if isinstance(value, str) else value}"
