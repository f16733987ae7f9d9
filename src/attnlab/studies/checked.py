"""A study whose cells were checked, with all that its sweep needs to know before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import Composed, ConfigSpace
from attnlab.runs.record import refuse_other_source
from attnlab.studies.jobs import Launcher, prepare_launcher
from attnlab.studies.plan import Key, Plan
from attnlab.studies.tuning import Tuning


@dataclass(frozen=True)
class Checked:
    """A study whose cells were checked: the folder below which it runs, the studies that need it, the configurations of
    its cells that still have runs to do, those runs, and the launcher (None: nothing will be launched); how its cells
    are tuned, if they are."""

    plan: Plan
    path: Path
    runs_dir: Path
    before: tuple[Path, ...]
    composed: Sequence[Composed]
    pending: set[Key]
    space: ConfigSpace
    launcher: Launcher | None
    tuning: Tuning | None = None

    @property
    def to_tune(self) -> Tuning | None:
        """The tuning that comes before its runs, until its cells have the settings that were chosen."""
        return None if self.plan.tuned else self.tuning

    @property
    def written(self) -> Path:
        """The file of its plan."""
        return self.runs_dir / self.plan.study / "plan.json"


def launcher_for(
    space: ConfigSpace, plan: Plan, words: Sequence[str], composed: Sequence[Composed], detach: bool
) -> Launcher:
    """The launcher for these cells. Raises: UsageError where it cannot serve them, or this machine cannot."""
    from attnlab.runs.build import refuse_for_this_machine
    from attnlab.runs.views import settle_mode

    first = plan.overrides(plan.cells[0])
    launcher = prepare_launcher(space, first, words, [one.resolved["trainer"] for one in composed])
    if detach and launcher.is_here:
        raise UsageError("--detach leaves the runs to Slurm: add hydra/launcher=slurm, or leave --detach out")
    for one in composed if launcher.is_here else ():
        refuse_for_this_machine(one.resolved)
    return replace(launcher, words=[*launcher.words, *settle_mode(one.resolved for one in composed)])


def check_cells(plan: Plan, names: set[str], space: ConfigSpace) -> list[Composed]:
    """Every cell that will run is checked and its model built without memory. Raises: UsageError."""
    from attnlab.runs.build import dry_build

    composed = [space.compose(plan.overrides(cell)) for cell in plan.cells if cell.name in names]
    for one in composed:
        check(one)
    for one in composed:
        dry_build(one.resolved)
        refuse_other_source(one)
    return composed


def announced(plan: Plan, pending: int, runs_dir: Path) -> list[str]:
    """What a study is and how far it has come, in lines."""
    total = sum(1 for _ in plan.jobs())
    size = f"{len(plan.cells)} cells x {len(plan.seeds)} seeds in {runs_dir / plan.study}"
    lines = [f"{plan.study}: {plan.question}", f"{size}: {total - pending} of {total} runs are done"]
    if stages := plan.looks.stages:
        numbers = ", ".join(map(str, stages))
        lines.append(f"seeds in stages, {numbers}, until all is settled: at most {plan.most_runs} runs")
    lines += [f"before it, what it needs: {', '.join(plan.needs)}"] if plan.needs else []
    return [*lines, *(f"skipped {cell.name}: {cell.skip}" for cell in plan.cells if cell.skip)]
