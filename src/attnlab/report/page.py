"""The comparison as one self-contained HTML page: it opens from a file and loads nothing from anywhere."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from attnlab import __version__
from attnlab.analysis.comparison import Comparison, compare
from attnlab.analysis.formatting import describe, listing
from attnlab.analysis.partition import parts_of_study
from attnlab.analysis.reader import Study
from attnlab.report.document import document, json_script, part, resource, script
from attnlab.report.page_data import PageData, page_data
from attnlab.report.sections import all_sections
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
    data = page_data(comparison, root)
    has_charts = bool(data["lengths"] or data["curves"] or data["axes"])
    return document(f"{comparison.study.name} - attnlab", [body(comparison, data), *scripts(has_charts)])


def body(comparison: Comparison, data: PageData) -> Markup:
    """What the page shows, and the data of its charts."""
    name = comparison.study.name
    made = f"Made by attnlab {__version__} from {name}. Every number comes from its run directories."
    return part("page.html", "body", _header(comparison), all_sections(comparison, data), made, json_script(data))


def scripts(has_charts: bool = True) -> list[Markup]:
    """What serves the tables and draws the charts, if any. The tables need not wait for the library that draws."""
    own = script("".join([*map(resource, SCRIPTS), "attnlab.start();"]))
    return [own, script(_plotly()), script("attnlab.start();")] if has_charts else [own]


def _plotly() -> str:
    return files("plotly.package_data").joinpath("plotly.min.js").read_text(encoding="utf-8")


def _header(comparison: Comparison) -> Markup:
    study, metric, states = comparison.study, comparison.metric, comparison.states
    others = "".join(f", {n} {state}" for state, n in sorted(states.items()) if state != "finished")
    facts = [
        _count(len(study.cells), "cell"),
        _count(len(study.seeds), "seed"),
        f"{states.get('finished', 0)} of {_count(len(study.runs), 'run')} finished{others}",
    ]
    if study.code.get("commit"):
        facts.append(f"code {str(study.code['commit'])[:10]}{' with changes' if study.code.get('dirty') else ''}")
    # No line of the title ends within a word such as warm-up.
    title = re.split(r"(\s+)", study.question or study.name)
    missing = listing(study.metrics) if metric and study.metrics and metric.name not in study.metrics else ""
    description = describe(metric.name, study) if metric else ""
    return part("page.html", "header", study, title, facts, metric, description, missing)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"
