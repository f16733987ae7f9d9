"""`attnlab train -m hydra/sweeper=search`: which cells and which settings a search has, what is checked before it, and what it says after it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from attnlab.cli.compose import Composed, Mistake, cell_name
from attnlab.cli.overrides import as_it_stands
from attnlab.training import RunDirectory
from attnlab.training.measures import better_of
from attnlab.training.pruning import Pruning
from attnlab.training.run_directory import METRICS, effective_state, read_json

SWEEPER = "hydra/sweeper=search"


def is_search(words: Sequence[str]) -> bool:
    """Whether these settings of Hydra choose the search."""
    return SWEEPER in words


def refuse_without_optuna() -> None:
    """Raises: Mistake where the extra is not installed."""
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise Mistake(f"{SWEEPER} needs Optuna: pip install 'attnlab[optuna]'")


def _is_searched(override: Override) -> bool:
    """Whether a sweep is a space to search: a,b makes cells, and one choice is none."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return not value.simple_form and len(value.list) > 1
    return override.is_sweep_override()


def cells_and_space(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The cells of a search, as overrides by name, and the overrides that say where it looks. Raises: Mistake for cells of one name."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    space = [override.input_line for override in parsed if _is_searched(override)]
    jobs = BasicSweeper.split_arguments([override for override in parsed if not _is_searched(override)], None)[0]
    cells = {cell_name(job): list(job) for job in jobs}
    if len(cells) < len(jobs):
        raise Mistake(
            "two cells of this search would have one name; a search has one seed: give seed=N once, and no setting twice"
        )
    return cells, [line for line in space if line]


def corners(overrides: Sequence[str]) -> list[str]:
    """The same overrides with the two ends of each interval in its place: what is checked before a search begins."""
    return [_corner(override) for override in OverridesParser.create().parse_overrides(list(overrides))]


def _corner(override: Override) -> str:
    value, line = override.value(), override.input_line
    assert line is not None
    return f"{override.get_key_element()}={value.start},{value.end}" if isinstance(value, IntervalSweep) else line


def metric_word(composed: Composed, words: Sequence[str]) -> str:
    """
    The metric of the search as a setting of Hydra: the one asked for, or the one that the task watches.

    Raises: Mistake for a figure that is not of the validation part.
    """
    key = "hydra.sweeper.metric="
    asked = next((word.removeprefix(key) for word in reversed(words) if word.startswith(key)), None)
    if asked is not None and not asked.startswith("val/"):
        raise Mistake(
            f"{key}{asked}: settings are chosen by the validation part; accepted are its figures, such as val/nats"
        )
    task: Any = get_class(composed.config.task._target_)
    return f"{key}{asked or task.monitor}"


def pruning(config: DictConfig, directory: RunDirectory) -> list[Pruning]:
    """What gives a trial of a search up; nothing for a run that is none."""
    if config.study.search is None:
        return []
    sweeper = HydraConfig.get().sweeper
    return [Pruning(instantiate(sweeper.pruner), sweeper.metric, directory.metrics, lambda: _peers(config, directory))]


def _peers(config: DictConfig, directory: RunDirectory) -> Iterator[Path]:
    """metrics.jsonl of the other trials of the same search that have finished."""
    for path in _trials(directory.path.parent.parent, str(config.study.search)):
        if path != directory.path and effective_state(path) == "finished":
            yield path / METRICS


def _trials(study: Path, name: str) -> Iterator[Path]:
    for path in sorted(study.glob("*/seed=*/run.json")):
        record: dict[str, Any] = read_json(path, {})
        if record.get("config", {}).get("study", {}).get("search") == name:
            yield path.parent


def conclude(study: Path, overrides: Sequence[str], metric: str) -> int:
    """Says the best trial of every cell; returns the exit status, 1 where a trial failed or a cell has none that finished."""
    status = 0
    cells, space = cells_and_space(overrides)
    for name in cells:
        trials = {path: read_json(path / "status.json", {}) for path in _trials(study, name)}
        states = [effective_state(path) for path in trials]
        values = {path: one["final"][metric] for path, one in trials.items() if metric in one.get("final", {})}
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{name}: {len(trials)} trials, {counted}")
        status |= int("failed" in states or not values)
        if values:
            best = (min if better_of(metric) == "lower" else max)(values, key=lambda path: values[path])
            config = OmegaConf.create(as_it_stands(read_json(best / "run.json", {})["config"]))
            keys = [override.partition("=")[0] for override in space]
            chosen = " ".join(f"{key}={OmegaConf.select(config, key)}" for key in keys)
            print(f"  best {metric} {values[best]:.4f} with {chosen} in {best}")
    return status
