"""The wish that a training saves at the end of its optimizer step and stops: by a signal, or by a call."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(SystemExit):
    """A training that has saved and stopped because it was asked to; the exit status is the shell's for the signal."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(128 + signum)
        self.signum, self.step = signum, step

    def __str__(self) -> str:
        return f"saved at step {self.step} and stopped by {signal.Signals(self.signum).name}; the same command goes on from here"


class StopRequest:
    """
    Keeps SIGTERM, SIGUSR1 and SIGUSR2 until the training has saved.

    Then whoever had the signal before gets it (submitit's handler requeues the job and exits), and where it returns the training goes
    on; where nobody had it, the training stops. A signal that was ignored stays ignored. `request` asks the same without a signal.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self.signum is not None

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Asks to save at the end of the present optimizer step and to stop."""
        self.signum = signum

    def remember(self) -> None:
        """Notes who has the signals now, which is who gets them after the saving."""
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def listen(self) -> None:
        """Takes over the signals; Lightning gives them back when the training ends. Only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if self._before.get(signum) is not signal.SIG_IGN:
                    signal.signal(signum, lambda number, frame: self.request(number))

    def obey(self, step: int) -> None:
        """Once the training has saved: hands the signal on, or raises Stopped."""
        signum, self.signum = self.signum or signal.SIGTERM, None
        before = self._before.get(signum)
        if not callable(before):
            raise Stopped(signum, step)
        before(signum, None)
