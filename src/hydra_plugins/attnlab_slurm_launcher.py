"""The launcher behind hydra/launcher=slurm: hydra-submitit-launcher's, which can also submit and come back."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges

LOOK_AGAIN_SECONDS = 0.5


class SlurmFields(TypedDict, total=False):
    """The numbers among the fields of conf/hydra/launcher/slurm.yaml."""

    timeout_min: PositiveInt
    array_parallelism: PositiveInt
    signal_delay_s: PositiveInt
    max_num_timeout: NonNegativeInt
    cpus_per_task: PositiveInt | None
    gpus_per_node: NonNegativeInt | None
    mem_gb: PositiveFloat | None


class SlurmLauncher(submitit_launcher.SlurmLauncher):  # type: ignore[misc]
    """Hydra launcher on Slurm. Requeue has one owner, submitit: a time limit is SIGUSR2, a preemption SIGTERM."""

    @check_ranges
    def __init__(self, **params: Unpack[SlurmFields]) -> None:
        super().__init__(**params)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs and waits for them. Raises: UsageError in Slurm's own words where it takes none."""
        return [job.results()[0] for job in self._submitted(job_overrides, initial_job_idx)]

    def submit(self, job_overrides: Sequence[Sequence[str]]) -> list[str]:
        """Submits the jobs, several as one array, and returns Slurm's ids. Raises: UsageError as `launch`."""
        return [job.job_id for job in self._submitted(job_overrides, 0)]

    def _submitted(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        import submitit

        params = dict(self.params)
        folder, timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder=folder, cluster=self._EXECUTOR, slurm_max_num_timeout=timeouts)
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(**{n if n in shared else f"{self._EXECUTOR}_{n}": v for n, v in params.items()})
        state = Singleton.get_state()
        jobs = [
            (list(o), "hydra.sweep.dir", i, f"job_id_for_{i}", state) for i, o in enumerate(job_overrides, start=first)
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it prints what it raises
                return list(executor.map_array(self, *zip(*jobs, strict=True)))
        except submitit.core.utils.FailedJobError as error:
            from attnlab.config import UsageError

            raise UsageError(f"Slurm refused the jobs: {str(error).strip()}") from None

    def __call__(self, *arguments: object) -> JobReturn:
        """One job, on a node. At Slurm's signals a training saves at the end of its step, then others get them."""
        # submitit lets SIGTERM pass, with which Slurm announces that it requeues or cancels a job: what trained on
        # would be lost.
        signal.signal(signal.SIGTERM, _Leave(signal.getsignal(signal.SIGUSR2)))
        done: JobReturn = super().__call__(*arguments)
        return done


class _Leave:
    """Ends the process at SIGTERM, and where Slurm preempts the job, has submitit's handler `requeue` it before."""

    def __init__(self, requeue: object) -> None:
        self.requeue, self.is_leaving = requeue, False

    def __call__(self, signum: int, frame: object) -> None:
        if self.is_leaving:  # Slurm signals what it requeues, which must not break into the way out
            return
        self.is_leaving = True
        # Slurm requeues a preempted job only if it outlasts its grace time: one that leaves before has failed, and
        # would stay away.
        if callable(self.requeue) and _is_preempted():
            self._requeued(frame)
        raise SystemExit(128 + signum)

    def _requeued(self, frame: object) -> None:
        from submitit.core.utils import UncompletedJobError

        assert callable(self.requeue)
        # What may not be requeued is left as it was saved: it has not failed.
        with contextlib.suppress(subprocess.SubprocessError, OSError, UncompletedJobError):
            self.requeue(signal.SIGUSR2, frame)
            # It returned, so the first rank requeues, which must not lose its step by another's end.
            while _is_preempted():
                time.sleep(LOOK_AGAIN_SECONDS)


def _is_preempted() -> bool:
    from attnlab.studies.cluster import NoAnswer, is_being_preempted
    from attnlab.training.processes import slurm_job

    try:
        return is_being_preempted(str(slurm_job()))
    except NoAnswer:
        return False
