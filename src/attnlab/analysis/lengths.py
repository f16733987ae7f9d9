"""A metric at multiples of the training length: every cell's curve, and whether it holds to the longest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnlab.analysis.differences import Judged, judge
from attnlab.analysis.formatting import MULTIPLE, verdict
from attnlab.analysis.outcomes import Outcomes
from attnlab.analysis.reader import Cell, Metric, Study
from attnlab.analysis.statistics import Interval, mean_interval
from attnlab.analysis.table import Entry

WORDS = {
    "same": "holds",
    "better": "improves",
    "worse": "degrades",
    "undecided": "undecided",
    "cannot": "cannot",
    "missing": "no figure",
}


@dataclass(frozen=True)
class LengthCurve:
    """One cell's metric at multiples of the training length.

    `change` is its paired change from the shortest to the longest, judged as one family with those of the other cells;
    None without a value. `verdict` is that of the change, "cannot" or "missing".
    """

    label: str
    prefix: str
    points: dict[float, Interval]
    values: dict[float, dict[int, float]]
    cannot: dict[float, str]
    change: Judged | None
    verdict: str


def length_curves(outcomes: Outcomes) -> list[LengthCurve]:
    """The metrics named <prefix>@<k>x of every cell, by prefix, each prefix a family of changes."""
    multiples: dict[str, list[float]] = {}
    for name in outcomes.study.metrics:
        found = MULTIPLE.fullmatch(name)
        if found:
            multiples.setdefault(found["prefix"], []).append(float(found["multiple"]))
    series = [(prefix, sorted(found)) for prefix, found in multiples.items() if len(found) > 1]
    return [curve for prefix, found in series for curve in _length_curves(outcomes, prefix, found)]


def _length_curves(outcomes: Outcomes, prefix: str, multiples: list[float]) -> list[LengthCurve]:
    study = outcomes.study
    own = study.metric or Metric("")
    is_own = own.name.startswith(f"{prefix}@")
    metric = Metric(prefix, own.better if is_own else study.better(prefix), own.margin if is_own else 0.0)
    near, far = (f"{prefix}@{k:g}x" for k in (multiples[0], multiples[-1]))
    cells = [cell for cell in study.cells if cell.skip is None]
    able = [cell.name for cell in cells if not any(outcomes.cannot(cell.name, end) for end in (near, far))]
    changes = judge({cell: outcomes.against(cell, far, cell, near, "") for cell in able}, metric, outcomes.alpha)
    return [_length_curve(study, cell, prefix, multiples, changes.get(cell.name)) for cell in cells]


def _length_curve(study: Study, cell: Cell, prefix: str, multiples: list[float], change: Judged | None) -> LengthCurve:
    values = {k: study.values(cell.name, f"{prefix}@{k:g}x") for k in multiples}
    cannot: dict[float, str] = {}
    for run in study.runs_of(cell.name):
        cannot |= {k: run.cannot[f"{prefix}@{k:g}x"] for k in multiples if f"{prefix}@{k:g}x" in run.cannot}
    points = {k: mean_interval(list(by_seed.values())) for k, by_seed in values.items() if by_seed}
    word = change.verdict if change else "cannot" if cannot else "missing"
    return LengthCurve(study.label(cell), prefix, points, values, cannot, change, word)


def primary_lengths(curves: Sequence[LengthCurve], metric: Metric | None) -> list[LengthCurve]:
    """The curves of the primary metric's family, or of the first; the best at the greatest length first."""
    prefixes = [curve.prefix for curve in curves]
    own = (metric.name if metric else "").partition("@")[0]
    prefix = own if own in prefixes else next(iter(prefixes), None)
    found = [curve for curve in curves if curve.prefix == prefix]
    longest = max(multiples_of(found), default=0.0)
    sign = -1 if metric and metric.better == "higher" else 1
    return sorted(found, key=lambda c: sign * c.points[longest].mean if longest in c.points else math.inf)


def multiples_of(curves: Iterable[LengthCurve]) -> list[float]:
    """The multiples of the training length that any of the curves has, or cannot have."""
    return sorted({k for curve in curves for k in (*curve.points, *curve.cannot)})


def length_verdict(curve: LengthCurve) -> Entry:
    """The word for a table; to hold is good."""
    mood = "better" if curve.verdict == "same" else curve.verdict
    return verdict(curve.change, WORDS, mood) if curve.change else Entry(WORDS[curve.verdict], mood=mood)
