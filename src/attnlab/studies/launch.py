"""The sweep of a study: cells checked, data prepared, its runs launched until nothing is left to launch.

It runs after the studies that it needs, on this machine or a cluster. What a cluster's jobs left without a word is
launched again. The launchers are Hydra's: `attnlab.config.engine`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.config.engine import launch
from attnlab.config.identity import literal, run_path
from attnlab.studies import cluster
from attnlab.studies.announced import announcement, undecidable
from attnlab.studies.checked import Checked, check_cells, launcher_for
from attnlab.studies.cluster import Job, NoAnswer
from attnlab.studies.jobs import Launcher, no_empty_folders
from attnlab.studies.monitor import Monitor, say
from attnlab.studies.on_end import then
from attnlab.studies.plan import Key, Plan, find_study, runs_of
from attnlab.studies.slots import Slots, gpus_of
from attnlab.studies.stages import at_stage, next_stage, seeds_of_needed, seems_over, write_plan
from attnlab.studies.study_file import Waiting, config_dirs_of, load_plan, on_end_of, refuse_changed_cells, tune_of
from attnlab.studies.trunks import branching
from attnlab.studies.tuning import Tuning, load_tuning
from attnlab.studies.workers import get_ready
from attnlab.training.processes import Interrupted, leaving
from attnlab.training.run_directory import ENDED, SETTLED, RunDirectory, effective_state, read_json

if TYPE_CHECKING:
    from attnlab.studies.preflight import Preflight

JOBLIB = "hydra/launcher=joblib"  # where no launcher is named
LAUNCHES = 3  # on a cluster, of what its jobs left without a word
LAUNCHES_OF_TRIALS = 2  # of a tuning, where runs of it failed
NOT_OVER = ("missing", "interrupted", "lost")


class JobsFailed(RuntimeError):
    """Some runs of a sweep failed; the others went on."""

    # It is not beside the sweeper that raises it: Hydra loads plugins anew, and what they define is another class then.


@dataclass(frozen=True)
class Relaunch:
    """Launches of one study, whose plan.json is in its folder below `runs_dir`. detach: leaves runs to the cluster."""

    plan: Plan
    runs_dir: Path
    launcher: Launcher
    space: ConfigSpace
    console: Console
    detach: bool = False

    @property
    def folder(self) -> Path:
        """The study's folder of runs."""
        return self.runs_dir / self.plan.study

    def run(self, chosen: Sequence[str]) -> None:
        """Launches the runs in one of the states `chosen` and follows them to their end. Raises: UsageError."""
        if self.launcher.is_here:
            self._here(chosen)
            return
        for _ in range(LAUNCHES):
            lost = self._on_cluster(chosen)
            if not lost:
                return
            chosen = [state for state in chosen if state != "failed"]  # it would fail again
        for key, job in lost.items():
            if job.state == "OUT_OF_MEMORY":
                more = "give it more (hydra.launcher.mem_gb), or smaller batches"
                reason = f"its job was out of memory, {LAUNCHES} times; {more}"
                RunDirectory(runs_of(self.plan, self.runs_dir)[key]).give_up(reason)

    def _here(self, chosen: Sequence[str]) -> None:
        if not self._pending(chosen):  # another sweep of this study runs what is left
            return
        with Monitor(self.plan, self.runs_dir, self.console):
            self._launch(["progress=off", *self.launcher.words], chosen)

    def _on_cluster(self, chosen: Sequence[str]) -> dict[Key, Job]:
        """As `_submit`; what branches off follows when its trunks are over."""
        lost = self._submit(chosen)
        if lost or self.detach or not self.plan.branches:
            return lost
        return self._submit([state for state in chosen if state != "failed"])

    def _submit(self, chosen: Sequence[str]) -> dict[Key, Job]:
        """Submits what Slurm has no job of, and waits for all jobs; returns those that ended without a word."""
        if self._pending(chosen):
            threads = [f"trainer.threads={self.launcher.threads}"] if self.launcher.threads else []
            before = len(cluster.submissions(self.folder))
            self._launch(["progress=plain", *threads, *self.launcher.words], chosen)
            for one in cluster.submissions(self.folder)[before:]:
                say(self.console, f"submitted {len(one['runs'])} runs to Slurm as job {one['job']}")
        if self.detach:
            name = self.plan.study
            say(self.console, f"`attnlab status {name}` shows them, `attnlab cancel {name}` stops them")
            if self.plan.branches:
                say(self.console, "the same command submits what branches off when the others are over")
            return {}
        try:
            watch = cluster.Watch(self.folder, lambda line: say(self.console, line))
            with Monitor(self.plan, self.runs_dir, self.console, jobs=lambda: watch.jobs):
                watch.wait(lambda: cluster.states(self.plan, self.runs_dir, {}))
        except NoAnswer as error:
            raise UsageError(f"{error}; the jobs go on, and the same command follows them again") from error
        except (KeyboardInterrupt, Interrupted):
            say(self.console, f"the jobs go on; `attnlab cancel {self.plan.study}` stops them")
            raise
        return self._lost(watch.jobs)

    def _lost(self, jobs: Mapping[str, Job]) -> dict[Key, Job]:
        """The jobs that ended without a word, by their runs; not those of runs that were told to stop, and did."""
        lost = {}
        for key, run in runs_of(self.plan, self.runs_dir).items():
            job = jobs.get(run_path(*key))
            if job is None or cluster.state_of(run, job) != "lost":
                continue
            # Somebody cancelled it, or it was out of time once too often.
            was_stopped = (read_json(run / "status.json") or {}).get("state") == "interrupted"
            if job.state == "PREEMPTED" or not was_stopped:
                lost[key] = job
                say(self.console, f"{key[0]} seed={key[1]} was lost: its job ended without a word")
        return lost

    def _pending(self, chosen: Sequence[str]) -> int:
        try:
            found = cluster.states(self.plan, self.runs_dir, cluster.jobs_of(self.folder))
        except NoAnswer as error:
            unknown = f"which runs of {self.plan.study} it still has is not known, so none was launched"
            raise UsageError(f"{error}; {unknown}") from error
        return sum(state in chosen for state in found.values())

    def _launch(self, words: Sequence[str], chosen: Sequence[str]) -> None:
        from attnlab.runs.run import run

        own = [
            "hydra/sweeper=study",
            f"hydra.sweeper.plan={literal(str(self.folder / 'plan.json'))}",
            f"hydra.sweeper.states=[{','.join(chosen)}]",
            _in(self.runs_dir),
            f"study.name={literal(self.plan.study)}",
        ]
        try:
            launch(run, [*own, *words], self.space, multirun=True)
        except JobsFailed as error:
            print(f"attnlab: some runs failed, the others went on:\n{error}", file=sys.stderr)


