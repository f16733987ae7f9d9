"""Which address shows what. Names in addresses are looked up among the known studies and go nowhere else."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from attnlab.report.live.live_study import (
    LIVE_POLICY,
    FollowedStudy,
    Kept,
    Overview,
    Shelf,
    Shown,
    Trouble,
    index_content,
    overview_of,
    run_content,
    trouble_content,
    unexpected,
    with_scripts,
)
from attnlab.report.run_data import path_of
from attnlab.training.run_directory import LOG, METRICS, OUTPUTS, RUN, SAMPLES, STATUS, NotOfTheRun, open_to_read

PATIENCE_SECONDS = 0.4  # what a question for the state waits for a rendering that is under way
FILES = (RUN, STATUS, METRICS, LOG, f"{OUTPUTS}/{SAMPLES}")  # of a run, as plain text, and nothing else
MOST_BYTES = 16_000_000
HTML, JSON, TEXT = ("text/html", "application/json", "text/plain")


@dataclass(frozen=True)
class Answer:
    """An answer to a request. location: the way of a redirection; version: the content's; cookie: one to set."""

    status: int
    kind: str
    body: str
    location: str = ""
    version: str = ""
    cookie: str = ""

    @property
    def policy(self) -> str:
        return LIVE_POLICY if self.kind == HTML else "default-src 'none'"


NOTHING = Answer(404, HTML, trouble_content("There is no such study or page here."))


class Answers:
    """The list of studies at /, every study at /study/NAME/, its tasks at /study/NAME/task/N/, and beside each its
    state (JSON) and its content (the page without scripts); the files of a run at /study/NAME/run/CELL/seed=N/."""

    def __init__(self, shelf: Shelf, pause: float = 1.0) -> None:
        self._shelf = shelf
        self._every = max(0.2, 2 * pause)  # seconds between two questions of a page
        self._index: Kept[Shown] = Kept(self._list, pause)

    def to(self, path: str) -> Answer:
        """The answer to a request for `path`, as it stands in the request."""
        parts = [unquote(part) for part in path.split("/")[1:]]
        if len(parts) == 1 and parts[0] in ("", "state", "content"):
            return self._of_index(parts[0])
        if len(parts) > 1 and parts[0] == "study" and (followed := self._shelf.get(parts[1])):
            if len(parts) == 2:
                return Answer(308, TEXT, "", place(path))
            if len(parts) == 3 and parts[2] in ("", "state", "content"):
                return self._of_study(followed, parts[2])
            if len(parts) == 5 and parts[2] == "task" and parts[4] in ("", "state", "content"):
                return self._of_study(followed, parts[4], parts[3])
            if len(parts) > 5 and parts[2] == "run":
                return _of_run(followed, "/".join(parts[3:5]), "/".join(parts[5:]))
        return NOTHING

    def _of_index(self, part: str) -> Answer:
        index = self._index.get(PATIENCE_SECONDS if part == "state" else None)
        if part == "state":
            return _json({"version": index.version, "age": age(index.since)})
        return self._shown(part, index.content, index.version, False)

    def _of_study(self, followed: FollowedStudy, part: str, task: str | None = None) -> Answer:
        shown = followed.shown.get(PATIENCE_SECONDS if part == "state" else None)
        if isinstance(shown, Trouble):
            if part == "state":  # not an error: the page in the browser says it and goes on asking
                return _json({"trouble": shown.sentence})
            return Answer(404, HTML, with_scripts(trouble_content(shown.sentence), "", self._every, False))
        if task is not None and task not in shown.tasks:
            return NOTHING
        one = shown if task is None else shown.tasks[task]
        if part == "state":
            return _json(state_of(one))
        return self._shown(part, one.content, one.version, True, bool(one.tasks))

    def _shown(self, part: str, content: str, version: str, charts: bool, of_tasks: bool = False) -> Answer:
        body = with_scripts(content, version, self._every, charts, of_tasks) if part == "" else content
        return Answer(200, HTML, body, version=version)

    def _list(self, before: Shown | None) -> Shown:
        overviews = [_overview(key, followed) for key, followed in self._shelf.all().items()]
        overviews.sort(key=lambda overview: ("running" not in overview.counts, -overview.changed))
        return Shown.make(index_content(overviews), before)


def _of_run(followed: FollowedStudy, path: str, name: str) -> Answer:
    """The list of a run's files, or one of them as text. The run is found among the study's, not on the disk."""
    study = followed.study.get()
    runs = {} if isinstance(study, Trouble) else {path_of(run): run for run in study.runs.values()}
    if isinstance(study, Trouble) or path not in runs:
        return NOTHING
    directory = runs[path].directory
    if name == "":
        return Answer(
            200, HTML, run_content(study.name, path, [file for file in FILES if _can_be_opened(directory, file)])
        )
    text = _end_of(directory, name) if name in FILES else None
    return NOTHING if text is None else Answer(200, TEXT, text)


def _can_be_opened(directory: Path, name: str) -> bool:
    try:
        open_to_read(directory / name, within=directory).close()
    except OSError:
        return False
    return True


def _end_of(directory: Path, name: str) -> str | None:
    """What a file holds, of a long one the end; None where there is none. Raises OSError: it cannot be read."""
    try:
        with open_to_read(directory / name, within=directory) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_BYTES))
            return file.read(MOST_BYTES).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError, NotOfTheRun):
        return None


def state_of(shown: Shown) -> dict[str, object]:
    """What the line of a live page says: the version that is there, its age in seconds, and the runs."""
    counts = Counter(run.state for run in shown.study.runs.values()) if shown.study else Counter[str]()
    runs = {"runs": counts.total(), "finished": counts["finished"], "running": counts["running"]}
    return {"version": shown.version, "age": age(shown.since), **runs}


def age(since: float) -> float:
    """Seconds since a moment, by this machine's clock: the reader's may be another."""
    return round(max(0.0, time.time() - since), 1)


def place(path: str) -> str:
    """The address of what a path names, made of its parts alone, so that no redirection leads elsewhere; else /."""
    parts = path.split("/")[1:]
    return f"/study/{quote(unquote(parts[1]), safe='')}/" if len(parts) in (2, 3) and parts[0] == "study" else "/"


def _overview(key: str, followed: FollowedStudy) -> Overview:
    study = followed.study.get()
    try:
        return Overview(key, key, trouble=study.sentence) if isinstance(study, Trouble) else overview_of(key, study)
    except Exception as error:  # as in the study's own page, which says where
        return Overview(key, key, trouble=unexpected(key, error).sentence)


def _json(data: dict[str, object]) -> Answer:
    return Answer(200, JSON, json.dumps(data))
