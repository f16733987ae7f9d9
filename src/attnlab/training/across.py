"""What a study says of the factor whose choices are its tasks (`across`): the ends that scores are normalised between,
and each task's metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnlab.training.study_fields import PrimaryMetric, checked_metric, checked_table, did_you_mean, is_finite, same
from attnlab.training.targets import target_of

FIELDS = ("factor", "ends", "metric", "tasks", "margin")
KNOWN_ENDS, OWN_ENDS = "chance_and_perfect", "baseline_and_best"
ALL, COMMON = "all", "common"
OTHER = "those of another metric"


@dataclass(frozen=True)
class Across:
    """The factor whose choices are tasks, by its name.

    ends: each task's, by its choice as text: a word, or the two values that become 0 and 1. metrics: of tasks that have
    one of their own. tasks: "all", or "common" where arms are compared on the tasks that each of them has. margin:
    differences of mean normalised scores that do not count.
    """

    factor: str
    ends: Mapping[str, str | tuple[float, float]] = field(default_factory=dict)
    metrics: Mapping[str, PrimaryMetric] = field(default_factory=dict)
    tasks: str = ALL
    margin: float = 0.0

    def on(self, metric: str, own: str) -> Across:
        """With one metric for all tasks; ends that are stated of another one are none. own: the name of the study's."""
        names = {task: self.metrics[task]["name"] if task in self.metrics else own for task in self.ends}
        ends = {
            task: one if isinstance(one, str) or names[task] == metric else OTHER for task, one in self.ends.items()
        }
        return replace(self, metrics={}, ends=ends)


def across_in(plan: Mapping[str, Any]) -> Across | None:
    """What a plan says of its tasks, if it does. Raises: ValueError."""
    entry = checked_across(plan.get("across"), plan.get("factors") or {}, plan.get("metric") or {})
    if entry is None:
        return None
    ends = {task: one if isinstance(one, str) else (one[0], one[1]) for task, one in entry["ends"].items()}
    return Across(entry["factor"], ends, entry["metric"], entry["tasks"], float(entry["margin"] or 0.0))


def checked_across(
    raw: object, factors: Mapping[str, Sequence[object]], metric: Mapping[str, Any], single: bool = False
) -> dict[str, Any] | None:
    """`across` as a plan keeps it, with the ends of every task; None where it is left out.

    metric: the study's, of every task without its own. single: whether the study has single cells. Raises: ValueError.
    """
    if raw is None:
        return None
    given = _table(raw)
    name, margin, tasks = given.get("factor"), given.get("margin"), given.get("tasks", ALL)
    if not isinstance(name, str) or name not in factors:
        near = did_you_mean(str(name), list(factors))
        wanted = f"one of the factors whose choices are tasks ({', '.join(factors) or 'there are none'})"
        raise ValueError(f"across.factor must be {wanted}, got {name!r}.{near}")
    if single:
        raise ValueError(f"across must have a task for every cell, and single cells have no {name}; make them factors")
    if len(factors[name]) < 2 or not any(len(choices) > 1 for other, choices in factors.items() if other != name):
        raise ValueError(f"across must have two tasks and two arms: give {name} and another factor two choices or more")
    if tasks not in (ALL, COMMON):
        raise ValueError(f"across.tasks must be {ALL} or {COMMON}, got {tasks!r}")
    if margin is not None and not (is_finite(margin) and margin >= 0):
        raise ValueError(f"across.margin must be a finite number from 0, in normalised scores, got {margin!r}")
    metrics = {
        task: checked_metric(one)
        for task, one in _by_task("across.metric", given.get("metric", {}), factors[name]).items()
    }
    said = given.get("ends", KNOWN_ENDS)
    ends = dict.fromkeys(map(str, factors[name]), said) if not isinstance(said, Mapping) else {}
    if not ends:
        ends = dict.fromkeys(map(str, factors[name]), KNOWN_ENDS) | _by_task("across.ends", said, factors[name])
    for task, one in ends.items():
        _check_ends(task, one, metrics.get(task, metric))
    return {"factor": name, "ends": ends, "metric": metrics, "tasks": tasks, "margin": margin}


def _table(raw: object) -> dict[str, Any]:
    if isinstance(raw, str):
        return {"factor": raw}
    if not isinstance(raw, Mapping) or "factor" not in raw:
        example = "{factor: data, ends: baseline_and_best}"
        raise ValueError(f"across must be a factor, as in across: data, or a table as in {example}, got {raw!r}")
    return checked_table(raw, "across", FIELDS)


def _by_task(where: str, raw: object, choices: Sequence[object]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a table by task, as in {{{choices[0]}: ...}}, got {raw!r}")
    found = {}
    for given, value in raw.items():
        task = next((str(choice) for choice in choices if same(choice, given)), None)
        if task is None:
            names = [str(choice) for choice in choices]
            near = did_you_mean(str(given), names)
            raise ValueError(f"{where} must name tasks of the study ({', '.join(names)}), got {given!r}.{near}")
        found[task] = value
    return found


def _check_ends(task: str, given: object, metric: Mapping[str, Any]) -> None:
    if target_of(str(metric.get("name"))):
        raise ValueError(f"across must have final figures as scores: the cost {metric['name']} of {task} has no ends")
    if given in (KNOWN_ENDS, OWN_ENDS):
        return
    if not isinstance(given, list) or len(given) != 2 or not all(map(is_finite, given)):
        near = did_you_mean(given, (KNOWN_ENDS, OWN_ENDS)) if isinstance(given, str) else ""
        raise ValueError(
            f"across.ends of {task} must be {KNOWN_ENDS}, {OWN_ENDS}, or two numbers, the value that counts as 0 and "
            f"the one that counts as 1, as in [0.1, 1.0], got {given!r}.{near}"
        )
    low, high = given
    if low == high or (high > low) != (metric["better"] == "higher"):
        raise ValueError(
            f"across.ends of {task} must have the worse value first, and {metric['better']} values of "
            f"{metric['name']} are better, got {given!r}"
        )
