"""A command of the user's at the end of a sweep or a multirun (`study.on_end`): to be told, wherever one is.

It is split as a shell splits words, and run without a shell; `$ATTNLAB_STUDY`, `$ATTNLAB_STATE`, `$ATTNLAB_DIRECTORY`
and `$ATTNLAB_SUMMARY` in its words are what its environment has under these names. Nothing that becomes of it changes
how the sweep ends.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

from attnlab.config import UsageError, usage_errors
from attnlab.studies.workers import say
from attnlab.training.processes import Interrupted
from attnlab.training.run_directory import effective_state
from attnlab.training.study_fields import checked_command

FIELD = "study.on_end"
PATIENCE_SECONDS = 60.0


def split_on_end(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command that settings name, as it was typed, and the others. Raises: UsageError for words that do not end."""
    given = [word.partition("=")[2] for word in overrides if word.startswith(f"{FIELD}=")]
    with usage_errors("study."):
        command = checked_command(given[-1]) if given else None
    return command, [word for word in overrides if not word.startswith(f"{FIELD}=")]


def of_multirun(overrides: Sequence[str], many: bool) -> tuple[str | None, list[str]]:
    """As `split_on_end`, of `attnlab train`. Raises: UsageError for a single run, after which a shell can go on."""
    if not many:
        raise UsageError(f"{FIELD} is run at the end of a sweep or, with -m, of a multirun; leave it out, or add -m")
    return split_on_end(overrides)


def then(command: str | None, folder: Path, call: Callable[[], int]) -> int:
    """The exit status that `call` gives, once the command has been told how what it did ended."""
    state = "failed"
    try:
        status = call()
        state = "failed" if status else "finished"
        return status
    except (KeyboardInterrupt, Interrupted):
        state = "stopped"
        raise
    finally:
        if command:
            _tell(command, folder, state)


def _tell(command: str, folder: Path, state: str) -> None:
    known = {"STUDY": folder.name, "STATE": state, "DIRECTORY": str(folder.absolute()), "SUMMARY": summary_of(folder)}
    named = {f"ATTNLAB_{name}": value for name, value in known.items()}
    words = [Template(word).safe_substitute(named) for word in shlex.split(command)]
    try:
        done = subprocess.run(
            words, env={**os.environ, **named}, stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        say(f"{FIELD}: {words[0]} was ended, for it took more than {PATIENCE_SECONDS:.0f} s")
    except (OSError, ValueError) as error:
        say(f"{FIELD}: {words[0]} cannot be run: {getattr(error, 'strerror', None) or error}")
    else:
        if done.returncode:
            say(f"{FIELD}: {words[0]} ended with exit status {done.returncode}")


def summary_of(folder: Path) -> str:
    """What came out of a study in one line: the first sentence of its comparison, else how many runs are in which
    state."""
    from attnlab.analysis import across_words, aggregate_of, compare, load_study, parts_of_study
    from attnlab.analysis.headline import headline

    try:
        study = load_study(folder)
        if study.across is not None:
            sentences = across_words.sentences(aggregate_of(study))
        else:
            sentences = headline(compare(parts_of_study(study)[0]), with_reasons=False)
    except Exception:  # whatever keeps a comparison back, the end is told
        sentences = []
    counted = Counter(effective_state(run.parent) for run in folder.glob("*/seed=*/status.json"))
    states = ", ".join(f"{n} {state}" for state, n in counted.items())
    return " ".join((sentences[0] if sentences else f"runs: {states or 'none'}").split())
