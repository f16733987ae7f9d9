"""What a study says over its tasks: normalised scores, their aggregates by arm, and average ranks.

Figures are those of `aggregates`. Words judge the difference of mean normalised scores to the baseline's, by seed and
over all tasks, as one family over the arms (`differences.judge`): the mean over tasks is the aggregate whose value of
single seeds averages to its own, and with few seeds a bootstrap interval is too narrow to judge by. The tasks are taken
as given: another choice of them is not in any interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from attnlab.analysis.aggregates import AGGREGATES, Ranks, aggregate, average_ranks, improvement, profile, profile_band
from attnlab.analysis.comparison import Comparison, compare, parts_of_study
from attnlab.analysis.contrasts import Contrast, contrast_of, together
from attnlab.analysis.differences import ALPHA, Judged, Outcomes, judge
from attnlab.analysis.file_cache import mapping
from attnlab.analysis.reader import Cell, Metric, Study
from attnlab.analysis.statistics import Interval, paired
from attnlab.analysis.tasks import arms_of, tasks_of
from attnlab.training.across import COMMON, KNOWN_ENDS, OTHER, OWN_ENDS, Across
from attnlab.training.metrics import parts_of, prefix_of
from attnlab.training.study_fields import is_finite

NAME = "mean normalised score"
POINTS = 101  # of a performance profile
Outcome = Mapping[int, str]  # of the runs of a cell, by seed


@dataclass(frozen=True)
class Ends:
    """The values that become 0 and 1, and what they are in words. has_floor: 0 is a level that a run which came to
    nothing has, too, so that a lost run counts as 0."""

    low: float
    high: float
    words: str
    has_floor: bool = True


@dataclass(frozen=True)
class Task:
    """A task: its part of the study, and the ends of its scores, or `problem`, why there are none."""

    label: str
    study: Study
    metric: Metric
    ends: Ends | None
    problem: str = ""

    @cached_property
    def outcomes(self) -> Outcomes:
        return Outcomes(self.study)

    def score(self, value: float) -> float:
        """Normalised and not clipped."""
        assert self.ends is not None
        return (value - self.ends.low) / (self.ends.high - self.ends.low)


@dataclass(frozen=True)
class Arm:
    """An arm over the tasks. scores (S, T): of the seeds of which every run has ended with a score, in their order.

    lost: its runs that ended without a value and count as 0. outcomes: by seed, of all of its runs together. lacks: why
    it has no aggregate. figures: the aggregates by name; improvement: P(a run of it beats one of the baseline).
    """

    label: str
    is_baseline: bool
    seeds: list[int]
    scores: np.ndarray
    outcomes: dict[int, str]
    lost: int = 0
    lacks: str = ""
    figures: dict[str, Interval] = field(default_factory=dict)
    improvement: Interval | None = None
    difference: Judged | None = None

    @property
    def means(self) -> dict[int, float]:
        """The mean over tasks of each seed."""
        return dict(zip(self.seeds, self.scores.mean(axis=1).tolist(), strict=True)) if self.seeds else {}


@dataclass(frozen=True)
class Aggregate:
    """The tasks of a study, its arms, and their ranks; `problem` is why there are no figures, else "".

    used: the tasks that the figures are of.
    """

    study: Study
    tasks: list[Task]
    used: list[Task]
    arms: list[Arm]
    ranks: Ranks | None = None
    problem: str = ""

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.is_baseline), None)

    @property
    def measured(self) -> list[Arm]:
        """The arms with figures, best interquartile mean first: for reading, no ranking."""
        return sorted(self.ranked, key=lambda arm: -arm.figures["IQM"].mean)

    @property
    def best_first(self) -> list[Arm]:
        return [*self.measured, *(arm for arm in self.arms if not arm.figures)]

    @property
    def ranked(self) -> list[Arm]:
        """The arms with figures, in the order of `ranks`."""
        return [arm for arm in self.arms if arm.figures]

    @property
    def why_unjudged(self) -> str:
        """Why no word judges the arms; "" where words do."""
        if any(task.ends is not None and not task.ends.has_floor for task in self.used):
            return "its ends are the baseline and the best of the same runs"
        if self.study.tuned:
            return "what the choice of each cell's setting may have missed has no bound over tasks"
        is_share = any(task.outcomes.is_proportion(task.metric.name) for task in self.used)
        return "of a metric that is 0 or 1 a run, a mean over tasks has no exact test" if is_share else ""

    @cached_property
    def points(self) -> np.ndarray:
        """Where the performance profiles are drawn: from the lowest score or 0 to the highest or 1."""
        scores = np.concatenate([arm.scores.ravel() for arm in self.ranked])
        return np.linspace(min(0.0, scores.min()), max(1.0, scores.max()), POINTS)

    @cached_property
    def profiles(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{arm: share of runs above each of `points`, and its 95% band (nan of one seed)}, best first."""
        nothing = np.full(POINTS, math.nan)
        return {
            arm.label: (
                profile(arm.scores, self.points),
                *(profile_band(arm.scores, self.points) if len(arm.seeds) > 1 else (nothing, nothing)),
            )
            for arm in self.measured
        }


