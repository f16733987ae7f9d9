"""What a sweep looks like while it runs: one table of cells on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from attnlab.cli.cluster import Job, place, states
from attnlab.cli.studies import Plan, runs_of
from attnlab.training.measures import parts_of
from attnlab.training.run_directory import SETTLED, read_json

MARKS = {
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
OVER = (*SETTLED, "failed")


def duration(seconds: float | None) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 5 min."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Snapshot:
    """The states and statuses of all runs of a plan at one moment: by their directories, and by the cluster's `jobs` where they have some."""

    def __init__(self, plan: Plan, runs_dir: Path, jobs: Mapping[str, Job] | None = None) -> None:
        self.plan = plan
        self.state = states(plan, runs_dir, jobs or {})
        self.job = {key: job for key in self.state if (job := (jobs or {}).get(place(key)))}
        self.status: dict[tuple[str, int], dict[str, Any]] = {
            key: read_json(directory / "status.json") or {} for key, directory in runs_of(plan, runs_dir).items()
        }

    def count(self, *states: str) -> int:
        """How many runs are in one of `states`."""
        return sum(state in states for state in self.state.values())

    def of_cell(self, name: str) -> list[tuple[str, int]]:
        """The runs of one cell."""
        return [key for key in self.state if key[0] == name]

    def metric(self, name: str) -> str:
        """The study's metric of one cell so far: its mean over finished runs, or what running ones say of validation."""
        wanted = self.plan.metric["name"]
        finals = [self.status[key].get("final", {}).get(wanted) for key in self.of_cell(name)]
        values = [value for value in finals if isinstance(value, int | float)]
        if values:
            return f"{sum(values) / len(values):.4f}"
        latest = [self._latest(key) for key in self.of_cell(name)]
        known = [text for text in latest if text]
        return known[-1] if known else ""

    def _latest(self, key: tuple[str, int]) -> str:
        latest = self.status[key].get("latest", {})
        wanted = f"val/{parts_of(self.plan.metric['name'])[1].removeprefix('sliding_')}"
        best = next((n for n in (wanted, "val/nats", "train/nats") if isinstance(latest.get(n), int | float)), None)
        return f"({best} {latest[best]:.3f})" if best else ""

    def eta(self) -> float | None:
        """Seconds until all is over; None at first."""
        return seconds_left(self.state, self.status)


def seconds_left(
    states: Mapping[tuple[str, int], str], statuses: Mapping[tuple[str, int], Mapping[str, Any]]
) -> float | None:
    """Seconds until all runs are over, from the mean time of finished ones and the share of each running one; None at first."""
    spent = [s["ended"] - s["started"] for s in statuses.values() if s.get("ended") and s.get("started")]
    running = [s for k, s in statuses.items() if states[k] == "running" and s.get("max_steps")]
    shares = [s.get("step", 0) / s["max_steps"] for s in running]
    if not spent:
        started = [s for s, share in zip(running, shares, strict=True) if share > 0.05 and s.get("started")]
        spent = [(time.time() - s["started"]) * s["max_steps"] / s["step"] for s in started]
    if not spent:
        return None
    waiting = sum(state in ("missing", "interrupted", "queued", "lost") for state in states.values())
    left = waiting + sum(1 - share for share in shares)
    return left * (sum(spent) / len(spent)) / max(1, len(running))


class Monitor:
    """Follows a sweep from its run directories until it is left; use as a context."""

    def __init__(
        self,
        plan: Plan,
        runs_dir: Path,
        console: Console,
        every: float = 1.0,
        jobs: Callable[[], Mapping[str, Job]] = dict,
    ) -> None:
        self.jobs = jobs
        self.plan, self.runs_dir, self.console, self.every = plan, runs_dir, console, every
        self.started = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._seen = dict(Snapshot(self.plan, self.runs_dir, self.jobs()).state)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=4, transient=True) as live:
                while not self._stop.wait(self.every):
                    live.update(self.table(Snapshot(self.plan, self.runs_dir, self.jobs())))
            return
        while not self._stop.wait(self.every):
            self._report_changes()
        self._report_changes()

    def _report_changes(self) -> None:
        snapshot = Snapshot(self.plan, self.runs_dir, self.jobs())
        for line in self._changes(snapshot):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _changes(self, snapshot: Snapshot) -> Iterable[str]:
        for key, state in snapshot.state.items():
            if state == self._seen.get(key) or state not in OVER:
                self._seen[key] = state
                continue
            self._seen[key] = state
            status = snapshot.status[key]
            value = status.get("final", {}).get(self.plan.metric["name"])
            figure = f", {self.plan.metric['name']} {value:.4f}" if isinstance(value, int | float) else ""
            error = f": {status['error']}" if status.get("error") else ""
            over, eta = snapshot.count(*OVER), snapshot.eta()
            left = f"; about {duration(eta)} left" if eta else ""
            yield f"[{over}/{len(snapshot.state)}] {key[0]} seed={key[1]} {state}{figure}{error} (at {duration(time.time() - self.started)}{left})"

    def table(self, snapshot: Snapshot) -> Table:
        """The table of cells: how many runs of each are in which state, how far, and the metric so far."""
        eta = snapshot.eta()
        over, total = snapshot.count(*OVER), len(snapshot.state)
        caption = f"{over} of {total} runs over, {duration(time.time() - self.started)} so far" + (
            f", about {duration(eta)} left" if eta else ""
        )
        return status_table(snapshot, caption)


def status_table(snapshot: Snapshot, caption: str = "") -> Table:
    """Cells with the states of their runs, what Slurm says of their jobs (where there are some), and the metric so far."""
    table = Table(
        title=snapshot.plan.study,
        caption=caption,
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("cell", overflow="fold")
    table.add_column("runs")
    if snapshot.job:
        table.add_column("on Slurm")
    table.add_column("step", justify="right")
    table.add_column(snapshot.plan.metric["name"], justify="right")
    for cell in snapshot.plan.cells:
        if cell.skip:
            on_slurm = [""] if snapshot.job else []
            table.add_row(cell.name, Text("skipped", style="dim"), *on_slurm, "", Text(cell.skip, style="dim"))
            continue
        keys = snapshot.of_cell(cell.name)
        marks = Text(" ").join(
            Text(f"{n} {MARKS[s][0]}", style=MARKS[s][1])
            for s in MARKS
            if (n := sum(snapshot.state[k] == s for k in keys))
        )
        running = [snapshot.status[k] for k in keys if snapshot.state[k] == "running"]
        step = f"{running[0].get('step', 0)}/{running[0].get('max_steps', '?')}" if running else ""
        counted = Counter(str(snapshot.job[key]) for key in keys if key in snapshot.job)
        on_slurm = [", ".join(f"{n} {words}" for words, n in counted.items())] if snapshot.job else []
        table.add_row(cell.name, marks, *on_slurm, step, snapshot.metric(cell.name))
    return table
