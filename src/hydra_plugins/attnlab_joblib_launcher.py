"""The launcher behind hydra/launcher=joblib: several runs at a time on this machine, each in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from itertools import count

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from attnlab.ranges import PositiveInt, check_ranges


class JoblibSettings(SearchPathPlugin):
    """Puts this launcher's settings in the place of those of hydra-joblib-launcher, once Hydra has loaded both."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leaves the search path as it is."""
        settings = {"_target_": f"{__name__}.{JoblibLauncher.__name__}", "n_jobs": -1, "runs_per_device": 1}
        ConfigStore.instance().store(group="hydra/launcher", name="joblib", node=settings, provider="attnlab")


class JoblibLauncher(Launcher):
    """Hydra launcher that fills this machine: a run on each GPU, or `runs_per_device`; without GPUs, one on each core.

    n_jobs: so many runs at a time; -1: as many as there is room for.
    """

    @check_ranges
    def __init__(self, n_jobs: int, runs_per_device: PositiveInt = 1) -> None:
        self.n_jobs, self.runs_per_device = n_jobs, runs_per_device
        self.said = ""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what Hydra hands to every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Trains the jobs and waits for them; see `attnlab.studies.workers`. Raises: UsageError as `Slots`."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import configure_log, setup_globals
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        from attnlab.config.engine import Task
        from attnlab.studies.slots import Slots
        from attnlab.studies.workers import Job, Workers, fail, say

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        state, gpus = Singleton.get_state(), self._gpus(job_overrides)
        slots = Slots(gpus, self.n_jobs, self.runs_per_device)
        if str(slots) != self.said:  # a search launches again and again
            self.said = str(slots)
            say(self.said)

        def job(number: int, words: Sequence[str], takes: int) -> Job:
            named = [word for word in words if word.startswith(("cell=", "seed="))]
            # What the run's own words, or its study's, say of threads comes after it.
            given = [f"trainer.threads={slots.threads}", *words]
            of_job = partial(execute_job, number, given, self.hydra_context, self.config)
            return Job(
                name=" ".join(named or words).replace('"', ""),
                train=partial(of_job, self.task_function, state),
                give_up=lambda reason: partial(of_job, Task(partial(fail, reason)), state),
                gpus=takes,
            )

        return Workers(list(map(job, count(initial_job_idx), job_overrides, gpus)), _failed, slots).run()

    def _gpus(self, jobs: Sequence[Sequence[str]]) -> list[int]:
        """How many GPUs each job takes: composed once for those whose words say the same of the trainer."""
        from attnlab.studies.slots import gpus, gpus_of

        # Words of other parts say nothing of it; a folder of the user's own may have groups that do.
        others = self.config.keys() - {"trainer", "hydra"}

        @cache
        def of_words(*words: str) -> int:
            loader = self.hydra_context.config_loader
            return gpus_of((loader.load_sweep_config(self.config, [*words]) if words else self.config).trainer)

        def about_trainer(word: str) -> bool:
            return re.split("[.@/=]", word.lstrip("+~"))[0] not in others

        return [of_words(*filter(about_trainer, job)) for job in jobs] if gpus() else [0] * len(jobs)


def _failed(error: Exception) -> JobReturn:
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    return result
