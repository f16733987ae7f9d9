"""Whether a tuned study finds a better arm where none is: simulated tunings and comparisons of arms whose best settings are equally good.

python experiments/tuned_alike/measure.py [--studies 200] [--seed 0]

An arm's loss is a parabola in the logarithm of its rate, with its best at a place of its own: anywhere on the grid of rates tried (or, in the last part,
between two of them). Its sensitivity is what a step of the grid beside the best costs, in standard deviations of a run over seeds. Every arm is tuned as
`tune` in study.yaml does it, then compared at its chosen rate as `attnlab compare` does it. A study is wrong where any word parts two arms: better, worse,
or a rank. Beside the share of wrong studies stands what it would be if words rested on the settings chosen alone. Power is the share of studies that say
better of an arm which at its best is better by so many standard deviations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attnlab.analysis.censoring import Bounds
from attnlab.analysis.comparison import compare
from attnlab.analysis.differences import DECIDED
from attnlab.analysis.reader import Cell, Metric, Run, Study
from attnlab.studies.samplers import sampler_of
from attnlab.training.tuning_fields import Tuned

METRIC = "val/loss"
COST = "steps to val/loss 2.0"
SENSITIVITIES = {
    "flat": (0.05, 0.05, 0.05),
    "one sharp": (0.05, 0.05, 3.0),
    "mixed": (0.1, 1.0, 10.0),
    "sharp": (1.0, 1.0, 1.0),
}
WORST = 30.0  # what a rate far from the best comes to


@dataclass(frozen=True)
class Design:
    """sensitivities: of the arms, the first of them the baseline; noise: how much of a run's variance all runs of its seed share, and by how much noise
    grows from the least rate to the greatest; advantage: of the last arm; between: the best rate may lie anywhere;
    scatter: of the last arm's noise, over the others'; end: what runs come to is what they cost, and above it all that is known is that they cost more."""

    sensitivities: tuple[float, ...]
    how: str = "grid"
    trials: int = 6
    tuning_seeds: int = 1
    seeds: int = 8
    shared: float = 0.3
    growth: float = 1.0
    advantage: float = 0.0
    between: bool = False
    scatter: float = 1.0
    end: float | None = None


def simulate(design: Design, random: np.random.Generator) -> Study:
    """A study with its tuning, tuned and run."""
    levels = design.trials if design.how == "grid" else 6
    grid = [float(level) for level in range(levels)]
    search = {"rate": grid} if design.how == "grid" else {"rate": {"low": 0.0, "high": 5.0, "scale": "linear"}}
    tune: Tuned = {"search": search, "how": design.how, "trials": design.trials, "seeds": [*range(1000, 1000 + design.tuning_seeds)],
                   "metric": {"name": METRIC, "better": "lower"}}  # fmt: skip
    num_arms = len(design.sensitivities)
    if design.how == "grid":
        places = random.integers(0, levels, num_arms).astype(float)
    if design.between or design.how != "grid":
        places = random.uniform(0, 5, num_arms)

    def runs(arm: int, rate: float, of_seeds: dict[int, float]) -> dict[int, float]:
        loss = min(WORST, design.sensitivities[arm] * (rate - places[arm]) ** 2) - design.advantage * (
            arm == num_arms - 1
        )
        spread = 1 + (design.growth - 1) * rate / (levels - 1)
        scale = design.scatter if arm == num_arms - 1 else 1.0
        own = scale * np.sqrt(1 - design.shared) * spread * random.standard_normal(len(of_seeds))
        return {
            seed: float(loss + scale * np.sqrt(design.shared) * common + e)
            for (seed, common), e in zip(of_seeds.items(), own, strict=True)
        }

    tuned, values = {}, {}
    tuning, compared = (
        dict(zip(seeds, random.standard_normal(len(seeds)), strict=True))
        for seeds in (tune["seeds"], [*range(design.seeds)])
    )
    for arm in range(num_arms):
        sampler, trials = sampler_of(tune), []
        while len(trials) < design.trials:
            asked = [
                (float(settings["rate"]), runs(arm, float(settings["rate"]), tuning)) for settings in sampler.ask()
            ]  # type: ignore[arg-type]
            sampler.tell([float(np.mean([*found.values()])) for _, found in asked])
            trials += asked
        chosen, _ = min(trials, key=lambda trial: np.mean([*trial[1].values()]))
        tuned[f"arm={arm}"] = {"chosen": {"rate": chosen}, "trials": [_trial(*trial, design.end) for trial in trials]}
        values[f"arm={arm}"] = runs(arm, chosen, compared)
    return _study({**tune, "cells": tuned}, values, design.end)


def _trial(rate: float, values: dict[int, float], end: float | None) -> dict[str, object]:
    runs: dict[str, object] = {}
    for seed, value in values.items():
        costs = {
            name: [one.low, one.high if math.isfinite(one.high) else None] for name, one in _costs(value, end).items()
        }
        runs[str(seed)] = {"state": "finished", "final": {METRIC: value}, "costs": costs}
    return {"settings": {"rate": rate}, "runs": runs}


def _costs(value: float, end: float | None) -> dict[str, Bounds]:
    return {} if end is None else {COST: Bounds(value, value) if value <= end else Bounds(end, math.inf)}


def _study(tuned: dict[str, object], values: dict[str, dict[int, float]], end: float | None) -> Study:
    cells = [Cell(name, {"arm": int(name.partition("=")[2])}) for name in values]
    runs = {
        (name, seed): Run(
            name, seed, Path("/none"), "finished", {"seed": seed}, {"final": {METRIC: value}}, costs=_costs(value, end)
        )
        for name, of_seeds in values.items()
        for seed, value in of_seeds.items()
    }
    return Study(path=Path("/none"), name="tuned", question="", factors={"arm": [cell.choices["arm"] for cell in cells]}, baseline={"arm": 0}, cells=cells,
                 seeds=sorted({seed for _, seed in runs}), metric=Metric(COST if end is not None else METRIC), claims=[], shared=[], code={}, runs=runs, tuned=tuned)  # fmt: skip


def parts(study: Study) -> bool:
    """Whether any word parts two arms."""
    cells = compare(study).cells
    worst = len(cells)
    return any(
        (cell.difference and cell.difference.verdict in DECIDED) or cell.rank_interval not in (None, (1, worst))
        for cell in cells
    )


def finds(study: Study) -> bool:
    """Whether the last arm is said to be better than the first."""
    last = compare(study).cells[-1].difference
    return last is not None and last.verdict == "better"


def rates(design: Design, studies: int, seed: int) -> dict[str, float]:
    """Shares of studies: `wrong` (with a word that parts arms), `naive` (the same, by the settings chosen alone); of a design with an advantage, `power`
    and, by the settings chosen alone, `naive power`."""
    random, count = np.random.default_rng(seed), [0, 0]
    judge = finds if design.advantage else parts
    for _ in range(studies):
        study = simulate(design, random)
        count[0] += judge(study)
        count[1] += judge(replace(study, tuned={}))
    names = ("power", "naive power") if design.advantage else ("wrong", "naive")
    return {name: n / studies for name, n in zip(names, count, strict=True)}


def designs() -> Iterator[tuple[str, Design]]:
    """What is simulated, with a name."""
    for name, sensitivities in SENSITIVITIES.items():
        for trials, tuning_seeds, seeds in ((4, 1, 4), (6, 1, 8), (12, 1, 16), (6, 2, 8), (6, 3, 8), (12, 3, 16)):
            yield (
                f"{name}, {trials} trials x {tuning_seeds}, {seeds} seeds",
                Design(sensitivities, "grid", trials, tuning_seeds, seeds),
            )
    for tuning_seeds in (1, 3):
        yield (
            f"mixed, nothing shared, x {tuning_seeds}",
            Design(SENSITIVITIES["mixed"], tuning_seeds=tuning_seeds, shared=0.0),
        )
        yield (
            f"mixed, noise grows 3 times, x {tuning_seeds}",
            Design(SENSITIVITIES["mixed"], tuning_seeds=tuning_seeds, growth=3.0),
        )
    for name in ("flat", "mixed", "sharp"):  # far more noise at one end, where rates are too high
        for tuning_seeds in (1, 2, 3):
            named = f"{name}, noise grows 20 times, 4 trials x {tuning_seeds}"
            yield named, Design(SENSITIVITIES[name], "grid", 4, tuning_seeds, 6, growth=20.0)
    for name in ("flat", "mixed", "sharp"):
        for scatter in (0.05, 20.0):
            named = f"{name}, one arm scatters {scatter:g} times as much, x 1"
            yield named, Design(SENSITIVITIES[name], scatter=scatter)
    yield "mixed, random, 6 trials", Design(SENSITIVITIES["mixed"], "random")
    for tuning_seeds in (1, 3):
        yield f"mixed, tpe, 12 trials x {tuning_seeds}", Design(SENSITIVITIES["mixed"], "tpe", 12, tuning_seeds)
    for name in ("flat", "mixed", "sharp"):
        for tuning_seeds, end in ((1, math.inf), (3, math.inf), (3, 3.0), (3, 1.0)):
            named = f"{name}, a cost{f' known up to {end:g}' if math.isfinite(end) else ''}, x {tuning_seeds}"
            yield named, Design(SENSITIVITIES[name], tuning_seeds=tuning_seeds, seeds=12, end=end)
    for end in (math.inf, 20.0, 10.0, 3.0):
        yield (
            f"power: a cost, sensitivity 1, 6 trials x 3, known up to {end:g}, better by 8",
            Design((1.0,) * 3, "grid", 6, 3, 12, advantage=8.0, end=end),
        )
    for sensitivity in (0.05, 1.0, 3.0):
        for trials, tuning_seeds in ((4, 2), (6, 1), (6, 3), (6, 5)):
            for advantage in (2.0, 4.0, 8.0):
                name = f"power: sensitivity {sensitivity:g}, {trials} trials x {tuning_seeds}, better by {advantage:g}"
                yield name, Design((sensitivity,) * 3, "grid", trials, tuning_seeds, 8, advantage=advantage)
    for scatter in (0.05, 20.0):
        for advantage in (4.0, 20.0, 80.0):
            named = f"power: sensitivity 1, 6 trials x 1, scatters {scatter:g} times as much, better by {advantage:g}"
            yield named, Design((1.0,) * 3, "grid", 6, 1, 8, advantage=advantage, scatter=scatter)
    for name, sensitivities in SENSITIVITIES.items():
        yield f"best between rates: {name}, 6 trials x 3", Design(sensitivities, tuning_seeds=3, between=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, design in designs():
        few = max(1, given.studies // (5 if design.how == "tpe" else 2 if design.advantage else 1))
        found = rates(design, few, given.seed)
        print(f"{name:<62}", *(f"{what} {100 * share:5.1f}%" for what, share in found.items()), flush=True)


if __name__ == "__main__":
    main()
