"""The `attnlab` command: a file a family of commands, each with its options, its call and its words."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

Option = Callable[[ArgumentParser], object]
Call = Callable[[Namespace], int]


class Command(NamedTuple):
    """What a command does in one line, its options, and what runs it and gives the exit status."""

    what: str
    options: tuple[Option, ...]
    call: Call


COMMANDS: dict[str, Command] = {}


def command(name: str, what: str, *options: Option) -> Callable[[Call], Call]:
    """Makes a function the command of this name."""

    def register(call: Call) -> Call:
        COMMANDS[name] = Command(what, options, call)
        return call

    return register


def option(names: str, what: str | None = None, **fields: Any) -> Option:
    """A word (`run`) or an option (`--to`), as argparse takes it; several names of one have blanks between them."""
    return lambda parser: parser.add_argument(*names.split(), help=what, **fields)


def flag(name: str, what: str) -> Option:
    """An option without a value."""
    return option(name, what, action="store_true")


def repeatable(name: str, what: str, **fields: Any) -> Option:
    """An option whose values make a list."""
    return option(name, f"{what} (repeatable)", action="append", default=[], **fields)


SETTINGS = option(
    "overrides", "settings as name=value, e.g. position=alibi model.d_model=128 trainer.max_steps=500", nargs="*"
)
OF_STUDY = option("overrides", "runs_dir=DIR, study.name=NAME", nargs="*")
STUDY = (option("study", "a study's name, or its directory of runs"), OF_STUDY)  # one that has run
CHECKPOINT = option("--checkpoint", choices=("best", "last"), default="last")
RUN = (option("run", "a run's directory"), CHECKPOINT)
CONFIG_DIR = repeatable("--config-dir", "a folder of your own config groups, whose files come before attnlab's")
TEXTS = (repeatable("--text", "a text"), option("--input", "a text file, one text a line"))
