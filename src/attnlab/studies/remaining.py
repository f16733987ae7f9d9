"""How long a study still takes: by what its runs took so far, weighted by what each cell is known to cost.

costs.json in a study's folder, which a sweep writes before its first run, says how many workers train at once and how
much each cell computes; it is an estimate's help, and no part of the plan.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from attnlab.studies.plan import Key
from attnlab.training.run_directory import read_json

FILE = "costs.json"
MEASURED = ("finished", "diverged", "pruned")  # what ended these ways tells what others of the cell will take
WAITING = ("missing", "interrupted", "queued", "lost")
EARLIEST = 0.05  # of a run's steps, before which its pace tells little

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Costs:
    """What is known of a study before it runs: workers at once (None: not known) and what a run of each cell costs, in
    whatever unit they share."""

    workers: int | None = None
    cells: Mapping[str, float] = field(default_factory=dict)


def read_costs(folder: Path) -> Costs:
    """What a study's folder says of costs; nothing where it says none."""
    found = read_json(folder / FILE, {})
    try:
        cells = {str(name): float(cost) for name, cost in found["cells"].items() if float(cost) > 0}
        return Costs(max(1, int(found["workers"])) if found.get("workers") else None, cells)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Costs()


def makespan(costs: Iterable[float], workers: int, busy: Iterable[float] = ()) -> float:
    """Seconds until all is done where so many workers, some `busy` for so long, take what costs so much in turn."""
    free = sorted(busy)
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def seconds_left(
    states: Mapping[Key, str], statuses: Mapping[Key, Status], costs: Costs | None = None, now: float | None = None
) -> float | None:
    """Seconds until all runs are over, in the order of `states`; None before anything is known of their pace.

    A run takes what those of its cell took; before one of them has ended, what it costs at the pace of the others; one
    that is running more and more what its own steps say.
    """
    costs, now = costs or Costs(), time.time() if now is None else now
    ended = {key: _wall(statuses[key]) for key, state in states.items() if state in MEASURED}
    ended = {key: seconds for key, seconds in ended.items() if seconds > 0}
    trained = sum(statuses[key].get("seconds") or 0.0 for key in ended)
    beside = sum(ended.values()) / trained if trained > 0 else 1.0  # what a run takes for each second of its steps
    running = {key: statuses[key] for key, state in states.items() if state == "running"}
    paces = {key: beside * pace for key, status in running.items() if (pace := _by_steps(status)) is not None}
    known: dict[str, list[float]] = {}
    for (cell, _), seconds in {**paces, **ended}.items():
        known.setdefault(cell, []).append(seconds)
    if not known:
        return None
    fallback = mean(costs.cells.values()) if costs.cells else 1.0
    weights = {cell: costs.cells.get(cell, fallback) for cell, _ in states}
    scale = sum(mean(found) / weights[cell] for cell, found in known.items()) / len(known)
    of_ended = {cell: mean(seconds for (name, _), seconds in ended.items() if name == cell) for cell, _ in ended}
    of_cells = {cell: mean(found) for cell, found in known.items()} | of_ended
    takes = {cell: of_cells.get(cell, scale * weight) for cell, weight in weights.items()}
    busy = [_left(status, takes[key[0]], paces.get(key), now) for key, status in running.items()]
    waiting = [takes[key[0]] * (1 - _share(statuses.get(key, {}))) for key, state in states.items() if state in WAITING]
    return makespan(waiting, max(costs.workers or 1, len(busy)), busy)


def _wall(status: Status) -> float:
    """Seconds of a run that has ended; of one in several attempts at least its training."""
    whole = (status.get("ended") or 0.0) - (status.get("started") or status.get("ended") or 0.0)
    return max(whole, status.get("seconds") or 0.0)


def _share(status: Status) -> float:
    step, most = status.get("step") or 0, status.get("max_steps") or 0
    return min(1.0, step / most) if most else 0.0


def _by_steps(status: Status) -> float | None:
    """Seconds of training of a run that is under way, at the pace of its own steps; None at first."""
    share, seconds = _share(status), status.get("seconds") or 0.0
    return seconds / share if share >= EARLIEST and seconds > 0 else None


def _left(status: Status, takes: float, by_steps: float | None, now: float) -> float:
    """Seconds that a running run has left: by what its cell takes, and more and more by its own pace."""
    share, trained = _share(status), status.get("seconds") or 0.0
    whole = takes if by_steps is None else (1 - share) * takes + share * by_steps
    steps = trained * (1 - share) / share if share else 0.0  # that are left, at their own pace
    return max(steps, whole - max(now - (status.get("started") or now), trained))
