"""Worker processes of a launch on this machine: each trains one run at a time, on GPUs of its own, and dies alone.

A pool of joblib's is lost, with all that it trains, when the system kills one of its processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from attnlab.config.compose import Composed
from attnlab.studies.slots import VISIBLE, Slots
from attnlab.training.processes import end_with_ancestors
from attnlab.training.run_directory import RunDirectory

RELAUNCHES = 2  # of a run whose process was killed
LOOK_SECONDS = 0.5
FIRST_TO_GO = "900"  # of 1000: when memory runs out, the system ends this process and not another


@dataclass
class Job:
    """One run of a launch: what a worker calls to train it, or to say why it is given up; how often it was killed.

    gpus: how many it takes.
    """

    name: str
    train: Callable[[], object]
    give_up: Callable[[str], Callable[[], object]]
    gpus: int = 0
    kills: int = 0
    result: object = None


class Killed(RuntimeError):
    """A run's process was killed again and again."""


class Worker:
    """A process that does one thing after another; after it was killed, a new one does the next, on the same `gpus`."""

    def __init__(self) -> None:
        self.gpus: tuple[str, ...] = ()
        self._pool: ProcessPoolExecutor | None = None
        self._told: int | None = None

    def do(self, function: Callable[..., object], *arguments: object) -> object:
        """What `function` returns there. Raises what it raises, and BrokenProcessPool where the process is killed."""
        # Before anything is imported there; ranks and loaders of data inherit it.
        sees = {VISIBLE: ",".join(self.gpus)} if self.gpus else {}
        self._pool = self._pool or ProcessPoolExecutor(1, initializer=_begin, env=sees)
        try:
            doing = self._pool.submit(function, *arguments)
            if self._told is not None:  # meanwhile, when there was no process yet
                self.signal(self._told)
            return doing.result()
        except BrokenProcessPool:
            self.end()
            raise

    def signal(self, signum: int) -> None:
        """Sends the process a signal, now or as soon as there is one."""
        self._told = signum
        for pid in list(self._pool._processes or ()) if self._pool else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def end(self, at_once: bool = False) -> None:
        """Ends the process, which has nothing left to do: in good order, which takes a while, or at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(kill_workers=at_once)


class Workers:
    """Trains the jobs of a launch in its slots; `failed` makes the result of one that returned none."""

    def __init__(self, jobs: Sequence[Job], failed: Callable[[Exception], object], slots: Slots) -> None:
        self.jobs, self.failed, self.slots = list(jobs), failed, slots
        self._waiting = deque(self.jobs)
        self._changed = threading.Condition()  # what waits, and what is free
        self._workers: list[Worker] = []
        self._is_stopping = False
        self._memory_kills = _memory_kills()

    def run(self) -> list[Any]:
        """Trains all jobs and returns what came of each.

        A run whose process is killed is launched again after the others, RELAUNCHES times. What interrupts this is
        passed on to the workers, which save before they end; interrupted again, it ends them at once.
        """
        self._workers = [Worker() for _ in range(self.slots.at_once)]
        with ThreadPoolExecutor(len(self._workers)) as threads:
            working = [threads.submit(self._work, worker) for worker in self._workers]
            try:
                _wait(working)
            except BaseException:
                self._stop(working)
                raise
        for one in working:
            one.result()
        return [job.result for job in self.jobs if job.result is not None]

    def _stop(self, working: Sequence[Future[None]]) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        say("stopping when the runs under way have saved; Ctrl-C again stops at once")
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
        try:
            _wait(working)
        except BaseException:
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
            raise

    def _work(self, worker: Worker) -> None:
        if hasattr(signal, "pthread_sigmask"):  # which a process inherits: Ctrl-C would break into its imports
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while job := self._next(worker):
                self._train(job, worker)
        finally:
            self._leave(worker)

    def _next(self, worker: Worker) -> Job | None:
        """The job whose turn it is, when a worker has the GPUs for it; None when nothing is left to begin.

        A worker keeps its GPUs, and its process, from one job to the next that takes as many.
        """
        with self._changed:
            if not self._is_left() or self._waiting[0].gpus == len(worker.gpus):
                return self._waiting.popleft() if self._is_left() else None
        self._leave(worker)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_left() or self.slots.has(self._waiting[0].gpus))
            if not self._is_left():
                return None
            job = self._waiting.popleft()
            worker.gpus = self.slots.take(job.gpus)
            self._changed.notify_all()  # it is another's turn
            return job

    def _is_left(self) -> bool:
        return bool(self._waiting) and not self._is_stopping

    def _leave(self, worker: Worker) -> None:
        """Ends a worker's process, and only then leaves its GPUs to others."""
        worker.end(at_once=self._is_stopping)
        with self._changed:
            self.slots.give_back(worker.gpus)
            worker.gpus = ()
            self._changed.notify_all()

    def _train(self, job: Job, worker: Worker) -> None:
        try:
            job.result = worker.do(job.train)
        except BrokenProcessPool as error:
            if not self._is_stopping:
                self._relaunch(job, worker, error)
        except SystemExit as error:  # it was told to stop, and saved: by this process, or it alone
            job.result = self.failed(RuntimeError(str(error)))

    def _relaunch(self, job: Job, worker: Worker, error: Exception) -> None:
        job.kills += 1
        why = self._why(error)
        if job.kills <= RELAUNCHES:
            say(f"{job.name}: {why}; it is launched again after the others")
            with self._changed:
                self._waiting.append(job)
                self._changed.notify_all()
            return
        need = "it may need smaller batches, or fewer runs at a time (hydra.launcher.n_jobs)"
        reason = f"{why}, {job.kills} times; {need}"
        try:
            job.result = worker.do(job.give_up(reason))
        except BrokenProcessPool:  # not even this: the run's directory calls it interrupted
            job.result = self.failed(Killed(reason))

    def _why(self, error: Exception) -> str:
        before, self._memory_kills = self._memory_kills, _memory_kills()
        if self._memory_kills > before:
            return "the machine ran out of memory and its process was killed"
        codes = str(error).rpartition("{")[2].partition("}")[0]
        return f"its process was killed ({codes or 'no exit code'}), as it is when memory runs out"


def _wait(working: Sequence[Future[None]]) -> None:
    """Until all are done. A signal that another thread takes does not wake this one, where its handler has to run."""
    while wait(working, timeout=LOOK_SECONDS).not_done:
        pass


def fail(reason: str, composed: Composed) -> None:
    """Stands for a run that is not launched again: its status says why. Raises Killed."""
    RunDirectory(composed.run_dir).give_up(reason)
    raise Killed(reason)


def _begin() -> None:
    # A terminal sends Ctrl-C to all processes, of which the first tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_ancestors()
    # loky makes its own way of starting processes the usual one, which ranks and loaders of data do not know.
    multiprocessing.set_start_method(None, force=True)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _memory_kills() -> int:
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def say(line: str) -> None:
    """Says a line of a launch."""
    print(f"attnlab: {line}", file=sys.stderr, flush=True)
