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

SETTLED = ("finished", "diverged", "running")


class JobsFailed(RuntimeError):
    """Some runs of a sweep failed; the others went on."""


class StudySweeper(Sweeper):
    """
    Hydra sweeper over the cells and seeds of a plan.

    A finished or diverged run is left alone, one that another sweep is running is left to it, and all others are launched.
    """

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every sweeper."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """
        Launches every run of the plan that is not settled.

        Raises: JobsFailed when it is over and a run failed.
        """
        from attnlab.cli.studies import read_plan, states

        assert self.launcher is not None
        plan = read_plan(Path(self.plan))
        state = states(plan, Path(self.plan).parent.parent)
        pending = [(cell, seed) for cell, seed in plan.jobs() if state[cell.name, seed] not in SETTLED]
        jobs = [[*arguments, *plan.overrides(cell, seed)] for cell, seed in pending]
        returns: list[Any] = list(self.launcher.launch(jobs, initial_job_idx=0)) if jobs else []
        failed = [
            f"{cell.name} seed={seed}: {job._return_value}"
            for (cell, seed), job in zip(pending, returns, strict=True)
            if job.status == JobStatus.FAILED
        ]
        if failed:
            raise JobsFailed("\n".join(failed))
        return returns
