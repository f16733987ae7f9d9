"""Watching a study: its comparison again while the runs write, until none does."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from attnlab.analysis import (
    Comparison,
    Study,
    StudyReader,
    Tasks,
    compare,
    compare_tasks,
    parts_of_study,
    print_comparison,
)
from attnlab.analysis.across_words import print_arms, print_tasks, sentences
from attnlab.analysis.headline import headline
from attnlab.analysis.terminal import bullet, print_cells
from attnlab.config import UsageError
from attnlab.studies.cluster import Job, known_jobs
from attnlab.studies.monitor import duration, say
from attnlab.studies.remaining import read_costs, seconds_left
from attnlab.training.run_directory import ENDED

# Between two runs of a sweep, and before its first one, no process owns a run for a while.
PATIENCE_SECONDS = 30.0
MOST_RUNNING = 8
REST = 2.0  # times as long as a look at a large study took: the runs may need the same processors


def watch(
    folder: Path,
    console: Console,
    every: float,
    jobs: Callable[[Path], Mapping[str, Job]] = known_jobs,
    clock: Callable[[], float] = time.time,
    pause: Callable[[float], None] = time.sleep,
) -> Comparison | Tasks | None:
    """Shows a study's comparison (of one across its tasks the aggregate, then each) and the progress of its runs every
    so many seconds, until nothing runs, or Ctrl-C.

    On a terminal it is redrawn and the last one stays; elsewhere it is printed when it has changed. Returns the last.
    """
    reader, busy = StudyReader(folder), clock()
    comparison: Comparison | Tasks | None = None
    seen: Study | None = None
    before = ""
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    try:
        with live or contextlib.nullcontext():
            while True:
                began = clock()
                study = reader.read()
                if comparison is None or study is not seen:
                    comparison, seen = _compared(study), study
                lines = progress(study)
                if live is not None:  # in place, at the terminal's present size
                    live.update(Text.from_ansi("\n".join(frame(comparison, lines, console))), refresh=True)
                elif (text := rendered(comparison, console)) != before:  # one block whenever the comparison has changed
                    console.file.write(("\n" if before else "") + "".join(f"{line}\n" for line in lines) + text)
                    console.file.flush()
                    before = text
                is_over = all(run.state in ENDED for run in study.runs.values())
                if is_over and not (study.looks.after(len(study.seeds)) and comparison.unsettled):
                    break
                busy = clock() if _is_busy(study, folder, jobs) else busy
                if clock() - busy >= PATIENCE_SECONDS:
                    break
                pause(max(every, REST * (clock() - began)))
    except KeyboardInterrupt:
        pass
    if comparison is not None and console.is_terminal:
        _print(comparison, console)
    return comparison


def _compared(study: Study) -> Comparison | Tasks:
    return compare(parts_of_study(study)[0]) if study.across is None else compare_tasks(study)


def _print(found: Comparison | Tasks, console: Console) -> None:
    if isinstance(found, Tasks):
        print_tasks(found, console)
    else:
        print_comparison(found, console)


def _is_busy(study: Study, folder: Path, jobs: Callable[[Path], Mapping[str, Job]]) -> bool:
    """Whether a run has an owner, or will have one: Slurm has its job."""
    is_running = any(run.state == "running" for run in study.runs.values())
    return is_running or any(job.is_live for job in jobs(folder).values())


def progress(study: Study) -> list[str]:
    """How many runs are in which state, how far each running one is, and an estimate of what is left."""
    states = {key: run.state for key, run in study.runs.items()}
    counts = Counter(states.values())
    over = sum(counts[state] for state in ENDED)
    if over == len(states):
        return []
    left = seconds_left(states, {key: run.status for key, run in study.runs.items()}, read_costs(study.path))
    waiting = len(states) - over - counts["running"]
    words = [f"{over} of {len(states)} runs over", f"{counts['running']} running", f"{waiting} waiting"]
    lines = [", ".join(words) + (f", about {duration(left)} left" if left and counts["running"] else "")]
    running = [run for run in study.runs.values() if run.state == "running"]
    labels = {cell.name: study.label(cell) for cell in study.cells}
    for run in running[:MOST_RUNNING]:
        step, most, eta = (run.status.get(name) for name in ("step", "max_steps", "eta"))
        rest = f", about {duration(eta)} left" if isinstance(eta, int | float) else ""
        lines.append(f"  {labels[run.cell]} seed={run.seed}: step {step or 0} of {most or '?'}{rest}")
    if len(running) > MOST_RUNNING:
        lines.append(f"  and {len(running) - MOST_RUNNING} more")
    return lines


def awaited(
    find: Callable[[], Path], console: Console, every: float, pause: Callable[[float], None] = time.sleep
) -> Path:
    """The folder that `find` gives, once it does; says what is waited for. Raises: KeyboardInterrupt by Ctrl-C."""
    said = ""
    while True:
        try:
            return find()
        except UsageError as error:
            if not said:
                say(console, said := f"waiting for runs to watch, until Ctrl-C: {error}")
        pause(every)


def frame(comparison: Comparison | Tasks, lines: Sequence[str], console: Console) -> list[str]:
    """What a terminal shows at one look: progress and the whole comparison where it has the rows, else the progress, as
    many of the best cells (or arms, over tasks) as fit, and the conclusion."""
    whole = rendered(comparison, console).splitlines()
    room = console.height - 1  # the cursor's own line
    shown = [*lines, *([""] if lines else []), *whole]
    if len(shown) <= room:
        return shown
    study = comparison.study

    def conclude(to: Console) -> None:
        if isinstance(comparison, Tasks):
            found = sentences(comparison.aggregate)
        else:
            found = headline(comparison, with_reasons=False)
        for sentence in found:
            bullet(to, sentence)

    def tabulate(to: Console) -> None:
        if not isinstance(comparison, Tasks):
            print_cells(comparison, to)
        elif not comparison.aggregate.problem:
            print_arms(comparison.aggregate, to)

    said = _lines(console, conclude)
    table = _lines(console, tabulate)
    top = [*lines[:1], f"{study.name}: {len(study.cells)} cells x {len(study.seeds)} seeds"]
    said = _cut(said, max(room // 3, room - len(top) - len(table)), console)
    running = _cut(lines[1:], max(0, min(MOST_RUNNING // 3, room - len(top) - len(said) - len(table))), console)
    left = room - len(top) - len(running) - len(said) - 1
    return [line[: console.width] if "\x1b" not in line else line for line in (*top, *running)] + [
        *_cut(table, left, console),
        "",
        *said,
    ]


def _cut(lines: Sequence[str], most: int, console: Console) -> list[str]:
    """At most so many lines; the last of them says that there are more."""
    if len(lines) <= most:
        return [*lines]
    more = f"... {len(lines) - max(0, most - 1)} more lines; `attnlab compare` shows all of it"
    return [*lines[: most - 1], more[: console.width]] if most > 0 else []


def rendered(comparison: Comparison | Tasks, console: Console) -> str:
    """What is printed on `console`."""
    return _printed(console, lambda to: _print(comparison, to))


def _lines(console: Console, show: Callable[[Console], object]) -> list[str]:
    return _printed(console, show).strip("\n").splitlines()


def _printed(console: Console, show: Callable[[Console], object]) -> str:
    """What is printed on a console like this one."""
    data = io.BytesIO()
    file = io.TextIOWrapper(data, encoding=console.encoding, errors="replace", newline="\n", write_through=True)
    colours = console.color_system if console.is_terminal else None
    is_terminal = console.is_terminal
    alike = Console(
        file=file,
        width=console.width,
        force_terminal=is_terminal,
        color_system=colours,  # type: ignore[arg-type]
    )
    show(alike)
    return data.getvalue().decode(console.encoding)
