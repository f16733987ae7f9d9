"""The comparison as one self-contained HTML page: it opens from a file and loads nothing from anywhere."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from attnlab import __version__
from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.listing import listing
from attnlab.analysis.partition import parts_of_study
from attnlab.analysis.reader import Study
from attnlab.analysis.report import sections
from attnlab.analysis.report.charts import chart_data
from attnlab.analysis.report.document import document, resource, script
from attnlab.analysis.report.markup import Html, tag
from attnlab.training.run_directory import write_text

SCRIPTS = ("page.js", "charts.js", "runs.js", "tables.js", "pair.js", "parallel.js", "samples.js")


def write_report(source: Study | Comparison, path: str | Path) -> Path:
    """Writes the page of a study to `path` (a file; a folder gets index.html), atomically, and returns the file.

    Raises:
        CannotWrite: the disk is full or read-only, or permission is missing.
    """
    comparison = compare(parts_of_study(source)[0]) if isinstance(source, Study) else source
    path = Path(path)
    path = path / "index.html" if path.is_dir() or not path.suffix else path
    root = os.path.relpath(comparison.study.path, path.parent)
    write_text(path, render(comparison, root if root.startswith(".") else f"./{root}"), durable=False)
    return path


def render(comparison: Comparison, root: str | None = None) -> str:
    """The page as HTML text. root: the study's directory from where the page stands; None: runs are not linked."""
    data = chart_data(comparison, root)
    charts = bool(data["lengths"] or data["curves"])
    return document(f"{comparison.study.name} - attnlab", [*body(comparison, data), *scripts(charts)])


def body(comparison: Comparison, data: dict[str, Any]) -> list[Html]:
    """What the page shows, and the data of its charts."""
    shown = [(key, title, content) for key, title, content in sections.all_sections(comparison, data) if content]
    made = f"Made by attnlab {__version__} from {comparison.study.name}. Every number comes from its run directories."
    return [
        _header(comparison),
        tag("nav", *(tag("a", title, href=f"#{key}") for key, title, _ in shown), aria_label="Sections"),
        tag("main", *(tag("section", tag("h2", title), content, id=key) for key, title, content in shown)),
        tag("footer", made),
        _json(data),
    ]


def scripts(charts: bool = True) -> list[Html]:
    """What serves the tables and draws the charts, where there are any. The tables need not wait for the library that draws."""
    own = script("".join([*(resource(f"report/{name}") for name in SCRIPTS), "attnlab.start();"]))
    return [own, script(_plotly()), script("attnlab.start();")] if charts else [own]


def _header(comparison: Comparison) -> Html:
    study, metric = comparison.study, comparison.metric
    states = comparison.states
    others = "".join(f", {n} {state}" for state, n in sorted(states.items()) if state != "finished")
    facts = [
        f"{_count(len(study.cells), 'cell')}",
        f"{_count(len(study.seeds), 'seed')}",
        f"{states.get('finished', 0)} of {_count(len(study.runs), 'run')} finished{others}",
    ]
    if study.code.get("commit"):
        facts.append(f"code {str(study.code['commit'])[:10]}{' with changes' if study.code.get('dirty') else ''}")
    parts = [
        tag("p", study.name, class_="study"),
        tag("h1", _unbroken(study.question or study.name)),
        tag("p", " \u00b7 ".join(facts), class_="soft"),
    ]
    if metric:
        parts.append(sections.metric_sentence(metric, comparison.study.unit))
        if study.metrics and metric.name not in study.metrics:
            parts.append(
                tag("p", f"No run has this figure; there are {listing(study.metrics)}.", class_="missing-metric")
            )
    return tag("header", *parts)


def _unbroken(title: str) -> list[Html | str]:
    """A title in which no line ends within a word such as warm-up."""
    words = re.split(r"(\s+)", title)
    return [tag("span", word, class_="whole") if "-" in word and len(word) < 24 else word for word in words]


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _json(data: Any) -> Html:
    """Data for page.js; < is written as an escape, so that no text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", id="data")


def _plotly() -> str:
    return files("plotly.package_data").joinpath("plotly.min.js").read_text(encoding="utf-8")
