"""What a cell's result cost: final metric against training FLOPs, parameters and seconds, and the cells that no other
beats on both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnlab.analysis.comparison import Comparison
from attnlab.analysis.proportions import described
from attnlab.analysis.statistics import Interval

AXES = {"flops": "training FLOPs", "parameters": "parameters", "seconds": "seconds a run"}  # fields of cells.Budget


@dataclass(frozen=True)
class Point:
    """A cell: its final metric with its 95% interval, and the means of what its finished runs cost, where known."""

    label: str
    interval: Interval
    cost: dict[str, float]


@dataclass(frozen=True)
class Pareto:
    """All cells with a value of `metric`, a final one, of which `better` values are better. The front is one of
    averages: which cells are surely apart is for the comparison to say."""

    metric: str
    better: str
    points: Sequence[Point]

    def on(self, axis: str) -> list[Point]:
        """The points whose cost on one of AXES is known, cheapest first."""
        return sorted((point for point in self.points if axis in point.cost), key=lambda point: point.cost[axis])

    def front(self, axis: str) -> list[Point]:
        """The points that no other beats: none is as good at less cost, or better at the same; cheapest first."""
        points, sign = self.on(axis), -1.0 if self.better == "higher" else 1.0
        at = [(point.cost[axis], sign * point.interval.mean) for point in points]
        return [
            point
            for point, own in zip(points, at, strict=True)
            if not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in at)
        ]

    @property
    def axes(self) -> list[str]:
        """The axes on which some cells differ."""
        return [axis for axis in AXES if len({point.cost[axis] for point in self.on(axis)}) > 1]


def pareto(comparison: Comparison) -> Pareto | None:
    """Of the metric that is compared; where that is the cost to a target, of the metric that has to reach it. None
    where fewer than two cells have a value, or all cost the same."""
    if comparison.metric is None:
        return None
    target = comparison.target
    name = target.metric if target else comparison.metric.name
    better = comparison.study.better(name) if target else comparison.metric.better
    points = []
    for cell in comparison.cells:
        interval = described(comparison.study, cell.cell.name, name)
        costs = {axis: float(getattr(cell.budget, axis)) for axis in AXES}
        known = {axis: cost for axis, cost in costs.items() if math.isfinite(cost) and cost > 0}
        if interval is not None and known:
            points.append(Point(cell.label, interval, known))
    found = Pareto(name, better, points)
    return found if len(points) > 1 and found.axes else None
