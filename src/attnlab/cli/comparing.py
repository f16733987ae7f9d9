"""`attnlab compare`: the comparison once, while the study's runs write, or as the runs that it rests on."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from attnlab.cli.compose import Mistake
from attnlab.cli.reports import compare_study, part_of, study_folder
from attnlab.cli.resampling import resampled

EVERY_SECONDS = 2.0


def compare(arguments: argparse.Namespace) -> int:
    """Prints the comparison in the form that was asked for; returns the exit status. Raises: Mistake for forms that do not go together."""
    _refuse_mixtures(arguments)
    folder = study_folder(arguments.study, arguments.overrides)
    if arguments.watch:
        from attnlab.cli.watching import watch

        watch(folder, Console(), EVERY_SECONDS if arguments.every is None else arguments.every)
    elif arguments.format == "table" and not arguments.runs:
        compare_study(folder, Console(), arguments.bootstrap_sentences, arguments.part)
    else:
        from attnlab.analysis import compare as compared
        from attnlab.analysis import read_study, to_csv, to_latex, to_markdown
        from attnlab.analysis.run_table import runs_to_csv, runs_to_text

        forms = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
        if arguments.runs:
            forms = {"csv": runs_to_csv, "table": runs_to_text}
        comparison = resampled(compared(part_of(read_study(folder), arguments.part)), arguments.bootstrap_sentences)
        sys.stdout.write(forms[arguments.format](comparison))
    return 0


def _refuse_mixtures(arguments: argparse.Namespace) -> None:
    if arguments.watch and (arguments.runs or arguments.bootstrap_sentences or arguments.format != "table"):
        raise Mistake("--watch follows the table of cells; give --runs, --format and --bootstrap-sentences without it")
    if arguments.runs and arguments.format not in ("table", "csv"):
        raise Mistake(f"--runs lists runs as a table or with --format csv, not {arguments.format}")
    if arguments.every is not None and not arguments.watch:
        raise Mistake("--every is the pause between two looks of --watch; give both, or neither")
    if arguments.every is not None and not 0 < arguments.every < float("inf"):
        raise Mistake(f"--every {arguments.every:g}: give a number of seconds above 0, such as 2")
