"""The jobs of one command: checked, their data prepared, then handed to Hydra; one run, a multirun, or a search."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from attnlab.config import UsageError
from attnlab.config.check import check, incompatible
from attnlab.config.compose import MANY_JOBS, Composed, ConfigSpace
from attnlab.config.engine import corners, for_each_job, launch, launcher_of, split_hydra
from attnlab.config.identity import inherit, twins
from attnlab.config.overrides import readable
from attnlab.studies.launch import Launcher, no_empty_folders, prepare_launcher
from attnlab.studies.search import conclude, is_search, metric_of_search
from attnlab.training.run_directory import effective_state, read_json


def train(overrides: Sequence[str], config_dirs: Sequence[str], many: bool, plan_only: bool) -> int:
    """
    Trains one run, or with `many` the jobs of a multirun; returns the exit status.

    plan_only: prints what would be run, and runs nothing. Raises: UsageError before anything is built or read.
    """
    own, hydra_own = split_hydra(inherit(readable(overrides, many)))
    searching = many and is_search(hydra_own)
    with ConfigSpace(config_dirs) as space:
        jobs = space.expand(corners(own) if searching else own) if many else [own]
        if len(jobs) > MANY_JOBS:
            print(f"checking {len(jobs):,} jobs", file=sys.stderr)
        composed = [space.compose(job) for job in jobs]
        _refuse_twins(jobs, composed, searching)
        if plan_only:
            print("\n".join(one.as_yaml(resolve=True) for one in composed), end="")
            return 0
        if many and not searching:  # a search that can meet what is incompatible would spend its trials on it
            composed = _compatible(composed)
        for one in composed:
            check(one)
        if not many and launcher_of(space, [*own, *hydra_own]).is_slurm:
            raise UsageError(
                "a launcher takes the jobs of a multirun: add -m, as in `attnlab train -m ... hydra/launcher=slurm`"
            )
        launcher = prepare_launcher(space, jobs[0], hydra_own, [one.resolved["trainer"] for one in composed])
    if searching:
        return _search(own, launcher, space, composed)
    return _train(own, launcher, space, composed, many)


def _train(own: Sequence[str], launcher: Launcher, space: ConfigSpace, composed: Sequence[Composed], many: bool) -> int:
    """Prepares the data of what is not over yet, and launches it."""
    from attnlab.runs.build import prepare_data
    from attnlab.runs.run import is_over, run, say_over

    pending = [one for one in composed if not is_over(one)]
    if not pending:
        for one in composed:
            say_over(one)
        return 0
    tracking = _ready(pending, launcher)
    with no_empty_folders([one.run_dir for one in pending]):
        prepare_data([one.resolved for one in pending])
        if many:
            words = [*own, *launcher.words, *tracking]
            _telling_failures(lambda: launch(run, for_each_job(words, space), space, multirun=True), pending)
        else:
            launch(run, [*own, *launcher.words, *tracking], space, multirun=False)
    return int(any(effective_state(one.run_dir) != "finished" for one in pending))


def _ready(composed: Sequence[Composed], launcher: Launcher) -> list[str]:
    """W&B's mode as settings. Raises: UsageError, before data are read, for a run that cannot be built or trained."""
    from attnlab.runs.build import dry_build, refuse_for_this_machine
    from attnlab.runs.views import settle_mode

    tracking = settle_mode(one.resolved for one in composed)
    for one in composed:
        dry_build(one.resolved)
        if launcher.is_here:
            refuse_for_this_machine(one.resolved)
    return tracking


def _refuse_twins(jobs: Sequence[Sequence[str]], composed: Sequence[Composed], searching: bool) -> None:
    """Raises: UsageError for jobs that are one run or would share a directory, which names two of them."""
    if not searching and (alike := twins(zip(map(" ".join, jobs), (one.resolved for one in composed), strict=True))):
        raise UsageError(f"two of these jobs are one run; leave one out: {'; '.join(dict.fromkeys(alike))}")
    first: dict[Path, int] = {}
    for place, directory in enumerate(one.run_dir for one in composed):
        if (other := first.setdefault(directory, place)) == place:
            continue
        one, two = " ".join(jobs[other]) or "no override", " ".join(jobs[place]) or "no override"
        if sorted(jobs[other]) == sorted(jobs[place]):
            raise UsageError(f"two of these {len(jobs)} jobs are the same ({one}): give each choice once")
        advice = "they differ in nothing that a run's name tells: give one of them, or each a study.name of its own"
        if any(word.startswith("run_dir=") for word in jobs[place]):
            advice = "leave run_dir out and set runs_dir"
        raise UsageError(f"the jobs {one} and {two} would share the directory {directory}: {advice}")


def _search(own: Sequence[str], launcher: Launcher, space: ConfigSpace, composed: Sequence[Composed]) -> int:
    """A search in each cell, once its corners are checked; returns the exit status. Raises: UsageError."""
    from attnlab.runs.build import prepare_data
    from attnlab.runs.run import run

    metric, better = metric_of_search(composed[0], launcher.words)
    chosen = [f"hydra.sweeper.metric={metric}", f"hydra.sweeper.better={better}"]
    tracking = _ready(composed, launcher)
    prepare_data([one.resolved for one in composed])
    words = [*for_each_job(own, space), *launcher.words, *tracking, *chosen]
    launch(run, words, space, multirun=True)
    return conclude(composed[0].runs_dir / composed[0].study, own, metric, better)


def _compatible(composed: Sequence[Composed]) -> list[Composed]:
    """
    The jobs of a multirun whose parts can be combined; says why of the others.

    Raises: UsageError where none is left.
    """
    reasons = [incompatible(one) for one in composed]
    lines = [f"skipped {one.cell}: {'; '.join(why)}" for one, why in zip(composed, reasons, strict=True) if why]
    if len(lines) == len(composed):
        raise UsageError("\n".join(dict.fromkeys(reason for why in reasons for reason in why)))
    for line in dict.fromkeys(lines):
        print(line, file=sys.stderr)
    return [one for one, why in zip(composed, reasons, strict=True) if not why]


def _telling_failures(launch: Callable[[], None], pending: Sequence[Composed]) -> None:
    """Hydra raises the first job's exception when all have run; each run's own status says more."""
    try:
        launch()
    except Exception as error:
        failed = [one.run_dir for one in pending if effective_state(one.run_dir) == "failed"]
        if not failed:
            raise
        for directory in failed:
            reason = read_json(directory / "status.json", {}).get("error", error)
            print(f"attnlab: {directory} failed: {reason}", file=sys.stderr)
