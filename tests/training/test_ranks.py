"""Who starts the processes of a run, and that they act as one."""

import signal

import pytest
from tests.processes import ranks_from_server

from attnlab.training import Ranks, TrainerSettings, ranks


def test_one_process_is_alone_and_decides_for_itself():
    alone = ranks.join(TrainerSettings())
    done = []
    alone.first_on_each_node(lambda: done.append("once"))
    assert (alone, alone.decide(lambda: 3), done) == (Ranks(), 3, ["once"])
    assert not ranks.are_missing(TrainerSettings())


def test_a_rank_that_is_alone_lets_errors_through():
    with pytest.raises(KeyError):
        Ranks().decide({}.popitem)


def test_several_devices_are_started_here_unless_slurm_has_started_them(monkeypatch):
    two = TrainerSettings(devices=2)
    assert ranks.are_missing(two)
    monkeypatch.setenv("SLURM_JOB_NAME", "batch")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert ranks.are_missing(two)  # a batch script
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert ranks.are_missing(two)  # a single task
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert not ranks.are_missing(two)
    environment = ranks.cluster_environment(two)
    assert not environment.auto_requeue  # the launcher requeues
    assert not ranks.are_missing(TrainerSettings())


def test_several_nodes_are_not_started_from_here():
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2: several nodes are started by Slurm"):
        ranks.are_missing(TrainerSettings(num_nodes=2))


def test_another_number_of_processes_than_devices_is_refused(monkeypatch):
    for name, value in {"JOB_NAME": "batch", "STEP_ID": "0", "NTASKS": "4", "NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match=r"4 processes were started for trainer.devices=2 on trainer.num_nodes=1"):
        ranks.join(TrainerSettings(devices=2))


def test_a_signal_that_somebody_waits_for_is_left_to_them():
    before = signal.signal(signal.SIGUSR2, lambda *_: None)  # as submitit does
    try:
        names = [signum.name for signum in ranks._signals()]
        assert names == ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"]
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ranks._signals()[-1] is signal.SIGUSR2


def failing(message: str) -> None:
    raise ValueError(message)


@pytest.mark.slow
def test_what_ends_a_rank_is_what_the_run_ends_with_and_signals_are_whose_they_were():
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in taken]
    with ranks_from_server(), pytest.raises(RuntimeError, match=r"rank [01]: ValueError: no such thing"):
        ranks.start(TrainerSettings(devices=2, device="cpu"), failing, "no such thing")
    assert [signal.getsignal(number) for number in taken] == before
