"""The page of a study over its tasks: what came out over all of them, and each task folded, with a page of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from attnlab import __version__
from attnlab.analysis.across import Aggregate, Tasks
from attnlab.analysis.across_words import arms_table, caveats, notes, sentences, tasks_table
from attnlab.analysis.headline import headline
from attnlab.report.document import document, json_script, part
from attnlab.report.figures import forest
from attnlab.report.page import Section, scripts, table_of_cells, write_report
from attnlab.report.page_data import rounded
from attnlab.report.run_data import origin
from attnlab.training.run_directory import write_text

SCRIPTS = ("page.js", "across.js")


def write_across(found: Tasks, path: Path) -> list[Path]:
    """Writes the page, and beside it that of each task, by number; returns the files, the page first.

    Raises CannotWrite where the disk is full or read-only, or permission is missing.
    """
    pages = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, len(found.tasks) + 1)]
    for task, page in zip(found.tasks, pages, strict=True):
        write_report(task, page)
    write_text(path, render_across(found, [page.name for page in pages]), durable=False)
    return [path, *pages]


def render_across(found: Tasks, pages: Sequence[str]) -> str:
    """The page as HTML text. pages: where the page of each task stands from there."""
    own = scripts(bool(found.aggregate.ranked), SCRIPTS)
    return document(f"{found.study.name} - attnlab", [across_body(found, pages), *own])


def across_body(found: Tasks, pages: Sequence[str]) -> Markup:
    """The page without its scripts; pages as in `render_across`."""
    study = found.study
    facts = [*origin(study), f"{len(found.aggregate.tasks)} tasks", f"{len(study.seeds)} seeds"]
    others = Counter(run.state for run in study.runs.values() if run.state != "finished")
    over = len(study.runs) - others.total()
    facts.append(", ".join([f"{over} of {len(study.runs)} runs finished", *(f"{n} {s}" for s, n in others.items())]))
    made = f"Made by attnlab {__version__} from {study.name}. Every number comes from its run directories."
    title = study.question or study.name
    header = part("across.html", "header", study.name, title, facts)
    data = json_script(across_data(found.aggregate))
    return part("page.html", "body", header, _sections(found, pages), made, data)


def _sections(of_tasks: Tasks, pages: Sequence[str]) -> list[Section]:
    found = of_tasks.aggregate
    drawn: dict[str, tuple[str, Markup]] = {}

    def add(key: str, heading: str, *given: object) -> None:
        drawn[key] = heading, part("across.html", key, *given)

    add("short", "Summary", sentences(found))
    if found.ranked:
        add("arms", "All tasks", arms_table(found, 1), arms_table(found), tasks_table(found), notes(found))
        add("profiles", "Performance profiles")
    if found.ranks is not None:
        add("ranks", "Average ranks", found.ranks)
    add("trust", "Caveats", [*study_caveats(found), *caveats(found)])
    shown = [
        (label, page, one, headline(one), table_of_cells(one), forest.differences(one))
        for label, one, page in zip(of_tasks.labels, of_tasks.tasks, pages, strict=True)
    ]
    add("tasks", "Task by task", shown)
    return [Section(key, heading, content) for key, (heading, content) in drawn.items()]


def study_caveats(found: Aggregate) -> list[str]:
    return [f"Cannot be read: {what}." for what in found.study.unreadable]


def across_data(found: Aggregate) -> dict[str, object]:
    """What the page's scripts draw."""
    if not found.ranked:
        return {"across": None}
    profiles = [
        {"arm": label, "share": rounded(share.tolist()), "low": rounded(low.tolist()), "high": rounded(high.tolist())}
        for label, (share, low, high) in found.profiles.items()
    ]
    drawn: dict[str, object] = {"points": rounded(found.points.tolist()), "profiles": profiles, "ranks": None}
    if ranks := found.ranks:
        labels = [arm.label for arm in found.ranked]
        drawn["ranks"] = {
            "arms": [{"arm": label, "rank": rank} for label, rank in zip(labels, ranks.average, strict=True)],
            "apart": ranks.critical_difference,
            "groups": [[ranks.average[group[0]], ranks.average[group[-1]]] for group in ranks.groups],
        }
    return {"across": drawn}
