"""`attnlab compare`, `report` and `scaling`: a study's comparison in the terminal or a page, and its scaling law."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import STUDY, command, flag, option, refused, repeatable
from attnlab.config import UsageError, usage_errors

if TYPE_CHECKING:
    from rich.console import Console

    from attnlab.analysis import Comparison, Study, Tasks

EVERY_SECONDS = 2.0
COMPARED = (
    *STUDY,
    flag(
        "--bootstrap-sentences",
        "translations: BLEU and chrF against the baseline on resampled test sentences, by sacreBLEU; seconds a run",
    ),
    option(
        "--metric",
        "compare on this final metric, as test/loss@1x, or cost, as 'steps_to val/loss 2.0' (default: the study's)",
    ),
    option("--baseline", "compare with this cell, by its name or choices, as position=rotary (default: the study's)"),
    option("--part", "of a study whose runs cannot all be compared: the part of this number", type=int),
)


@command(
    "compare",
    "compare a study's cells in the terminal",
    *COMPARED,
    option("--format", choices=("table", "csv", "md", "tex"), default="table"),
    flag("--runs", "list the underlying runs: value and directory of each"),
    flag("--watch", "redraw it while the runs write, until none does"),
    option("--every", "with --watch: the pause between two looks (2)", type=float, metavar="SECONDS"),
)
def compare(arguments: Namespace) -> int:
    """Prints the comparison in the form that was asked for. Raises: UsageError for forms that do not go together."""
    _refuse_mixtures(arguments)
    from rich.console import Console

    from attnlab.analysis import across_words, aggregate_of, load_study, to_csv, to_latex, to_markdown
    from attnlab.analysis.tables import runs_to_csv, runs_to_text
    from attnlab.studies.plan import study_folder

    if arguments.watch:
        _watch(arguments, Console())
        return 0
    folder = study_folder(arguments.study, arguments.overrides)
    if arguments.format == "table" and not arguments.runs:
        how = (arguments.bootstrap_sentences, arguments.part, arguments.metric, arguments.baseline)
        compare_study(folder, Console(), *how)
    else:
        forms = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
        if arguments.runs:
            forms = {"csv": runs_to_csv, "table": runs_to_text}
        study = _as_asked(load_study(folder), arguments.metric, arguments.baseline)
        if study.across is not None and arguments.part is None and not arguments.runs:
            sys.stdout.write(across_words.FORMS[arguments.format](aggregate_of(study)))
            return 0
        part = part_of(_parts(study, arguments.metric), arguments.part)
        sys.stdout.write(forms[arguments.format](compared(part, arguments.bootstrap_sentences)))
    return 0


@command(
    "report",
    "write a study's comparison as one HTML page, with its table as CSV, Markdown and LaTeX beside it",
    *COMPARED,
    option("--to", "the file to write (default: report.html in the study's directory of runs)"),
    flag("--no-figures", "leave out figures/*.pdf and *.png beside the page"),
)
def report(arguments: Namespace) -> int:
    """Writes the page with its tables and figures. Raises: UsageError for a folder that is not there."""
    from attnlab.analysis import Tasks, aggregate_of, load_study, write_tables
    from attnlab.analysis.across_words import write_aggregate
    from attnlab.report.across import write_across
    from attnlab.report.figures.across import write_across_figures
    from attnlab.report.figures.study import write_figures
    from attnlab.report.page import write_report
    from attnlab.studies.plan import study_folder

    folder = study_folder(arguments.study, arguments.overrides)
    study = _as_asked(load_study(folder), arguments.metric, arguments.baseline)
    to = Path(arguments.to) if arguments.to else folder / _page_name(study, arguments.part)
    if not to.parent.is_dir():
        raise UsageError(f"--to {to}: there is no folder {to.parent}")
    parts = _parts(study, arguments.metric)
    if study.across is not None and arguments.part is None:
        found = aggregate_of(study)
        tasks = Tasks(found, [compared(part, arguments.bootstrap_sentences) for part in parts])
        print(*write_across(tasks, to), *write_aggregate(found, to.parent), sep="\n")
        if not arguments.no_figures and (written := write_across_figures(found, to.parent / "figures")):
            print(f"{to.parent / 'figures'}: {len(written)} files")
        return 0
    comparison = compared(part_of(parts, arguments.part), arguments.bootstrap_sentences)
    path = write_report(comparison, to)
    print(path, *write_tables(comparison, path.parent), sep="\n")
    if not arguments.no_figures and (written := write_figures(comparison, path.parent / "figures")):
        print(f"{path.parent / 'figures'}: {len(written)} files")
    return 0


@command(
    "wandb-report",
    "write a study's comparison as a report at W&B, beside the runs that W&B has of it",
    *STUDY,
    option("--project", "where the runs are (default: as they were logged)"),
    option("--entity", "a person or team (default: as they were logged, else that of the key)"),
    option("--part", "of a study whose runs cannot all be compared: the part of this number", type=int),
)
def wandb_report(arguments: Namespace) -> int:
    """Sends a new report, and prints its address. Raises: UsageError without a key, and in W&B's words."""
    from attnlab.analysis import load_study, parts_of_study
    from attnlab.report.wandb_report import build_report
    from attnlab.studies.plan import study_folder
    from attnlab.training.tracking import resolve_wandb_mode

    folder = study_folder(arguments.study, arguments.overrides)
    comparison = compared(part_of(parts_of_study(load_study(folder)), arguments.part), False)
    mode, why = resolve_wandb_mode()
    if mode != "online":
        raise UsageError(
            f"W&B takes a report online alone, and its mode is {mode}, as {why}: `wandb login` stores a key, or set "
            "WANDB_API_KEY; `attnlab sync` sends runs that are offline"
        )
    try:
        report = build_report(comparison, arguments.project, arguments.entity)
        report.save()
    except ImportError as error:
        raise UsageError("a report needs the library wandb-workspaces: pip install 'attnlab[wandb-report]'") from error
    except Exception as error:  # W&B's, and those of its library
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"W&B did not take the report: {said}") from error
    print(report.url)
    return 0


