"""What each cell cost: steps, tokens, parameters, FLOPs and time, and whether the comparison is confounded by it (time only in a note)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attnlab.analysis.reader import Run, Study, is_number, same

# Below these ratios of largest to smallest a difference is not worth a warning.
TOLERANCE = {"steps": 1.0, "tokens": 1.0, "parameters": 1.02, "flops": 1.02}
EQUAL_TIME = 1.2  # times that lie closer are not worth a word: neighbours on the machine make as much
NAMES = {"steps": "steps", "tokens": "training {unit}s", "parameters": "parameters", "flops": "training FLOPs"}


@dataclass(frozen=True)
class Budget:
    """Means over a cell's finished runs; nan where unknown. `flops` are those of the whole training."""

    steps: float
    tokens: float
    seconds: float
    parameters: float
    flops: float


def budget_of(runs: list[Run]) -> Budget:
    """The budget of a cell's finished runs."""
    finished = [run for run in runs if run.state == "finished"]
    steps, tokens, seconds = (_mean([run.status.get(key) for run in finished]) for key in ("step", "tokens", "seconds"))
    parameters = _mean([(run.record.get("parameters") or {}).get("total") for run in finished])
    flops = _mean([run.record.get("flops_per_token") for run in finished]) * tokens
    return Budget(steps, tokens, seconds, parameters, flops)


def _mean(values: list[object]) -> float:
    numbers = [float(value) for value in values if isinstance(value, int | float) and is_number(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def budget_warnings(study: Study, budgets: Mapping[str, Budget]) -> list[str]:
    """A sentence on the quantities that differ between cells, with the factors that they follow; [] where all cells had the same."""
    parts, follows = [], dict[str, None]()
    for name, tolerance in TOLERANCE.items():
        known = {cell: getattr(b, name) for cell, b in budgets.items() if getattr(b, name) > 0}
        if len(known) < 2 or max(known.values()) <= tolerance * min(known.values()):
            continue
        low, high = min(known.values()), max(known.values())
        parts.append(
            f"{NAMES[name].format(unit=study.unit)} {quantity(low)} to {quantity(high)} ({_ratio(high / low)})"
        )
        follows |= dict.fromkeys(f for f in study.varying if _follows(study, f, known, tolerance))
    if not parts:
        return []
    cause = f", following {' and '.join(follows)}" if follows and len(study.varying) > 1 else ""
    return [
        f"Cells differ in more than their choices: {'; '.join(parts)}{cause}. Part of a difference may come from that."
    ]


def time_note(budgets: Mapping[str, Budget]) -> str | None:
    """How far the cells' times lie apart, and why nothing is judged by them; None where they are about equal or not known."""
    known = [budget.seconds for budget in budgets.values() if budget.seconds > 0]
    if len(known) < 2 or max(known) <= EQUAL_TIME * min(known):
        return None
    low, high = min(known), max(known)
    return (
        f"Time a run: {low:.3g} to {high:.3g} seconds ({_ratio(high / low)}). It depends on the machine and on what else runs on it, so no warning is "
        "drawn from it: to compare speed, time the cells one after the other on a machine that does nothing else."
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio >= 1.5 else f"+{100 * (ratio - 1):.2g}%"


def _follows(study: Study, factor: str, known: Mapping[str, float], tolerance: float) -> bool:
    """Whether cells that differ in `factor` alone differ in the quantity."""
    cells = [cell for cell in study.cells if cell.name in known and factor in cell.choices]
    for i, first in enumerate(cells):
        for second in cells[i + 1 :]:
            apart = [k for k in first.choices if not same(first.choices[k], second.choices.get(k))]
            pair = sorted((known[first.name], known[second.name]))
            if apart == [factor] and pair[1] > tolerance * pair[0]:
                return True
    return False


def quantity(value: float) -> str:
    """A count as people read it: 950, 12.3k, 4.56M, 7.8e+15."""
    if not math.isfinite(value):
        return "-"
    for size, suffix in ((1e12, None), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value:.2e}" if suffix is None else f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"