@dataclass(frozen=True)
class Tasks:
    """A study over its tasks: what came out over all of them, and each one compared, in their order."""

    aggregate: Aggregate
    tasks: list[Comparison]

    @property
    def study(self) -> Study:
        return self.aggregate.study

    @property
    def unsettled(self) -> list[str]:
        """What more seeds may settle in any task."""
        return [name for task in self.tasks for name in task.unsettled]

    @property
    def labels(self) -> list[str]:
        """The tasks by their names."""
        factor = self.study.across.factor if self.study.across else ""
        return [str(task.study.factors[factor][0]) for task in self.tasks]


def compare_tasks(study: Study) -> Tasks:
    """Aggregates a study over its tasks, and compares each. Raises ValueError as `aggregate_of`."""
    return Tasks(aggregate_of(study), [compare(part) for part in parts_of_study(study)])


def aggregate_of(study: Study, alpha: float = ALPHA) -> Aggregate:
    """Aggregates a study over its tasks. Raises ValueError for one that names none (`across`)."""
    across = study.across
    if across is None:
        raise ValueError(f"the study {study.name} names no factor whose choices are tasks; write across: in study.yaml")
    tasks = [_task(part, across) for part in tasks_of(study, across)]
    layout = arms_of(study, across)
    cells = {arm.name: [_cell_of(arm, task) for task in tasks] for arm in layout.cells}
    lacking = {name: [_lack(*pair) for pair in zip(of, tasks, strict=True)] for name, of in cells.items()}
    kept = [not any(of[at] for of in lacking.values()) or across.tasks != COMMON for at in range(len(tasks))]
    used = [task for task, is_kept in zip(tasks, kept, strict=True) if is_kept]
    problem = "; ".join(dict.fromkeys(task.problem for task in used if task.problem))
    if problem or not used:
        return Aggregate(study, tasks, used, [], problem=problem or "no task is common to all arms")
    arms = []
    for arm in layout.cells:
        lacks = "; ".join(why for why, is_kept in zip(lacking[arm.name], kept, strict=True) if why and is_kept)
        of_used = [cell for cell, is_kept in zip(cells[arm.name], kept, strict=True) if is_kept]
        arms.append(_arm(layout.label(arm), arm is layout.baseline_cell, of_used, used, study.seeds, lacks))
    return _judged(Aggregate(study, tasks, used, arms), across.margin, alpha)


def _cell_of(arm: Cell, task: Task) -> Cell | None:
    return next((cell for cell in task.study.matching(arm.choices) if len(cell.choices) == len(arm.choices) + 1), None)


