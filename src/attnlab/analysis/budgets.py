"""What the runs of a study's cells cost, where that differs between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from attnlab.analysis.cells import Budget
from attnlab.analysis.formatting import quantity
from attnlab.analysis.reader import Study
from attnlab.training.study_fields import same

# Ratios of largest to smallest below which a difference in cost is not worth a warning, and what is counted.
TOLERANCE = {"steps": 1.0, "tokens": 1.0, "parameters": 1.02, "active_parameters": 1.02, "flops": 1.02}
NAMES = {"steps": "steps", "tokens": "training {unit}s", "parameters": "parameters", "flops": "training FLOPs"}
NAMES |= {"active_parameters": "active parameters (those that a token meets)"}
EQUAL_TIME = 1.2  # times that lie closer are not worth a word: neighbours on the machine make as much


def budget_warnings(study: Study, budgets: Mapping[str, Budget]) -> list[str]:
    """A sentence on the quantities that differ between cells, with the factors that they follow; [] if none."""
    parts, follows = [], dict[str, None]()
    for name, tolerance in TOLERANCE.items():
        if name == "active_parameters" and not some_idle(budgets.values()):
            continue
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


def some_idle(budgets: Iterable[Budget]) -> bool:
    """Whether a token meets fewer parameters than there are in some cell."""
    return any(budget.active_parameters < budget.parameters for budget in budgets)


def time_note(budgets: Mapping[str, Budget]) -> str | None:
    """How far the cells' times lie apart; None where they are about equal or not known."""
    known = [budget.seconds for budget in budgets.values() if budget.seconds > 0]
    if len(known) < 2 or max(known) <= EQUAL_TIME * min(known):
        return None
    low, high = min(known), max(known)
    return (
        f"Time a run: {low:.3g} to {high:.3g} seconds ({_ratio(high / low)}). It depends on the machine and on what "
        "else runs on it, so no warning is drawn from it: to compare speed, time the cells one after the other on a "
        "machine that does nothing else."
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio >= 1.5 else f"+{100 * (ratio - 1):.2g}%"


def _follows(study: Study, factor: str, known: Mapping[str, float], tolerance: float) -> bool:
    cells = [cell for cell in study.cells if cell.name in known and factor in cell.choices]
    for first, second in combinations(cells, 2):
        apart = [k for k in first.choices if not same(first.choices[k], second.choices.get(k))]
        low, high = sorted((known[first.name], known[second.name]))
        if apart == [factor] and high > tolerance * low:
            return True
    return False
