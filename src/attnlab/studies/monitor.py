"""What a sweep looks like while it runs: one table of cells on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from attnlab.config.identity import run_path
from attnlab.studies.cluster import Job, states
from attnlab.studies.plan import Key, Plan, runs_of
from attnlab.studies.remaining import read_costs, seconds_left
from attnlab.training.metrics import curve_of
from attnlab.training.run_directory import ENDED, read_json

SHOWN = {
    "finished": ("done", "green"),
    "running": ("running", "cyan"),
    "failed": ("failed", "red"),
    "diverged": ("diverged", "magenta"),
    "pruned": ("pruned", "dim"),
    "interrupted": ("interrupted", "yellow"),
    "queued": ("queued", "blue"),
    "lost": ("lost", "yellow"),
    "missing": ("waiting", "dim"),
}
EVERY_SECONDS = 1.0


def say(console: Console, line: str) -> None:
    """Prints a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """Seconds that are estimated as 40 s, 25 min or 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Snapshot:
    """The states and statuses of all runs of a plan at one moment, by their directories and the cluster's `jobs`."""

    def __init__(self, plan: Plan, runs_dir: Path, jobs: Mapping[str, Job]) -> None:
        self.plan = plan
        self.state = states(plan, runs_dir, jobs)
        self.job = {key: job for key in self.state if (job := jobs.get(run_path(*key)))}
        self.costs = read_costs(runs_dir / plan.study)
        runs = runs_of(plan, runs_dir).items()
        self.status: dict[Key, dict[str, Any]] = {key: read_json(run / "status.json") or {} for key, run in runs}

    def count(self, *states: str) -> int:
        return sum(state in states for state in self.state.values())

    def of_cell(self, name: str) -> list[Key]:
        return [key for key in self.state if key[0] == name]

    def metric(self, name: str) -> str:
        """The study's metric of one cell so far: its mean over finished runs, or the validation of running ones."""
        wanted = self.plan.metric["name"]
        finals = [self.status[key].get("final", {}).get(wanted) for key in self.of_cell(name)]
        values = [value for value in finals if isinstance(value, int | float)]
        if values:
            return f"{sum(values) / len(values):.4f}"
        return next((text for key in reversed(self.of_cell(name)) if (text := self._latest(key))), "")

    def _latest(self, key: Key) -> str:
        latest = self.status[key].get("latest", {})
        wanted = curve_of(self.plan.metric["name"])
        best = next((n for n in (wanted, "val/loss", "train/loss") if isinstance(latest.get(n), int | float)), None)
        return f"({best} {latest[best]:.3f})" if best else ""

    def seconds_left(self) -> float | None:
        """See `attnlab.studies.remaining.seconds_left`."""
        return seconds_left(self.state, self.status, self.costs)

    def left(self) -> str:
        """About how long until all is over, as the end of a sentence; nothing at first."""
        seconds = self.seconds_left()
        return f"about {duration(seconds)} left" if seconds else ""


class Monitor:
    """Follows a sweep from its run directories, and `jobs` of the cluster, until it is left; use as a context."""

    def __init__(
        self, plan: Plan, runs_dir: Path, console: Console, jobs: Callable[[], Mapping[str, Job]] = dict
    ) -> None:
        self.plan, self.runs_dir, self.console, self.jobs = plan, runs_dir, console, jobs
        self.started = time.time()
        self._stop, self._has_told = threading.Event(), False
        self._thread = threading.Thread(target=self._follow, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._seen = dict(self._look().state)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> Snapshot:
        return Snapshot(self.plan, self.runs_dir, self.jobs())

    def _follow(self) -> None:
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=4, transient=True) as live:
                while not self._stop.wait(EVERY_SECONDS):
                    snapshot = self._look()
                    self._tell_time(snapshot)
                    live.update(self._table(snapshot))
            return
        while not self._stop.wait(EVERY_SECONDS):
            snapshot = self._look()
            self._tell_time(snapshot)
            self._report_changes(snapshot)
        self._report_changes(self._look())

    def _tell_time(self, snapshot: Snapshot) -> None:
        """Says once, before a run has ended, how long all of it takes."""
        left = None if self._has_told else snapshot.seconds_left()
        if left is not None:
            self._has_told = True
            if snapshot.count(*ENDED) == Counter(self._seen.values())["finished"]:
                whole = time.time() - self.started + left
                at_pace = f"about {roughly(whole)} in all by the pace of the first steps"
                say(self.console, f"{at_pace}, evaluations not counted")

    def _report_changes(self, snapshot: Snapshot) -> None:
        for (cell, seed), state in snapshot.state.items():
            before, self._seen[cell, seed] = self._seen.get((cell, seed)), state
            if state == before or state not in ENDED:
                continue
            status = snapshot.status[cell, seed]
            value = status.get("final", {}).get(self.plan.metric["name"])
            figure = f", {self.plan.metric['name']} {value:.4f}" if isinstance(value, int | float) else ""
            error = f": {status['error']}" if status.get("error") else ""
            over = f"[{snapshot.count(*ENDED)}/{len(snapshot.state)}]"
            spent = "; ".join(filter(None, [duration(time.time() - self.started), snapshot.left()]))
            say(self.console, f"{over} {cell} seed={seed} {state}{figure}{error} (at {spent})")

    def _table(self, snapshot: Snapshot) -> Table:
        over, spent = f"{snapshot.count(*ENDED)} of {len(snapshot.state)} runs over", time.time() - self.started
        return status_table(snapshot, ", ".join(filter(None, [over, f"{duration(spent)} so far", snapshot.left()])))


def status_table(snapshot: Snapshot, caption: str) -> Table:
    """Cells with their runs' states, what Slurm says of their jobs, where there are some, and the metric so far."""
    table = Table(title=snapshot.plan.study, caption=caption, box=None, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("cell", overflow="fold")
    table.add_column("runs")
    if snapshot.job:
        table.add_column("on Slurm")
    table.add_column("step", justify="right")
    table.add_column(snapshot.plan.metric["name"], justify="right")
    for cell in snapshot.plan.cells:
        keys = snapshot.of_cell(cell.name)
        running = [snapshot.status[key] for key in keys if snapshot.state[key] == "running"]
        step = f"{running[0].get('step', 0)}/{running[0].get('max_steps', '?')}" if running else ""
        counted = Counter(str(snapshot.job[key]) for key in keys if key in snapshot.job)
        on_slurm = [", ".join(f"{n} {words}" for words, n in counted.items())] if snapshot.job else []
        found = Counter(snapshot.state[key] for key in keys)
        shown = Text(" ").join(
            Text(f"{found[state]} {word}", style) for state, (word, style) in SHOWN.items() if found[state]
        )
        metric: str | Text = snapshot.metric(cell.name)
        if cell.skip:
            shown, metric = Text("skipped", "dim"), Text(cell.skip, "dim")
        table.add_row(cell.name, shown, *on_slurm, step, metric)
    return table
