"""Slurm as a study sees it: which of its runs were submitted, and what Slurm says of them now.

A submission is one file, runs/<study>/slurm/<job>.json, written once. What a run came to, its own directory says; Slurm
only tells whether a job is still to come, is there, or is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlab.config.identity import run_path
from attnlab.studies.plan import Key, Plan, runs_of
from attnlab.training.run_directory import SETTLED, RunDirectory, effective_state, read_json, write_json

FOLDER = "slurm"
PATIENCE_SECONDS = 20.0
IN_SECONDS = {"SLURM_TIME_FORMAT": "%s"}  # times that Slurm answers, whatever this machine's clock shows
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0
LIVE = {
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
    *("RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"),
}
WORDS = {
    **dict.fromkeys(("REQUEUED", "PREEMPTED"), "preempted"),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), "out of time"),
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL"), "node lost"),
}


class NoAnswer(Exception):
    """Slurm was asked and did not answer: what became of its jobs is not known."""


@dataclass(frozen=True)
class Job:
    """One of Slurm's jobs; `where` is its node, or why it is pending."""

    id: str
    state: str
    where: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it is still to run or running."""
        return self.state in LIVE

    def __str__(self) -> str:
        word = WORDS.get(self.state, self.state.lower().replace("_", " "))
        if self.state in ("PENDING", "REQUEUED") and self.where == "BeginTime":
            return "preempted, to start again"
        if self.state in ("PENDING", "RUNNING") and self.where not in ("", "None", "N/A"):
            return f"{word} on {self.where}" if self.state == "RUNNING" else f"{word} ({self.where})"
        return word


def note_submission(study: Path, runs: Mapping[str, str], **how: Sequence[str]) -> None:
    """Keeps which of Slurm's ids trains which run (by its path in the study's folder), and how they were launched."""
    job = next(iter(runs)).split("_")[0]
    write_json(study / FOLDER / f"{job}.json", {"job": job, "submitted": time.time(), "runs": dict(runs), **how})


def submissions(study: Path) -> list[dict[str, Any]]:
    """The submissions of a study, in their order."""
    found = [read_json(path) for path in (study / FOLDER).glob("*.json")]
    return sorted((one for one in found if one), key=lambda one: one["submitted"])


def jobs_of(study: Path) -> dict[str, Job]:
    """Slurm's job of each submitted run, by the run's path in the folder: the last live one. Raises: NoAnswer."""
    submitted = [(run, id) for one in submissions(study) for id, run in one["runs"].items()]
    if not submitted or shutil.which("squeue") is None:
        return {}
    found = ask(id for _, id in submitted)
    jobs: dict[str, Job] = {}
    for run, id in submitted:
        if found[id].is_live or run not in jobs or not jobs[run].is_live:
            jobs[run] = found[id]
    return jobs


def known_jobs(study: Path) -> Mapping[str, Job]:
    """As `jobs_of`, and nothing where Slurm does not answer."""
    try:
        return jobs_of(study)
    except NoAnswer:
        return {}


def ask(ids: Iterable[str]) -> dict[str, Job]:
    """Each of Slurm's ids with its job; what Slurm no longer knows is GONE. Raises: NoAnswer."""
    wanted = list(dict.fromkeys(ids))
    numbers = ",".join(dict.fromkeys(id.split("_")[0] for id in wanted))
    # One number of a job that was forgotten is an error, several are none.
    answer = _call("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%N|%r", "-j", numbers, fine="Invalid job id")
    found = {}
    for line in answer.splitlines():
        id, state, nodes, reason = line.split("|", 3)
        found[id] = (state, nodes if state == "RUNNING" else reason)
    # What was cancelled before it came to its turn is kept as the array alone.
    jobs = {id: Job(id, *(found.get(id) or found.get(id.split("_")[0]) or ("GONE",))) for id in wanted}
    return jobs | _ended([id for id, job in jobs.items() if job.state == "GONE"])


def _ended(ids: Sequence[str]) -> dict[str, Job]:
    """What the accounting keeps of jobs that the controller has forgotten; nothing on a cluster without accounting."""
    if not ids or shutil.which("sacct") is None:
        return {}
    try:
        answer = _call("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(ids))
    except NoAnswer:
        return {}
    found = dict(line.split("|")[:2] for line in answer.splitlines() if line.count("|"))
    return {id: Job(id, found[id].split(" ")[0]) for id in ids if found.get(id)}


def is_being_preempted(id: str) -> bool:
    """Whether Slurm has announced to a running job that it will lose its nodes after GraceTime. Raises: NoAnswer."""
    # A job that was preempted earlier and started again may keep the time of that.
    answer = _call("squeue", "-h", "-O", "State:|,PreemptTime:|,StartTime:|", "-j", id, fine="Invalid job id")
    for line in answer.splitlines():
        state, preempted, started = (word.strip() for word in line.split("|")[:3])
        if state == "RUNNING" and preempted.isdigit() and started.isdigit():
            return int(preempted) >= int(started)
    return False


def cancel(ids: Sequence[str]) -> None:
    """Takes jobs out of the queue and stops those that run; each saves first. Raises: NoAnswer."""
    if ids:
        _call("scancel", *ids, fine="Invalid job id")


def _call(*words: str, fine: str | None = None) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, env=os.environ | IN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"Slurm does not answer ({words[0]} took more than {PATIENCE_SECONDS:.0f} s)") from None
    except OSError as error:
        raise NoAnswer(f"Slurm cannot be asked: {error}") from error
    if done.returncode and not (fine and fine in done.stderr):
        raise NoAnswer(f"Slurm does not answer: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def states(plan: Plan, runs_dir: Path, jobs: Mapping[str, Job]) -> dict[Key, str]:
    """The state of every run of the plan; `jobs` are Slurm's, by the runs' paths in the study's folder."""
    return {key: state_of(run, jobs.get(run_path(*key))) for key, run in runs_of(plan, runs_dir).items()}


def state_of(run: Path, job: Job | None) -> str:
    """A run's state by its directory; with a job also queued (to start, or start again) and lost (the job is gone)."""
    state = effective_state(run)
    if job is None or state in SETTLED:
        return state
    is_owner = RunDirectory(run).owner().get("job") == job.id
    if job.is_live:
        return state if state == "running" or (state == "failed" and is_owner) else "queued"
    if state == "running":
        return "lost" if is_owner else state
    return "lost" if state in ("missing", "interrupted") and job.state != "CANCELLED" else state


class Watch:
    """Asks Slurm of a study's jobs again and again, less often the longer nothing changes."""

    def __init__(self, study: Path, say: Callable[[str], None]) -> None:
        self.study, self.say = study, say
        self.jobs = jobs_of(study)
        self._told = False

    def wait(self, progress: Callable[[], object]) -> None:
        """Until Slurm has no live job of the study; it is asked at once when `progress` changes, and waited for."""
        pause = SHORTEST_PAUSE_SECONDS
        while any(job.is_live for job in self.jobs.values()):
            before, seen, end = self.jobs, progress(), time.monotonic() + pause
            while time.monotonic() < end and progress() == seen:
                time.sleep(SHORTEST_PAUSE_SECONDS)
            try:
                self.jobs = jobs_of(self.study)
            except NoAnswer as error:
                if not self._told:
                    self.say(f"{error}; waiting for it")
                self._told = True
            has_changed = self.jobs != before or progress() != seen
            pause = SHORTEST_PAUSE_SECONDS if has_changed else min(pause * 1.5, LONGEST_PAUSE_SECONDS)