def _watch(arguments: Namespace, console: Console) -> None:
    """Follows a study from when it has runs. Raises: UsageError for settings that have no meaning here."""
    from attnlab.analysis import Tasks
    from attnlab.report.across import write_across
    from attnlab.report.page import write_report
    from attnlab.studies.plan import runs_dir_of, study_folder
    from attnlab.studies.watching import awaited, watch

    every = EVERY_SECONDS if arguments.every is None else arguments.every
    runs_dir_of(arguments.overrides)
    try:
        folder = awaited(lambda: study_folder(arguments.study, arguments.overrides), console, every)
    except KeyboardInterrupt:
        return
    if (seen := watch(folder, console, every)) is not None:
        write = partial(write_across, seen) if isinstance(seen, Tasks) else partial(write_report, seen)
        _write_page(write, folder / "report.html", console)


def _refuse_mixtures(arguments: Namespace) -> None:
    others = (arguments.runs, arguments.bootstrap_sentences, arguments.metric, arguments.baseline)
    if arguments.watch and (any(others) or arguments.format != "table"):
        rest = "--runs, --format, --metric, --baseline and --bootstrap-sentences"
        raise UsageError(f"--watch follows the table of cells; give {rest} without it")
    if arguments.runs and arguments.format not in ("table", "csv"):
        raise UsageError(f"--runs lists runs as a table or with --format csv, not {arguments.format}")
    if arguments.every is not None and not arguments.watch:
        raise UsageError("--every is the pause between two looks of --watch; give both, or neither")
    if arguments.every is not None and not 0 < arguments.every < float("inf"):
        raise refused("--every", "a number of seconds above 0", arguments.every)


def compare_study(
    folder: Path,
    console: Console,
    resampled: bool = False,
    part: int | None = None,
    metric: str | None = None,
    baseline: str | None = None,
) -> None:
    """Prints the comparison of each part of a study whose runs can be compared, and writes its page if it can be."""
    from attnlab.analysis import Tasks, aggregate_of, load_study, print_comparison
    from attnlab.report.page import write_report

    if isinstance(sys.stdout, io.TextIOWrapper):  # the dot of a label, an accent in a name
        sys.stdout.reconfigure(errors="replace")
    study = _as_asked(load_study(folder), metric, baseline)
    parts = _parts(study, metric)
    if study.across is not None and part is None:
        _compare_tasks(Tasks(aggregate_of(study), [compared(one, resampled) for one in parts]), folder, console)
        return
    for number, one in enumerate(parts if part is None else [part_of(parts, part)], start=part or 1):
        if len(parts) > 1 and part is None:
            console.rule(f"part {number} of {len(parts)}")
        comparison = compared(one, resampled)
        print_comparison(comparison, console)
        _write_page(partial(write_report, comparison), folder / _page_name(study, number), console)


