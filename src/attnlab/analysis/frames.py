"""A study as polars frames: a row a run, and a row a logged step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from attnlab.analysis.reader import Choice, Study
from attnlab.training.study_fields import is_finite

FIRST = ("cell", "seed")
BEYOND = 1 << 63  # 64 bits


def runs_frame(study: Study) -> pl.DataFrame:
    """A row a run, those that were planned and are missing too, in the plan's order.

    Columns: cell, seed; one a factor, by its name in the configuration, with numbers as numbers (null where the cell
    has no such choice); state; one a final metric, null where the run has no finite value; parameters (of the whole
    model); active_parameters (those that a token meets) where some run is a mixture of experts; step, tokens and
    seconds (null where unknown); problem (why there is no result, else ""); directory.
    """
    place = {cell.name: number for number, cell in enumerate(study.cells)}
    runs = sorted(study.runs.values(), key=lambda run: (place[run.cell], run.seed))
    factors = _factors(study, [run.cell for run in runs])
    metrics = {name: pl.Series([run.final.get(name) for run in runs], dtype=pl.Float64) for name in study.metrics}
    counts = [run.section("parameters") for run in runs]
    active = {}
    if any("active_total" in of for of in counts):
        active["active_parameters"] = _counts(of.get("active_total", of.get("total")) for of in counts)
    return pl.DataFrame(
        {
            "cell": pl.Series([run.cell for run in runs], dtype=pl.String),
            "seed": pl.Series([run.seed for run in runs], dtype=pl.Int64),
            **factors,
            "state": pl.Series([run.state for run in runs], dtype=pl.String),
            **metrics,
            "parameters": _counts(run.section("parameters").get("total") for run in runs),
            **active,
            "step": _counts(run.status.get("step") for run in runs),
            "tokens": _counts(run.status.get("tokens") for run in runs),
            "seconds": _finite(run.status.get("seconds") for run in runs),
            "problem": pl.Series([run.problem for run in runs], dtype=pl.String),
            "directory": pl.Series([str(run.directory) for run in runs], dtype=pl.String),
        }
    )


def curves_frame(study: Study) -> pl.DataFrame:
    """A row a logged step of a run, by cell, seed and step.

    Columns: cell, seed; one a factor, as in `runs_frame`; step (of the optimizer), tokens and seconds up to it; one a
    metric that was logged, null at steps at which it was not.
    """
    curves = study.curves
    names = [cell.name for cell in study.cells]
    known = {name: of for name, of in _factors(study, names).items() if name not in curves.columns}
    factors = pl.DataFrame({"cell": pl.Series(names, dtype=pl.String), **known})
    whole = curves.with_columns(pl.col("step", "tokens").cast(pl.Int64, strict=False))
    rest = [name for name in curves.columns if name not in FIRST]
    return whole.join(factors, on="cell", how="left", maintain_order="left").select(*FIRST, *known, *rest)


def _factors(study: Study, cells: Sequence[str]) -> dict[str, pl.Series]:
    """{factor: its choices, one for each of these cells}."""
    choices = {cell.name: cell.choices for cell in study.cells}
    names = dict.fromkeys([*study.factors, *(name for of in choices.values() for name in of)])
    return {name: _typed([choices[cell].get(name) for cell in cells]) for name in names if name not in FIRST}


def _typed(choices: Sequence[Choice]) -> pl.Series:
    """Switches or numbers where all are, "1e-3" among them; else text."""
    known = [choice for choice in choices if choice is not None]
    if known and all(isinstance(choice, bool) for choice in known):
        return pl.Series(choices, dtype=pl.Boolean)
    numbers = [None if choice is None else _number(choice) for choice in choices]
    if not known or any(number is None for number, choice in zip(numbers, choices, strict=True) if choice is not None):
        return pl.Series([None if choice is None else str(choice) for choice in choices], dtype=pl.String)
    is_whole = all(isinstance(number, int) and abs(number) < BEYOND for number in numbers if number is not None)
    return pl.Series(numbers, dtype=pl.Int64 if is_whole else pl.Float64, strict=False)


def _number(choice: Choice) -> int | float | None:
    """A choice as the finite number that it is, else None."""
    if isinstance(choice, bool) or choice is None:
        return None
    for kind in (int, float):
        try:
            number = kind(choice) if isinstance(choice, str) else choice
        except ValueError:
            continue
        return number if is_finite(number) else None
    return None


def _finite(values: Iterable[object]) -> pl.Series:
    return pl.Series([float(value) if is_finite(value) else None for value in values], dtype=pl.Float64)


def _counts(values: Iterable[object]) -> pl.Series:
    return _finite(values).cast(pl.Int64, strict=False)
