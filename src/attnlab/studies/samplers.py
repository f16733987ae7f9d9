"""Which settings a tuning tries: a grid, draws that are the same for every cell, or what Optuna's TPE asks for."""

from __future__ import annotations

import itertools
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from attnlab.training.tuning_fields import Range, Setting, Tuned

Settings = dict[str, Setting]
TOGETHER = 4  # trials of each cell that TPE asks for at once, of which none knows what came of the others
STARTUP = 8  # trials at most that are drawn at random before TPE models what is good
DIGITS = 4  # significant ones of a number that is drawn, so that names and commands stay short


class Sampler(Protocol):
    """What asks for settings in one cell, and is told how good they were; the same answers to the same asking."""

    @abstractmethod
    def ask(self) -> list[Settings]:
        """The settings to try next."""

    @abstractmethod
    def tell(self, scores: Sequence[float | None]) -> None:
        """How good the last ones were, the lower the better; infinite, or None where that is not known."""


def sampler_of(tune: Tuned) -> Sampler:
    """The sampler of one cell; each cell has one of its own, and all start alike."""
    if tune["how"] == "tpe":
        return TreeOfParzenEstimators(tune["search"], tune["trials"])
    return Beforehand(grid_of(tune["search"]) if tune["how"] == "grid" else draws_of(tune["search"], tune["trials"]))


class Beforehand:
    """Settings that are known before any is tried."""

    def __init__(self, settings: list[Settings]) -> None:
        self.settings = settings

    def ask(self) -> list[Settings]:
        return self.settings

    def tell(self, scores: Sequence[float | None]) -> None:
        """Nothing follows from them."""
        assert len(scores) == len(self.settings)


def grid_of(search: Mapping[str, Any]) -> list[Settings]:
    """Every combination of the values."""
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def draws_of(search: Mapping[str, Any], trials: int, seed: int = 0) -> list[Settings]:
    """Different settings at random (Bergstra & Bengio 2012): values alike often, ranges evenly in their scale."""
    random = np.random.default_rng(seed)
    if all(isinstance(values, list) for values in search.values()):
        grid = grid_of(search)
        return [grid[at] for at in random.permutation(len(grid))[:trials]]
    drawn: dict[str, Settings] = {}
    while len(drawn) < trials:
        settings = {key: _drawn(values, random) for key, values in search.items()}
        drawn[repr(settings)] = settings
    return list(drawn.values())


def _drawn(values: list[Setting] | Range, random: np.random.Generator) -> Setting:
    if isinstance(values, list):
        return values[int(random.integers(len(values)))]
    low, high, at = values["low"], values["high"], random.random()
    number = low * (high / low) ** at if values["scale"] == "log" else low + (high - low) * at
    return round(number) if _are_whole(values) else _short(number)


def _are_whole(values: Range) -> bool:
    return isinstance(values["low"], int) and isinstance(values["high"], int)


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


class TreeOfParzenEstimators:
    """Optuna's TPE (Bergstra et al. 2011), seeded; told nothing of a trial without a value."""

    def __init__(self, search: Mapping[str, list[Setting] | Range], trials: int) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=min(STARTUP, math.ceil(trials / 2)))
        self.study, self.left = optuna.create_study(sampler=sampler), trials
        self.search = search
        self.asked: list[Any] = []

    def ask(self) -> list[Settings]:
        self.asked = [self.study.ask() for _ in range(min(TOGETHER, self.left))]
        self.left -= len(self.asked)
        return [{key: _suggested(trial, key, values) for key, values in self.search.items()} for trial in self.asked]

    def tell(self, scores: Sequence[float | None]) -> None:
        from optuna.trial import TrialState

        for trial, score in zip(self.asked, scores, strict=True):
            if score is None:
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, score)


def _suggested(trial: Any, key: str, values: list[Setting] | Range) -> Setting:
    value: Setting
    if isinstance(values, list):
        value = trial.suggest_categorical(key, values)
        return value
    is_log = values["scale"] == "log"
    if _are_whole(values):
        value = trial.suggest_int(key, values["low"], values["high"], log=is_log)
        return value
    return _short(trial.suggest_float(key, values["low"], values["high"], log=is_log))
