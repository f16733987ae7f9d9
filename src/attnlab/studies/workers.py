"""Worker processes of a launch on this machine: each trains one run at a time, on GPUs of its own, and dies alone.

A pool is lost, with all that it trains, when the system kills one of its processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle

from attnlab.config.compose import Composed
from attnlab.studies.slots import VISIBLE, Slots
from attnlab.training.processes import end_with_ancestors
from attnlab.training.run_directory import RunDirectory

RELAUNCHES = 2  # of a run whose process was killed
LOOK_SECONDS = 0.5
SERVER = multiprocessing.get_context("forkserver")
LOADED = ["attnlab.runs.run", "attnlab.tasks", "attnlab.data", "attnlab.studies.workers", "attnlab.studies.server"]
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
    """A process was killed; a run's, again and again."""


class Worker:
    """A process that does one thing after another; after it was killed, a new one does the next, on the same `gpus`.

    It begins where its imports are done: forked from a server that has loaded what trains, and touched no device.
    """

    def __init__(self) -> None:
        self.gpus: tuple[str, ...] = ()
        self._process: BaseProcess | None = None
        self._told: int | None = None

    def do(self, function: Callable[..., object], *arguments: object) -> object:
        """What `function` returns there. Raises what it raises, and Killed where the process is killed."""
        process = self._process = self._process or self._start()
        with contextlib.suppress(OSError):  # it was killed when it had nothing to do
            self._connection.send_bytes(cloudpickle.dumps((function, arguments)))
        if self._told is not None:  # meanwhile, when there was no process yet
            self.signal(self._told)
        wait_for([self._connection, process.sentinel])
        try:
            if not self._connection.poll():  # what it has started may hold the other end
                raise EOFError
            has_returned, answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            process.join()
            self.end()
            raise Killed(_signal_of(process.exitcode)) from None
        if not has_returned:
            raise answer
        return answer

    def _start(self) -> BaseProcess:
        # Before anything asks for a device there; ranks and loaders of data inherit it.
        sees = {VISIBLE: ",".join(self.gpus)} if self.gpus else {}
        get_ready()
        self._connection, theirs = SERVER.Pipe()
        process = SERVER.Process(target=_serve, args=(theirs, {**os.environ, **sees}))
        process.start()
        theirs.close()
        return process

    def signal(self, signum: int) -> None:
        """Sends the process a signal, now or as soon as there is one."""
        self._told = signum
        if self._process is not None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signum)

    def end(self, at_once: bool = False) -> None:
        """Ends the process, which has nothing left to do: in good order, which takes a while, or at once."""
        process, self._process = self._process, None
        if process is not None:
            if at_once:
                process.kill()
            self._connection.close()
            process.join()


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
        try:
            with _no_ctrl_c():
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
        except Killed as error:
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
        except Killed:  # not even this: the run's directory calls it interrupted
            job.result = self.failed(Killed(reason))

    def _why(self, error: Exception) -> str:
        before, self._memory_kills = self._memory_kills, _memory_kills()
        if self._memory_kills > before:
            return "the machine ran out of memory and its process was killed"
        return f"its process was killed ({error}), as it is when memory runs out"


def _wait(working: Sequence[Future[None]]) -> None:
    """Until all are done. A signal that another thread takes does not wake this one, where its handler has to run."""
    while wait(working, timeout=LOOK_SECONDS).not_done:
        pass


def fail(reason: str, composed: Composed) -> None:
    """Stands for a run that is not launched again: its status says why. Raises Killed."""
    RunDirectory(composed.run_dir).give_up(reason)
    raise Killed(reason)


def get_ready() -> None:
    """Has the processes' imports begin, beside what this one does meanwhile."""
    # Elsewhere there are libraries that do not outlast a fork: there each process imports for itself.
    SERVER.set_forkserver_preload(LOADED if sys.platform == "linux" else [])
    with _no_ctrl_c():
        forkserver.ensure_running()


def _serve(connection: Connection, environ: Mapping[str, str]) -> None:
    """Does in a worker's process what it is sent, until nothing more can come."""
    # A terminal sends Ctrl-C to all processes, of which the first tells the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environ)
    end_with_ancestors()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    with contextlib.suppress(EOFError):
        while sent := connection.recv_bytes():
            connection.send_bytes(_answer(sent))


def _answer(sent: bytes) -> bytes:
    """Whether a call returned, and what it returned or raised."""
    try:
        function, arguments = pickle.loads(sent)
        return bytes(cloudpickle.dumps((True, function(*arguments))))
    except BaseException as error:
        try:
            return bytes(cloudpickle.dumps((False, error)))
        except Exception:  # of one's own, with something in it that stays in its process
            return bytes(cloudpickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"))))


def _signal_of(status: int | None) -> str:
    with contextlib.suppress(ValueError, TypeError):
        return signal.Signals(-status).name  # type: ignore[operator]
    return f"exit status {status}"


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """What is started in it never has Ctrl-C: it would break into its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _memory_kills() -> int:
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0


def say(line: str) -> None:
    """Says a line of a launch."""
    print(f"attnlab: {line}", file=sys.stderr, flush=True)
