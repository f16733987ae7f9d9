"""`attnlab status`, `cancel` and `sync`: what the runs of a study are at, on this machine, on Slurm and at W&B."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from attnlab.cli.main import OF_STUDY, STUDY, command, flag, option
from attnlab.config import UsageError, gone

# W&B would try a server that does not answer for a quarter of an hour.
PATIENCE = {"WANDB_X_GRAPHQL_RETRY_MAX": "3"}
NAMED = 20  # lines of what W&B says


@command("status", "show the state of a study's runs", *STUDY)
def status(arguments: Namespace) -> int:
    """The state of a study's runs."""
    from rich.console import Console

    from attnlab.studies.cluster import NoAnswer, jobs_of
    from attnlab.studies.monitor import Snapshot, say, status_table
    from attnlab.studies.plan import plan_of_runs, study_folder

    folder = study_folder(arguments.study, arguments.overrides)
    console, plan = Console(), plan_of_runs(folder)
    try:
        jobs, silence = jobs_of(folder), None
    except NoAnswer as error:
        jobs, silence = {}, error
    snapshot = Snapshot(plan, folder.parent, jobs)
    states = dict.fromkeys(snapshot.state.values())
    counted = ", ".join(f"{n} {state}" for state in states if (n := snapshot.count(state)))
    console.print(status_table(snapshot, f"{len(snapshot.state)} runs: {counted}"))
    if plan.looks.stages:
        say(console, f"seeds in stages: {plan.looks.in_words(len(plan.seeds))}; at most {plan.most_runs} runs")
    for (cell, seed), said in snapshot.status.items():
        if said.get("error"):
            say(console, f"{cell} seed={seed}: {said['error']}")
    for missing in gone(plan.config_dirs):
        say(console, f"--config-dir {missing} is gone: what trains these runs needs it, or its new place")
    if snapshot.count("lost"):
        say(console, f"lost runs have no job any more; `attnlab retry {plan.study}` runs them again")
    if silence:
        print(f"attnlab: {silence}; shown is what the runs' directories say", file=sys.stderr)
    return 0


@command("cancel", "stop the Slurm jobs of a study", *STUDY)
def cancel(arguments: Namespace) -> int:
    """Takes the jobs of a study from Slurm; a run that trains saves first. Raises: UsageError without an answer."""
    from attnlab.studies.cluster import NoAnswer, jobs_of
    from attnlab.studies.cluster import cancel as cancel_jobs
    from attnlab.studies.plan import study_folder

    folder = study_folder(arguments.study, arguments.overrides)
    try:
        live = [job.id for job in jobs_of(folder).values() if job.is_live]
        cancel_jobs(live)
    except NoAnswer as error:
        raise UsageError(f"{error}; nothing was cancelled") from error
    cancelled = f"cancelled {len(live)} jobs of {folder.name}: {', '.join(live)}"
    print(cancelled if live else f"Slurm has no job of {folder.name}")
    return 0


@command(
    "sync",
    "send the offline W&B files of a study, or of all, by `wandb sync`",
    option("study", "a study's name, or its directory of runs (default: all)", nargs="?"),
    OF_STUDY,
    flag("--dry-run", "say what would be sent, and send nothing"),
)
def sync(arguments: Namespace) -> int:
    """Says which offline files there are, and sends them unless it is a dry run.

    Files of a run that still trains wait until it is over: W&B sends a file once. Raises: UsageError without a key, and
    in W&B's own words where it cannot send.
    """
    from attnlab.studies.plan import runs_dir_of, study_folder
    from attnlab.training.tracking import EVALUATE

    study, overrides = arguments.study, arguments.overrides
    if "=" in (study or "") and not Path(study).is_dir():  # a setting, where no study was named
        study, overrides = None, [study, *overrides]
    runs_dir = runs_dir_of(overrides)
    states = _states(study_folder(study, overrides).glob("*/seed=*") if study else runs_dir.glob("*/*/seed=*"))
    ready = []
    for path, name in _unsent(runs_dir / "wandb"):
        run = re.sub(rf"{EVALUATE}[A-Za-z0-9_-]*$", "", name)  # that of an evaluation goes with its run
        if states.get(run) == "running":
            print(f"left for later, its run still trains: {path}")
        elif not study or run in states:
            ready.append(path)
    where = study or str(runs_dir)
    if not ready:
        print(f"{where}: no offline W&B files are left to send")
        return 0
    print(f"{where}: {len(ready)} offline W&B files to send:", *(f"  {path}" for path in ready), sep="\n")
    if not arguments.dry_run:
        _send(ready)
        print(f"sent {len(ready)}; `wandb clean` takes away what was sent")
    return 0


def _states(directories: Iterable[Path]) -> dict[str, str]:
    """The states of runs by their W&B ids."""
    from attnlab.training.run_directory import effective_state, read_json
    from attnlab.training.tracking import run_id

    records = {path: read_json(path / "run.json") or {} for path in directories}
    return {
        run_id(record["study"], record["cell_name"], record["seed"]): effective_state(path)
        for path, record in records.items()
        if {"study", "cell_name", "seed"} <= record.keys()
    }


def _unsent(folder: Path) -> list[tuple[Path, str]]:
    """The directories of offline runs that were not sent, oldest first, with their runs' ids."""
    # The id is that of the file: W&B numbers the name of a directory where one of the same second has it.
    files = [file for path in sorted(folder.glob("offline-run-*")) for file in path.glob("run-*.wandb")]
    unsent = [file for file in files if file.is_file() and not file.with_name(f"{file.name}.synced").exists()]
    return [(file.parent, file.stem.removeprefix("run-")) for file in unsent]


def _send(paths: list[Path]) -> None:
    """Raises: UsageError without a key, and with W&B's own words."""
    import subprocess

    from attnlab.training.tracking import resolve_wandb_mode

    environ = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    if resolve_wandb_mode(environ)[0] != "online":
        raise UsageError(
            "W&B takes nothing without a key, and none was found: `wandb login` stores one, or set WANDB_API_KEY"
        )
    words = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, paths)]
    environ = {**PATIENCE, **environ}
    done = subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    left = [path for path in paths if any(other == path for other, _ in _unsent(path.parent))]
    if done.returncode == 0 and not left:
        return
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = [line for line in lines if "error" in line.lower()] or lines[-3:] or ["it said nothing"]
    shown = "\n  ".join(dict.fromkeys(re.sub(r"^wandb:\s*(ERROR\s*)?", "", line) for line in said[:NAMED]))
    raise UsageError(
        f"`wandb sync` did not send {len(left)} of {len(paths)} files; what is left is sent by the same "
        f"command:\n  {shown}"
    )
