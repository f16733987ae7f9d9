"""`attnlab status`, `report` and `cancel`, and what all views of a study's run directories share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from attnlab.cli.cluster import NoAnswer, cancel, jobs_of
from attnlab.cli.compose import Mistake, did_you_mean
from attnlab.cli.monitor import Snapshot, status_table
from attnlab.cli.overrides import key_and_text
from attnlab.cli.resampling import resampled
from attnlab.cli.studies import available_studies, plan_of_runs
from attnlab.ranges import must_be

if TYPE_CHECKING:
    from attnlab.analysis import Comparison, Study


def show(arguments: argparse.Namespace) -> int:
    """The state of a study's runs, or its page; returns the exit status."""
    folder = study_folder(arguments.study, arguments.overrides)
    console = Console()
    if arguments.command == "status":
        plan = plan_of_runs(folder)
        try:
            jobs, silence = jobs_of(folder), None
        except NoAnswer as error:
            jobs, silence = {}, error
        snapshot = Snapshot(plan, folder.parent, jobs)
        counted = ", ".join(
            f"{n} {state}" for state in dict.fromkeys(snapshot.state.values()) if (n := snapshot.count(state))
        )
        console.print(status_table(snapshot, f"{len(snapshot.state)} runs: {counted}"))
        for (cell, seed), status in snapshot.status.items():
            if status.get("error"):
                console.print(f"{cell} seed={seed}: {status['error']}", markup=False, highlight=False, soft_wrap=True)
        if snapshot.count("lost"):
            console.print(f"lost runs have no job any more; `attnlab retry {plan.study}` runs them again", markup=False)
        if silence:
            print(f"attnlab: {silence}; shown is what the runs' directories say", file=sys.stderr)
        return 0
    from attnlab.analysis import compare, read_study, write_report, write_tables

    to = Path(arguments.to) if arguments.to else folder / page_name(arguments.part or 1)
    if not to.parent.is_dir():
        raise Mistake(f"--to {to}: there is no folder {to.parent}")
    comparison = resampled(compare(part_of(read_study(folder), arguments.part)), arguments.bootstrap_sentences)
    path = write_report(comparison, to)
    print(path, *write_tables(comparison, path.parent), sep="\n")
    if not arguments.no_figures:
        write_figures_of(comparison, path.parent / "figures")
    return 0


def write_figures_of(comparison: Comparison, folder: Path) -> None:
    """Writes a study's figures for a paper, and says where they stand."""
    from attnlab.analysis.figures.study import write_figures

    written = write_figures(comparison, folder)
    if written:
        print(f"{folder}: {len(written)} files")


def cancel_study(arguments: argparse.Namespace) -> int:
    """
    `attnlab cancel`: takes the jobs of a study from Slurm; returns the exit status. A run that trains saves first.

    Raises: Mistake where Slurm does not answer.
    """
    folder = study_folder(arguments.study, arguments.overrides)
    try:
        live = [job.id for job in jobs_of(folder).values() if job.is_live]
        cancel(live)
    except NoAnswer as error:
        raise Mistake(f"{error}; nothing was cancelled") from error
    print(
        f"cancelled {len(live)} jobs of {folder.name}: {', '.join(live)}"
        if live
        else f"Slurm has no job of {folder.name}"
    )
    return 0


def compare_study(folder: Path, console: Console, bootstrap_sentences: bool = False, part: int | None = None) -> None:
    """Prints the comparison of the study in `folder`, of each part whose runs can be compared, and writes its page where it can be written."""
    from attnlab.analysis import compare, parts_of_study, print_comparison, read_study

    study = read_study(folder)
    parts = parts_of_study(study) if part is None else [part_of(study, part)]
    for number, one in enumerate(parts, start=part or 1):
        if len(parts) > 1:
            console.rule(f"part {number} of {len(parts)}")
        comparison = resampled(compare(one), bootstrap_sentences)
        print_comparison(comparison, console)
        write_page(comparison, folder, console, page_name(number))


def page_name(part: int) -> str:
    """The file of a part's page; of a study in one part, the study's."""
    return "report.html" if part == 1 else f"report-{part}.html"


def part_of(study: Study, number: int | None) -> Study:
    """The part of a study that was asked for, or the only one. Raises: Mistake where there are several, or no such one."""
    from attnlab.analysis import parts_of_study

    parts = parts_of_study(study)
    if number is None and len(parts) > 1:
        raise Mistake(
            f"{study.name} holds runs of {len(parts)} kinds: choose one with --part 1 to {len(parts)}. Part 1: {parts[0].apart[0]}"
        )
    if not 1 <= (number or 1) <= len(parts):
        raise Mistake(must_be("--part", f"from 1 to {len(parts)}, the parts of {study.name}", number))
    return parts[(number or 1) - 1]


def write_page(comparison: Comparison, folder: Path, console: Console, name: str = "report.html") -> None:
    """Writes the page into the study's folder and names it; says why where it cannot be written."""
    from attnlab.analysis import write_report

    try:
        page = write_report(comparison, folder / name)
    except OSError as error:
        print(f"attnlab: no page: {error}", file=sys.stderr)
    else:
        console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)


def study_folder(study: str, overrides: list[str]) -> Path:
    """
    The directory of a study's runs.

    Raises: Mistake where there are none, naming those there are.
    """
    runs_dir = runs_dir_of(overrides)
    given = dict(map(key_and_text, overrides))
    name = given.get("study.name", study)
    for folder in (runs_dir / name, Path(study)):
        if has_runs(folder):
            return folder.resolve() if folder.name in ("", "..") else folder
    known = sorted(p.name for p in runs_dir.glob("*") if has_runs(p))
    there = f"there are {', '.join(known)}" if known else "there are none yet"
    runs_it = f" `attnlab sweep {study}` runs it." if study in available_studies() else ""
    raise Mistake(f"{name}: no such study has run in {runs_dir}; {there}.{did_you_mean(name, known)}{runs_it}")


def runs_dir_of(overrides: list[str]) -> Path:
    """Where studies stand. Raises: Mistake for settings that have no meaning for runs that are there."""
    for override in overrides:
        if override.split("=", 1)[0] not in ("runs_dir", "study.name") or "=" not in override:
            raise Mistake(f"{override}: only runs_dir=DIR and study.name=NAME are taken here")
    return Path(dict(map(key_and_text, overrides)).get("runs_dir", "runs"))


def has_runs(folder: Path) -> bool:
    """Whether `folder` is that of a study: it has a plan, or runs."""
    return (folder / "plan.json").is_file() or any(folder.glob("*/seed=*/run.json"))
