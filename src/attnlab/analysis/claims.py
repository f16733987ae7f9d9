"""Checks a study's claims against its runs. Claims are data: names, bounds and text, never evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attnlab.analysis.contrasts import Contrast
from attnlab.analysis.differences import Outcomes
from attnlab.analysis.reader import Cell, Choice, choices_of
from attnlab.analysis.statistics import Interval
from attnlab.training.run_directory import ENDED
from attnlab.training.study_fields import BOUNDS, ENDS, check_claim
from attnlab.training.targets import target_of


@dataclass(frozen=True)
class CellVerdict:
    """What one cell says to a claim: "met", "not met" or "open", with the reason and the values by seed; may_settle:
    whether more seeds may close what is open."""

    cell: str
    verdict: str
    reason: str
    values: dict[int, float] = field(default_factory=dict)
    interval: Interval | None = None
    may_settle: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim of a study, as it is checked, with the verdict on each cell."""

    says: str
    test: str
    verdict: str
    reason: str
    cells: list[CellVerdict]
    source: str = ""
    strength: str = ""


def check_claims(outcomes: Outcomes) -> list[Claim]:
    """Every claim of the study with its verdict; one that is no claim, or names no cell, is open, with the reason.

    The intervals of all claims are simultaneous: a study has a false "met" or "not met" with a chance of at most
    `outcomes.alpha`.
    """
    checks = [_Check(claim, outcomes) for claim in outcomes.study.claims]
    size = sum(contrast.is_test for check in checks for contrast, _ in check.measured.values())
    return [check.claim_at(1 - outcomes.alpha / max(1, size)) for check in checks]


class _Check:
    """One claim: the cells that it speaks of, what has to be measured in each, and `problem`, why it is no claim."""

    def __init__(self, claim: Mapping[str, object], outcomes: Outcomes) -> None:
        self.claim, self.outcomes, self.study = claim, outcomes, outcomes.study
        self.problem, self.bound = "", ""
        self.cells: list[Cell] = []
        self.measured: dict[str, tuple[Contrast, str]] = {}
        try:
            check_claim(claim)
        except ValueError as error:
            self.problem = str(error)
            return
        self.metric = str(claim.get("metric") or (self.study.metric.name if self.study.metric else ""))
        self.bound = next(bound for bound in BOUNDS if bound in claim)
        self.cells = [cell for cell in self.study.matching(_cell(claim)) if cell.skip is None]
        self.problem = "" if self.cells else f"the study has no cell with {_cell(claim)}"
        if self.bound not in ("state", "unavailable"):
            self.measured = {cell.name: self._contrast(cell) for cell in self.cells}

    def _contrast(self, cell: Cell) -> tuple[Contrast, str]:
        """What the bound is put on, by seed: the metric, or its difference to another; and why there is nothing."""
        study, metric, against = self.study, self.metric, self.claim.get("against")
        if not isinstance(against, Mapping):
            contrast = self.outcomes.alone(cell.name, metric)
            return contrast, "" if contrast.n else f"no finished run has {metric}"
        wanted = {**cell.choices, **_cell(against)}
        other = next((c for c in study.matching(wanted) if set(c.choices) == set(wanted)), None)
        if other is None:
            return Contrast({}), f"the study has no cell {wanted} to hold it against"
        other_metric = str(against.get("metric") or metric)
        if self.outcomes.is_proportion(metric) != self.outcomes.is_proportion(other_metric):
            return Contrast({}), f"one of {metric} and {other_metric} is 0 or 1 a run and the other is not"
        axes = [target.axis if (target := target_of(name)) else "" for name in (metric, other_metric)]
        if axes[0] != axes[1]:
            return Contrast({}), f"{metric} and {other_metric} are not counted alike"
        name = "" if other is cell else study.label(other)
        contrast = self.outcomes.against(cell.name, metric, other.name, other_metric, name)
        lacking = [
            pair for pair in ((cell, metric), (other, other_metric)) if not self.outcomes.known(pair[0].name, pair[1])
        ]
        problem = f"no finished run of {study.label(lacking[-1][0])} has {lacking[-1][1]}" if lacking else ""
        return contrast, "" if contrast.n else problem

    def claim_at(self, level: float) -> Claim:
        """The claim with its verdict: met where each of its cells meets it, not met where one does not."""
        about = {key: str(self.claim.get(key) or "") for key in ("says", "source", "strength")}
        if self.problem:
            return Claim(test="", verdict="open", reason=self.problem, cells=[], **about)
        cells = [self._of_cell(cell, level) for cell in self.cells]
        found = [cell.verdict for cell in cells]
        verdict = next(word for word in ("not met", "open", "met") if word in found)
        first = cells[found.index(verdict)]
        reason = f"{verdict} in {found.count(verdict)} of {len(cells)} cells; {first.cell}: {first.reason}"
        reason = reason if len(cells) > 1 else first.reason
        return Claim(test=self._in_words(), verdict=verdict, reason=reason, cells=cells, **about)

    def _of_cell(self, cell: Cell, level: float) -> CellVerdict:
        label = self.study.label(cell)
        if self.bound == "state":
            return CellVerdict(label, *self._state(cell, str(self.claim["state"])))
        if self.bound == "unavailable":
            return CellVerdict(label, *self._unavailable(cell))
        contrast, problem = self.measured[cell.name]
        values = contrast.values
        if problem or not contrast.n:
            reason = problem or contrast.reason or f"no finished run has {self.metric}"
            return CellVerdict(label, "open", reason, values)
        interval = contrast.interval(level)
        low, high = _limits(self.bound, self.claim[self.bound])
        verdict, reason = _judge(interval, contrast.inside(low, high), low, high, "against" in self.claim)
        reason += f"; {contrast.reason}" if contrast.reason and interval.is_bounded else ""
        if contrast.beyond_chance:
            return CellVerdict(label, "open", reason, values, interval)
        return CellVerdict(label, verdict, reason, values, interval, may_settle=verdict == "open")

    def _state(self, cell: Cell, state: str) -> tuple[str, str]:
        runs = self.study.runs_of(cell.name)
        over = [run for run in runs if run.state in ENDS]
        there = sum(run.state == state for run in over)
        if not over:
            return "open", "no run has ended yet"
        verdict = "met" if there == len(runs) else "not met" if there == 0 and len(over) == len(runs) else "open"
        return verdict, f"{there} of {len(over)} runs that ended are {state}"

    def _unavailable(self, cell: Cell) -> tuple[str, str]:
        metric, runs = self.metric, self.study.runs_of(cell.name)
        finished = [run for run in runs if run.state == "finished"]
        if not finished:
            return "open", "no run has finished yet"
        if any(run.state not in ENDED for run in runs):
            return "open", f"{len(finished)} of {len(runs)} runs have finished"
        if all(metric in run.unavailable for run in finished):
            return "met", f"unavailable: {finished[0].unavailable[metric]}"
        able = sum(metric in run.final for run in finished)
        return "not met" if able == len(finished) else "open", f"{able} of {len(finished)} finished runs have {metric}"

    def _in_words(self) -> str:
        """What is checked: `test/loss@8x of position=alibi minus test/loss@1x: within 0.02`."""
        claim, bound, limit = self.claim, self.bound, self.claim[self.bound]
        where = _choices(claim) or "every cell"
        if bound == "state":
            return f"runs of {where}: {limit}"
        if bound == "unavailable":
            return f"{self.metric} of {where}: unavailable"
        text, against = f"{self.metric} of {where}", claim.get("against")
        if isinstance(against, Mapping):
            text += f" minus {' of '.join(filter(None, [str(against.get('metric') or ''), _choices(against)]))}"
        if bound == "between" and isinstance(limit, list):
            limit = " and ".join(map(str, limit))
        return f"{text}: {bound} {'±' if bound == 'within' else ''}{limit}"


