"""Checks a study's claims against its runs. Claims are data: names, bounds and text, never evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnlab.analysis.differences import interval_of
from attnlab.analysis.outcomes import ENDED, Contrast, Outcomes
from attnlab.analysis.reader import Cell, Study, same
from attnlab.analysis.statistics import Interval
from attnlab.training.study_fields import BOUNDS, check_claim


@dataclass(frozen=True)
class CellVerdict:
    """What one cell says to a claim: "met", "not met" or "open", with the reason and the values by seed."""

    cell: str
    verdict: str
    reason: str
    values: dict[int, float] = field(default_factory=dict)
    interval: Interval | None = None


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict over all cells that it speaks of; `test` is what was checked, in words."""

    says: str
    test: str
    verdict: str
    reason: str
    cells: list[CellVerdict]
    source: str = ""
    strength: str = ""


def check_claims(outcomes: Outcomes) -> list[Claim]:
    """Every claim of the study with its verdict; one that is no claim, or names no cell, is open, with the reason.

    The intervals of all claims are simultaneous: a study has a false "met" or "not met" with a chance of at most `outcomes.alpha`.
    """
    study = outcomes.study
    tests = [_Tests(study, claim, outcomes) for claim in study.claims]
    size = sum(contrast.asked > 1 for test in tests for contrast, _ in test.measured.values())
    return [
        _check(study, claim, test, 1 - outcomes.alpha / max(1, size))
        for claim, test in zip(study.claims, tests, strict=True)
    ]


class _Tests:
    """What has to be measured for a claim: in each cell that it speaks of a contrast, or why there is none; `problem` is why it is no claim."""

    def __init__(self, study: Study, claim: Mapping[str, Any], outcomes: Outcomes) -> None:
        self.problem, self.bound = "", ""
        self.cells: list[Cell] = []
        self.measured: dict[str, tuple[Contrast, str]] = {}
        try:
            check_claim(claim)
        except ValueError as error:
            self.problem = str(error)
            return
        self.bound = next(bound for bound in BOUNDS if bound in claim)
        choices = claim.get("cell", {})
        self.cells = [cell for cell in study.matching(choices) if cell.skip is None]
        self.problem = "" if self.cells else f"the study has no cell with {dict(choices)}"
        if self.bound not in ("state", "cannot"):
            self.measured = {cell.name: _contrast(study, claim, cell, outcomes) for cell in self.cells}


def _check(study: Study, claim: Mapping[str, Any], tests: _Tests, level: float) -> Claim:
    about = {key: str(claim.get(key) or "") for key in ("says", "source", "strength")}
    if tests.problem:
        return Claim(test="", verdict="open", reason=tests.problem, cells=[], **about)
    bound = tests.bound
    verdicts = [_of_cell(study, claim, bound, cell, tests.measured.get(cell.name), level) for cell in tests.cells]
    verdict = _all(verdicts)
    return Claim(
        test=_test(study, claim, bound), verdict=verdict, reason=_reason(verdicts, verdict), cells=verdicts, **about
    )


def _all(verdicts: list[CellVerdict]) -> str:
    """A claim about several cells is met where each of them meets it, and not met where one does not."""
    found = {verdict.verdict for verdict in verdicts}
    return next((word for word in ("not met", "open", "met") if word in found), "open")


def _reason(verdicts: list[CellVerdict], verdict: str) -> str:
    if len(verdicts) == 1:
        return verdicts[0].reason
    deciding = [v for v in verdicts if v.verdict == verdict]
    return f"{verdict} in {len(deciding)} of {len(verdicts)} cells; {deciding[0].cell}: {deciding[0].reason}"


def _of_cell(
    study: Study, claim: Mapping[str, Any], bound: str, cell: Cell, measured: tuple[Contrast, str] | None, level: float
) -> CellVerdict:
    label, metric = study.label(cell), _metric(study, claim)
    if bound == "state":
        return _state(study, cell, str(claim["state"]))
    if measured is None:
        return _cannot(study, cell, metric)
    contrast, problem = measured
    values = contrast.values
    if problem or not values:
        return CellVerdict(label, "open", problem or contrast.reason or f"no finished run has {metric}", values)
    interval = interval_of(contrast, level)
    low, high = _limits(bound, claim[bound])
    verdict, reason = _judge(interval, list(values.values()), low, high, "against" in claim)
    reason += f"; {contrast.reason}" if contrast.reason and interval.is_bounded else ""
    verdict = "open" if contrast.beyond_chance else verdict
    return CellVerdict(label, verdict, reason, values, interval)


