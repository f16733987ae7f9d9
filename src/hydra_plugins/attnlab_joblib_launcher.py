"""The launcher behind hydra/launcher=joblib: runs on this machine, several at a time, each in a worker process that dies alone."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
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
        """Trains the jobs and waits for them; see `attnlab.cli.workers`."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import configure_log, setup_globals
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        from attnlab.cli.workers import Job, Workers

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        state = Singleton.get_state()
        jobs = [
            Job(execute_job, (initial_job_idx + i, list(words), self.hydra_context, self.config), state, list(words))
            for i, words in enumerate(job_overrides)
        ]
        return Workers(self.task_function, jobs).run(self.n_jobs)
