"""`attnlab scaling`: fits a scaling law to a study's runs, and says how to spend a compute."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from attnlab.cli.compose import Mistake
from attnlab.cli.reports import study_folder


def scaling(arguments: argparse.Namespace) -> int:
    """
    Fits and shows; returns the exit status.

    Raises: Mistake for a study that carries no law, or arguments out of range.
    """
    from attnlab.analysis import read_study
    from attnlab.analysis.scaling import print_scaling, scaling_of, to_csv, to_json

    study = read_study(study_folder(arguments.study, arguments.overrides))
    try:
        found = scaling_of(study, arguments.metric, arguments.count, arguments.compute, arguments.resamples)
    except ValueError as error:
        raise Mistake(str(error)) from error
    if arguments.format == "table":
        print_scaling(found, Console())
    else:
        sys.stdout.write({"json": to_json, "csv": to_csv}[arguments.format](found))
    if arguments.to:
        folder = Path(arguments.to)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Mistake(f"--to {folder}: {error.strerror}; give a folder that is there or can be made") from error
        _write(found, folder)
    return 0


def _write(found: object, folder: Path) -> None:
    from attnlab.analysis.scaling import Scaling, to_csv, to_json, write_figures

    assert isinstance(found, Scaling)
    written = write_figures(found, folder)
    for name, text in (("scaling.json", to_json(found)), ("runs.csv", to_csv(found))):
        (folder / name).write_text(text)
        written.append(folder / name)
    print(f"written to {folder}: {', '.join(path.name for path in written)}", file=sys.stderr)