def _lack(cell: Cell | None, task: Task) -> str:
    """Why an arm has no score on a task, whatever its runs give; "" where it can have one."""
    if cell is None:
        return f"{task.label}: no such cell"
    if cell.skip is not None:
        return f"{task.label}: skipped ({cell.skip})"
    return (
        f"{task.label}: {task.metric.name} unavailable"
        if task.outcomes.unavailable(cell.name, task.metric.name)
        else ""
    )


def _arm(
    label: str, is_baseline: bool, cells: Sequence[Cell | None], tasks: Sequence[Task], seeds: Sequence[int], lacks: str
) -> Arm:
    """The scores of an arm on the tasks, of the seeds that have one on each."""
    nothing = np.zeros((0, len(tasks)))
    if lacks:
        return Arm(label, is_baseline, [], nothing, {}, lacks=lacks)
    by_task = [_scores(cell, task) for cell, task in zip(cells, tasks, strict=True) if cell is not None]
    outcomes = {seed: together(ended.get(seed, "pending") for _, ended, _ in by_task) for seed in seeds}
    whole = [seed for seed, outcome in outcomes.items() if outcome == "value"]
    scores_ST = np.array([[scores[seed] for scores, *_ in by_task] for seed in whole]).reshape(-1, len(tasks))
    lost = sum(seed in whole for *_, of in by_task for seed in of)
    if "failed" in outcomes.values():  # which runs fail may depend on how they would have done
        gone = list(outcomes.values()).count("failed")
        return Arm(label, is_baseline, [], nothing, outcomes, lacks=f"{gone} of {len(seeds)} seeds lost a run")
    lacks = "" if whole else "no seed has ended on every task"
    return Arm(label, is_baseline, whole, scores_ST, outcomes, lost, lacks)


def _scores(cell: Cell, task: Task) -> tuple[dict[int, float], Outcome, list[int]]:
    """The scores of a task by seed, how its runs ended where a lost run has a score too, and the seeds of lost runs."""
    assert task.ends is not None
    values = task.study.values(cell.name, task.metric.name)
    scores = {seed: task.score(value) for seed, value in values.items()}
    ended = task.outcomes.of(cell.name, task.metric.name)
    if not task.ends.has_floor:
        return scores, ended, []
    lost = [seed for seed, outcome in ended.items() if outcome in ("failed", "unavailable")]
    return scores | dict.fromkeys(lost, 0.0), {seed: "value" if seed in lost else ended[seed] for seed in ended}, lost


def _judged(found: Aggregate, margin: float, alpha: float) -> Aggregate:
    """With the figures of each arm, its difference to the baseline and the ranks."""
    spent = found.study.looks.spent(len(found.study.seeds))
    judged = judge_arms(found.arms, margin, alpha, spent) if not found.why_unjudged else {}
    arms = [_with_figures(arm, found.baseline, judged.get(arm.label)) for arm in found.arms]
    means_AT = np.array([arm.scores.mean(axis=0) for arm in arms if arm.figures])
    ranks = average_ranks(means_AT, alpha * spent) if len(means_AT) > 1 else None
    return Aggregate(found.study, found.tasks, found.used, arms, ranks)


def judge_arms(arms: Sequence[Arm], margin: float = 0.0, alpha: float = ALPHA, spent: float = 1.0) -> dict[str, Judged]:
    """The differences of mean scores to the baseline's by seed, as one family, by label; spent: the share of alpha that
    this look at the study has."""
    base = next((arm for arm in arms if arm.is_baseline), None)
    able = [arm for arm in arms if base and arm is not base and arm.outcomes and base.outcomes]
    contrasts = {arm.label: _contrast(arm, base) for arm in able if base}
    return judge(contrasts, Metric(NAME, "higher", margin), alpha * spent, spent)


def _contrast(arm: Arm, base: Arm) -> Contrast:
    outcomes = {"": arm.outcomes, "the baseline": base.outcomes}
    return contrast_of(paired(arm.means, base.means), outcomes, "seeds")


