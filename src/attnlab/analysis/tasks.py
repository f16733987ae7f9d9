"""The tasks of a study `across` one of its factors, a part each, and the arms: its cells without that factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnlab.analysis.file_cache import mapping
from attnlab.analysis.reader import Cell, Choice, Metric, Study, choices_of
from attnlab.training.across import Across


def tasks_of(study: Study, across: Across) -> list[Study]:
    """A part for each task, in the plan's order, with its own metric and the baseline's arm in it.

    Claims stay with every task that has all of their cells: one that names no task is checked in each.
    """
    return [_task(study, across, choice) for choice in study.factors[across.factor]]


def _task(study: Study, across: Across, choice: Choice) -> Study:
    named = {across.factor: choice}
    cells = study.matching(named)
    names = {cell.name for cell in cells}
    own = across.metrics.get(str(choice))
    part = replace(
        study,
        cells=cells,
        runs={key: run for key, run in study.runs.items() if key[0] in names},
        factors={**study.factors, across.factor: [choice]},
        baseline={**study.baseline, **named} if study.baseline else {},
        metric=Metric(own["name"], own["better"], float(own["margin"] or 0.0)) if own else study.metric,
        across=None,
        apart=[*study.apart, f"Compared here are the runs with {across.factor}={choice}, one of the tasks."],
    )
    part.claims = [claim for claim in study.claims if all(map(part.matching, cells_of(claim)))]
    return part


def arms_of(study: Study, across: Across) -> Study:
    """The study with one cell an arm, for its labels and for looking arms up; without runs."""
    arms: dict[str, Cell] = {}
    for cell in study.cells:
        choices = without(cell.choices, across.factor)
        name = ",".join(f"{key}={value}" for key, value in choices.items())
        arms.setdefault(name, Cell(name, choices))
    factors = {name: choices for name, choices in study.factors.items() if name != across.factor}
    baseline = without(study.baseline, across.factor)
    return replace(study, cells=list(arms.values()), factors=factors, baseline=baseline, runs={}, across=None)


def without(choices: Mapping[str, Choice], factor: str) -> dict[str, Choice]:
    return {name: choice for name, choice in choices.items() if name != factor}


def cells_of(claim: object) -> list[dict[str, Choice]]:
    """The choices that a claim names, its own and those that it is held against."""
    said = mapping(claim)
    if not said:
        return []
    own = [choices_of(said["cell"])] if isinstance(said.get("cell"), Mapping) else []
    return own + cells_of(said.get("against"))


def claims_with_metrics(study: Study) -> list[dict[str, object]]:
    """The claims, each with the metric that it is about, so that it keeps it where the study is compared on another:
    where it names none, the study's own. A claim about tasks of which one has another metric becomes one a task."""
    return [one for claim in study.claims for one in _with_metric(claim, study)]


def _with_metric(claim: dict[str, object], study: Study) -> list[dict[str, object]]:
    if "metric" in claim or "state" in claim or study.metric is None:
        return [claim]
    across, own = study.across, study.metric.name
    if across is None or not across.metrics:
        return [claim | {"metric": own}]
    cell = choices_of(claim.get("cell"))
    tasks = [cell[across.factor]] if across.factor in cell else study.factors[across.factor]
    names = {task: across.metrics[str(task)]["name"] if str(task) in across.metrics else own for task in tasks}
    return [claim | {"cell": {**cell, across.factor: task}, "metric": name} for task, name in names.items()]