def _cell(claim: Mapping[str, object]) -> dict[str, Choice]:
    return choices_of(claim.get("cell"))


def _choices(claim: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in _cell(claim).items())


def _limits(bound: str, value: object) -> tuple[float, float]:
    low, high = (float(str(end)) for end in (value if isinstance(value, Sequence) else (value, value)))
    return {"between": (low, high), "within": (-low, low), "below": (-math.inf, low), "above": (low, math.inf)}[bound]


def _judge(interval: Interval, counts: str, low: float, high: float, sign: bool) -> tuple[str, str]:
    """Met where the interval lies inside the bound, not met where outside, else open; `sign`: of a difference."""
    style = "+" if sign else ""
    if not (math.isfinite(interval.low) or math.isfinite(interval.high)):
        why = f"the same in {interval.n} seeds" if interval.unbounded == "no spread" else interval.unbounded
        return "open", f"{interval.counted or f'{interval.mean:{style}.4g}'}, {why}: no interval"
    half = (interval.high - interval.low) / 2
    decimals = 4 if half <= 0 else max(2, 1 - math.floor(math.log10(half))) if math.isfinite(half) else 2
    mean, start, end = (f"{value:{style}.{decimals}f}" for value in (interval.mean, interval.low, interval.high))
    measured = ", ".join(filter(None, [f"{interval.counted or mean} ({start} to {end})", counts]))
    if interval.within(low, high):
        return "met", measured
    if interval.outside(low, high):
        return "not met", measured
    crossed = [f"{edge:g}" for edge in (low, high) if interval.low <= edge <= interval.high]
    straddled = f"the interval straddles {' and '.join(crossed)}" if crossed else "the exact test is not sure"
    return "open", f"{measured}; {straddled}"
