"""The data behind what is interactive on the page, as plain JSON values: curves, lengths, runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import polars as pl

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.curves import AXES
from attnlab.analysis.formatting import unit
from attnlab.analysis.pareto import AXES as AXES_OF_COST
from attnlab.analysis.pareto import pareto
from attnlab.analysis.proportions import says_proportion
from attnlab.analysis.reader import Run, short
from attnlab.analysis.statistics import ended, mean_interval
from attnlab.report.run_data import Axis, RunEntry, Sample, axis_data, run_entries, sample_data
from attnlab.training.metrics import curve_of
from attnlab.training.study_fields import is_finite

MOST_POINTS, FEWEST_POINTS = 160, 12
MOST_NUMBERS = 400_000  # of all curves together: some 3 MB
MOST_COLOURS = 8


class LengthSeries(TypedDict):
    """A cell's means at multiples of the training length, and the multiples that it cannot have."""

    cell: str
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]
    unavailable: list[float]


class LengthFamily(TypedDict):
    """One metric against multiples of the training length, cell by cell."""

    name: str
    unit: str
    series: list[LengthSeries]


class Series(TypedDict):
    """A cell's curve: the mean over its seeds with its band, every seed, and the axes that it is drawn against."""

    cell: str
    step: list[float | None]
    tokens: list[float | None]
    seconds: list[float | None]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]
    seeds: dict[str, list[float | None]]
    flops_per_token: NotRequired[float | None]


class CurveFamily(TypedDict):
    """One metric against steps, tokens and seconds, cell by cell."""

    name: str
    unit: str
    better: str
    series: list[Series]


class CostPoint(TypedDict):
    """A cell's final metric with its interval, what its runs cost, and on which of these axes it is on the front."""

    cell: str
    y: float | None
    low: float | None
    high: float | None
    cost: dict[str, float | None]
    front: list[str]


class CostPicture(TypedDict):
    """The final metric of every cell over what it cost; the axes by their keys, each in words."""

    unit: str
    axes: dict[str, str]
    points: list[CostPoint]


class TuningSeries(TypedDict):
    """A cell's trials along a field, for each value the best over the other fields: mean, every seed, and the value of
    the setting that was chosen."""

    cell: str
    x: list[object]
    y: list[float | None]
    seeds: list[list[float | None]]
    chosen: object


class TuningFamily(TypedDict):
    """The tuned metric against a field that was searched, cell by cell."""

    name: str
    unit: str
    log: bool
    number: bool
    series: list[TuningSeries]


class PageData(TypedDict):
    """Everything that the page's scripts show; see the functions that make the parts."""

    cells: list[dict[str, object]]
    factors: dict[str, list[str]]
    by_cell: bool
    term: str
    lengths: list[LengthFamily]
    curves: list[CurveFamily]
    pareto: list[CostPicture]
    tuning: list[TuningFamily]
    metrics: list[str]
    shared: dict[str, object]
    runs: list[RunEntry]
    samples: list[Sample]
    axes: list[Axis]
    metric: dict[str, str] | None


def page_data(comparison: Comparison, root: str | None = None) -> PageData:
    """root: the study's directory from where the page stands; None: runs are not linked."""
    study, metric = comparison.study, comparison.metric
    shown = [cell for cell in comparison.cells if cell.cell.skip is None]
    chosen = [{short(name): str(choice) for name, choice in cell.cell.choices.items()} for cell in shown]
    shared, runs = run_entries(comparison, root)
    return {
        "cells": [{"label": cell.label, "choices": choices} for cell, choices in zip(shown, chosen, strict=True)],
        "factors": {
            name: list(dict.fromkeys(one.get(name, "-") for one in chosen)) for name in map(short, study.varying)
        },
        "by_cell": len(shown) <= MOST_COLOURS,
        "term": study.unit,
        "lengths": length_data(comparison),
        "curves": curve_data(comparison),
        "pareto": pareto_data(comparison),
        "tuning": tuning_data(comparison),
        "metrics": study.metrics,
        "shared": shared,
        "runs": runs,
        "samples": sample_data(comparison),
        "axes": axis_data(comparison),
        "metric": {"name": metric.name, "better": metric.better} if metric else None,
    }


