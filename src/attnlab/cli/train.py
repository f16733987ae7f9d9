"""`attnlab train`: one run, or with -m a multirun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from attnlab.cli.check import check, senseless
from attnlab.cli.cluster import uses_slurm
from attnlab.cli.compose import MANY_JOBS, Composed, ConfigSpace, Mistake, twins
from attnlab.cli.init_from import inherit
from attnlab.cli.launch import Launcher, for_each_job, launch, no_empty_folders, prepare_launcher, split_hydra
from attnlab.cli.overrides import readable
from attnlab.cli.run import is_over, say_over
from attnlab.cli.search import conclude, corners, is_search, metric_word, refuse_without_optuna
from attnlab.training.run_directory import effective_state, read_json


def train(arguments: argparse.Namespace) -> int:
    """
    Checks every job of the command, prepares its data, then hands it to Hydra; returns the exit status.

    Raises: Mistake before anything is built or read.
    """
    overrides = inherit(readable(arguments.overrides, arguments.multirun))
    own, hydra_own = split_hydra(overrides)
    searching = arguments.multirun and is_search(hydra_own)
    if searching:
        refuse_without_optuna()
    with ConfigSpace(arguments.config_dir) as space:
        jobs = space.expand(corners(own) if searching else own) if arguments.multirun else [own]
        if len(jobs) > MANY_JOBS:
            print(f"checking {len(jobs):,} jobs", file=sys.stderr)
        composed = [space.compose(job) for job in jobs]
        if not searching and (alike := twins(zip(map(" ".join, jobs), composed, strict=True))):
            raise Mistake(f"two of these jobs are one run; leave one out: {'; '.join(dict.fromkeys(alike))}")
        directories = [str(c.config.run_dir) for c in composed]
        refuse_twins(jobs, directories)
        if arguments.cfg:
            print("\n".join(OmegaConf.to_yaml(c.config, resolve=True) for c in composed), end="")
            return 0
        if arguments.multirun and not searching:  # a search that can meet nonsense would spend its trials on it
            composed = _sensible(composed)
        for one in composed:
            check(one)
        if not arguments.multirun and uses_slurm(space.launcher([*own, *hydra_own])):
            raise Mistake(
                "a launcher takes the jobs of a multirun: add -m, as in `attnlab train -m ... hydra/launcher=slurm`"
            )
        launcher = prepare_launcher(space, jobs[0], hydra_own, [one.config.trainer for one in composed])
    if searching:
        return _search(own, launcher, space, composed)
    pending = [one for one in composed if not is_over(one)]
    if not pending:
        for one in composed:
            say_over(one)
        return 0
    from attnlab.cli.build import prepare_data, refuse_for_this_machine, rehearse
    from attnlab.cli.views import settle_mode

    tracking = settle_mode(one.config for one in pending)
    for one in pending:
        rehearse(one.config)
        if launcher.is_here:
            refuse_for_this_machine(one.config)
    with no_empty_folders([Path(directory) for directory in directories]):
        prepare_data([one.config for one in pending])
        if not arguments.multirun:
            launch([*overrides, *tracking], space, multirun=False)
        else:
            _launch_all([*own, *launcher.words, *tracking], space, pending)
    return int(any(effective_state(str(one.config.run_dir)) != "finished" for one in pending))


def refuse_twins(jobs: Sequence[Sequence[str]], directories: Sequence[str]) -> None:
    """Refuses jobs that would share a directory. Raises: Mistake, which names two of them and what sets them apart."""
    first: dict[str, int] = {}
    for place, directory in enumerate(directories):
        if (other := first.setdefault(directory, place)) == place:
            continue
        one, two = " ".join(jobs[other]) or "no override", " ".join(jobs[place]) or "no override"
        if sorted(jobs[other]) == sorted(jobs[place]):
            raise Mistake(f"two of these {len(jobs)} jobs are the same ({one}): give each choice once")
        advice = (
            "leave run_dir out and set runs_dir"
            if any(word.startswith("run_dir=") for word in jobs[place])
            else ("they differ in nothing that a run's name tells: give one of them, or each a study.name of its own")
        )
        raise Mistake(f"the jobs {one} and {two} would share the directory {directory}: {advice}")


def _search(own: Sequence[str], launcher: Launcher, space: ConfigSpace, composed: Sequence[Composed]) -> int:
    """A search in each cell, once its corners are checked; returns the exit status. Raises: Mistake."""
    from attnlab.cli.build import prepare_data, refuse_for_this_machine, rehearse
    from attnlab.cli.views import settle_mode

    first = composed[0].config
    metric = metric_word(composed[0], launcher.words)
    tracking = settle_mode(one.config for one in composed)
    for one in composed:
        rehearse(one.config)
        if launcher.is_here:
            refuse_for_this_machine(one.config)
    prepare_data([one.config for one in composed])
    launch([*for_each_job(own, space), *launcher.words, *tracking, metric], space, multirun=True)
    return conclude(Path(first.runs_dir) / first.study.name, own, metric.partition("=")[2])


def _sensible(composed: Sequence[Composed]) -> list[Composed]:
    """
    The jobs of a multirun whose parts make sense together; says why of the others.

    Raises: Mistake where none is left.
    """
    reasons = [senseless(one) for one in composed]
    lines = [f"skipped {one.config.cell}: {'; '.join(why)}" for one, why in zip(composed, reasons, strict=True) if why]
    if len(lines) == len(composed):
        raise Mistake("\n".join(dict.fromkeys(reason for why in reasons for reason in why)))
    for line in dict.fromkeys(lines):
        print(line, file=sys.stderr)
    return [one for one, why in zip(composed, reasons, strict=True) if not why]


def _launch_all(overrides: Sequence[str], space: ConfigSpace, pending: Sequence[Composed]) -> None:
    """Hydra raises the first job's exception when all have run; each run's own status says more."""
    try:
        launch(for_each_job(overrides, space), space, multirun=True)
    except Exception as error:
        failed = [d for one in pending if effective_state(d := str(one.config.run_dir)) == "failed"]
        if not failed:
            raise
        for directory in failed:
            reason = read_json(Path(directory) / "status.json", {}).get("error", error)
            print(f"attnlab: {directory} failed: {reason}", file=sys.stderr)
