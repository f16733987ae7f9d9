"""The metrics that a plan names: whether its runs report them, with which values better, and between which ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attnlab.config.compose import Composed
from attnlab.config.seams import PACE, load
from attnlab.studies.plan import Plan
from attnlab.training.across import KNOWN_ENDS, OWN_ENDS
from attnlab.training.metrics import ACCURACY, Metric, known_better, known_metric, parts_of
from attnlab.training.study_fields import did_you_mean
from attnlab.training.targets import target_of


def _claimed_metrics(plan: Plan) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """Every metric that a claim names: where it does, the metric, and the choices of the cells that have it."""
    for claim in plan.claims:
        where, cell, against = f"claim {claim['says']!r}", claim.get("cell", {}), claim.get("against", {})
        if "metric" in claim:
            yield f"{where}: metric", claim["metric"], cell
        if "metric" in against:
            yield f"{where}: against.metric", against["metric"], {**cell, **against.get("cell", {})}
    for at, figure in enumerate(plan.published.get("figures", [])):
        if "beside" in figure:
            yield f"published.figures[{at}].beside", figure["beside"], figure["cell"]


def primary_metrics(plan: Plan) -> Iterator[tuple[str, dict[str, Any], Mapping[str, object]]]:
    """What the cells are judged by, a metric or one a task: where it is named, and the choices of the cells."""
    if plan.across is None:
        yield "metric", plan.metric, {}
        return
    factor, own = plan.across["factor"], plan.across["metric"]
    for choice in plan.factors[factor]:
        where = f"across.metric.{choice}" if str(choice) in own else f"{factor}={choice}: metric"
        yield where, own.get(str(choice), plan.metric), {factor: choice}


def says_proportion(metric: str, runs: Iterable[Composed]) -> bool:
    """Whether the task of a run says of a metric that it is 0 or 1 a run."""
    known = (known_metric(metric, _recorded(load("task", run.get("task")), run)) for run in runs)
    return any(one is not None and one.is_proportion for one in known)


def _recorded(task: Any, run: Composed) -> dict[str, object]:
    """What a run's record will say of its metrics."""
    from attnlab.training import Task
    from attnlab.training.diagnostics import reported

    return {one.name: one.record() for one in reported(task, run.resolved)} if issubclass(task, Task) else {}


def _refuse_unknown_ends(plan: Plan, metric: str, wanted: Mapping[str, object], known: Metric | None) -> None:
    """Raises: ValueError where scores are to lie between chance and perfect, and one of these is known of no run."""
    if plan.across is None or plan.across["ends"][task := str(wanted[plan.across["factor"]])] != KNOWN_ENDS:
        return
    lacks = "no perfect value" if known is None or known.perfect is None else ""
    lacks = lacks or ("" if parts_of(metric)[1] == ACCURACY.name else "no chance value")
    if lacks:
        raise ValueError(
            f"across.ends of {task} must be stated, for {lacks} of {metric} is known: write ends: {{{task}: "
            f"[VALUE_THAT_COUNTS_AS_0, VALUE_THAT_COUNTS_AS_1]}}, or ends: {OWN_ENDS}"
        )


def refuse_unreported(plan: Plan, composed: Mapping[str, Composed]) -> None:
    """Raises: ValueError for a metric that none of its runs can report, or whose other values the task calls better."""
    from attnlab.training import Task
    from attnlab.training.diagnostics import reported, reports

    def runs_with(wanted: Mapping[str, object]) -> list[tuple[Any, Composed]]:
        runs = [composed[cell.name] for cell in plan.cells if cell.skip is None and cell.has(wanted)]
        return [(load("task", run.get("task")), run) for run in runs]

    for where, primary, wanted in primary_metrics(plan):
        for task, run in runs_with(wanted):
            recorded = _recorded(task, run)
            of_cost = "lower" if target_of(primary["name"]) else None
            better = of_cost or known_better(primary["name"], recorded) or primary["better"]
            if better != primary["better"]:
                given = f"task={run.names['task']} says so, got {primary['better']}"
                raise ValueError(f"{where}.better must be {better}, for {given}; write better: {better}")
            _refuse_unknown_ends(plan, primary["name"], wanted, known_metric(primary["name"], recorded))
    primaries = ((f"{where}.name", primary["name"], wanted) for where, primary, wanted in primary_metrics(plan))
    for where, metric, wanted in (*primaries, *_claimed_metrics(plan)):
        tasks = runs_with(wanted)
        if target := target_of(metric):
            metric = target.metric
            _refuse_unvalidated(where, metric, [run for _, run in tasks])
        if not tasks or any(not issubclass(task, Task) or reports(task, metric, run.resolved) for task, run in tasks):
            continue
        every = (one for task, run in tasks for one in reported(task, run.resolved))
        names = list(dict.fromkeys(name for one in every for name in one.names()))
        raise ValueError(
            f"{where} must be one of what these runs report, got {metric}.{did_you_mean(metric, names)} They report "
            f"{', '.join(names)}"
        )


def _refuse_unvalidated(where: str, metric: str, runs: Sequence[Composed]) -> None:
    """Raises: ValueError where some run is not validated in training, so that nobody would see it reach a target."""
    for run in runs:
        every, steps = (run.get(f"trainer.{name}") or 0 for name in PACE)
        if not 0 < every <= (steps or every):
            raise ValueError(
                f"{where} is the cost until {metric} reaches a value, which validations during training show, and "
                f"there are none (trainer.val_check_interval={every}, trainer.max_steps={steps}); set "
                "trainer.val_check_interval"
            )
