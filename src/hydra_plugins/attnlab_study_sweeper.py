"""The `study` sweeper: launches the runs of a compiled study (a plan.json) that are still missing, by whatever launcher is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """
    Hydra sweeper over the cells and seeds of a plan.

    Runs in one of `states` are launched. A finished or diverged run is left alone, and so is one that another sweep is running or has queued.
    """

    def __init__(self, plan: str, states: list[str]) -> None:
        self.plan, self.states = plan, list(states)
        self.launcher: Launcher | None = None
        self.how: dict[str, list[str]] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every sweeper."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        from attnlab.cli.compose import OWN

        given = [str(word) for word in config.hydra.overrides.hydra]
        self.how = {
            "launcher": [
                word for word in given if word.lstrip("+~").startswith(("hydra/launcher=", "hydra.launcher."))
            ],
            "config_dirs": [one.path for one in config.hydra.runtime.config_sources if one.provider == OWN],
        }

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """
        Launches every run of the plan that is in one of the states; a launcher that can leave its jobs to a cluster only submits them.

        Raises: JobsFailed when it is over and a run failed.
        """
        from attnlab.cli.cluster import jobs_of, place, record, states
        from attnlab.cli.launch import JobsFailed
        from attnlab.cli.studies import read_plan

        assert self.launcher is not None
        plan, folder = read_plan(Path(self.plan)), Path(self.plan).parent
        state = states(plan, folder.parent, jobs_of(folder))
        pending = [(cell, seed) for cell, seed in plan.jobs() if state[cell.name, seed] in self.states]
        jobs = [[*arguments, *plan.overrides(cell, seed)] for cell, seed in pending]
        if not jobs:
            return []
        if hasattr(self.launcher, "submit"):
            ids = self.launcher.submit(jobs)
            places = [place((cell.name, seed)) for cell, seed in pending]
            record(folder, dict(zip(ids, places, strict=True)), **self.how)
            return []
        returns: list[Any] = list(self.launcher.launch(jobs, initial_job_idx=0))
        failed = [
            f"{cell.name} seed={seed}: {job._return_value}"
            for (cell, seed), job in zip(pending, returns, strict=True)
            if job.status == JobStatus.FAILED
        ]
        if failed:
            raise JobsFailed("\n".join(failed))
        return returns
