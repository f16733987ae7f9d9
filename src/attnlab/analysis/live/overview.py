"""A study in a few words, for a list of studies, with the page's own sentence on which cell is best."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

from attnlab.analysis.comparison import compare
from attnlab.analysis.headline import best_sentence
from attnlab.analysis.reader import Study
from attnlab.training.run_directory import METRICS, STATUS

LOST = ("failed", "diverged")


@dataclass(frozen=True)
class Overview:
    """What a list says of a study. `changed` is when its files changed last, in seconds since the epoch; `trouble` why it cannot be read."""

    key: str
    name: str
    question: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    changed: float = 0.0
    best: str = ""
    trouble: str = ""


def overview_of(key: str, study: Study) -> Overview:
    """A study's overview; `key` is its name in addresses."""
    comparison = compare(study)
    best = " ".join(best_sentence(comparison)) if comparison.metric and comparison.measured else ""
    return Overview(key, study.name, study.question, counts_of(study), last_change(study), best)


def counts_of(study: Study) -> dict[str, int]:
    """How many runs of a study are in which state, the finished first."""
    counts = Counter(run.state for run in study.runs.values())
    order = ("finished", "running", *LOST, "interrupted", "missing")
    return {state: counts[state] for state in sorted(counts, key=lambda s: order.index(s) if s in order else 99)}


def progress_text(counts: dict[str, int]) -> str:
    """ "2 of 12 runs finished, 1 running": what is not there yet is the rest."""
    others = [f"{n} {state}" for state, n in counts.items() if state not in ("finished", "missing")]
    total = sum(counts.values())
    return ", ".join([f"{counts.get('finished', 0)} of {total} run{'' if total == 1 else 's'} finished", *others])


def last_change(study: Study) -> float:
    """When the newest of the files that the comparison reads was written; 0 where there is none."""
    newest = 0.0
    places = [run.directory for run in study.runs.values() if run.state != "missing"]
    for path in (study.path / "plan.json", *(place / name for place in places for name in (STATUS, METRICS))):
        with contextlib.suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest
