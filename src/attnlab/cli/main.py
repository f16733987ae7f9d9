"""The `attnlab` command: reads the words, calls the command's own file, and turns every mistake into one message."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import attnlab
from attnlab.config import UsageError, shipped

# The commands of each file. Only that of the one that is called is imported, and what it needs by its call alone.
FILES = {
    "train": ("train", "sweep", "retry"),
    "tuning": ("lr-range", "batch-size", "coordinate-check"),
    "study": ("status", "cancel", "sync"),
    "compare": ("compare", "report", "wandb-report", "scaling"),
    "gallery": ("gallery",),
    "serve": ("serve",),
    "trained": ("evaluate", "generate", "translate", "transcribe", "embed", "search", "import", "export"),
    "inspection": ("attention", "positions", "reach"),
    "parts": ("choices", "contract", "data"),
    "completion": ("completion",),
}
FILE_OF = {name: file for file, names in FILES.items() for name in names}
GOING_ON = ("train", "sweep", "retry", "gallery")

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


def groups_in(*folders: Path) -> list[str]:
    """The groups of folders of configurations, of which nothing is read."""
    return sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()} - {"hydra"})


def settings(parser: ArgumentParser) -> None:
    """The words that are settings, with the groups that there are."""
    groups = ", ".join(groups_in(shipped("conf")))
    examples = "settings as name=value, e.g. position=alibi model.d_model=128 trainer.max_steps=500"
    parser.add_argument("overrides", nargs="*", help=f"{examples}; groups: {groups} (`attnlab choices` lists them all)")


OF_STUDY = option("overrides", "runs_dir=DIR, study.name=NAME", nargs="*")
STUDY = (option("study", "a study's name, or its directory of runs"), OF_STUDY)  # one that has run
CHECKPOINT = option("--checkpoint", choices=("best", "last"), default="last")
RUN = (option("run", "a run's directory"), CHECKPOINT)
CONFIG_DIR = repeatable("--config-dir", "a folder of your own config groups, whose files come before attnlab's")
TEXTS = (repeatable("--text", "a text"), option("--input", "a text file, one text a line"))


def refused(name: str, wanted: str, value: object) -> UsageError:
    """The mistake in an option, in the form of all others."""
    from attnlab.ranges import must_be

    return UsageError(must_be(name, wanted, value))


def parser(only: str | None = None) -> ArgumentParser:
    """Of all commands, or of one."""
    whole = ArgumentParser(
        prog="attnlab", description="Which part of a Transformer earns its place, on my data, at my size?"
    )
    whole.add_argument("--version", action="version", version=f"attnlab {attnlab.__version__}")
    whole.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in FILE_OF if only is None else [only]:
        import_module(f"attnlab.cli.{FILE_OF[name]}")
        command = COMMANDS[name]
        sub = commands.add_parser(name, help=command.what, description=command.what)
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for add in command.options:
            add(sub)
        sub.set_defaults(call=command.call)
    return whole


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0; 1 when a run failed; 2 for a mistake in the words; 128 plus the number of the signal that interrupted it.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, behind TAB
        import_module(f"attnlab.cli.{FILE_OF['completion']}").complete(parser())
    words = list(sys.argv[1:] if words is None else words)
    named = next((word for word in words if not word.startswith("-")), None)
    whole = parser(named if named in FILE_OF else None)
    arguments, rest = whole.parse_known_args(words)
    if rest:
        if not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest):
            whole.error(f"unknown words: {' '.join(rest)}; settings are written name=value")
        arguments.overrides += rest
    # A part of the user's own is named by its module, which stands where the command is given.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return int(arguments.call(arguments)) if arguments.traceback else _guarded(arguments)


def _guarded(arguments: Namespace) -> int:
    try:
        return int(arguments.call(arguments))
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        line, status = _explained(error, arguments.command)
    if line:
        print(f"attnlab: {line}", file=sys.stderr)
    return status


def _explained(error: BaseException, command: str) -> tuple[str | None, int]:
    """What is said of an error, and the exit status. Raises it where it says itself what its exit status is."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from attnlab.config.identity import reason_of
    from attnlab.training.processes import Interrupted, Stopped

    match error:
        case Stopped():  # the run has said where it saved
            return None, error.signum + 128
        case KeyboardInterrupt() | Interrupted():
            goes_on = "; the same command goes on from here" if command in GOING_ON else ""
            return f"interrupted{goes_on}", error.signum + 128 if isinstance(error, Interrupted) else 130
        case SystemExit():
            raise error
        case BrokenPipeError():
            return None, _unread()
        case HydraException() | OmegaConfBaseException():
            return reason_of(error), 2
        case UnicodeEncodeError():
            half = error.object[error.start : error.end]
            return f"a text holds {half!a}, half of a character or a byte that is no UTF-8; take it out", 1
        case UsageError():
            return str(error), 2
        case ValueError() | OSError():
            return str(error), 1
    return f"{type(error).__name__}: {error}\n(--traceback shows where)", 1


def _unread() -> int:
    """The exit status where nobody reads what is printed any more, as in `attnlab gallery | head -1`: no fault of
    anybody's. Python writes what it still has to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return signal.SIGPIPE + 128


def entry() -> None:
    """The console script."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        status = _unread()
    except KeyboardInterrupt:  # while the command was being loaded
        print("attnlab: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
