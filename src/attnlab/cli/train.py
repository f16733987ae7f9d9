"""`attnlab train`, `sweep` and `retry`: one run, a multirun or a search; what is missing of a study, or was lost."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import CONFIG_DIR, command, flag, option, settings

if TYPE_CHECKING:
    from attnlab.studies.plan import Plan

DETACH = flag("--detach", "submit to Slurm and return at once")
DRY_RUN = flag("--dry-run", "say what it would take (runs, tokens, disk, time by a few steps), and train nothing")
CFG = flag("--cfg", "print what would be run, and run nothing")


@command(
    "train",
    "train one run, or with -m a multirun: every combination of choices",
    flag("-m --multirun", "every combination of comma-separated choices"),
    *(CONFIG_DIR, CFG, settings),
)
def train(arguments: Namespace) -> int:
    """Trains; see `attnlab.studies.jobs`. Raises: UsageError before anything is built or read."""
    from attnlab.studies.jobs import train

    return train(arguments.overrides, arguments.config_dir, arguments.multirun, arguments.cfg)


@command(
    "sweep",
    "run the missing cells of a study, then compare them",
    option("study", "a study's name, folder or study.yaml"),
    *(DETACH, CONFIG_DIR, CFG, DRY_RUN, settings),
)
def sweep(arguments: Namespace) -> int:
    """Runs the missing runs of a study, after those of the studies that it needs, and prints the comparison.

    Returns exit status 1 when a run failed or is missing at the end. Raises: UsageError before anything is run.
    """
    from rich.console import Console

    from attnlab.config.engine import split_hydra
    from attnlab.config.identity import readable
    from attnlab.studies.launch import Sweep
    from attnlab.studies.on_end import split_on_end
    from attnlab.studies.plan import find_study

    on_end, words = split_on_end(arguments.overrides)
    own, hydra_own, places = split_hydra(readable(words))
    how = (_with_launcher(hydra_own), [*arguments.config_dir, *places], arguments.cfg, arguments.detach)
    return Sweep(*how, Console(), _conclude, arguments.dry_run, on_end).run(find_study(arguments.study), own)


@command(
    "retry",
    "re-run a study's lost runs with the launcher they had",
    option("study", "a study's name, or its directory of runs"),
    flag("--failed", "re-run failed runs, too"),
    option("overrides", "runs_dir=DIR, study.name=NAME, hydra.launcher.FIELD=VALUE", nargs="*"),
    *(DETACH, CONFIG_DIR),
)
def retry(arguments: Namespace) -> int:
    """Re-runs what a study lost, and with `--failed` what failed, by the launcher that had it last or the one named.

    Compares, and returns the exit status, as `sweep`. Raises: UsageError.
    """
    from rich.console import Console

    from attnlab.config.compose import ConfigSpace
    from attnlab.config.engine import split_hydra
    from attnlab.config.identity import readable
    from attnlab.runs.record import refuse_other_source
    from attnlab.studies.checked import launcher_for
    from attnlab.studies.cluster import submissions
    from attnlab.studies.launch import NOT_OVER, Relaunch
    from attnlab.studies.plan import read_plan, study_folder
    from attnlab.training.processes import leaving

    own, given, places = split_hydra(readable(arguments.overrides))
    folder = study_folder(arguments.study, own)
    plan, submitted = read_plan(folder / "plan.json"), submissions(folder)
    last = submitted[-1] if submitted else {}
    if not _names_launcher(given):
        given = [*last.get("launcher", []), *given]
    folders, told = [*arguments.config_dir, *places], str(folder / "plan.json")
    remembered = plan.config_dirs or last.get("config_dirs", [])
    with ConfigSpace(folders or remembered, "" if folders else told) as space:
        cells = [space.compose(plan.overrides(cell)) for cell in plan.cells if cell.skip is None]
        for one in cells:
            refuse_other_source(one)
        launcher = launcher_for(space, plan, _with_launcher(given), cells, arguments.detach)
    with leaving():
        relaunch = Relaunch(plan, folder.parent, launcher, space, Console(), arguments.detach)
        relaunch.run([*NOT_OVER, "failed"] if arguments.failed else NOT_OVER)
    return 0 if arguments.detach else _conclude(plan, folder)


def _names_launcher(words: Sequence[str]) -> bool:
    return any(word.startswith("hydra/launcher=") for word in words)


def _with_launcher(words: Sequence[str]) -> list[str]:
    """Hydra's settings with the launcher that sweeps have unless another is named."""
    from attnlab.studies.launch import JOBLIB

    return [*words] if _names_launcher(words) else [JOBLIB, *words]


def _conclude(plan: Plan, folder: Path) -> int:
    """Compares, and says how it ended: 0 where all runs finished, else 1, with the way on."""
    from rich.console import Console

    from attnlab.cli.compare import compare_study
    from attnlab.studies.cluster import known_jobs
    from attnlab.studies.monitor import Snapshot, duration
    from attnlab.training.run_directory import ENDED

    compare_study(folder, Console())
    snapshot = Snapshot(plan, folder.parent, known_jobs(folder))
    failed, elsewhere = snapshot.count("failed"), snapshot.count("running", "queued")
    unfinished = len(snapshot.state) - snapshot.count(*ENDED) - elsewhere
    if elsewhere:
        others = f"another sweep of this study still has {elsewhere} runs"
        print(f"attnlab: {others}; `attnlab status {plan.study}` follows it", file=sys.stderr)
    if failed or unfinished:
        left = f"{failed} runs failed and {unfinished} are not over"
        print(f"attnlab: {left}; `attnlab sweep` with the same words runs just those", file=sys.stderr)
    if failed or unfinished or elsewhere:
        return 1
    spent = sum(s.get("seconds") or 0 for s in snapshot.status.values())
    print(f"all runs finished ({duration(spent)} of training in all)")
    return 0
