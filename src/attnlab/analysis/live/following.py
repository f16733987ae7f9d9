"""Studies that are followed while they run: what of them is shown, its version, and what is wrong where nothing can be shown."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from attnlab.analysis.comparison import compare
from attnlab.analysis.live.kept import Kept
from attnlab.analysis.live.live_page import study_content
from attnlab.analysis.partition import parts_of_study
from attnlab.analysis.reader import Study, StudyReader
from attnlab.analysis.report.charts import chart_data

RENDERING = threading.Lock()  # one page at a time, so that sweeps beside keep their processors


@dataclass(frozen=True)
class Trouble:
    """Why a study cannot be shown, in one sentence."""

    sentence: str


@dataclass(frozen=True)
class Shown:
    """What is shown of a study: the page's content without its scripts. The version changes exactly where the content does."""

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
    """One study: read when somebody asks, rendered when something has changed, for everybody at once and never more often than it takes."""

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
            data = chart_data(comparison, root="run")
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
    """Whether two readings say the same, curves included: files just written are read again in case that more has come."""
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
