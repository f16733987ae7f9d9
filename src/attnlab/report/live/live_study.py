"""Studies that are followed while they run: the pages of `attnlab report` with a line that says how live they are, the
list of studies, or what is wrong where nothing can be shown."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from markupsafe import Markup

from attnlab.analysis.across import Tasks, aggregate_of, compare_tasks
from attnlab.analysis.across_words import sentences
from attnlab.analysis.comparison import Comparison, compare, parts_of_study
from attnlab.analysis.headline import best_sentence
from attnlab.analysis.reader import Study, StudyReader
from attnlab.report.across import SCRIPTS as OF_TASKS
from attnlab.report.across import across_body
from attnlab.report.document import POLICY, document, part, resource, script
from attnlab.report.page import SCRIPTS, body, scripts
from attnlab.report.page_data import PageData, page_data
from attnlab.training.run_directory import METRICS, STATUS

T = TypeVar("T")

PAUSE_SECONDS = 1.0
SHARE = 0.5  # of the time at most is spent on making one thing anew
RENDERING = threading.Lock()  # one page at a time, so that sweeps beside keep their processors
LIVE_POLICY = f"{POLICY}; connect-src 'self'"
ORDER = ("finished", "running", "failed", "diverged", "interrupted", "missing")
ICON = Markup('<link rel="icon" href="data:,">')  # browsers would ask for one otherwise

macro = partial(part, "live.html")


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
    """Why a study cannot be shown, in a sentence."""

    sentence: str


@dataclass(frozen=True)
class Shown:
    """What is shown of a study or of the list of them: the page without its scripts, since when it says so. The version
    is the same for the same content, also after the server was started anew. tasks: of a study across its tasks the
    pages of these, by number."""

    content: str
    version: str
    since: float
    study: Study | None = None
    tasks: Mapping[str, Shown] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        content: str,
        before: Shown | Trouble | None,
        study: Study | None = None,
        tasks: Mapping[str, Shown] | None = None,
    ) -> Shown:
        """The content that takes the place of what was shown before."""
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        since = before.since if isinstance(before, Shown) and before.version == version else time.time()
        return cls(content, version, since, study, tasks or {})


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
        if isinstance(before, Shown) and before.study and is_same(before.study, study):
            return before
        try:
            study.curves  # noqa: B018  read here: who waits for a disk must not keep the other studies waiting
            if study.across is not None:
                return _shown_tasks(study, before)
            with RENDERING:
                comparison = compare(parts_of_study(study)[0])
            data = page_data(comparison, root="run")
            with RENDERING:
                return Shown.make(study_content(comparison, data), before, study)
        except Exception as error:
            return unexpected(self.path.name, error)


def _shown_tasks(study: Study, before: Shown | Trouble | None) -> Shown:
    """The page over all tasks, with that of each one."""
    with RENDERING:
        found = compare_tasks(study)
    earlier = before.tasks if isinstance(before, Shown) else {}
    tasks = {}
    for number, task in enumerate(found.tasks, start=1):
        data = page_data(task, root="../../run")
        with RENDERING:
            tasks[str(number)] = Shown.make(study_content(task, data), earlier.get(str(number)), study)
    with RENDERING:
        return Shown.make(tasks_content(found, [f"task/{number}/" for number in tasks]), before, study, tasks)


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
        found = self._find()
        with self._adding:
            for name, path in found.items():
                self._followed.setdefault(name, FollowedStudy(path, self._pause))
            return {name: self._followed[name] for name in found}


@dataclass(frozen=True)
class Overview:
    """What a list says of a study. key: its name in addresses; counts: its runs by state; changed: when its files
    changed last, in seconds since the epoch; trouble: why it cannot be read."""

    key: str
    name: str
    question: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    changed: float = 0.0
    best: str = ""
    trouble: str = ""

    @property
    def address(self) -> str:
        return quote(self.key, safe="")

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.changed, UTC)

    @property
    def progress(self) -> str:
        """ "2 of 12 runs finished, 1 running": what is not there yet is the rest."""
        others = [f"{n} {state}" for state, n in self.counts.items() if state not in ("finished", "missing")]
        total = sum(self.counts.values())
        finished = f"{self.counts.get('finished', 0)} of {total} run{'' if total == 1 else 's'} finished"
        return ", ".join([finished, *others])


def overview_of(key: str, study: Study) -> Overview:
    if study.across is not None:
        best = sentences(aggregate_of(study))[0]
    else:
        comparison = compare(parts_of_study(study)[0])
        best = " ".join(best_sentence(comparison)) if comparison.metric and comparison.measured else ""
    found = Counter(run.state for run in study.runs.values())
    counts = {
        state: found[state] for state in sorted(found, key=lambda s: ORDER.index(s) if s in ORDER else len(ORDER))
    }
    return Overview(key, study.name, study.question, counts, last_change(study), best)


def last_change(study: Study) -> float:
    """When the newest of the files that the comparison reads was written; 0 where there is none."""
    newest = 0.0
    places = [run.directory for run in study.runs.values() if run.state != "missing"]
    for path in (study.path / "plan.json", *(place / name for place in places for name in (STATUS, METRICS))):
        with contextlib.suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def study_content(comparison: Comparison, data: PageData) -> str:
    """A study's page without its scripts: what is fetched anew when something has changed."""
    return _document(f"{comparison.study.name} - attnlab", [body(comparison, data)])


def tasks_content(found: Tasks, pages: Sequence[str]) -> str:
    """The page of a study across its tasks without its scripts; pages: the addresses of those of its tasks."""
    return _document(f"{found.study.name} - attnlab", [across_body(found, pages)])


def index_content(overviews: Sequence[Overview]) -> str:
    running = sum("running" in overview.counts for overview in overviews)
    facts = f"{len(overviews)} {'study' if len(overviews) == 1 else 'studies'}, {running or 'none'} running"
    main = macro("section", "studies", macro("studies", overviews), "Studies")
    return _document("Studies - attnlab", [macro("header", "attnlab", "Studies", facts), main], has_back=False)


def trouble_content(sentence: str) -> str:
    """A page that says why there is nothing to see."""
    main = macro("section", "trouble", macro("paragraph", sentence))
    return _document("attnlab", [macro("header", "attnlab", "Nothing to show"), main])


def run_content(study: str, path: str, names: Sequence[str]) -> str:
    """A run's directory: the study it belongs to, and the files of it that are there."""
    main = macro("section", "files", macro("files", [(name, quote(name)) for name in names]))
    return _document(f"{path} - attnlab", [macro("header", study, path), main])


def _document(title: str, parts: Sequence[Markup], has_back: bool = True) -> str:
    return document(title, [*parts, macro("status", has_back)], ("page.css", "live/live.css"), LIVE_POLICY, ICON)


def with_scripts(content: str, version: str, every: float, has_charts: bool = True, of_tasks: bool = False) -> str:
    """The whole page, which asks for a newer version `every` so many seconds. What asks runs first; of_tasks: it is
    that over all tasks of a study."""
    start, end, rest = content.rpartition("</body>")
    settings = json.dumps({"version": version, "every": every})
    follow = script(resource("live/live.js").replace("SETTINGS = {}", f"SETTINGS = {settings}", 1))
    return "".join([start, follow, *(_page_scripts(of_tasks) if has_charts else []), end, rest])


@cache
def _page_scripts(of_tasks: bool) -> list[Markup]:
    return scripts(True, OF_TASKS if of_tasks else SCRIPTS)
