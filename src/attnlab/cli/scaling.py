"""`attnlab scaling`: fits a scaling law to a study's runs, and says how to spend a compute."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from attnlab.cli.options import Command, add_repeatable, add_study
from attnlab.config import UsageError


def _options(scaling: ArgumentParser) -> None:
    add_study(scaling)
    scaling.add_argument("--metric", help="the loss to fit, as test/nats@1x (default: the study's metric)")
    scaling.add_argument(
        "--count", choices=("non_embedding", "total"), default="non_embedding", help="what N counts; both are fitted"
    )
    add_repeatable(scaling, "--compute", "operations to spend, as 1e15", type=float)
    scaling.add_argument("--resamples", type=int, default=500, help="of the cells, for the intervals")
    scaling.add_argument("--format", choices=("table", "json", "csv"), default="table")
    scaling.add_argument("--to", help="a folder for figures (PNG, PDF), scaling.json and runs.csv")


def scaling(arguments: Namespace) -> int:
    """Fits and shows. Raises: UsageError for a study that carries no law, or arguments out of range."""
    from rich.console import Console

    from attnlab.analysis import load_study
    from attnlab.analysis.scaling import print_scaling, scaling_of, to_csv, to_json
    from attnlab.studies.plan import study_folder

    study = load_study(study_folder(arguments.study, arguments.overrides))
    try:
        found = scaling_of(study, arguments.metric, arguments.count, arguments.compute, arguments.resamples)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.format == "table":
        print_scaling(found, Console())
    else:
        sys.stdout.write({"json": to_json, "csv": to_csv}[arguments.format](found))
    if arguments.to:
        from attnlab.report.figures.scaling import write_figures  # draws, which costs start-up time

        folder = Path(arguments.to)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--to {folder}: {error.strerror}; give a folder that is there or can be made") from error
        written = [path.name for path in write_figures(found, folder)]
        for name, text in (("scaling.json", to_json(found)), ("runs.csv", to_csv(found))):
            (folder / name).write_text(text)
        print(f"written to {folder}: {', '.join([*written, 'scaling.json', 'runs.csv'])}", file=sys.stderr)
    return 0


COMMANDS = {
    "scaling": Command(
        "fit loss = E + A/N^alpha + B/D^beta to a study's runs, and say how to spend a compute", _options, scaling
    )
}
