"""The data behind what is interactive on the page, as plain JSON values: learning curves, the metric against length, and every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from attnlab.analysis.axes import axis_data
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.reader import AXES, is_number, short
from attnlab.analysis.run_data import run_data
from attnlab.analysis.samples import sample_data
from attnlab.analysis.statistics import mean_interval
from attnlab.analysis.wording import primary_lengths, unit
from attnlab.training.measures import better_of, parts_of

MOST_POINTS, FEWEST_POINTS = 160, 12
MOST_NUMBERS = 400_000  # of all curves together: some 3 MB
MOST_COLOURS = 8


def chart_data(comparison: Comparison, root: str | None = None) -> dict[str, Any]:
    """Everything that the page's scripts show. root: the study's directory from where the page stands; None: runs are not linked."""
    study = comparison.study
    shown = [cell for cell in comparison.cells if cell.cell.skip is None]
    return {
        "cells": [
            {"label": cell.label, "choices": {short(k): str(v) for k, v in cell.cell.choices.items()}} for cell in shown
        ],
        "factors": {
            short(name): list(dict.fromkeys(str(c.cell.choices.get(name, "-")) for c in shown))
            for name in study.varying
        },
        "by_cell": len(shown) <= MOST_COLOURS,
        "term": study.unit,
        "lengths": length_data(comparison),
        "curves": curve_data(comparison),
        **run_data(comparison, root),
        "samples": sample_data(comparison),
        "axes": axis_data(comparison),
        "metric": _metric(comparison),
    }


def _metric(comparison: Comparison) -> dict[str, Any] | None:
    metric = comparison.metric
    return {"name": metric.name, "better": metric.better} if metric else None


def length_data(comparison: Comparison) -> list[dict[str, Any]]:
    """One entry a metric family, the primary one's first: {name, unit, series: [{cell, x, y, low, high, cannot}]}."""
    first = [curve.prefix for curve in primary_lengths(comparison)[:1]]
    prefixes = dict.fromkeys([*first, *(curve.prefix for curve in comparison.lengths)])
    families = []
    for prefix in prefixes:
        series = []
        for curve in (curve for curve in comparison.lengths if curve.prefix == prefix):
            points = sorted(curve.points.items())
            bounds = [(p.low, p.high) if p.is_bounded else (p.mean, p.mean) for _, p in points]
            entry = {"cell": curve.label, "x": [k for k, _ in points], "y": rounded([p.mean for _, p in points])}
            entry |= {"low": rounded([b[0] for b in bounds]), "high": rounded([b[1] for b in bounds])}
            series.append({**entry, "cannot": sorted(curve.cannot)})
        families.append({"name": prefix, "unit": unit(prefix, comparison.study.unit), "series": series})
    return families


def curve_data(comparison: Comparison) -> list[dict[str, Any]]:
    """One entry a metric that was logged along training: {name, unit, better, series: [{cell, step, tokens, seconds, mean, low, high, seeds, flops_per_token}]}."""
    curves = comparison.study.curves
    entries = []
    points = points_of_each(comparison)
    first = f"val/{parts_of(comparison.metric.name)[1].removeprefix('sliding_')}" if comparison.metric else ""
    names = (column for column in curves.columns if column not in ("cell", "seed", *AXES))
    for name in sorted(names, key=lambda name: _interest(name, first)):
        frame = (
            curves.select("cell", "seed", *AXES, value=pl.col(name))
            .drop_nulls("value")
            .filter(pl.col("value").is_finite())
        )
        by_cell = {str(cell): rows for (cell,), rows in frame.group_by(["cell"], maintain_order=True)}
        series = [
            _series(cell.label, by_cell[cell.cell.name], _finished(comparison, cell.cell.name), points)
            | {"flops_per_token": _flops_per_token(comparison, cell.cell.name)}
            for cell in comparison.cells
            if cell.cell.name in by_cell
        ]
        if sum(len(entry["step"]) for entry in series) > len(series):
            entries.append(
                {"name": name, "unit": unit(name, comparison.study.unit), "better": better_of(name), "series": series}
            )
    return entries


def _interest(name: str, first: str) -> tuple[int, str]:
    """The measure that is compared, in validation; other validation curves, training losses, then the rest."""
    order = [*dict.fromkeys([first, "val/nats", "train/nats"])]
    split = {"val": 3, "train": 4}.get(name.partition("/")[0], 5)
    return (order.index(name) if name in order else split, name)


def _finished(comparison: Comparison, cell: str) -> set[str]:
    return {str(run.seed) for run in comparison.study.runs_of(cell) if run.state == "finished"}


def points_of_each(comparison: Comparison) -> int:
    """So many points of a curve that all curves together stay within MOST_NUMBERS, and no fewer than FEWEST_POINTS."""
    curves = comparison.study.curves
    names = [column for column in curves.columns if column not in ("cell", "seed", *AXES)]
    lines = len(comparison.study.runs) + (3 + len(AXES)) * len(comparison.cells)
    return min(MOST_POINTS, max(FEWEST_POINTS, MOST_NUMBERS // max(1, len(names) * lines)))


def _flops_per_token(comparison: Comparison, cell: str) -> float | None:
    """Training FLOPs a token (or image) of a cell's runs; None where a run does not say, or they differ."""
    found = {run.record.get("flops_per_token") for run in comparison.study.runs_of(cell) if run.record}
    known = [value for value in found if isinstance(value, int | float) and is_number(value)]
    return float(known[0]) if len(found) == len(known) == 1 else None


def _series(label: str, rows: pl.DataFrame, finished: set[str], points: int) -> dict[str, Any]:
    """One cell's curve: every seed, and the mean over the finished ones (over all while none is) with its 95% band."""
    wide = rows.pivot(on="seed", index="step", values="value", aggregate_function="last").sort("step")
    wide = wide.gather(_thinned(wide.height, points))
    matrix = wide.drop("step").to_numpy().astype(float)
    axes = rows.group_by("step").agg(pl.col("tokens", "seconds").mean())
    axes = wide.select("step").join(axes, on="step", how="left", maintain_order="left")
    whole = [i for i, seed in enumerate(wide.columns[1:]) if seed in finished]
    mean, low, high = _bands(matrix[:, whole] if whole else matrix)
    return {
        "cell": label,
        **{axis: rounded(axes[axis].to_list()) for axis in AXES},
        "mean": mean,
        "low": low,
        "high": high,
        "seeds": {seed: rounded(matrix[:, i].tolist()) for i, seed in enumerate(wide.columns[1:])},
    }


def _thinned(height: int, points: int) -> list[int]:
    if height <= points:
        return list(range(height))
    return sorted(set(np.linspace(0, height - 1, points).round().astype(int).tolist()))


def _bands(matrix: np.ndarray) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Mean and interval a row, over the seeds of the row; a mean over fewer seeds than the cell has would jump, so it is left out."""
    means, lows, highs = [], [], []
    for row in matrix:
        there = row[np.isfinite(row)]
        interval = mean_interval(there.tolist()) if there.size == row.size else None
        means.append(interval.mean if interval else math.nan)
        lows.append(interval.low if interval else math.nan)
        highs.append(interval.high if interval else math.nan)
    return rounded(means), rounded(lows), rounded(highs)


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Five significant digits, None for what is no finite number: JSON knows no NaN."""
    return [float(f"{value:.5g}") if value is not None and math.isfinite(value) else None for value in values]