def _compare_tasks(found: Tasks, folder: Path, console: Console) -> None:
    """Prints the aggregate, then a short table a task, and writes the page of all of them."""
    from attnlab.analysis.across_words import print_tasks
    from attnlab.report.across import write_across

    print_tasks(found, console)
    _write_page(partial(write_across, found), folder / _page_name(found.study, None), console)


def _parts(study: Study, metric: str | None) -> list[Study]:
    from attnlab.analysis import asked

    return asked(study, metric)


def _as_asked(study: Study, metric: str | None, baseline: str | None) -> Study:
    from attnlab.analysis import as_asked

    with usage_errors("--"):
        return as_asked(study, metric, baseline)


def compared(study: Study, resampled: bool) -> Comparison:
    """The comparison, with resampled sentences where wanted. Raises: UsageError where there are no translations."""
    from attnlab.analysis import compare as compare_cells

    comparison = compare_cells(study)
    with usage_errors("--bootstrap-sentences: "):
        return comparison.with_resampled_sentences() if resampled else comparison


def part_of(parts: Sequence[Study], number: int | None) -> Study:
    """The part that was asked for, or the only one. Raises: UsageError where there are several, or no such one."""
    if number is None and len(parts) > 1:
        is_task = "one of the tasks" in parts[0].apart[0]
        kinds = f"{parts[0].name} holds {'' if is_task else 'runs of '}{len(parts)} {'tasks' if is_task else 'kinds'}"
        raise UsageError(f"{kinds}: choose one with --part 1 to {len(parts)}. Part 1: {parts[0].apart[0]}")
    if not 1 <= (number or 1) <= len(parts):
        raise refused("--part", f"from 1 to {len(parts)}, the parts of {parts[0].name}", number)
    return parts[(number or 1) - 1]


def _page_name(study: Study, part: int | None) -> str:
    """The file of a part's page: the first is the study's, unless that is of all tasks."""
    is_whole = part is None or (part == 1 and study.across is None)
    return "report.html" if is_whole else f"report-{part}.html"


def _write_page(write: Callable[[Path], object], to: Path, console: Console) -> None:
    """Writes a page and names it; says why where it cannot be written."""
    from attnlab.studies.monitor import say

    try:
        write(to)
    except OSError as error:
        print(f"attnlab: no page: {error}", file=sys.stderr)
    else:
        say(console, f"page: {to}")


@command(
    "scaling",
    "fit loss = E + A/N^alpha + B/D^beta to a study's runs, and say how to spend a compute",
    *STUDY,
    option("--metric", "the loss to fit, as test/loss@1x (default: the study's metric)"),
    option("--count", "what N counts; both are fitted", choices=("non_embedding", "total"), default="non_embedding"),
    repeatable("--compute", "operations to spend, as 1e15", type=float),
    option("--resamples", "of the cells, for the intervals", type=int, default=500),
    option("--format", choices=("table", "json", "csv"), default="table"),
    option("--to", "a folder for figures (PNG, PDF), scaling.json and runs.csv"),
)
def scaling(arguments: Namespace) -> int:
    """Fits and shows. Raises: UsageError for a study that carries no law, or arguments out of range."""
    from rich.console import Console

    from attnlab.analysis import load_study
    from attnlab.analysis.scaling import print_scaling, scaling_of, to_csv, to_json
    from attnlab.studies.plan import study_folder

    study = load_study(study_folder(arguments.study, arguments.overrides))
    folder = Path(arguments.to) if arguments.to else None
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--to {folder}: {error.strerror}; give a folder that is there or can be made") from error
    with usage_errors():
        found = scaling_of(study, arguments.metric, arguments.count, arguments.compute, arguments.resamples)
    if arguments.format == "table":
        print_scaling(found, Console())
    else:
        sys.stdout.write({"json": to_json, "csv": to_csv}[arguments.format](found))
    if folder is not None:
        from attnlab.report.figures.scaling import write_figures  # draws, which costs start-up time

        written = [path.name for path in write_figures(found, folder)]
        for name, text in (("scaling.json", to_json(found)), ("runs.csv", to_csv(found))):
            (folder / name).write_text(text)
        print(f"written to {folder}: {', '.join([*written, 'scaling.json', 'runs.csv'])}", file=sys.stderr)
    return 0
