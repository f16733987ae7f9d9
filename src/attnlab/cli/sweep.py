"""`attnlab sweep`: runs what is missing of a study, in parallel, and compares."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from attnlab.cli.check import check
from attnlab.cli.cluster import known_jobs, submissions
from attnlab.cli.compose import Composed, ConfigSpace, Mistake
from attnlab.cli.launch import Launcher, no_empty_folders, prepare_launcher, split_hydra
from attnlab.cli.monitor import OVER, Snapshot, duration
from attnlab.cli.overrides import literal, readable
from attnlab.cli.provenance import code_version, refuse_other_source
from attnlab.cli.reports import compare_study, study_folder
from attnlab.cli.rounds import NOT_OVER, Rounds
from attnlab.cli.studies import Plan, find_study, load_plan, read_plan, refuse_drift, runs_of
from attnlab.training.run_directory import SETTLED, effective_state, read_json, write_json
from attnlab.training.stop_request import leaving


def sweep(arguments: argparse.Namespace) -> int:
    """
    Runs the missing runs of a study, after those of the studies that it needs, and prints the comparison.

    Returns exit status 1 when a run failed or is missing at the end. Raises: Mistake before anything is run.
    """
    own, hydra_own = split_hydra(readable(arguments.overrides))
    one = Sweep(with_launcher(hydra_own), arguments.config_dir, arguments.cfg, arguments.detach, Console())
    return one.run(find_study(arguments.study), own)


def with_launcher(words: Sequence[str]) -> list[str]:
    """Hydra's settings with the launcher that sweeps have unless another is named."""
    is_named = any(word.startswith("hydra/launcher=") for word in words)
    return [*words] if is_named else ["hydra/launcher=joblib", *words]


def retry(arguments: argparse.Namespace) -> int:
    """
    Runs again what a study lost, and with `--failed` what failed, by the launcher that had it last, or by another; then as `sweep`.

    Returns the exit status as `sweep`. Raises: Mistake.
    """
    own, given = split_hydra(readable(arguments.overrides))
    folder = study_folder(arguments.study, own)
    plan, console = read_plan(folder / "plan.json"), Console()
    last: dict[str, Any] = next(reversed(submissions(folder)), {})
    if not any(word.startswith("hydra/launcher=") for word in given):
        given = [*last.get("launcher", []), *given]
    with ConfigSpace(arguments.config_dir or last.get("config_dirs", [])) as space:
        cells = [space.compose(plan.overrides(cell, plan.seeds[0])) for cell in plan.cells if cell.skip is None]
        for one in cells:
            refuse_other_source(one)
        launcher = _launcher(space, plan, with_launcher(given), cells, arguments.detach)
    with leaving():
        rounds = Rounds(plan, folder.parent, launcher, space, console, arguments.detach)
        rounds.run([*NOT_OVER, "failed"] if arguments.failed else NOT_OVER)
    return 0 if arguments.detach else _conclude(plan, folder, console)


