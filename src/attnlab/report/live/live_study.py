"""Studies that are followed while they run: what is shown of them, or what is wrong where nothing can be shown."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from attnlab.analysis.comparison import compare
from attnlab.analysis.partition import parts_of_study
from attnlab.analysis.reader import Study, StudyReader
from attnlab.report.live.pages import study_content
from attnlab.report.page_data import page_data

T = TypeVar("T")

PAUSE_SECONDS = 1.0
SHARE = 0.5  # of the time at most is spent on making one thing anew
RENDERING = threading.Lock()  # one page at a time, so that sweeps beside keep their processors


class Kept(Generic[T]):
    """Something costly that many ask for: made when somebody asks, for all at once, never more often than it takes.

    Keeps what `make` returns; `make` is given what was kept before (None at first). What it raises, all who ask are
    given.

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
        """The newest value. One that is due is waited for, for `patience` seconds (None, and the first: to the end).

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


@dataclass(frozen=True)
class Trouble:
    """Why a study cannot be shown, in one sentence."""

    sentence: str


@dataclass(frozen=True)
class Shown:
    """What is shown of a study: the page without its scripts. The version changes exactly where the content does."""

    study: Study
    content: str
    version: str
    since: float

    @classmethod
    def make(cls, study: Study, content: str) -> Shown:
        """Content of which the version is not known yet."""
        return cls(study, content, version_of(content), time.time())


def version_of(content: str) -> str:
    """A text's version: the same for the same text, also after the server was started anew."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class FollowedStudy:
    """One study: read when somebody asks, rendered when something has changed, for everybody at once."""

    def __init__(self, path: Path, pause: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._reader = StudyReader(path)
        self.study: Kept[Study | Trouble] = Kept(self._read, pause, clock)
        self.shown: Kept[Shown | Trouble] = Kept(self._show, pause, clock)

    def _read(self, before: Study | Trouble | None) -> Study | Trouble:
        try:
            return self._reader.read()
        except ValueError as error:
            if not self.path.is_dir():
                return Trouble(f"The study {self.path.name} is not there any more.")
            return Trouble(f"The study {self.path.name} cannot be read: {error}")
        except Exception as error:
            return unexpected(self.path.name, error)

    def _show(self, before: Shown | Trouble | None) -> Shown | Trouble:
        study = self.study.get()
        if isinstance(study, Trouble):
            return study
        if isinstance(before, Shown) and is_same(before.study, study):
            return before
        try:
            study.curves  # noqa: B018  read here: who waits for a disk must not keep the other studies waiting
            with RENDERING:
                comparison = compare(parts_of_study(study)[0])
            data = page_data(comparison, root="run")
            with RENDERING:
                now = Shown.make(study, study_content(comparison, data))
        except Exception as error:
            return unexpected(self.path.name, error)
        if isinstance(before, Shown) and before.version == now.version:
            return Shown(study, before.content, before.version, before.since)
        return now


def unexpected(name: str, error: Exception) -> Trouble:
    """A study whose files hold what nobody thought of must not take the others with it."""
    what = f"{type(error).__name__}: {error}"
    return Trouble(f"The study {name} cannot be shown: {what} (attnlab --traceback report {name} shows where)")


def is_same(before: Study, now: Study) -> bool:
    """Whether two readings say the same, curves too: files just written are read again in case that more has come."""
    return before is now or (before == now and before.curves.equals(now.curves))


class Shelf:
    """The studies that are served, by the name in their address. `find` says which there are now: {name: directory}."""

    def __init__(self, find: Callable[[], Mapping[str, Path]], pause: float = 1.0) -> None:
        self._find, self._pause = find, pause
        self._followed: dict[str, FollowedStudy] = {}
        self._adding = threading.Lock()

    def get(self, name: str) -> FollowedStudy | None:
        """The study of that name, which was there at some time; None for a name that no study has."""
        return self._followed.get(name) or self.all().get(name)

    def all(self) -> dict[str, FollowedStudy]:
        """Every study that is there now."""
        found = self._find()
        with self._adding:
            for name, path in found.items():
                self._followed.setdefault(name, FollowedStudy(path, self._pause))
            return {name: self._followed[name] for name in found}
