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
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from attnlab.cli.check import check
from attnlab.cli.compose import Composed, ConfigSpace, Mistake, readable
from attnlab.cli.launch import launch, no_empty_folders, split_hydra
from attnlab.cli.monitor import OVER, Monitor, Snapshot, duration
from attnlab.cli.reports import compare_study
from attnlab.cli.studies import Plan, find_study, load_plan, quoted, refuse_drift, runs_of, states
from attnlab.training.run_directory import read_json, write_json

# A worker that the system kills takes the launcher's other jobs with it; launching again goes on where they stopped.
LAUNCHES = 3


def sweep(arguments: argparse.Namespace) -> int:
    """
    Runs the missing runs of a study, after those of the studies that it needs, and prints the comparison.

    Returns exit status 1 when a run failed or is missing at the end. Raises: Mistake before anything is run.
    """
    own, hydra_own = split_hydra(readable(arguments.overrides))
    if not any(o.startswith("hydra/launcher=") for o in hydra_own):
        hydra_own = ["hydra/launcher=joblib", *hydra_own]
    one = Sweep(hydra_own, arguments.config_dir, arguments.cfg, Console())
    return one.run(find_study(arguments.study), own)


@dataclass(frozen=True)
class Sweep:
    """What the sweep of a study and those of the studies that it needs have in common. plan_only: print what would be run, and run nothing."""

    hydra_own: list[str]
    config_dirs: Sequence[str]
    plan_only: bool
    console: Console

    def run(self, path: Path, own: Sequence[str], before: tuple[Path, ...] = ()) -> int:
        """Sweeps a study; `before` are those that need it. Returns the exit status. Raises: Mistake."""
        with ConfigSpace(self.config_dirs) as space:
            plan = load_plan(path, own, space)
            runs_dir = self._runs_dir(plan, space)
            refuse_drift(plan, runs_dir, space)
            pending = _unsettled(plan, runs_dir)
            composed = _check_cells(plan, {name for name, _ in pending}, space)
        _announce(plan, len(pending), runs_dir, self.console)
        if not any(plan.jobs()):
            raise Mistake(f"{plan.study}: no cell of this study makes sense, so there is nothing to run")
        if status := self._run_needed(plan, path, runs_dir, before):
            return status
        if composed and not self.plan_only:
            _prepare(composed)
        if self.plan_only:
            return self._print_lines(plan)
        written = runs_dir / plan.study / "plan.json"
        with no_empty_folders([written.parent, *runs_of(plan, runs_dir).values()]), stopped_by_sigterm():
            _write_plan(plan, written)
            if pending:
                _run_missing(plan, written, runs_dir, self.hydra_own, space, self.console)
        compare_study(written.parent, self.console)
        return _verdict(plan, runs_dir)

    def _runs_dir(self, plan: Plan, space: ConfigSpace) -> Path:
        first = space.compose([*plan.overrides(plan.cells[0], plan.seeds[0]), *self.hydra_own])
        return Path(str(first.config.runs_dir))

    def _run_needed(self, plan: Plan, path: Path, runs_dir: Path, before: tuple[Path, ...]) -> int:
        """Sweeps what has to be there first, with the same seeds and in the same place."""
        for name in plan.needs:
            needed = find_study(name, beside=path)
            if needed in (path, *before):
                raise Mistake(f"{path}: needs {name}, which in turn needs this study")
            own = [f"study.seeds={plan.seeds}".replace(" ", ""), f"runs_dir={quoted(str(runs_dir))}"]
            if status := self.run(needed, own, (path, *before)):
                return status
        return 0

    def _print_lines(self, plan: Plan) -> int:
        for cell, seed in plan.jobs():
            line = "attnlab train " + shlex.join(plan.overrides(cell, seed))
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0


def _unsettled(plan: Plan, runs_dir: Path) -> list[tuple[str, int]]:
    return [key for key, state in states(plan, runs_dir).items() if state not in ("finished", "diverged")]


def _check_cells(plan: Plan, names: set[str], space: ConfigSpace) -> list[Composed]:
    """Every cell that will run is checked and its model built without memory. Raises: Mistake."""
    composed = [space.compose(plan.overrides(cell, plan.seeds[0])) for cell in plan.cells if cell.name in names]
    for one in composed:
        check(one)
    if composed:
        from attnlab.cli.build import rehearse

        for one in composed:
            rehearse(one.config)
    return composed


def _prepare(composed: Sequence[Composed]) -> None:
    """The data of every cell once, before the workers start."""
    from attnlab.cli.build import prepare_data

    prepare_data([one.config for one in composed])


def _announce(plan: Plan, pending: int, runs_dir: Path, console: Console) -> None:
    total = sum(1 for _ in plan.jobs())
    console.print(f"{plan.study}: {plan.question}", markup=False, highlight=False, soft_wrap=True)
    line = f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {runs_dir / plan.study}: {total - pending} of {total} runs are done"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan.needs:
        console.print(f"before it, what it needs: {', '.join(plan.needs)}", markup=False, highlight=False)
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
