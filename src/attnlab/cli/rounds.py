"""Launches the runs of a study that are not over, and on a cluster again what its jobs left, until nothing is left to launch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from attnlab.cli.cluster import Job, NoAnswer, Watch, jobs_of, place, states, submissions
from attnlab.cli.compose import ConfigSpace, Mistake
from attnlab.cli.launch import JobsFailed, Launcher, launch
from attnlab.cli.monitor import Monitor
from attnlab.cli.overrides import literal
from attnlab.cli.studies import Plan, runs_of
from attnlab.training.run_directory import RunDirectory, read_json
from attnlab.training.stop_request import Interrupted

LAUNCHES = 3  # on a cluster, of what its jobs left without a word
NOT_OVER = ("missing", "interrupted", "lost")


@dataclass(frozen=True)
class Rounds:
    """Launches of one study, whose plan.json stands in its folder below `runs_dir`. `detach` leaves the runs to the cluster."""

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
        """Launches the runs in one of the states `chosen` and follows them to their end. Raises: Mistake."""
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
                reason = f"its job was out of memory, {LAUNCHES} times; give it more (hydra.launcher.mem_gb), or smaller batches"
                RunDirectory(runs_of(self.plan, self.runs_dir)[key]).give_up(reason)

    def _here(self, chosen: Sequence[str]) -> None:
        """One launch on this machine."""
        pending = self._pending(chosen)
        if not pending:  # another sweep of this study runs what is left
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        parallel = min(cores, pending)
        words = ["progress=off", f"trainer.threads={max(1, cores // parallel)}"]
        given = self.launcher.words
        if "hydra/launcher=joblib" in given and not any("hydra.launcher.n_jobs=" in word for word in given):
            words.append(f"hydra.launcher.n_jobs={parallel}")
        with Monitor(self.plan, self.runs_dir, self.console):
            self._launch([*words, *given], chosen)

    def _on_cluster(self, chosen: Sequence[str]) -> dict[tuple[str, int], Job]:
        """Submits what no job of Slurm has in hand, and waits for all jobs of the study; returns the jobs that ended without a word."""
        if self._pending(chosen):
            threads = [f"trainer.threads={self.launcher.threads}"] if self.launcher.threads else []
            before = len(submissions(self.folder))
            self._launch(["progress=plain", *threads, *self.launcher.words], chosen)
            for one in submissions(self.folder)[before:]:
                self._say(f"submitted {len(one['runs'])} runs to Slurm as job {one['job']}")
        if self.detach:
            self._say(f"`attnlab status {self.plan.study}` shows them, `attnlab cancel {self.plan.study}` stops them")
            return {}
        try:
            watch = Watch(self.folder, self._say)
            with Monitor(self.plan, self.runs_dir, self.console, jobs=lambda: watch.jobs):
                watch.wait(lambda: states(self.plan, self.runs_dir, {}))
        except NoAnswer as error:
            raise Mistake(f"{error}; the jobs go on, and the same command follows them again") from error
        except (KeyboardInterrupt, Interrupted):
            self._say(f"the jobs go on; `attnlab cancel {self.plan.study}` stops them")
            raise
        found, runs = states(self.plan, self.runs_dir, watch.jobs), runs_of(self.plan, self.runs_dir)
        lost = {
            key: watch.jobs[place(key)]
            for key, state in found.items()
            if state == "lost" and (watch.jobs[place(key)].state == "PREEMPTED" or not _was_stopped(runs[key]))
        }
        for key in lost:
            self._say(f"{key[0]} seed={key[1]} was lost: its job ended without a word")
        return lost

    def _pending(self, chosen: Sequence[str]) -> int:
        try:
            found = states(self.plan, self.runs_dir, jobs_of(self.folder))
        except NoAnswer as error:
            raise Mistake(
                f"{error}; which runs of {self.plan.study} it still has is not known, so none was launched"
            ) from error
        return sum(state in chosen for state in found.values())

    def _launch(self, words: Sequence[str], chosen: Sequence[str]) -> None:
        """One launch by Hydra."""
        own = [
            "hydra/sweeper=study",
            f"hydra.sweeper.plan={literal(str(self.folder / 'plan.json'))}",
            f"hydra.sweeper.states=[{','.join(chosen)}]",
            f"runs_dir={literal(str(self.runs_dir))}",
            f"study.name={literal(self.plan.study)}",
        ]
        try:
            launch([*own, *words], self.space, multirun=True)
        except JobsFailed as error:
            print(f"attnlab: some runs failed, the others went on:\n{error}", file=sys.stderr)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _was_stopped(run: Path) -> bool:
    """Whether a run was told to stop, and did: somebody cancelled it, or it was out of time once too often."""
    return (read_json(run / "status.json") or {}).get("state") == "interrupted"
