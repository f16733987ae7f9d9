"""The jobs of one command: checked, their data prepared, then handed to Hydra; one run, a multirun, or a search."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attnlab.config import UsageError
from attnlab.config.check import check, incompatible
from attnlab.config.compose import MANY_JOBS, Composed, ConfigSpace
from attnlab.config.engine import corners, for_each_job, launch, launcher_of, split_hydra, split_search
from attnlab.config.identity import INIT_FROM, cell_name, folders_of_start, inherit, key_and_value, readable, twins
from attnlab.config.seams import load
from attnlab.parts import find
from attnlab.studies.plan import in_words
from attnlab.training.metrics import better_of
from attnlab.training.run_directory import ATTEMPTS, effective_state, read_json

SWEEPER = "hydra/sweeper=search"


@dataclass(frozen=True)
class Launcher:
    """The settings of a launcher, whether it trains on this machine, and the threads of each job if it says so."""

    words: list[str]
    is_here: bool = True
    threads: int | None = None


def prepare_launcher(
    space: ConfigSpace, run: Sequence[str], words: Sequence[str], trainers: Iterable[Mapping[str, Any]]
) -> Launcher:
    """The launcher that `words` choose, for runs such as `run` with these trainers. Raises: UsageError."""
    slurm, settings = launcher_of(space, [*run, *words])
    if slurm is None:
        return Launcher(list(words))
    _refuse_incompatible(slurm, trainers)
    return Launcher([*words, *settings], is_here=False, threads=slurm["cpus_per_task"])


def _refuse_incompatible(launcher: Mapping[str, object], trainers: Iterable[Mapping[str, Any]]) -> None:
    """What Slurm would only say when the jobs have waited for their turn, by the fields of both. Raises: UsageError."""
    if shutil.which("sbatch") is None:
        raise UsageError(
            "this launcher hands runs to Slurm, but this machine has no sbatch to submit them with; give the same "
            "command on a login node of the cluster, or choose hydra/launcher=joblib to train here"
        )
    shapes = {(int(trainer["num_nodes"]), int(trainer["devices"])) for trainer in trainers}
    if len(shapes) > 1:
        shown = ", ".join(f"{nodes} nodes with {devices} devices" for nodes, devices in sorted(shapes))
        raise UsageError(
            "the jobs of one array have one shape, but these runs differ in trainer.num_nodes or trainer.devices: "
            f"{shown}; sweep them one after the other"
        )
    for shape in shapes:
        for field, key, value in zip(("nodes", "tasks_per_node"), ("num_nodes", "devices"), shape, strict=True):
            if launcher[field] != value:
                raise UsageError(
                    f"hydra.launcher.{field}={launcher[field]} does not fit trainer.{key}={value}: Slurm starts one "
                    f"task a device. Leave hydra.launcher.{field} out, and it follows trainer.{key}"
                )


@contextlib.contextmanager
def no_empty_folders(paths: Iterable[Path]) -> Iterator[None]:
    """Of the folders on the way to the runs in `paths` that were not there before, those that stay empty go again."""
    within = {folder for path in paths for folder in (path / ATTEMPTS, path, *path.parents)}
    absent = [folder for folder in within if not os.path.exists(folder)]
    try:
        yield
    finally:
        for folder in sorted(absent, key=lambda folder: len(folder.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def train(overrides: Sequence[str], config_dirs: Sequence[str], many: bool, plan_only: bool) -> int:
    """Trains one run, or with `many` the jobs of a multirun; returns the exit status.

    plan_only: prints what would be run, and runs nothing. Raises: UsageError before anything is built or read.
    """
    on_end = None
    if any(word.startswith("study.on_end=") for word in overrides):
        from attnlab.studies.on_end import of_multirun

        on_end, overrides = of_multirun(overrides, many)
    own, hydra_own, places = split_hydra(inherit(readable(overrides, many)))
    searching = many and _is_search(hydra_own)
    given = [*config_dirs, *places]
    with ConfigSpace(given or folders_of_start(own), "" if given else INIT_FROM) as space:
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
        if not many and launcher_of(space, [*own, *hydra_own])[0] is not None:
            raise UsageError(
                "a launcher takes the jobs of a multirun: add -m, as in `attnlab train -m ... hydra/launcher=slurm`"
            )
        launcher = prepare_launcher(space, jobs[0], hydra_own, [one.resolved["trainer"] for one in composed])
    call = partial(_search if searching else _train, own, launcher, space, composed, many)
    if on_end is None:
        return call()
    from attnlab.studies.on_end import then

    return then(on_end, composed[0].runs_dir / composed[0].study, call)


def _train(own: Sequence[str], launcher: Launcher, space: ConfigSpace, composed: Sequence[Composed], many: bool) -> int:
    from attnlab.runs.build import prepare_data
    from attnlab.runs.run import is_over, run, say_over

    pending = [one for one in composed if not is_over(one)]
    if not pending:
        for one in composed:
            say_over(one)
        return 0
    words = [*own, *launcher.words, *_ready(pending, launcher)]
    with no_empty_folders([one.run_dir for one in pending]):
        prepare_data([one.resolved for one in pending])
        words += _settled(pending, composed, launcher) if many else []
        try:
            launch(run, for_each_job(words, space) if many else words, space, multirun=many)
        except Exception as error:  # Hydra raises the first job's when all have run; each run's own status says more
            failed = [one.run_dir for one in pending if effective_state(one.run_dir) == "failed"]
            if not (many and failed):
                raise
            for directory in failed:
                reason = read_json(directory / "status.json", {}).get("error", error)
                print(f"attnlab: {directory} failed: {reason}", file=sys.stderr)
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


def _settled(pending: Sequence[Composed], jobs: Sequence[Composed], launcher: Launcher) -> list[str]:
    """How all jobs compute where that is auto, as settings, said; none where they run on a cluster."""
    from attnlab.runs.settled import settle_all

    if not launcher.is_here:
        return []
    automatic, lines = settle_all(pending, None, [one.run_dir for one in jobs])
    for line in lines:
        print(line, file=sys.stderr)
    return in_words(automatic)


def _refuse_twins(jobs: Sequence[Sequence[str]], composed: Sequence[Composed], searching: bool) -> None:
    """Raises: UsageError for jobs that are one run or would share a directory, which names two of them."""
    if not searching and (alike := twins(zip(map(" ".join, jobs), (one.resolved for one in composed), strict=True))):
        raise UsageError(f"two of these jobs are one run; leave one out: {'; '.join(dict.fromkeys(alike))}")
    first: dict[Path, int] = {}
    for place, directory in enumerate(one.run_dir for one in composed):
        if (other := first.setdefault(directory, place)) == place:
            continue
        one, two = (" ".join(jobs[at]) or "no override" for at in (other, place))
        if sorted(jobs[other]) == sorted(jobs[place]):
            raise UsageError(f"two of these {len(jobs)} jobs are the same ({one}): give each choice once")
        advice = "they differ in nothing that a run's name tells: give one of them, or each a study.name of its own"
        if any(word.startswith("run_dir=") for word in jobs[place]):
            advice = "leave run_dir out and set runs_dir"
        raise UsageError(f"the jobs {one} and {two} would share the directory {directory}: {advice}")


def _compatible(composed: Sequence[Composed]) -> list[Composed]:
    """The jobs of a multirun whose parts can be combined; says why of the others. Raises: UsageError for none."""
    reasons = [incompatible(one) for one in composed]
    if all(reasons):
        raise UsageError("\n".join(dict.fromkeys(reason for why in reasons for reason in why)))
    lines = [f"skipped {one.cell}: {'; '.join(why)}" for one, why in zip(composed, reasons, strict=True) if why]
    for line in dict.fromkeys(lines):
        print(line, file=sys.stderr)
    return [one for one, why in zip(composed, reasons, strict=True) if not why]


def _is_search(words: Sequence[str]) -> bool:
    """Whether these settings of Hydra choose the search. Raises: UsageError where Optuna is not installed."""
    if SWEEPER in words and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise UsageError(f"{SWEEPER} needs Optuna: pip install 'attnlab[optuna]'")
    return SWEEPER in words


def _search(own: Sequence[str], launcher: Launcher, space: ConfigSpace, composed: Sequence[Composed], _: bool) -> int:
    """A search in each cell, once its corners are checked; returns the exit status. Raises: UsageError."""
    from attnlab.runs.build import prepare_data
    from attnlab.runs.run import run

    metric, better = _metric_of_search(composed[0], launcher.words)
    tracking = _ready(composed, launcher)
    prepare_data([one.resolved for one in composed])
    tracking = [*tracking, *_settled(composed, (), launcher)]
    chosen = [f"hydra.sweeper.metric={metric}", f"hydra.sweeper.better={better}"]
    launch(run, [*for_each_job(own, space), *launcher.words, *tracking, *chosen], space, multirun=True)
    return _conclude(composed[0].runs_dir / composed[0].study, own, metric, better)


def cells_and_space(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """A search's cells, as overrides by name, and what it looks in. Raises: UsageError for cells of one name."""
    jobs, space = split_search(overrides)
    cells = {cell_name(job): job for job in jobs}
    if len(cells) < len(jobs):
        raise UsageError(
            "two cells of this search would have one name; a search has one seed: give seed=N once, and no setting "
            "twice"
        )
    return cells, space


