"""The `attnlab` command: reads the words, calls the right room, and turns every mistake into one message."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from attnlab.cli.words import parser

HANDLERS = {
    "train": "train.train",
    "sweep": "sweep.sweep",
    "retry": "sweep.retry",
    "status": "reports.show",
    "compare": "comparing.compare",
    "report": "reports.show",
    "cancel": "reports.cancel_study",
    "serve": "serve.serve",
    "sync": "sync.sync",
    "scaling": "scaling.scaling",
    "evaluate": "trained.use",
    "generate": "trained.use",
    "translate": "trained.use",
    "attention": "attention.attention",
    "import": "importing.import_model",
    "export": "exporting.export",
    "embed": "embed.embed",
    "positions": "positions.positions",
    "reach": "reach.reach",
    "data": "datasets.data",
}
GOING_ON = ("train", "sweep", "retry")


def _dispatch(arguments: argparse.Namespace) -> int:
    """Each room is imported by the command that needs it: `attnlab data list` loads no torch."""
    module, _, name = HANDLERS[arguments.command].partition(".")
    handler: Callable[[argparse.Namespace], int] = getattr(import_module(f"attnlab.cli.{module}"), name)
    return handler(arguments)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 when a run failed, 2 for a mistake in the words, 128 plus the number of the signal that interrupted it."""
    words = list(sys.argv[1:] if words is None else words)
    arguments, rest = parser().parse_known_args(words)
    if rest:
        if not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest):
            parser().error(f"unknown words: {' '.join(rest)}; settings are written name=value")
        arguments.overrides += rest
    # A part of the user's own is named by its module, which stands where the command is given.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if arguments.traceback:
        return _dispatch(arguments)
    return _guarded(arguments)


def _guarded(arguments: argparse.Namespace) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from attnlab.cli.compose import Mistake, reason_of
    from attnlab.training.stop_request import Interrupted, Stopped

    try:
        return _dispatch(arguments)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"attnlab: {reason_of(error)}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        print(
            f"attnlab: a text holds {half!a}, half of a character or a byte that is no UTF-8; take it out",
            file=sys.stderr,
        )
        return 1
    except (Mistake, ValueError, OSError) as error:
        print(f"attnlab: {error}", file=sys.stderr)
        return 2 if isinstance(error, Mistake) else 1
    except (KeyboardInterrupt, Interrupted) as error:
        if not isinstance(error, Stopped):  # the run has said where it saved
            goes_on = "; the same command goes on from here" if arguments.command in GOING_ON else ""
            print(f"attnlab: interrupted{goes_on}", file=sys.stderr)
        return error.signum + 128 if isinstance(error, Interrupted) else 130
    except Exception as error:
        print(f"attnlab: {type(error).__name__}: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1


def entry() -> None:
    """The console script."""
    try:
        status = main()
    except KeyboardInterrupt:  # while the command was being loaded
        print("attnlab: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
