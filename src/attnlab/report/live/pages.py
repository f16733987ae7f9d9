"""What a server shows: the pages of `attnlab report` with a line that says how live they are, the list of studies."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from urllib.parse import quote

from markupsafe import Markup

from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.headline import best_sentence
from attnlab.analysis.partition import parts_of_study
from attnlab.analysis.reader import Study
from attnlab.report.document import POLICY, document, part, resource, script
from attnlab.report.page import body, scripts
from attnlab.report.page_data import PageData
from attnlab.training.run_directory import METRICS, STATUS

LIVE_POLICY = f"{POLICY}; connect-src 'self'"
ORDER = ("finished", "running", "failed", "diverged", "interrupted", "missing")
ICON = Markup('<link rel="icon" href="data:,">')  # browsers would ask for one otherwise

macro = partial(part, "live.html")


@dataclass(frozen=True)
class Overview:
    """
    What a list says of a study. key: its name in addresses; counts: its runs by state; changed: when its files changed
    last, in seconds since the epoch; trouble: why it cannot be read.
    """

    key: str
    name: str
    question: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    changed: float = 0.0
    best: str = ""
    trouble: str = ""

    @property
    def address(self) -> str:
        """The key as it stands in an address."""
        return quote(self.key, safe="")

    @property
    def moment(self) -> datetime:
        """When it changed last."""
        return datetime.fromtimestamp(self.changed, UTC)

    @property
    def progress(self) -> str:
        """ "2 of 12 runs finished, 1 running": what is not there yet is the rest."""
        others = [f"{n} {state}" for state, n in self.counts.items() if state not in ("finished", "missing")]
        total = sum(self.counts.values())
        finished = f"{self.counts.get('finished', 0)} of {total} run{'' if total == 1 else 's'} finished"
        return ", ".join([finished, *others])


def overview_of(key: str, study: Study) -> Overview:
    """A study's overview."""
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


def index_content(overviews: Sequence[Overview]) -> str:
    """The list of studies, also without scripts."""
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


def with_scripts(content: str, version: str, every: float, has_charts: bool = True) -> str:
    """The whole page, which asks for a newer version `every` so many seconds. What asks runs first."""
    start, end, rest = content.rpartition("</body>")
    settings = json.dumps({"version": version, "every": every})
    follow = script(resource("live/live.js").replace("SETTINGS = {}", f"SETTINGS = {settings}", 1))
    return "".join([start, follow, *(_page_scripts() if has_charts else []), end, rest])


@cache
def _page_scripts() -> list[Markup]:
    return scripts(has_charts=True)
