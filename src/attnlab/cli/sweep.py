"""`attnlab sweep`: runs what is missing of a study, in parallel, and compares."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from attnlab.cli.check import check
from attnlab.cli.compose import ConfigSpace, Mistake
from attnlab.cli.launch import launch, no_empty_folders, split_hydra
from attnlab.cli.monitor import OVER, Monitor, Snapshot, duration
from attnlab.cli.reports import compare_study
from attnlab.cli.studies import Plan, find_study, load_plan, quoted, refuse_drift, runs_of, states
from attnlab.training.run_directory import read_json, write_json

# A worker that the system kills takes the launcher's other jobs with it; launching again goes on where they stopped.
LAUNCHES = 3


def sweep(arguments: argparse.Namespace) -> int:
    """
    Runs the missing runs of a study and prints the comparison; exit status 1 when a run failed or is missing at the end.

    Raises: Mistake before anything is run.
    """
    own, hydra_own = split_hydra(arguments.overrides)
    if not any(o.startswith("hydra/launcher=") for o in hydra_own):
        hydra_own = ["hydra/launcher=joblib", *hydra_own]
    console = Console()
    with ConfigSpace(arguments.config_dir) as space:
        plan = load_plan(find_study(arguments.study), own, space)
        first = space.compose([*plan.overrides(plan.cells[0], plan.seeds[0]), *hydra_own])
        runs_dir = Path(str(first.config.runs_dir))
        refuse_drift(plan, runs_dir, space)
        pending = _unsettled(plan, runs_dir)
        _check_cells(plan, {name for name, _ in pending}, space, prepare=not arguments.cfg)
    _announce(plan, len(pending), runs_dir, console)
    if not any(plan.jobs()):
        raise Mistake(f"{plan.study}: no cell of this study makes sense, so there is nothing to run")
    if arguments.cfg:
        for cell, seed in plan.jobs():
            console.print(
                "attnlab train " + shlex.join(plan.overrides(cell, seed)), markup=False, highlight=False, soft_wrap=True
            )
        return 0
    path = runs_dir / plan.study / "plan.json"
    with no_empty_folders([path.parent, *runs_of(plan, runs_dir).values()]), stopped_by_sigterm():
        _write_plan(plan, path)
        if pending:
            _run_missing(plan, path, runs_dir, hydra_own, space, console)
    compare_study(path.parent, console)
    return _verdict(plan, runs_dir)


def _unsettled(plan: Plan, runs_dir: Path) -> list[tuple[str, int]]:
    return [key for key, state in states(plan, runs_dir).items() if state not in ("finished", "diverged")]


def _check_cells(plan: Plan, names: set[str], space: ConfigSpace, prepare: bool) -> None:
    """Every cell that will run is checked and its model built without memory; its data are prepared once, before the workers start."""
    composed = [space.compose(plan.overrides(cell, plan.seeds[0])) for cell in plan.cells if cell.name in names]
    for one in composed:
        check(one)
    if not composed:
        return
    from attnlab.cli.build import prepare_data, rehearse

    for one in composed:
        rehearse(one.config)
    if prepare:
        prepare_data([one.config for one in composed])


def _announce(plan: Plan, pending: int, runs_dir: Path, console: Console) -> None:
    total = sum(1 for _ in plan.jobs())
    console.print(f"{plan.study}: {plan.question}", markup=False, highlight=False, soft_wrap=True)
    line = f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {runs_dir / plan.study}: {total - pending} of {total} runs are done"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    for cell in plan.cells:
        if cell.skip:
            console.print(f"skipped {cell.name}: {cell.skip}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does, with its workers: left to themselves they would train on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_plan(plan: Plan, path: Path) -> None:
    from attnlab.cli.provenance import code_version

    before = read_json(path, {})
    now = replace(plan, code=before.get("code") or code_version()).as_json()
    if before != now:
        write_json(path, now)


def _run_missing(
    plan: Plan, path: Path, runs_dir: Path, hydra_own: Sequence[str], space: ConfigSpace, console: Console
) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for _ in range(LAUNCHES):
        pending = [
            key for key, state in states(plan, runs_dir).items() if state in ("missing", "interrupted", "failed")
        ]
        if not pending:  # another sweep of this study runs what is left
            return
        parallel = min(cores, len(pending))
        words = [
            "hydra/sweeper=study",
            f"hydra.sweeper.plan={quoted(str(path))}",
            f"runs_dir={quoted(str(runs_dir))}",
            f"study.name={quoted(plan.study)}",
        ]
        words += ["progress=off", f"trainer.threads={max(1, cores // parallel)}"]
        if "hydra/launcher=joblib" in hydra_own and not any("hydra.launcher.n_jobs=" in o for o in hydra_own):
            words.append(f"hydra.launcher.n_jobs={parallel}")
        with Monitor(plan, runs_dir, console):
            again = _launch_once([*words, *hydra_own], space)
        if not again or not _unsettled(plan, runs_dir):
            return


def _launch_once(words: Sequence[str], space: ConfigSpace) -> bool:
    """One launch; True where a worker was killed, so that another launch can go on with what it left."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    from hydra_plugins.attnlab_study_sweeper import JobsFailed

    try:
        launch(words, space, multirun=True)
    except JobsFailed as error:
        print(f"attnlab: some runs failed, the others went on:\n{error}", file=sys.stderr)
    except BrokenProcessPool:
        print(
            "attnlab: a worker was killed (by a person, or by the system when memory ran out); going on with what it left",
            file=sys.stderr,
        )
        return True
    return False


def _verdict(plan: Plan, runs_dir: Path) -> int:
    """0 where every run is over and none failed; else 1, with the way on."""
    snapshot = Snapshot(plan, runs_dir)
    failed, elsewhere = snapshot.count("failed"), snapshot.count("running")
    unfinished = len(snapshot.state) - snapshot.count(*OVER) - elsewhere
    if elsewhere:
        print(
            f"attnlab: another sweep of this study still trains {elsewhere} runs; `attnlab status {plan.study}` follows it",
            file=sys.stderr,
        )
    if failed or unfinished:
        print(
            f"attnlab: {failed} runs failed and {unfinished} are not over; `attnlab sweep` with the same words runs just those",
            file=sys.stderr,
        )
    if failed or unfinished or elsewhere:
        return 1
    spent = sum(s.get("seconds") or 0 for s in snapshot.status.values())
    print(f"every run is over ({duration(spent)} of training in all)")
    return 0


__all__ = ["Mistake", "sweep"]
