"""
Launches the runs of a study that are not over, on this machine or a cluster, until nothing is left to launch.

What a cluster's jobs left without a word is launched again. The launchers are Hydra's: `attnlab.config.engine`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from attnlab.config import UsageError
from attnlab.config.compose import ConfigSpace
from attnlab.config.engine import launch, launcher_of
from attnlab.config.identity import run_path
from attnlab.config.overrides import literal
from attnlab.studies import cluster
from attnlab.studies.cluster import Job, NoAnswer
from attnlab.studies.monitor import Monitor
from attnlab.studies.plan import Key, Plan, runs_of
from attnlab.training.processes import Interrupted
from attnlab.training.run_directory import ATTEMPTS, RunDirectory, read_json

LAUNCHES = 3  # on a cluster, of what its jobs left without a word
NOT_OVER = ("missing", "interrupted", "lost")


class JobsFailed(RuntimeError):
    """Some runs of a sweep failed; the others went on."""

    # It is not beside the sweeper that raises it: Hydra loads plugins anew, and what they define is another class then.


@dataclass(frozen=True)
class Launcher:
    """The settings of a launcher, whether it trains on this machine, and the threads of each job if it says so."""

    words: list[str]
    is_here: bool = True
    threads: int | None = None


def refuse_incompatible(launcher: Mapping[str, Any], trainers: Iterable[Mapping[str, Any]]) -> None:
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
    for nodes, devices in shapes:
        wanted = {"nodes": ("trainer.num_nodes", nodes), "tasks_per_node": ("trainer.devices", devices)}
        for field, (key, value) in wanted.items():
            if launcher[field] != value:
                raise UsageError(
                    f"hydra.launcher.{field}={launcher[field]} does not fit {key}={value}: Slurm starts one task a "
                    f"device. Leave hydra.launcher.{field} out, and it follows {key}"
                )


def prepare_launcher(
    space: ConfigSpace, run: Sequence[str], words: Sequence[str], trainers: Iterable[Mapping[str, Any]]
) -> Launcher:
    """The launcher that `words` choose, for runs such as `run` with these trainers. Raises: UsageError."""
    launcher = launcher_of(space, [*run, *words])
    if not launcher.is_slurm:
        return Launcher(list(words))
    refuse_incompatible(launcher.fields, trainers)
    threads = launcher.fields["cpus_per_task"]
    return Launcher([*words, *launcher.trainer_words], is_here=False, threads=threads)


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

    def _on_cluster(self, chosen: Sequence[str]) -> dict[Key, Job]:
        """Submits what Slurm has no job of, and waits for all jobs; returns those that ended without a word."""
        if self._pending(chosen):
            threads = [f"trainer.threads={self.launcher.threads}"] if self.launcher.threads else []
            before = len(cluster.submissions(self.folder))
            self._launch(["progress=plain", *threads, *self.launcher.words], chosen)
            for one in cluster.submissions(self.folder)[before:]:
                self._say(f"submitted {len(one['runs'])} runs to Slurm as job {one['job']}")
        if self.detach:
            self._say(f"`attnlab status {self.plan.study}` shows them, `attnlab cancel {self.plan.study}` stops them")
            return {}
        try:
            watch = cluster.Watch(self.folder, self._say)
            with Monitor(self.plan, self.runs_dir, self.console, jobs=lambda: watch.jobs):
                watch.wait(lambda: cluster.states(self.plan, self.runs_dir, {}))
        except NoAnswer as error:
            raise UsageError(f"{error}; the jobs go on, and the same command follows them again") from error
        except (KeyboardInterrupt, Interrupted):
            self._say(f"the jobs go on; `attnlab cancel {self.plan.study}` stops them")
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
                self._say(f"{key[0]} seed={key[1]} was lost: its job ended without a word")
        return lost

    def _pending(self, chosen: Sequence[str]) -> int:
        try:
            found = cluster.states(self.plan, self.runs_dir, cluster.jobs_of(self.folder))
        except NoAnswer as error:
            unknown = f"which runs of {self.plan.study} it still has is not known, so none was launched"
            raise UsageError(f"{error}; {unknown}") from error
        return sum(state in chosen for state in found.values())

    def _launch(self, words: Sequence[str], chosen: Sequence[str]) -> None:
        """One launch by Hydra."""
        from attnlab.runs.run import run

        own = [
            "hydra/sweeper=study",
            f"hydra.sweeper.plan={literal(str(self.folder / 'plan.json'))}",
            f"hydra.sweeper.states=[{','.join(chosen)}]",
            f"runs_dir={literal(str(self.runs_dir))}",
            f"study.name={literal(self.plan.study)}",
        ]
        try:
            launch(run, [*own, *words], self.space, multirun=True)
        except JobsFailed as error:
            print(f"attnlab: some runs failed, the others went on:\n{error}", file=sys.stderr)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