def length_data(comparison: Comparison) -> list[LengthFamily]:
    """One entry a metric family, the primary one's first."""
    first = [curve.prefix for curve in comparison.primary_lengths[:1]]
    families: list[LengthFamily] = []
    for prefix in dict.fromkeys([*first, *(curve.prefix for curve in comparison.lengths)]):
        series: list[LengthSeries] = []
        for curve in (curve for curve in comparison.lengths if curve.prefix == prefix):
            x = sorted(curve.points)
            points = [curve.points[k] for k in x]
            y = rounded([point.mean for point in points])
            low = rounded([point.low if point.is_bounded else point.mean for point in points])
            high = rounded([point.high if point.is_bounded else point.mean for point in points])
            unavailable = sorted(curve.unavailable)
            series.append({"cell": curve.label, "x": x, "y": y, "low": low, "high": high, "unavailable": unavailable})
        families.append({"name": prefix, "unit": unit(prefix, comparison.study), "series": series})
    return families


def pareto_data(comparison: Comparison) -> list[CostPicture]:
    """One picture, or none where there is nothing to compare."""
    found = pareto(comparison)
    if found is None:
        return []
    fronts = {axis: found.front(axis) for axis in found.axes}
    points: list[CostPoint] = []
    for point in found.points:
        y, low, high = rounded([point.interval.mean, point.interval.low, point.interval.high])
        cost = dict(zip(point.cost, rounded(list(point.cost.values())), strict=True))
        front = [axis for axis, on in fronts.items() if point in on]
        points.append({"cell": point.label, "y": y, "low": low, "high": high, "cost": cost, "front": front})
    axes = {axis: AXES_OF_COST[axis] for axis in found.axes}
    return [{"unit": unit(found.metric, comparison.study), "axes": axes, "points": points}]


def curve_data(comparison: Comparison) -> list[CurveFamily]:
    """One entry a metric that was logged along training, the one that is compared first."""
    curves = comparison.study.curves
    entries: list[CurveFamily] = []
    points = points_of_each(comparison)
    first = curve_of(comparison.metric.name) if comparison.metric else ""
    for name in sorted(_logged(curves), key=lambda name: _interest(name, first)):
        values = curves.select("cell", "seed", *AXES, value=pl.col(name)).drop_nulls("value")
        frame = values.filter(pl.col("value").is_finite())
        by_cell = {str(cell): rows for (cell,), rows in frame.group_by(["cell"], maintain_order=True)}
        series: list[Series] = []
        is_share = says_proportion(comparison.study, name)
        for cell in (cell for cell in comparison.cells if cell.cell.name in by_cell):
            runs = comparison.study.runs_of(cell.cell.name)
            finished = {str(run.seed) for run in runs if run.state == "finished"}
            one = _series(cell.label, by_cell[cell.cell.name], finished, points, comparison.study.limits(name))
            if is_share:  # its band would be of a mean
                one["low"] = one["high"] = [None] * len(one["step"])
            series.append({**one, "flops_per_token": _flops_per_token(runs)})
        if sum(len(entry["step"]) for entry in series) > len(series):
            entries.append(
                {
                    "name": name,
                    "unit": unit(name, comparison.study),
                    "better": comparison.study.better(name),
                    "series": series,
                }
            )
    return entries