def _with_figures(arm: Arm, base: Arm | None, difference: Judged | None) -> Arm:
    if not arm.seeds:
        return arm
    figures = {name: aggregate(statistic, arm.scores) for name, statistic in AGGREGATES.items()}
    ahead = improvement(arm.scores, base.scores) if base and base.seeds and base is not arm else None
    return Arm(**{**vars(arm), "figures": figures, "improvement": ahead, "difference": difference})


# --- the ends of a task's scores


def _task(part: Study, across: Across) -> Task:
    label, metric = str(part.factors[across.factor][0]), part.metric
    if metric is None:
        return Task(label, part, Metric(""), None, "the study names no metric")
    if (kinds := len(parts_of_study(part))) > 1:
        return Task(label, part, metric, None, f"the runs on {label} are of {kinds} kinds that cannot be compared")
    try:
        return Task(label, part, metric, _ends(part, metric, label, across.ends[label]))
    except ValueError as error:
        return Task(label, part, metric, None, str(error))


def _ends(part: Study, metric: Metric, label: str, given: str | tuple[float, float]) -> Ends:
    """The ends that are meant. Raises ValueError where they are not known, with what to write."""
    instead = f"write across.ends: {{{label}: [VALUE_THAT_COUNTS_AS_0, VALUE_THAT_COUNTS_AS_1]}} in study.yaml"
    if not isinstance(given, str):
        return Ends(*given, f"from {given[0]:g} to {given[1]:g}, as the study says")
    if given == OTHER:
        raise ValueError(f"the ends of {label} are stated for another metric than {metric.name}")
    if given == OWN_ENDS:
        return _own_ends(part, metric, label)
    known = part.known_metric(metric.name)
    if known is None or known.perfect is None:
        raise ValueError(f"no perfect value of {metric.name} is known on {label}: {instead}, or ends: {OWN_ENDS}")
    chance, where = chance_in(part, metric.name)
    if not math.isfinite(chance):
        raise ValueError(f"no chance value of {metric.name} is recorded on {label}: {instead}, or ends: {OWN_ENDS}")
    if chance == known.perfect:
        raise ValueError(f"chance on {label} is perfect already ({chance:g}), so nothing lies between: {instead}")
    assert given == KNOWN_ENDS
    return Ends(chance, known.perfect, f"from chance ({chance:.4g}, {where}) to perfect ({known.perfect:g})")


def _own_ends(part: Study, metric: Metric, label: str) -> Ends:
    """The baseline's mean and the best run of any arm."""
    base = part.baseline_cell
    own = list(part.values(base.name, metric.name).values()) if base else []
    runs = [value for cell in part.cells for value in part.values(cell.name, metric.name).values()]
    if not own:
        raise ValueError(f"the baseline has no value of {metric.name} on {label} to measure from")
    low, high = float(np.mean(own)), (min if metric.better == "lower" else max)(runs)
    if low == high:
        raise ValueError(f"no run on {label} is better than the baseline, so nothing lies between {OWN_ENDS}")
    return Ends(low, high, f"from the baseline's mean ({low:.4g}) to the best run ({high:.4g})", has_floor=False)


def chance_in(part: Study, metric: str) -> tuple[float, str]:
    """The accuracy of guessing that the runs have recorded, and where; nan where they have none."""
    split, measure, _ = parts_of(metric)
    if measure != "accuracy":
        return math.nan, ""
    beside = metric.replace("/accuracy", "/chance")
    found = [run.final[beside] for run in part.runs.values() if beside in run.final]
    if found:
        return float(np.mean(found)), beside
    shares = [mapping(run.section("data").get("chance")) for run in part.runs.values()]
    on_split = [share for one in shares for name, share in one.items() if prefix_of(name) == split]
    known = [share for share in on_split if is_finite(share)]
    return (float(np.mean(known)), "the most frequent class") if known else (math.nan, "")
