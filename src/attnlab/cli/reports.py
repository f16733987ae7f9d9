"""`attnlab status`, `compare` and `report`: three views of a study's run directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from attnlab.cli.compose import Mistake, did_you_mean
from attnlab.cli.monitor import Snapshot, status_table
from attnlab.cli.studies import read_plan


def show(arguments: argparse.Namespace) -> int:
    """Dispatches the three views; returns the exit status."""
    folder = study_folder(arguments.study, arguments.overrides)
    console = Console()
    if arguments.command == "status":
        plan = read_plan(folder / "plan.json")
        snapshot = Snapshot(plan, folder.parent)
        counted = ", ".join(
            f"{n} {state}" for state in dict.fromkeys(snapshot.state.values()) if (n := snapshot.count(state))
        )
        console.print(status_table(snapshot, f"{len(snapshot.state)} runs: {counted}"))
        for (cell, seed), status in snapshot.status.items():
            if status.get("error"):
                console.print(f"{cell} seed={seed}: {status['error']}", markup=False, highlight=False, soft_wrap=True)
        return 0
    from attnlab.analysis import compare, read_study, to_csv, to_latex, to_markdown, write_report

    if arguments.command == "report":
        path = write_report(compare(read_study(folder)), Path(arguments.to) if arguments.to else folder / "report.html")
        print(path)
    elif arguments.format == "table":
        compare_study(folder, console)
    else:
        formats = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
        sys.stdout.write(formats[arguments.format](compare(read_study(folder))))
    return 0


def compare_study(folder: Path, console: Console) -> None:
    """Prints the comparison of the study in `folder` and writes its page."""
    from attnlab.analysis import compare, print_comparison, read_study, write_report

    comparison = compare(read_study(folder))
    print_comparison(comparison, console)
    page = write_report(comparison, folder / "report.html")
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)


def study_folder(study: str, overrides: list[str]) -> Path:
    """
    The directory of a study's runs.

    Raises: Mistake where there are none, naming those there are.
    """
    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    for key in given:
        if key not in ("runs_dir", "study.name"):
            raise Mistake(f"{key}: only runs_dir and study.name are taken here")
    runs_dir = Path(given.get("runs_dir", "runs"))
    name = given.get("study.name", study)
    for folder in (runs_dir / name, Path(study)):
        if (folder / "plan.json").is_file():
            return folder
    known = sorted(p.parent.name for p in runs_dir.glob("*/plan.json"))
    there = f"there are {', '.join(known)}" if known else "there are none yet"
    raise Mistake(
        f"{name}: no such study has run in {runs_dir}; {there}.{did_you_mean(name, known)} `attnlab sweep {study}` runs it."
    )
