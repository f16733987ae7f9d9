"""A search in each cell of a multirun (`hydra/sweeper=search`): its cells, its metric, the best trial of each."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnlab.config import UsageError
from attnlab.config.compose import Composed
from attnlab.config.engine import split_search
from attnlab.config.identity import cell_name, find
from attnlab.config.seams import load
from attnlab.runs.record import trials_of
from attnlab.training.metrics import better_of
from attnlab.training.run_directory import effective_state, read_json

SWEEPER = "hydra/sweeper=search"


def is_search(words: Sequence[str]) -> bool:
    """Whether these settings of Hydra choose the search. Raises: UsageError where Optuna is not installed."""
    if SWEEPER in words and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise UsageError(f"{SWEEPER} needs Optuna: pip install 'attnlab[optuna]'")
    return SWEEPER in words


def cells_and_space(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """A search's cells, as overrides by name, and what it looks in. Raises: UsageError for cells of one name."""
    jobs, space = split_search(overrides)
    cells = {cell_name(job): job for job in jobs}
    if len(cells) < len(jobs):
        raise UsageError(
            "two cells of this search would have one name; a search has one seed: give seed=N once, and no setting "
            "twice"
        )
    return cells, space


def metric_of_search(composed: Composed, words: Sequence[str]) -> tuple[str, str]:
    """
    The metric that the settings of Hydra ask for, or the one that the task watches, and which values of it are better.

    Raises: UsageError.
    """
    key = "hydra.sweeper.metric="

    def given(key: str) -> str | None:
        return next((word.removeprefix(key) for word in reversed(words) if word.startswith(key)), None)

    asked = given(key)
    if asked is not None and not asked.startswith("val/"):
        raise UsageError(
            f"{key}{asked}: settings are chosen by the validation part; accepted are its figures, such as val/nats"
        )
    task: Any = load("task", composed.resolved["task"])
    metric = asked or f"val/{task.monitor.name}"
    said = {known.name: known.record() for known in task.metrics(composed.resolved)}
    return metric, given("hydra.sweeper.better=") or better_of(metric, said)


def conclude(study: Path, overrides: Sequence[str], metric: str, better: str) -> int:
    """Says the best trial of every cell; returns the exit status: 1 where a trial failed or none of a cell finished."""
    status = 0
    cells, space = cells_and_space(overrides)
    for name in cells:
        trials = {path: read_json(path / "status.json", {}) for path in trials_of(study, name)}
        states = [effective_state(path) for path in trials]
        values = {path: one["final"][metric] for path, one in trials.items() if metric in one.get("final", {})}
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{name}: {len(trials)} trials, {counted}")
        status |= int("failed" in states or not values)
        if values:
            best = (min if better == "lower" else max)(values, key=values.__getitem__)
            config = read_json(best / "run.json", {})["config"]
            chosen = " ".join(f"{key}={find(config, key)}" for key in (word.partition("=")[0] for word in space))
            print(f"  best {metric} {values[best]:.4f} with {chosen} in {best}")
    return status