def _metric_of_search(composed: Composed, words: Sequence[str]) -> tuple[str, str]:
    """The metric that the settings of Hydra ask for, else what the task watches, and which values of it are better."""
    keys = ("hydra.sweeper.metric=", "hydra.sweeper.better=")
    asked, better = (next((w.removeprefix(key) for w in reversed(words) if w.startswith(key)), None) for key in keys)
    if asked is not None and not asked.startswith("val/"):
        raise UsageError(
            f"hydra.sweeper.metric must be of the validation part, as val/loss is, got {asked}: settings are chosen "
            "by the validation part"
        )
    from attnlab.training.diagnostics import reported

    task = load("task", composed.get("task"))
    metric = asked or f"val/{task.monitor.name}"
    said = {known.name: known.record() for known in reported(task, composed.resolved)}
    return metric, better or better_of(metric, said)


def _conclude(study: Path, overrides: Sequence[str], metric: str, better: str) -> int:
    """Says the best trial of every cell; returns the exit status: 1 where a trial failed or none of a cell finished."""
    from attnlab.runs.record import trials_of

    status = 0
    cells, space = cells_and_space(overrides)
    for name in cells:
        trials = {path: read_json(path / "status.json", {}) for path in trials_of(study, name)}
        states = [effective_state(path) for path in trials]
        values = {path: one["final"][metric] for path, one in trials.items() if metric in one.get("final", {})}
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{name}: {len(trials)} trials, {counted}")
        status |= int("failed" in states or not values)
        if values:
            best = (min if better == "lower" else max)(values, key=values.__getitem__)
            config = read_json(best / "run.json", {})["config"]
            chosen = " ".join(f"{key}={find(config, key)}" for key, _ in map(key_and_value, space))
            print(f"  best {metric} {values[best]:.4f} with {chosen} in {best}")
    return status
