"""The gallery: the studies that reproduce a published effect, and all of them run, one after the other."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnlab.config import UsageError, shipped, usage_errors
from attnlab.config.compose import read_yaml
from attnlab.config.identity import outside_identity, readable
from attnlab.studies.plan import find_study
from attnlab.training.processes import Interrupted, descendants, leaving
from attnlab.training.published import Published, published_of
from attnlab.training.study_fields import did_you_mean

OWN = ("runs_dir", "study.seeds", "study.on_end")


@dataclass(frozen=True)
class Ended:
    """How one study of the gallery ended: its exit status, and the seconds that it took."""

    name: str
    status: int
    seconds: float


def gallery() -> dict[str, Published]:
    """The studies that stand here or come with attnlab and name a published effect. Raises: UsageError for a study.yaml
    that cannot be read."""
    files = [*Path().glob("*/study.yaml"), *shipped("experiments").glob("*/study.yaml")]
    names = sorted({path.parent.name for path in files})
    return {name: found for name in names if (found := _published_in(find_study(name)))}


def of_gallery(name: str, known: Mapping[str, Published]) -> Published:
    """The published effect of a study, by its name, folder or file. Raises: UsageError where it has none."""
    if found := known.get(name) or _published_in(find_study(name)):
        return found
    raise UsageError(
        f"{name} names no published effect, so it is not in the gallery; `attnlab sweep {name}` runs it. "
        f"The gallery has {', '.join(known)}.{did_you_mean(name, list(known))}"
    )


def _published_in(path: Path) -> Published | None:
    raw = read_yaml(path)
    with usage_errors(f"{path}: "):
        return published_of(raw.get("published")) if isinstance(raw, Mapping) else None


def refuse_changes(study: str, overrides: Sequence[str]) -> None:
    """Raises: UsageError for settings by which a study would no longer be the one that its page shows."""
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        is_harmless = key in OWN or key.startswith("hydra/") or (outside_identity(key) and not key.startswith("study."))
        if not is_harmless:
            raise UsageError(
                f"{word}: attnlab gallery runs a study as it stands, and takes {', '.join(OWN)} and what changes "
                f"nothing that a run computes; for a variant: attnlab sweep {study} study.name=NAME SETTING"
            )


def other_settings(name: str, shared: Sequence[str]) -> list[str]:
    """The settings that a study's runs have and its study.yaml has not, and the other way round. Raises: UsageError."""
    own = readable(list(map(str, read_yaml(find_study(name)).get("shared") or [])))
    apart = [word for word in [*shared, *own] if (word in shared) != (word in own)]
    return [word for word in apart if not outside_identity(word.partition("=")[0])]


def run_all(names: Sequence[str], words: Sequence[str]) -> list[Ended]:
    """Runs `attnlab gallery NAME` with these words for each, in a process of its own, so that none keeps the others
    from running, whatever ends it. Raises: Interrupted, once the study that runs has saved."""
    ended = []
    with leaving(), descendants():
        for name in names:
            since = time.monotonic()
            status = _follow(subprocess.Popen([sys.executable, "-m", "attnlab", "gallery", name, *words]))
            ended.append(Ended(name, status, time.monotonic() - since))
    return ended


def _follow(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except Interrupted as stopped:
        if stopped.signum != signal.SIGINT:  # which a terminal gives to both
            process.send_signal(stopped.signum)
        process.wait()
        raise
