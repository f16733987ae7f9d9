"""Every run of a study as compact JSON for the page: what most runs share once, and of each run what differs, its figures and its last words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from attnlab.analysis.comparison import IDENTITY, Comparison
from attnlab.analysis.reader import Run, flatten
from attnlab.training.run_directory import plain
from attnlab.training.run_log import last_lines

LINES, LINES_OF_LOST = 6, 40  # of a run's log
CHARACTERS, CHARACTERS_OF_LOST = 800, 6000
MOST_CHARACTERS = 2_000_000  # of all logs together
FACTS = (
    "attnlab",
    "git",
    "versions",
    "sources",
    "repositories",
    "machine",
    "device",
    "precision",
    "parameters",
    "flops_per_token",
    "training",
    "data",
)
PROGRESS = ("step", "tokens", "seconds", "attempt", "host")


def run_data(comparison: Comparison, root: str | None = None) -> dict[str, Any]:
    """
    {metrics, shared, runs: [{cell, seed, state, path, href, values, own, lacks, command, error, log}]}.

    A run's settings and facts ("settings/optimizer.lr", "facts/git.commit") are `shared` with `own` put over it and `lacks` taken out.
    `values` stand in the order of `metrics`, null for none. `href` leads to the run's directory, where `root`, the study's directory from where the page
    stands, is given.
    """
    study = comparison.study
    order = {cell.name: place for place, cell in enumerate(study.cells)}
    runs = sorted(study.runs.values(), key=lambda run: (order[run.cell], run.seed))
    described = [describe(run) for run in runs]
    shared = most_common(described)
    labels = {cell.cell.name: cell.label for cell in comparison.cells}
    entries = []
    room = MOST_CHARACTERS
    for run, all_of_it in zip(runs, described, strict=True):
        entry = _entry(run, labels.get(run.cell, run.cell), study.metrics, all_of_it, shared)
        if root is not None:
            entry["href"] = f"{quote(root)}/{quote(entry['path'], safe='/=,+')}/"
        entry["log"] = _log(run, room)
        room -= len(entry["log"] or "")
        entries.append({key: value for key, value in entry.items() if value not in (None, "", [], {})})
    return {"metrics": study.metrics, "shared": shared, "runs": entries}


def path_of(run: Run) -> str:
    """A run's directory, from the study's."""
    return f"{run.directory.parent.name}/{run.directory.name}"


def describe(run: Run) -> dict[str, Any]:
    """Everything that a run's files say of it, flat: its settings, without where it stands, and its facts."""
    settings = {key: value for key, value in run.config.items() if key == "seed" or key.split(".")[0] not in IDENTITY}
    facts = flatten({name: run.record[name] for name in FACTS if name in run.record})
    facts |= {name: run.status[name] for name in PROGRESS if run.status.get(name) is not None}
    named = {f"settings/{key}": value for key, value in settings.items()} | {f"facts/{k}": v for k, v in facts.items()}
    return {key: _scalar(value) for key, value in named.items()}


def _scalar(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def most_common(described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every key that most of the runs have, the value that most of them have."""
    counts: dict[str, Counter[tuple[str, Any]]] = {}
    for one in described:
        for key, value in one.items():
            counts.setdefault(key, Counter())[(type(value).__name__, value)] += 1
    half = len(described) / 2
    return {key: found.most_common(1)[0][0][1] for key, found in counts.items() if found.total() > half}


def _entry(
    run: Run, label: str, metrics: Sequence[str], described: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Any]:
    values = [float(f"{run.final[name]:.6g}") if name in run.final else None for name in metrics]
    own = {key: value for key, value in described.items() if key not in shared or not _is(shared[key], value)}
    return {
        "cell": label,
        "seed": run.seed,
        "state": run.state,
        "path": path_of(run),
        "values": values if run.final else None,
        "own": own,
        "lacks": [key for key in shared if key not in described] if described else None,
        "command": str(run.record.get("command") or ""),
        "error": run.error,
    }


def _is(first: Any, second: Any) -> bool:
    return type(first) is type(second) and first == second


def _log(run: Run, room: int) -> str:
    is_lost = run.state in ("failed", "diverged", "interrupted")
    lines, characters = (LINES_OF_LOST, CHARACTERS_OF_LOST) if is_lost else (LINES, CHARACTERS)
    return last_lines(run.directory, lines, min(characters, max(0, room)))
