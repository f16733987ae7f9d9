"""The pages that a server shows: those of `attnlab report` with a line that says how live they are, and the list of studies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import quote

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.live.overview import Overview, progress_text
from attnlab.analysis.report.document import POLICY, document, resource, script
from attnlab.analysis.report.markup import Html, join, prose, tag
from attnlab.analysis.report.page import body, scripts

LIVE_POLICY = f"{POLICY}; connect-src 'self'"
STYLES = ("report/page.css", "live/live.css")


def study_content(comparison: Comparison, data: dict[str, Any]) -> str:
    """A study's page without its scripts: what is fetched anew when something has changed. data: see `chart_data`."""
    return _document(f"{comparison.study.name} - attnlab", body(comparison, data))


def index_content(overviews: list[Overview]) -> str:
    """The list of studies, also without scripts."""
    running = sum("running" in overview.counts for overview in overviews)
    facts = f"{len(overviews)} {'study' if len(overviews) == 1 else 'studies'}, {running or 'none'} running"
    header = tag("header", tag("p", "attnlab", class_="study"), tag("h1", "Studies"), tag("p", facts, class_="soft"))
    listed = [_listed(overview) for overview in overviews]
    empty = tag("p", "No study has run yet: attnlab sweep STUDY runs one, and it appears here.", class_="lead")
    main = tag("main", tag("section", *(listed or [empty]), id="studies", aria_label="Studies"))
    return _document("Studies - attnlab", [header, main], back=False)


def trouble_content(sentence: str) -> str:
    """A page that says why there is nothing to see."""
    header = tag("header", tag("p", "attnlab", class_="study"), tag("h1", "Nothing to show"))
    return _document("attnlab", [header, tag("main", tag("section", tag("p", sentence), id="trouble"))])


def run_content(study: str, path: str, names: list[str]) -> str:
    """A run's directory: the study it belongs to, and the files of it that are there."""
    header = tag("header", tag("p", study, class_="study"), tag("h1", path))
    links = [tag("li", tag("a", name, href=quote(name))) for name in names]
    listed = tag("ul", *links) if links else tag("p", "This run has no files yet.")
    back = tag("p", tag("a", "The study", href="../../../"))
    return _document(f"{path} - attnlab", [header, tag("main", tag("section", listed, back, id="files"))])


def _document(title: str, parts: list[Html], back: bool = True) -> str:
    icon = tag("link", rel="icon", href="data:,")  # browsers would ask for one otherwise
    line = [tag("span", id="live-state", role="status"), tag("span", id="live-since")]
    others = tag("a", "All studies", href="/") if back else None
    status = tag("aside", others, *line, id="live", aria_label="Live")
    return document(title, [*parts, status], STYLES, LIVE_POLICY, icon)


def with_scripts(content: str, version: str, every: float, charts: bool = True) -> str:
    """The whole page, which asks for a newer version `every` so many seconds. What asks runs before the scripts that change what stands there."""
    start, end, rest = content.rpartition("</body>")
    own = [script(_follow(version, every)), *(_page_scripts() if charts else [])]
    return f"{start}{join(own)}{end}{rest}"


def _follow(version: str, every: float) -> str:
    settings = json.dumps({"version": version, "every": every})
    return resource("live/live.js").replace("SETTINGS = {}", f"SETTINGS = {settings}", 1)


@cache
def _page_scripts() -> tuple[Html, ...]:
    return tuple(scripts(charts=True))


def _listed(overview: Overview) -> Html:
    changed = None
    if overview.changed:
        moment = datetime.fromtimestamp(overview.changed, UTC)
        changed = tag("time", f"{moment:%Y-%m-%d %H:%M} UTC", datetime=f"{moment:%Y-%m-%dT%H:%M:%SZ}")
    link = tag("a", overview.name, href=f"/study/{quote(overview.key, safe='')}/")
    state = [progress_text(overview.counts), *([" \u00b7 changed ", changed] if changed else [])]
    words = [
        tag("h2", link),
        tag("p", overview.question) if overview.question else None,
        tag("p", overview.trouble or state, class_="soft"),
        tag("p", prose(overview.best)) if overview.best else None,
    ]
    return tag("article", *words)
