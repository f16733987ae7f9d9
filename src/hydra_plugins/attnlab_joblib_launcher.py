"""The launcher behind hydra/launcher=joblib: several runs at a time on this machine, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class JoblibSettings(SearchPathPlugin):
    """Puts this launcher's settings in the place of those of hydra-joblib-launcher, once Hydra has loaded both."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leaves the search path as it is."""
        settings = {"_target_": f"{__name__}.{JoblibLauncher.__name__}", "n_jobs": -1}
        ConfigStore.instance().store(group="hydra/launcher", name="joblib", node=settings, provider="attnlab")


class JoblibLauncher(Launcher):
    """Hydra launcher that trains `n_jobs` runs at a time; -1: as many as there are cores."""

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Trains the jobs and waits for them; see `attnlab.studies.workers`."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import configure_log, setup_globals
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        from attnlab.config.engine import Task
        from attnlab.studies.workers import Job, Workers, fail

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        state = Singleton.get_state()

        def job(number: int, words: list[str]) -> Job:
            named = [word for word in words if word.startswith(("cell=", "seed="))]
            of_job = partial(execute_job, number, words, self.hydra_context, self.config)
            return Job(
                name=" ".join(named or words).replace('"', ""),
                train=partial(of_job, self.task_function, state),
                give_up=lambda reason: partial(of_job, Task(partial(fail, reason)), state),
            )

        jobs = [job(number, list(words)) for number, words in enumerate(job_overrides, start=initial_job_idx)]
        return Workers(jobs, _failed).run(self.n_jobs)


def _failed(error: Exception) -> JobReturn:
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    return result