@dataclass(frozen=True)
class Sweep:
    """
    What the sweep of a study and those of the studies that it needs have in common.

    plan_only: print what would be run, and run nothing. detach: submit, and do not wait.
    """

    hydra_own: list[str]
    config_dirs: Sequence[str]
    plan_only: bool
    detach: bool
    console: Console

    def run(self, path: Path, own: Sequence[str], before: tuple[Path, ...] = ()) -> int:
        """Sweeps a study; `before` are those that need it. Returns the exit status. Raises: Mistake."""
        with ConfigSpace(self.config_dirs) as space:
            plan = load_plan(path, own, space)
            runs_dir = self._runs_dir(plan, space)
            refuse_drift(plan, runs_dir, space)
            pending = _unsettled(plan, runs_dir)
            composed = _check_cells(plan, {name for name, _ in pending}, space)
            launcher = None if self.plan_only else _launcher(space, plan, self.hydra_own, composed, self.detach)
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
        with no_empty_folders([written.parent, *runs_of(plan, runs_dir).values()]), leaving():
            _write_plan(plan, written)
            if pending and launcher:
                Rounds(plan, runs_dir, launcher, space, self.console, self.detach).run([*NOT_OVER, "failed"])
        if self.detach and before and pending:
            raise Mistake(
                f"{plan.study} has to be over first, and its runs are submitted; the same command submits the rest when they are over"
            )
        return 0 if self.detach else _conclude(plan, written.parent, self.console)

    def _runs_dir(self, plan: Plan, space: ConfigSpace) -> Path:
        first = space.compose([*plan.overrides(plan.cells[0], plan.seeds[0]), *self.hydra_own])
        return Path(str(first.config.runs_dir))

    def _run_needed(self, plan: Plan, path: Path, runs_dir: Path, before: tuple[Path, ...]) -> int:
        """Sweeps what has to be there first, with the same seeds and in the same place."""
        for name in plan.needs:
            needed = find_study(name, beside=path)
            if needed in (path, *before):
                raise Mistake(f"{path}: needs {name}, which in turn needs this study")
            own = [f"study.seeds={plan.seeds}".replace(" ", ""), f"runs_dir={literal(str(runs_dir))}"]
            if status := self.run(needed, own, (path, *before)):
                return status
        return 0

    def _print_lines(self, plan: Plan) -> int:
        for cell, seed in plan.jobs():
            line = "attnlab train " + shlex.join(plan.overrides(cell, seed))
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0


def _unsettled(plan: Plan, runs_dir: Path) -> list[tuple[str, int]]:
    return [key for key, run in runs_of(plan, runs_dir).items() if effective_state(run) not in SETTLED]


def _launcher(
    space: ConfigSpace, plan: Plan, words: Sequence[str], composed: Sequence[Composed], detach: bool
) -> Launcher:
    """The launcher for these cells. Raises: Mistake where it cannot serve them, or this machine cannot."""
    launcher = prepare_launcher(
        space, plan.overrides(plan.cells[0], plan.seeds[0]), words, [one.config.trainer for one in composed]
    )
    if detach and launcher.is_here:
        raise Mistake("--detach leaves the runs to Slurm: add hydra/launcher=slurm, or leave --detach out")
    if composed and launcher.is_here:
        from attnlab.cli.build import refuse_for_this_machine

        for one in composed:
            refuse_for_this_machine(one.config)
    if not composed:
        return launcher
    from attnlab.cli.views import settle_mode

    return replace(launcher, words=[*launcher.words, *settle_mode(one.config for one in composed)])


def _check_cells(plan: Plan, names: set[str], space: ConfigSpace) -> list[Composed]:
    """Every cell that will run is checked and its model built without memory. Raises: Mistake."""
    composed = [space.compose(plan.overrides(cell, plan.seeds[0])) for cell in plan.cells if cell.name in names]
    for one in composed:
        check(one)
    if composed:
        from attnlab.cli.build import rehearse

        for one in composed:
            rehearse(one.config)
            refuse_other_source(one)
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


def _write_plan(plan: Plan, path: Path) -> None:
    before = read_json(path, {})
    now = replace(plan, code=before.get("code") or code_version()).as_json()
    if before != now:
        write_json(path, now)


def _conclude(plan: Plan, folder: Path, console: Console) -> int:
    """Compares, and says how it ended; returns the exit status."""
    compare_study(folder, console)
    return _verdict(plan, folder.parent)


def _verdict(plan: Plan, runs_dir: Path) -> int:
    """0 where every run is over and none failed; else 1, with the way on."""
    snapshot = Snapshot(plan, runs_dir, known_jobs(runs_dir / plan.study))
    failed, elsewhere = snapshot.count("failed"), snapshot.count("running", "queued")
    unfinished = len(snapshot.state) - snapshot.count(*OVER) - elsewhere
    if elsewhere:
        print(
            f"attnlab: another sweep of this study still has {elsewhere} runs; `attnlab status {plan.study}` follows it",
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
