"""The ranks of a run: one process a device, started by Slurm's srun, by torchrun, or from here.

The first rank owns the run's directory and decides for all; the others train with it and write nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from attnlab.training.processes import Interrupted
from attnlab.training.trainer import TrainerSettings, cluster_environment

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among those of a run; alone where there is no group."""

    rank: int = 0
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    def decide(self, decision: Callable[[], T]) -> T:
        """What `decision` gives on the first rank, on every rank. Raises what it raises, elsewhere RuntimeError."""
        if self.group is None:
            return decision()
        told: list[tuple[T | None, str]] = [(None, "")]
        try:
            if self.rank == 0:
                told = [(decision(), "")]
        except Exception as error:
            told = [(None, f"{type(error).__name__}: {error}")]
            raise
        finally:
            dist.broadcast_object_list(told, src=0, group=self.group)
        value, failure = told[0]
        if failure:
            raise RuntimeError(f"the first rank failed: {failure}")
        return value  # type: ignore[return-value]

    def first_on_each_node(self, action: Callable[[], object]) -> None:
        """Does `action` on one rank of each node, then on the others, which find it done."""
        if self.local_rank == 0:
            action()
        if self.group is not None:
            dist.barrier(group=self.group)
            if self.local_rank != 0:
                action()


def are_missing(settings: TrainerSettings) -> bool:
    """Whether a run with these settings has several ranks, and nobody has started them. Raises ValueError where they
    are on several nodes."""
    if cluster_environment(settings) is not None:
        return False
    if settings.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={settings.num_nodes}: several nodes are started by Slurm; train with `attnlab train -m "
            "... hydra/launcher=slurm`, or under `srun --nodes=N --ntasks-per-node=D` with D equal to trainer.devices"
        )
    return True


def join(settings: TrainerSettings) -> Ranks:
    """Meets the other ranks of this run and returns this one. Raises ValueError where another number was started."""
    if settings.world_size == 1:
        return Ranks()
    environment = cluster_environment(settings)
    assert environment is not None, "the ranks of this run have not been started"
    wanted, started = settings.world_size, environment.world_size()
    if started != wanted:
        raise ValueError(
            f"{started} processes were started for trainer.devices={settings.devices} on "
            f"trainer.num_nodes={settings.num_nodes}, which needs {wanted}: one process a device"
        )
    if not dist.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "nccl" if settings.device_type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=environment.global_rank(), world_size=started)
    # Decisions are objects on the CPU, whatever the tensors are on.
    group = dist.new_group(backend="gloo")
    return Ranks(environment.global_rank(), environment.local_rank(), group)


def start(settings: TrainerSettings, function: Callable[..., object], *arguments: object) -> None:
    """Calls an importable function in `settings.devices` new processes of this machine, each a rank, and waits for
    them. They end together: where one fails, the others are stopped. Raises RuntimeError with the first one's error."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    before = {signum: signal.getsignal(signum) for signum in _signals()}
    for name in list(logging.root.manager.loggerDict):  # what they say, the run says in its own words
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=settings.devices,
        run_id=f"attnlab-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(signum.name for signum in before),
    )
    try:
        elastic_launch(config, _recorded)(function, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        said = failure.message if isinstance(failure.message, str) else failure.message.get("message", "")
        raise RuntimeError(f"rank {rank}: {said.strip().splitlines()[-1]}") from None
    except SignalException as error:
        raise Interrupted(error.sigval) from None
    finally:  # torch's launcher keeps the signals that it took, in the thread that may take them
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _signals() -> list[signal.Signals]:
    """What is passed on to the ranks, which save before they stop: torch's own, and those nobody else waits for."""
    free = [signum for signum in (signal.SIGUSR1, signal.SIGUSR2) if signal.getsignal(signum) is signal.SIG_DFL]
    return [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, *free]


def _recorded(function: Callable[..., object], *arguments: object) -> None:
    """In a new rank: keeps the error for the process that started it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(function)(*arguments)
