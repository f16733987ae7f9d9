"""What changes with length: a metric at multiples of the training length, from the shortest to the longest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnlab.analysis.differences import Judged, Outcomes, judge
from attnlab.analysis.formatting import MULTIPLE
from attnlab.analysis.proportions import described
from attnlab.analysis.reader import Cell, Metric, Study
from attnlab.analysis.statistics import Interval

OF_SAME_RUNS = "change: of the share, in the same runs; a word takes McNemar's exact test, too."


@dataclass(frozen=True)
class LengthCurve:
    """One cell's metric at multiples of the training length.

    `change` is its paired change from the shortest to the longest, judged as one family with those of the other cells;
    None without a value. `verdict` is that of the change, "unavailable" or "missing".
    """

    label: str
    prefix: str
    points: dict[float, Interval]
    unavailable: dict[float, str]
    change: Judged | None

    @property
    def verdict(self) -> str:
        """What the change says, or why there is none."""
        return self.change.verdict if self.change else "unavailable" if self.unavailable else "missing"


def length_curves(outcomes: Outcomes) -> list[LengthCurve]:
    """The metrics named <prefix>@<k>x of every cell, by prefix, each prefix a family of changes."""
    multiples: dict[str, list[float]] = {}
    for name in outcomes.study.metrics:
        found = MULTIPLE.fullmatch(name)
        if found:
            multiples.setdefault(found["prefix"], []).append(float(found["multiple"]))
    series = [(prefix, sorted(found)) for prefix, found in multiples.items() if len(found) > 1]
    return [curve for prefix, found in series for curve in _length_curves(outcomes, prefix, found)]


def _length_curves(outcomes: Outcomes, prefix: str, multiples: Sequence[float]) -> list[LengthCurve]:
    study, own = outcomes.study, outcomes.study.metric
    metric = Metric(prefix, study.better(prefix))
    if own and own.name.startswith(f"{prefix}@"):
        metric = replace(own, name=prefix)
    names = {k: f"{prefix}@{k:g}x" for k in multiples}
    near, far = names[multiples[0]], names[multiples[-1]]
    cells = [cell for cell in study.cells if cell.skip is None]
    able = [cell.name for cell in cells if not any(outcomes.unavailable(cell.name, end) for end in (near, far))]
    changes = judge(
        {cell: outcomes.against(cell, far, cell, near, "") for cell in able}, metric, outcomes.alpha, outcomes.spent
    )
    return [_length_curve(study, cell, prefix, names, changes.get(cell.name)) for cell in cells]


def _length_curve(
    study: Study, cell: Cell, prefix: str, names: Mapping[float, str], change: Judged | None
) -> LengthCurve:
    points = {k: found for k, name in names.items() if (found := described(study, cell.name, name))}
    runs = study.runs_of(cell.name)
    lacks = {k: run.unavailable[name] for run in runs for k, name in names.items() if name in run.unavailable}
    return LengthCurve(study.label(cell), prefix, points, lacks, change)


def multiples_of(curves: Iterable[LengthCurve]) -> list[float]:
    return sorted({k for curve in curves for k in (*curve.points, *curve.unavailable)})