def tuning_data(comparison: Comparison) -> list[TuningFamily]:
    """One entry a field that was searched with two values or more."""
    found = comparison.tuning
    families: list[TuningFamily] = []
    for field in found.search if found else ():
        assert found is not None
        axis = next((axis for axis in found.axes if axis.name == field), None)
        series: list[TuningSeries] = []
        for cell in found.cells:
            points = found.curve(cell, field)
            series.append(
                {
                    "cell": cell.label,
                    "x": [value if axis else str(value) for value, _ in points],
                    "y": rounded([cell.means[at] for _, at in points]),
                    "seeds": [rounded(cell.values[at].tolist()) for _, at in points],
                    "chosen": cell.choice[field] if axis else str(cell.choice[field]),
                }
            )
        if max((len(one["x"]) for one in series), default=0) > 1:
            words, is_log = unit(found.metric, comparison.study), axis is not None and axis.is_log
            families.append({"name": field, "unit": words, "log": is_log, "number": axis is not None, "series": series})
    return families


def _logged(curves: pl.DataFrame) -> list[str]:
    return [column for column in curves.columns if column not in ("cell", "seed", *AXES)]


def _interest(name: str, first: str) -> tuple[int, str]:
    """The measure that is compared, in validation; other validation curves, training losses, then the rest."""
    order = [*dict.fromkeys([first, "val/loss", "train/loss"])]
    split = {"val": 3, "train": 4}.get(name.partition("/")[0], 5)
    return (order.index(name) if name in order else split, name)


def points_of_each(comparison: Comparison) -> int:
    """So many points of a curve that all curves together stay within MOST_NUMBERS, and no fewer than FEWEST_POINTS."""
    lines = len(comparison.study.runs) + (3 + len(AXES)) * len(comparison.cells)
    return min(MOST_POINTS, max(FEWEST_POINTS, MOST_NUMBERS // max(1, len(_logged(comparison.study.curves)) * lines)))


def _flops_per_token(runs: Sequence[Run]) -> float | None:
    """Training FLOPs a token (or image) of a cell's runs; None where a run does not say, or they differ."""
    found = {run.record.get("flops_per_token") for run in runs if run.record}
    known = [value for value in found if isinstance(value, int | float) and is_finite(value)]
    return float(known[0]) if len(found) == len(known) == 1 else None


def _series(label: str, rows: pl.DataFrame, finished: set[str], points: int, limits: tuple[float, float]) -> Series:
    """The mean is over the finished runs, over all while none is; a mean over fewer would jump, so it is left out."""
    wide = rows.pivot(on="seed", index="step", values="value", aggregate_function="last").sort("step")
    kept = np.linspace(0, wide.height - 1, min(points, wide.height)).round().astype(int)
    wide = wide.gather(np.unique(kept))
    matrix = wide.drop("step").to_numpy().astype(float)
    axes = rows.group_by("step").agg(pl.col("tokens", "seconds").mean())
    axes = wide.select("step").join(axes, on="step", how="left", maintain_order="left")
    seeds = wide.columns[1:]
    mean, low, high = band([i for i, seed in enumerate(seeds) if seed in finished], matrix, limits)
    return {
        "cell": label,
        "step": rounded(axes["step"].to_list()),
        "tokens": rounded(axes["tokens"].to_list()),
        "seconds": rounded(axes["seconds"].to_list()),
        "mean": rounded(mean.tolist()),
        "low": rounded(low.tolist()),
        "high": rounded(high.tolist()),
        "seeds": {seed: rounded(matrix[:, i].tolist()) for i, seed in enumerate(seeds)},
    }


def band(
    chosen: Sequence[int], matrix: np.ndarray, limits: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95% interval, within the metric's limits, of every row over the chosen columns (none: all); NaN where
    one of them has no figure."""
    found = []
    for row in matrix[:, chosen] if chosen else matrix:
        interval = ended(mean_interval(row.tolist()), *limits) if row.size and np.isfinite(row).all() else None
        found.append((interval.mean, interval.low, interval.high) if interval else (math.nan, math.nan, math.nan))
    mean, low, high = np.array(found).reshape(-1, 3).T
    return mean, np.where(np.isfinite(low), low, math.nan), np.where(np.isfinite(high), high, math.nan)


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Five significant digits, None for what is no finite number: JSON knows no NaN."""
    return [float(f"{value:.5g}") if value is not None and math.isfinite(value) else None for value in values]
