"""The sweep of a study: cells checked, data prepared, missing runs launched, after the studies that it needs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import Composed, ConfigSpace
from attnlab.config.overrides import literal
from attnlab.runs.build import dry_build, prepare_data, refuse_for_this_machine
from attnlab.runs.record import code_version, refuse_other_source
from attnlab.runs.views import settle_mode
from attnlab.studies.launch import NOT_OVER, Launcher, Relaunch, no_empty_folders, prepare_launcher
from attnlab.studies.plan import Plan, find_study, runs_of
from attnlab.studies.study_file import load_plan, refuse_changed_cells
from attnlab.training.processes import leaving
from attnlab.training.run_directory import SETTLED, effective_state, read_json, write_json


@dataclass(frozen=True)
class Sweep:
    """
    What the sweep of a study and those of the studies that it needs have in common.

    plan_only: print what would be run, and run nothing. detach: submit, and do not wait. conclude: compares a plan's
    runs in its folder, and gives the exit status.
    """

    hydra_own: list[str]
    config_dirs: Sequence[str]
    plan_only: bool
    detach: bool
    console: Console
    conclude: Callable[[Plan, Path], int]

    def run(self, path: Path, own: Sequence[str], before: tuple[Path, ...] = ()) -> int:
        """Sweeps a study; `before` are those that need it. Returns the exit status. Raises: UsageError."""
        with ConfigSpace(self.config_dirs) as space:
            plan = load_plan(path, own, space)
            runs_dir = space.compose([*plan.overrides(plan.cells[0]), *self.hydra_own]).runs_dir
            refuse_changed_cells(plan, runs_dir, space)
            pending = {key for key, run in runs_of(plan, runs_dir).items() if effective_state(run) not in SETTLED}
            composed = _check_cells(plan, {name for name, _ in pending}, space)
            launcher = None if self.plan_only else launcher_for(space, plan, self.hydra_own, composed, self.detach)
        self._announce(plan, len(pending), runs_dir)
        if not any(plan.jobs()):
            raise UsageError(
                f"{plan.study}: all cells of this study have incompatible parts, so there is nothing to run"
            )
        if status := self._run_needed(plan, path, runs_dir, before):
            return status
        if self.plan_only:
            for cell, seed in plan.jobs():
                self._say("attnlab train " + shlex.join(plan.overrides(cell, seed)))
            return 0
        prepare_data([one.resolved for one in composed])
        written = runs_dir / plan.study / "plan.json"
        with no_empty_folders([written.parent, *runs_of(plan, runs_dir).values()]), leaving():
            _write_plan(plan, written)
            if pending and launcher:
                Relaunch(plan, runs_dir, launcher, space, self.console, self.detach).run([*NOT_OVER, "failed"])
        if self.detach and before and pending:
            raise UsageError(
                f"{plan.study} has to be over first, and its runs are submitted; the same command submits the "
                "rest when they are over"
            )
        return 0 if self.detach else self.conclude(plan, written.parent)

    def _run_needed(self, plan: Plan, path: Path, runs_dir: Path, before: tuple[Path, ...]) -> int:
        """Sweeps what has to be there first, with the same seeds and in the same place."""
        for name in plan.needs:
            needed = find_study(name, beside=path)
            if needed in (path, *before):
                raise UsageError(f"{path}: needs {name}, which in turn needs this study")
            own = [f"study.seeds={plan.seeds}".replace(" ", ""), f"runs_dir={literal(str(runs_dir))}"]
            if status := self.run(needed, own, (path, *before)):
                return status
        return 0

    def _announce(self, plan: Plan, pending: int, runs_dir: Path) -> None:
        total = sum(1 for _ in plan.jobs())
        self._say(f"{plan.study}: {plan.question}")
        size = f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {runs_dir / plan.study}"
        self._say(f"{size}: {total - pending} of {total} runs are done")
        if plan.needs:
            self._say(f"before it, what it needs: {', '.join(plan.needs)}")
        for cell in plan.cells:
            if cell.skip:
                self._say(f"skipped {cell.name}: {cell.skip}")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def launcher_for(
    space: ConfigSpace, plan: Plan, words: Sequence[str], composed: Sequence[Composed], detach: bool
) -> Launcher:
    """The launcher for these cells. Raises: UsageError where it cannot serve them, or this machine cannot."""
    first = plan.overrides(plan.cells[0])
    launcher = prepare_launcher(space, first, words, [one.resolved["trainer"] for one in composed])
    if detach and launcher.is_here:
        raise UsageError("--detach leaves the runs to Slurm: add hydra/launcher=slurm, or leave --detach out")
    for one in composed if launcher.is_here else ():
        refuse_for_this_machine(one.resolved)
    return replace(launcher, words=[*launcher.words, *settle_mode(one.resolved for one in composed)])


def _check_cells(plan: Plan, names: set[str], space: ConfigSpace) -> list[Composed]:
    """Every cell that will run is checked and its model built without memory. Raises: UsageError."""
    composed = [space.compose(plan.overrides(cell)) for cell in plan.cells if cell.name in names]
    for one in composed:
        check(one)
    for one in composed:
        dry_build(one.resolved)
        refuse_other_source(one)
    return composed


def _write_plan(plan: Plan, path: Path) -> None:
    before = read_json(path, {})
    now = replace(plan, code=before.get("code") or code_version()).as_json()
    if before != now:
        write_json(path, now)
