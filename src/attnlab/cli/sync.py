"""`attnlab sync`: sends the offline W&B files of a study, or of all, by W&B's own `wandb sync`."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from attnlab.cli.compose import Mistake
from attnlab.cli.reports import runs_dir_of, study_folder
from attnlab.training.run_directory import effective_state, read_json
from attnlab.training.trackers import EVALUATE, resolve_wandb_mode, run_id

# W&B would try a server that does not answer for a quarter of an hour.
PATIENCE = {"WANDB_X_GRAPHQL_RETRY_MAX": "3"}
NAMED = 20


def sync(arguments: argparse.Namespace) -> int:
    """
    Says which offline files there are, sends them unless it is a rehearsal, and returns the exit status.

    Files of a run that still trains wait until it is over: W&B sends a file once. Raises: Mistake where there is no key, and in W&B's own
    words where it cannot send.
    """
    if "=" in (arguments.study or "") and not Path(arguments.study).is_dir():  # a setting, where no study was named
        arguments.study, arguments.overrides = None, [arguments.study, *arguments.overrides]
    runs_dir = runs_dir_of(arguments.overrides)
    folders = [study_folder(arguments.study, arguments.overrides)] if arguments.study else _studies(runs_dir)
    states = dict(state for folder in folders for state in _states(folder))
    found = [
        (path, name) for path, name in _unsent(runs_dir / "wandb") if not arguments.study or _run_of(name) in states
    ]
    later = [path for path, name in found if states.get(_run_of(name)) == "running"]
    ready = [path for path, name in found if path not in later]
    for path in later:
        print(f"left for later, its run still trains: {path}")
    where = arguments.study or str(runs_dir)
    if not ready:
        print(f"{where}: no offline W&B files are left to send")
        return 0
    print(f"{where}: {len(ready)} offline W&B files to send:")
    for path in ready:
        print(f"  {path}")
    if arguments.dry_run:
        return 0
    _refuse_without_key()
    _send(ready)
    print(f"sent {len(ready)}; `wandb clean` takes away what was sent")
    return 0


def _studies(runs_dir: Path) -> list[Path]:
    return sorted({path.parents[2] for path in runs_dir.glob("*/*/seed=*/run.json")})


def _states(folder: Path) -> Iterable[tuple[str, str]]:
    """The W&B id of each run of a study, and the run's state."""
    for path in sorted(folder.glob("*/seed=*/run.json")):
        record = read_json(path) or {}
        if {"study", "cell_name", "seed"} <= record.keys():
            yield run_id(record["study"], record["cell_name"], record["seed"]), effective_state(path.parent)


def _run_of(name: str) -> str:
    """The W&B id of the run that an evaluation is of; a run's own as it is."""
    return re.sub(rf"{EVALUATE}[A-Za-z0-9_-]*$", "", name)


def _unsent(folder: Path) -> list[tuple[Path, str]]:
    """The directories of offline runs that were not sent, oldest first, with their runs' ids.

    The id is that of the file within: W&B adds a number to the name of a directory where one of the same second has it.
    """
    files = [file for path in sorted(folder.glob("offline-run-*")) for file in path.glob("run-*.wandb")]
    found = [(file.parent, file.stem.removeprefix("run-")) for file in files if file.is_file()]
    return [(path, name) for path, name in found if not _is_sent(path, name)]


def _is_sent(path: Path, name: str) -> bool:
    return (path / f"run-{name}.wandb.synced").exists()


def _refuse_without_key() -> None:
    mode, _ = resolve_wandb_mode({key: value for key, value in os.environ.items() if key != "WANDB_MODE"})
    if mode != "online":
        raise Mistake(
            "W&B takes nothing without a key, and none was found: `wandb login` stores one, or set WANDB_API_KEY"
        )


def _send(paths: list[Path]) -> None:
    """Raises: Mistake with W&B's own words."""
    environ = {**PATIENCE, **{key: value for key, value in os.environ.items() if key != "WANDB_MODE"}}
    words = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, paths)]
    done = subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    left = [path for path in paths if any(name for other, name in _unsent(path.parent) if other == path)]
    if done.returncode == 0 and not left:
        return
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = [line for line in lines if "error" in line.lower()] or lines[-3:] or ["it said nothing"]
    shown = "\n  ".join(dict.fromkeys(re.sub(r"^wandb:\s*(ERROR\s*)?", "", line) for line in said[:NAMED]))
    raise Mistake(
        f"`wandb sync` did not send {len(left)} of {len(paths)} files; what is left is sent by the same command:\n  {shown}"
    )