def _contrast(study: Study, claim: Mapping[str, Any], cell: Cell, outcomes: Outcomes) -> tuple[Contrast, str]:
    """What the bound is put on, by seed: the metric itself, or its paired difference to what it is held against; or why there is nothing."""
    metric, against = _metric(study, claim), claim.get("against")
    if not isinstance(against, Mapping):
        return _known(outcomes.alone(cell.name, metric), f"no finished run has {metric}")
    wanted = {**cell.choices, **(against.get("cell") or {})}
    others = [c for c in study.cells if _choices_equal(c.choices, wanted)]
    if not others:
        return Contrast({}), f"the study has no cell {wanted} to hold it against"
    other, other_metric = others[0], str(against.get("metric") or metric)
    name = "" if other is cell else study.label(other)
    contrast = outcomes.against(cell.name, metric, other.name, other_metric, name)
    problem = ""
    for one, name in ((cell, metric), (other, other_metric)):
        if not study.values(one.name, name):
            problem = f"no finished run of {study.label(one)} has {name}"
    return _known(contrast, problem)


def _known(contrast: Contrast, problem: str) -> tuple[Contrast, str]:
    return contrast, "" if contrast.values else problem


def _choices_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return set(first) == set(second) and all(same(first[key], second[key]) for key in first)


def _limits(bound: str, value: Any) -> tuple[float, float]:
    infinity = float("inf")
    if bound == "between":
        return float(value[0]), float(value[1])
    number = float(value)
    return {"within": (-number, number), "below": (-infinity, number), "above": (number, infinity)}[bound]


def _judge(interval: Interval, values: list[float], low: float, high: float, sign: bool) -> tuple[str, str]:
    """Met where the interval lies inside the bound, not met where it lies outside, else open; `sign` where values are differences."""
    style = "+" if sign else ""
    inside = sum(low <= value <= high for value in values)
    count = f"{inside} of {len(values)} seeds inside the bound"
    if not interval.is_bounded:
        why = f"the same in {interval.n} seeds" if interval.unbounded == "no spread" else interval.unbounded
        return "open", f"{interval.mean:{style}.4g}, {why}: no interval"
    half = (interval.high - interval.low) / 2
    decimals = max(2, 1 - math.floor(math.log10(half))) if half > 0 else 4
    mean, start, end = (f"{value:{style}.{decimals}f}" for value in (interval.mean, interval.low, interval.high))
    measured = f"{mean} ({start} to {end}), {count}"
    if interval.within(low, high):
        return "met", measured
    if interval.high < low or interval.low > high:
        return "not met", measured
    crossed = [f"{edge:g}" for edge in (low, high) if interval.low <= edge <= interval.high]
    return "open", f"{measured}; the interval straddles {' and '.join(crossed)}"


def _state(study: Study, cell: Cell, state: str) -> CellVerdict:
    runs = study.runs_of(cell.name)
    over = [run for run in runs if run.state in ("finished", "failed", "diverged")]
    there = sum(run.state == state for run in over)
    reason = f"{there} of {len(over)} runs that ended are {state}"
    if not over:
        return CellVerdict(study.label(cell), "open", "no run has ended yet")
    verdict = "met" if there == len(runs) else "not met" if there == 0 and len(over) == len(runs) else "open"
    return CellVerdict(study.label(cell), verdict, reason)


def _cannot(study: Study, cell: Cell, metric: str) -> CellVerdict:
    runs = study.runs_of(cell.name)
    finished = [run for run in runs if run.state == "finished"]
    unable = [run for run in finished if metric in run.cannot]
    if not finished:
        return CellVerdict(study.label(cell), "open", "no run has finished yet")
    if any(run.state not in ENDED for run in runs):
        return CellVerdict(study.label(cell), "open", f"{len(finished)} of {len(runs)} runs have finished")
    if len(unable) == len(finished):
        return CellVerdict(study.label(cell), "met", f"it cannot: {unable[0].cannot[metric]}")
    able = [run for run in finished if metric in run.final]
    verdict = "not met" if len(able) == len(finished) else "open"
    return CellVerdict(study.label(cell), verdict, f"{len(able)} of {len(finished)} finished runs have {metric}")


def _metric(study: Study, claim: Mapping[str, Any]) -> str:
    return str(claim.get("metric") or (study.metric.name if study.metric else ""))


def _test(study: Study, claim: Mapping[str, Any], bound: str) -> str:
    """What is checked, in words: `test/nats@8x of position=alibi minus test/nats@1x: within 0.02`."""
    metric, choices = _metric(study, claim), claim.get("cell") or {}
    where = ", ".join(f"{name}={value}" for name, value in choices.items()) or "every cell"
    if bound == "state":
        return f"runs of {where}: {claim['state']}"
    if bound == "cannot":
        return f"{where} cannot have {metric}"
    against = claim.get("against")
    text = f"{metric} of {where}"
    if isinstance(against, Mapping):
        other = [str(against["metric"])] if against.get("metric") else []
        other += [f"{name}={value}" for name, value in (against.get("cell") or {}).items()]
        text += f" minus {' of '.join([other[0], ', '.join(other[1:])]) if len(other) > 1 else ''.join(other)}"
    limit = (
        " and ".join(map(str, claim[bound])) if bound == "between" and isinstance(claim[bound], list) else claim[bound]
    )
    return f"{text}: {bound} {'±' if bound == 'within' else ''}{limit}"
