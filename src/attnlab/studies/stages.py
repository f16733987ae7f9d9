"""Seeds in stages: how far a study has come, whether another stage follows, and what was looked at before seeds were
added.

Nothing is kept of a look but how many seeds it had: the comparison makes each of them again from the runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from attnlab.config import UsageError
from attnlab.config.identity import key_and_text
from attnlab.runs.record import code_version
from attnlab.studies.plan import Plan, read_plan, runs_of
from attnlab.training.looks import Looks
from attnlab.training.run_directory import ENDED, SETTLED, effective_state, read_json, write_json

MOST_NAMED = 5


def at_stage(plan: Plan, runs_dir: Path, tell: Callable[[str], None]) -> Plan:
    """A plan as far as its runs have come: with the seeds that plan.json has, or the next where those leave something
    open. Raises: UsageError where runs are over that were planned with other stages."""
    folder = runs_dir / plan.study
    before = read_plan(folder / "plan.json") if (folder / "plan.json").is_file() else None
    if before is None:
        return plan
    if before.looks.stages == plan.looks.stages:
        seeds = before.seeds if plan.looks.stages else plan.seeds
        return next_stage(plan := replace(plan, seeds=seeds), runs_dir, tell) or plan
    if any(effective_state(run.parent) in ENDED for run in folder.glob("*/seed=*/status.json")):
        was, now = map(_planned, (before, plan))
        raise UsageError(
            f"{plan.study}: its runs were planned with {was}, and now {now} are asked for; looks that are planned "
            "after the first figures are worth nothing: keep seeds and stop of study.yaml as they were, or begin anew "
            "with study.name=NEW"
        )
    return plan


def _planned(plan: Plan) -> str:
    stages = plan.looks.stages
    return f"{', '.join(map(str, stages))} seeds in stages" if stages else f"{len(plan.seeds)} seeds at once"


def seeds_of_needed(folder: Path, seeds: list[int]) -> list[int] | None:
    """The seeds that the study of a folder is swept with when another one needs these: all of its own where it has more
    and they are over; None where it adds them in stages of its own, and has come so far."""
    with contextlib.suppress(UsageError):
        plan = read_plan(folder / "plan.json")
        if set(seeds) <= set(plan.seeds) and plan.looks.stages:
            return None
        if set(seeds) <= set(plan.seeds) and _over(plan, folder.parent, plan.seeds):
            return plan.seeds
    return seeds


def seems_over(path: Path, own: Sequence[str]) -> bool:
    """Whether all runs of a study's last plan are over, by a glance that loads no part."""
    given = dict(map(key_and_text, own))
    folder = Path(given.get("runs_dir", "runs"), given.get("study.name", path.parent.name))
    with contextlib.suppress(UsageError):
        runs = runs_of(read_plan(folder / "plan.json"), folder.parent).values()
        return all(effective_state(run) in SETTLED for run in runs)
    return False


def _over(plan: Plan, runs_dir: Path, seeds: Collection[int]) -> bool:
    runs = runs_of(plan, runs_dir).items()
    return all(effective_state(run) in ENDED for (_, seed), run in runs if seed in seeds)


def next_stage(plan: Plan, runs_dir: Path, tell: Callable[[str], None]) -> Plan | None:
    """The plan with the seeds of its next stage, where all runs of this one are over and leave something open; else
    None. Says what the look found."""
    looks, seeds = plan.looks, len(plan.seeds)
    states = [effective_state(run) for run in runs_of(plan, runs_dir).values()]
    if not looks.stages or not states or any(state not in ENDED for state in states):
        return None
    left, after = _unsettled(runs_dir / plan.study), looks.after(seeds)
    found = f"{plan.study}: {looks.in_words(seeds)}, with {seeds} seeds"
    if not left:
        tell(f"{found}: every comparison is settled")
        return None
    named = ", ".join(left[:MOST_NAMED]) + (f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else "")
    follow = f"{after} seeds are next" if after else "no more seeds are planned"
    tell(f"{found}: still open: {named}; {follow}")
    return replace(plan, seeds=list(range(after))) if after else None


def _unsettled(folder: Path) -> list[str]:
    from attnlab.analysis import compare, load_study, parts_of_study

    return [name for part in parts_of_study(load_study(folder)) for name in compare(part).unsettled]


def with_earlier_looks(plan: Plan, before: Plan | None, runs_dir: Path) -> Plan:
    """A plan without stages that knows of those before it under the same name: how many seeds had been compared when
    others were added, and how many were given up."""
    if plan.looks.stages or before is None:
        return plan
    looked, given_up = before.looks.looked, before.looks.given_up
    # Words of one cell alone may have been seen.
    was_seen = any(
        _over(replace(before, cells=[cell]), runs_dir, before.seeds) for cell in before.cells if not cell.skip
    )
    if was_seen and not _over(plan, runs_dir, set(plan.seeds) - set(before.seeds)):
        looked = [*looked, len(before.seeds)]
    if set(plan.seeds) < set(before.seeds) and not _over(before, runs_dir, before.seeds):
        given_up = max(given_up, len(before.seeds))
    return replace(plan, looks=Looks([], looked, given_up if len(plan.seeds) < given_up else 0))


def write_plan(plan: Plan, path: Path, runs_dir: Path) -> None:
    """Writes plan.json, with the code by which its first runs were made."""
    before = read_json(path, {})
    plan = with_earlier_looks(plan, read_plan(path) if before else None, runs_dir)
    now = asdict(replace(plan, code=before.get("code") or dict(code_version())))
    if before != now:
        write_json(path, now)
