"""What a sweep says before anything runs: how much it is, what comes first, and what so few seeds cannot decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count

from attnlab.analysis.differences import ALPHA
from attnlab.analysis.proportions import smallest_fisher_p
from attnlab.analysis.statistics import smallest_sign_flip_p
from attnlab.config.compose import Composed
from attnlab.studies.checked import Checked
from attnlab.studies.plan import Cell, Plan
from attnlab.studies.reported import primary_metrics, says_proportion
from attnlab.training.looks import shares, stages_of
from attnlab.training.targets import target_of

APART = ("data", "task", "tokenizer")  # choices whose cells may not be compared with one another


def announcement(study: Checked) -> Iterator[str]:
    """How many runs there are, in which stages, what comes before them, and the cells that are left out."""
    plan, total = study.plan, sum(1 for _ in study.plan.jobs())
    size = f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {study.runs_dir / plan.study}"
    yield f"{plan.study}: {plan.question}"
    yield f"{size}: {total - len(study.pending)} of {total} runs are done"
    if stages := plan.looks.stages:
        numbers = ", ".join(map(str, stages))
        yield f"seeds in stages, {numbers}, until all is settled: at most {plan.most_runs} runs"
    if plan.needs:
        yield f"before it, what it needs: {', '.join(plan.needs)}"
    if (tuning := study.to_tune) is not None:
        tune = tuning.tune
        tries = f"{tune['trials']} settings x {len(tune['seeds'])} seeds in each cell, {tuning.runs} runs"
        yield f"before it, its tuning: {tries} of the study {tuning.name}, by {tune['metric']['name']}"
    yield from (f"skipped {cell.name}: {cell.skip}" for cell in plan.cells if cell.skip)


def undecidable(plan: Plan, composed: Sequence[Composed], is_tuned: bool) -> list[str]:
    """What no runs of a plan can decide, whatever comes out: differences on a cost or on what is 0 or 1 a run, with too
    few seeds for its exact test, or at settings that were tuned. composed: of the plan's cells, or of some."""
    said: dict[str, None] = {}
    for _, primary, wanted in primary_metrics(plan):
        cells = [cell for cell in plan.cells if cell.skip is None and cell.has(wanted)]
        names = {cell.name for cell in cells}
        kind = _kind(primary, [one for one in composed if one.cell in names])
        if kind is not None:
            said |= dict.fromkeys(_of_metric(str(primary["name"]), kind, plan, cells, is_tuned))
    return list(said)


def _kind(primary: Mapping[str, object], composed: Sequence[Composed]) -> tuple[str, Callable[[int], float]] | None:
    """The exact test that judges a metric, and the smallest p that it gives with so many seeds; None for means."""
    if target_of(str(primary["name"])):
        return "the sign test", smallest_sign_flip_p
    if says_proportion(str(primary["name"]), composed):
        return "Fisher's exact test", lambda seeds: smallest_fisher_p(seeds, seeds)
    return None


def _of_metric(
    metric: str, kind: tuple[str, Callable[[int], float]], plan: Plan, cells: Sequence[Cell], is_tuned: bool
) -> Iterator[str]:
    test, smallest = kind
    if size := plan.published.get("size"):
        yield f"{metric}: whether effects grow with {size} is judged of means alone, so it is left out"
    if is_tuned:
        yield (
            f"{metric}: no cell will be called better or worse, for what the choice of a setting may have missed has "
            "no bound in it; shown are the figures at the settings chosen (drop tune, or compare a loss)"
        )
        return
    tests = _comparisons(cells)
    decides = partial(_decides, smallest, tests)
    seeds, stages = len(plan.seeds), plan.looks.stages
    able = [n for n, is_able in zip(stages, decides(stages), strict=True) if is_able] if stages else []
    of = f"{tests} comparison{'s' * (tests > 1)}"
    if tests and stages and able[:1] != stages[:1]:
        step = stages[1] - stages[0] if len(stages) > 1 else stages[0]
        enough = next(n for n in count(stages[-1]) if any(decides(stages_of(stages[0], step, n))))
        at = f"no look before that of {able[0]} seeds" if able else f"none of the looks at {_listed(stages)} seeds"
        way_on = "" if able else f"; with at_most: {enough} in stop the last one could"
        yield f"{metric}: at {at} can {test} find a difference in {of}, whatever comes out{way_on}"
    if tests and not stages and not any(decides([seeds])):
        enough = next(n for n in count(seeds) if any(decides([n])))
        yield (
            f"{metric}: with {seeds} seed{'s' * (seeds > 1)} {test} finds no difference, whatever comes out (p is "
            f"{smallest(seeds):.3g} at least, for {of}); study.seeds={enough} could"
        )


def _decides(smallest: Callable[[int], float], tests: int, stages: Sequence[int]) -> list[bool]:
    """Of each look whether its test can reach its part of the 5%."""
    return [smallest(n) * tests <= ALPHA * share for n, share in zip(stages, shares(stages), strict=True)]


def _comparisons(cells: Sequence[Cell]) -> int:
    """How many cells are held against the baseline, at least: of data, tasks or tokenizers apart, the fewest."""
    kinds = Counter(tuple(str(cell.choices.get(name)) for name in APART) for cell in cells)
    return min((number - 1 for number in kinds.values() if number > 1), default=0)


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