@dataclass(frozen=True)
class Sweep:
    """What the sweep of a study and those of the studies that it needs have in common.

    plan_only: print what would be run, and run nothing. detach: submit, and do not wait. conclude: compares a plan's
    runs in its folder, and gives the exit status. dry_run: say what it would take, and train nothing. on_end: the
    command to run at the end, in the place of the study's own.
    """

    hydra_own: list[str]
    config_dirs: Sequence[str]
    plan_only: bool
    detach: bool
    console: Console
    conclude: Callable[[Plan, Path], int]
    dry_run: bool = False
    on_end: str | None = None

    def run(self, path: Path, own: Sequence[str], before: tuple[Path, ...] = ()) -> int:
        """Sweeps a study; `before` are those that need it. Returns the exit status. Raises: UsageError."""
        if JOBLIB in self.hydra_own and not self.plan_only and not seems_over(path, own):
            get_ready()
        try:
            with ConfigSpace(*config_dirs_of(path, own, self.config_dirs)) as space:
                plan = load_plan(path, own, space)
                runs_dir = space.compose([*plan.overrides(plan.cells[0]), *self.hydra_own]).runs_dir
                plan = at_stage(plan, runs_dir, self._tell)
                tuning = load_tuning(path, plan, own, space)
        except Waiting as waiting:
            return self._run_after_needed(waiting, path, own, before)
        plan = (tuning and tuning.settled(runs_dir)) or plan
        study = self._said(self._checked(plan, path, runs_dir, before, space, tuning=tuning))
        for line in undecidable(plan, study.composed, tuning is not None):
            say(self.console, line)
        if self.plan_only or self.dry_run:
            return self._print_runs(study) if self.plan_only else self._say_ahead(study)
        is_told = study.pending and not before and not self.detach
        command = (self.on_end or on_end_of(path)) if is_told else None
        return then(command, study.written.parent, partial(self._run, study))

    def _run_after_needed(self, waiting: Waiting, path: Path, own: Sequence[str], before: tuple[Path, ...]) -> int:
        """Sweeps a study of which nothing can be composed before what it needs has run."""
        tune = tune_of(path)
        trial_seeds = tune["seeds"] if tune else ()
        if status := self._run_needed(waiting.plan, path, waiting.runs_dir, before, trial_seeds):
            return status
        if (waiting.run / "run.json").is_file():
            return self.run(path, own, before)
        if not (self.plan_only or self.dry_run):
            raise waiting
        self._say_waiting(waiting.plan, waiting.plan.needs)
        return 0

    def _checked(
        self,
        plan: Plan,
        path: Path,
        runs_dir: Path,
        before: tuple[Path, ...],
        space: ConfigSpace,
        over: Collection[str] = SETTLED,
        tuning: Tuning | None = None,
    ) -> Checked:
        """A plan whose cells are checked, with what of it has still to be run: what is in none of the states `over`.
        Raises: UsageError."""
        with space:
            if plan.tuned or tuning is None:  # else its runs have settings that are still to be chosen
                refuse_changed_cells(plan, runs_dir, space)
            pending = {key for key, run in runs_of(plan, runs_dir).items() if effective_state(run) not in over}
            composed = check_cells(plan, {name for name, _ in pending}, space)
            launcher = None if self.plan_only else launcher_for(space, plan, self.hydra_own, composed, self.detach)
        return Checked(plan, path, runs_dir, before, composed, pending, space, launcher, tuning)

    def _said(self, study: Checked) -> Checked:
        """The study, announced. Raises: UsageError where there is nothing to run."""
        for line in announcement(study):
            self._tell(line)
        if not any(study.plan.jobs()):
            raise UsageError(
                f"{study.plan.study}: the parts of every cell are incompatible, so there is nothing to run"
            )
        return study

    def _tell(self, line: str) -> None:
        say(self.console, line)

    def _print_runs(self, study: Checked) -> int:
        if status := self._run_needed_by(study):
            return status
        if study.to_tune is not None:
            first = next(study.to_tune.rounds(study.runs_dir))
            self._print_runs(self._checked(first, study.path, study.runs_dir, study.before, study.space))
            say(self.console, f"the settings of {study.plan.study} follow from what comes of these runs")
            return 0
        plan = self._settled(study)
        for cell, seed in plan.jobs():
            say(self.console, "attnlab train " + shlex.join(plan.overrides(cell, seed)))
        return 0

    def _run(self, study: Checked) -> int:
        """Runs what is needed, then the tuning, then what is pending, stage by stage where seeds come in stages, and
        compares."""
        if status := self._run_needed_by(study):
            return status
        if study.to_tune is not None:
            chosen = self._tune(study, study.to_tune)
            if chosen is None:
                return 0 if self.detach else 1
            study = chosen
        self._train(study, [*NOT_OVER, "failed"])
        while not self.detach and (plan := next_stage(study.plan, study.runs_dir, self._tell)):
            study = self._checked(plan, study.path, study.runs_dir, study.before, study.space, ENDED, study.tuning)
            if status := self._run_needed_by(study):
                return status
            self._train(study, NOT_OVER)
        if self.detach and study.before and study.pending:
            raise UsageError(
                f"{study.plan.study} has to be over first, and its runs are submitted; the same command submits the "
                "rest when they are over"
            )
        return 0 if self.detach else self.conclude(study.plan, study.written.parent)

    def _tune(self, study: Checked, tuning: Tuning) -> Checked | None:
        """The study at the settings that its tuning chooses, of which a run that failed is run twice; None where runs
        are left to others."""
        of_trials = study.path, study.runs_dir, study.before, study.space
        for plan in tuning.rounds(study.runs_dir):
            runs = runs_of(plan, study.runs_dir).values()
            for _ in range(1 if self.detach else LAUNCHES_OF_TRIALS):
                if any(effective_state(run) not in SETTLED for run in runs):
                    self._train(self._said(self._checked(plan, *of_trials)), [*NOT_OVER, "failed"])
            if left := sum(effective_state(run) not in ENDED for run in runs):
                say(self.console, f"{left} runs of {plan.study} are not over; the same command goes on when they are")
                return None
        plan = tuning.chosen(study.runs_dir)
        for line in tuning.said(plan):
            say(self.console, line)
        return self._said(self._checked(plan, *of_trials, tuning=tuning))

    def _train(self, study: Checked, chosen: Sequence[str]) -> None:
        """Runs what is pending and in one of the states `chosen`."""
        runs_dir, space, launcher = study.runs_dir, study.space, study.launcher
        plan, ahead = self._prepared(study)
        with no_empty_folders([study.written.parent, *runs_of(plan, runs_dir).values()]), leaving():
            write_plan(plan, study.written, runs_dir)
            if ahead is not None and launcher is not None:
                say(self.console, ahead.line(ahead.recorded()))
                ahead.write_costs()
                Relaunch(plan, runs_dir, launcher, space, self.console, self.detach).run(chosen)

    def _say_ahead(self, study: Checked) -> int:
        """What the runs that are left will take, by cells; of a study that needs others, once those are over."""
        status, needs, within = self._run_needed_by(study), study.plan.needs, [_in(study.runs_dir)]
        if needed := [name for name in needs if not seems_over(find_study(name, beside=study.path), within)]:
            self._say_waiting(study.plan, needed)
            return status
        if study.to_tune is not None:
            self._say_trials_ahead(study, study.to_tune)
        _, ahead = self._prepared(study)
        if ahead is not None:
            with study.space, leaving():
                ahead.say_all(study.composed, study.space, self.console)
        return status

    def _say_trials_ahead(self, study: Checked, tuning: Tuning) -> None:
        """What the trials will take that are known by now."""
        first, runs_dir = next(tuning.rounds(study.runs_dir)), study.runs_dir
        _, ahead = self._prepared(one := self._checked(first, study.path, runs_dir, study.before, study.space))
        if ahead is not None:
            with study.space, leaving():
                ahead.say_all(one.composed, study.space, self.console)
        if more := tuning.runs - len(runs_of(first, runs_dir)):
            say(self.console, f"{more} more runs of {first.study} follow from what comes of these")

    def _prepared(self, study: Checked) -> tuple[Plan, Preflight | None]:
        """The plan as its runs compute, their data prepared, and what those that are left will take, if any are."""
        from attnlab.runs.build import prepare_data
        from attnlab.studies.preflight import preflight_of, sizes_of

        data = prepare_data([one.resolved for one in study.composed])
        plan = self._settled(study)
        if not study.pending or study.launcher is None:
            return plan, None
        sizes = sizes_of(study.composed, data, branching(plan, study.runs_dir, study.pending))
        with study.space:
            return plan, preflight_of(
                plan, study.runs_dir, study.pending, sizes, study.composed, study.space, study.launcher
            )

    def _say_waiting(self, plan: Plan, needed: Sequence[str]) -> None:
        which = " and ".join(needed)
        told = f"the runs of {plan.study}" if self.plan_only else f"what {plan.study} takes"
        say(self.console, f"{told} can be told when {which}, which it starts from, is over")

    def _run_needed_by(self, study: Checked) -> int:
        trial_seeds = study.tuning.tune["seeds"] if study.tuning else ()
        return self._run_needed(study.plan, study.path, study.runs_dir, study.before, trial_seeds)

    def _run_needed(
        self, plan: Plan, path: Path, runs_dir: Path, before: tuple[Path, ...], trial_seeds: Sequence[int]
    ) -> int:
        """Sweeps what a plan needs, with its seeds and those of its trials."""
        for name in plan.needs:
            needed = find_study(name, beside=path)
            if needed in (path, *before):
                raise UsageError(f"{path}: needs {name}, which in turn needs this study")
            seeds = seeds_of_needed(runs_dir / needed.parent.name, [*plan.seeds, *trial_seeds])
            own = [_in(runs_dir), *([] if seeds is None else [f"study.seeds={seeds}".replace(" ", "")])]
            if status := self.run(needed, own, (path, *before)):
                return status
        return 0

    def _settled(self, study: Checked) -> Plan:
        """The plan with how its runs compute where that is auto: as plan.json has it, else by a measurement here."""
        from attnlab.runs.settled import in_lines, settle_all

        plan, composed, launcher, pending = study.plan, study.composed, study.launcher, len(study.pending)
        if plan.automatic:  # as its tuning computed
            return plan
        before, runs = read_json(study.written, {}), list(runs_of(plan, study.runs_dir).values())
        same = all(before.get(part) == asdict(plan)[part] for part in ("shared", "cells"))
        lines: Sequence[str] = ()
        if before.get("automatic") and (same or any((run / "run.json").is_file() for run in runs)):
            plan = replace(plan, automatic=before["automatic"])
            lines = [f"{line}, as {study.written} has it" for line in in_lines(plan.automatic)]
        elif launcher is not None:
            gpus = [gpus_of(one.resolved["trainer"]) for one in composed] * pending
            threads = Slots(gpus[:pending]).threads if pending and launcher.is_here else None
            baseline = next((cell.name for cell in plan.cells if cell.choices == plan.baseline), None)
            automatic, lines = settle_all(composed, threads, runs, baseline, launcher.is_here)
            plan = replace(plan, automatic=automatic)
        for line in lines if launcher and pending else ():
            say(self.console, line)
        return plan


def _in(runs_dir: Path) -> str:
    return f"runs_dir={literal(str(runs_dir))}"
