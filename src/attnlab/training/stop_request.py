"""The wish that a training saves at the end of its optimizer step and stops: by a signal, or by a call."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_SECONDS = 0.5  # one Ctrl-C comes twice: from the terminal, and passed on by whoever started this process


class Interrupted(SystemExit):
    """A signal has ended what was under way; the exit status is the shell's for it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __reduce__(self) -> tuple[Any, ...]:
        """So that a worker can hand it on."""
        return type(self), (self.signum,)

    def __str__(self) -> str:
        return "interrupted; the same command goes on from here"


class Stopped(Interrupted):
    """A training that has saved and stopped because it was asked to."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(signum)
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        """As of any interruption, with the step."""
        return type(self), (self.signum, self.step)

    def __str__(self) -> str:
        return f"saved at step {self.step} and stopped by {signal.Signals(self.signum).name}; the same command goes on from here"


def leave(signum: int, frame: object = None) -> None:
    """A signal's handler that ends what is under way, so that it can say so and clean up. Raises Interrupted."""
    raise Interrupted(signum)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """In it, SIGTERM and Ctrl-C raise Interrupted, unless somebody waits for them. Only a process's main thread can."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                before[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopRequest:
    """
    Keeps Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 until the training has saved; a second Ctrl-C ends it at once.

    Then whoever had the signal before gets it (submitit's handler requeues the job and exits), and where it returns the training goes
    on; where nobody had it, the training stops. A signal that was ignored stays ignored. `request` asks the same without a signal.
    `say` is told at the first Ctrl-C what it will do.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.signum: int | None = None
        self._say = say
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self.signum is not None

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Asks to save at the end of the present optimizer step and to stop."""
        if self.signum is None:
            self.signum, self._asked_at = signum, time.monotonic()

    def remember(self) -> None:
        """Notes who has the signals now, which is who gets them after the saving."""
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def listen(self) -> None:
        """Takes over the signals; Lightning gives them back when the training ends. Only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if self._before.get(signum) is not signal.SIG_IGN:
                    signal.signal(signum, self._hear)

    def _hear(self, signum: int, frame: object) -> None:
        if self.signum is None:
            self.request(signum)
            if signum == signal.SIGINT:
                self._say("stopping when this step has ended and is saved; Ctrl-C again stops at once")
        elif signum == signal.SIGINT and time.monotonic() - self._asked_at > PATIENCE_SECONDS:
            raise Interrupted(signum)

    def obey(self, step: int) -> None:
        """Once the training has saved: hands the signal on, or raises Stopped."""
        signum, self.signum = self.signum or signal.SIGTERM, None
        before = self._before.get(signum)
        if not callable(before) or before in (leave, signal.default_int_handler):
            raise Stopped(signum, step)
        before(signum, None)
