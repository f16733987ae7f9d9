"""Something costly that many ask for: it is made when somebody asks, for all of them at once, and never more often than it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 1.0
SHARE = 0.5  # of the time at most is spent on making one thing anew


class Kept(Generic[T]):
    """Keeps what `make` returns; `make` is given what was kept before (None at first). What it raises, all who ask are given.

    At least `pause` seconds lie between two makings, and so many that they take half of the time at most.
    """

    def __init__(
        self, make: Callable[[T | None], T], pause: float = PAUSE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make, self._pause, self._clock = make, pause, clock
        self._value: T | None = None
        self._due = -float("inf")
        self._state = threading.Condition()
        self._is_making = False
        self._error: Exception | None = None

    def get(self, patience: float | None = None) -> T:
        """The newest value. One that is due is waited for, at most for `patience` seconds (None: to the end); the first always to the end.

        Raises: what the last making raised.
        """
        with self._state:
            if not self._is_making and self._clock() >= self._due:
                self._is_making = True
                threading.Thread(target=self._renew, name="kept", daemon=True).start()
            self._state.wait_for(lambda: not self._is_making, patience if self._value is not None else None)
            if self._error is not None:
                raise self._error
            assert self._value is not None
            return self._value

    def _renew(self) -> None:
        started, value, error = self._clock(), self._value, None
        try:
            value = self._make(value)
        except Exception as caught:
            error = caught
        with self._state:
            ended = self._clock()
            self._due = ended + max(self._pause, (ended - started) * (1 / SHARE - 1))
            self._value, self._error, self._is_making = value, error, False
            self._state.notify_all()
