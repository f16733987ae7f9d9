"""Studies that stand in memory alone: for tests that compare thousands of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnlab.analysis.reader import Cell, Metric, Run, Study


def study_of(
    values: Mapping[tuple[Any, ...], Mapping[int, float | str | None]],
    factors: Sequence[str] = ("norm",),
    better: str = "lower",
    margin: float = 0.0,
    baseline: tuple[Any, ...] | None = None,
    is_proportion: bool = False,
) -> Study:
    """A study of {choices: {seed: value}}; a word is the state of a run without a value, None a metric that is no number."""
    cells, runs = [], {}
    said = {"m": {"better": better, "is_proportion": is_proportion}}
    for choices, by_seed in values.items():
        named = dict(zip(factors, choices, strict=True))
        name = ",".join(f"{key}={choice}" for key, choice in named.items())
        cells.append(Cell(name, named))
        for seed, value in by_seed.items():
            lost = isinstance(value, str)
            status = {"final": {} if lost else {"m": value}, "error": "lost" if lost else None}
            record = {"seed": seed, "metrics": said} if is_proportion else {"seed": seed}
            runs[name, seed] = Run(name, seed, Path("/none"), value if lost else "finished", record, status)
    first = next(iter(values), ()) if baseline is None else baseline
    return Study(
        path=Path("/none"),
        name="s",
        question="",
        factors={name: list(dict.fromkeys(choices[i] for choices in values)) for i, name in enumerate(factors)},
        baseline=dict(zip(factors, first, strict=False)),
        cells=cells,
        seeds=sorted({seed for by_seed in values.values() for seed in by_seed}),
        metric=Metric("m", better, margin),
        claims=[],
        shared=[],
        code={},
        runs=runs,
    )


def crossed(
    function, levels: Mapping[str, Sequence[Any]], seeds: Sequence[int]
) -> dict[tuple[Any, ...], dict[int, float]]:
    """{choices: {seed: function(*choices, seed)}} over the whole grid of `levels`."""
    return {
        choices: {seed: function(*choices, seed) for seed in seeds} for choices in itertools.product(*levels.values())
    }
