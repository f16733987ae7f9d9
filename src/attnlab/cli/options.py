"""What a command is, and the options that several of them have."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, NamedTuple


class Command(NamedTuple):
    """What a command does in one line, what adds its options, and what runs it and gives the exit status."""

    what: str
    options: Callable[[ArgumentParser], None]
    call: Callable[[Namespace], int]


def add_settings(parser: ArgumentParser) -> None:
    """The settings of a run."""
    what = "settings as name=value, e.g. position=alibi model.d_model=128 trainer.max_steps=500"
    parser.add_argument("overrides", nargs="*", help=what)


def add_study(parser: ArgumentParser) -> None:
    """A study that has run, and where."""
    parser.add_argument("study", help="a study's name, or its directory of runs")
    parser.add_argument("overrides", nargs="*", help="runs_dir=DIR, study.name=NAME")


def add_run(parser: ArgumentParser) -> None:
    """A trained run, and which of its checkpoints."""
    parser.add_argument("run", help="a run's directory")
    add_checkpoint(parser)


def add_checkpoint(parser: ArgumentParser) -> None:
    """Which of a run's checkpoints."""
    parser.add_argument("--checkpoint", choices=("best", "last"), default="last")


def add_config_dir(parser: ArgumentParser) -> None:
    """Folders of the user's own."""
    add_repeatable(parser, "--config-dir", "a folder of your own config groups, whose files come before attnlab's")


def add_texts(parser: ArgumentParser) -> None:
    """Texts on the command line, or in a file."""
    add_repeatable(parser, "--text", "a text")
    parser.add_argument("--input", help="a text file, one text a line")


def add_repeatable(parser: ArgumentParser, flag: str, what: str, **more: Any) -> None:
    """An option whose values make a list."""
    parser.add_argument(flag, action="append", default=[], help=f"{what} (repeatable)", **more)
