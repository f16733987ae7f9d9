"""One run, from its composed configuration to a finished run directory: the function that Hydra calls for every job."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, SCMode

from attnlab.cli.check import check, senseless
from attnlab.cli.compose import Composed, Mistake, identity, register_resolvers
from attnlab.cli.init_from import own_choices
from attnlab.cli.overrides import key_and_text
from attnlab.cli.provenance import code_version, library_versions, own_repositories, own_sources, refuse_other_source
from attnlab.cli.studies import drift_message
from attnlab.training.ancestors import descendants, end_with_ancestors
from attnlab.training.run_directory import (
    SETTLED,
    Held,
    RunDirectory,
    differences,
    read_json,
    slurm_job,
    write_json,
    write_text,
)
from attnlab.training.stop_request import leaving

if TYPE_CHECKING:
    from attnlab.cli.build import Parts
    from attnlab.training import Ranks

LOOK_AGAIN_SECONDS = 3.0

# A launcher's worker unpickles `run` by importing this module, and then resolves the run's directory.
register_resolvers()


def run(config: DictConfig) -> dict[str, Any]:
    """
    Trains and evaluates one run, or goes on with it where it was stopped, and returns its last status.

    A finished run is left as it is, one that another process owns is left to it, and a job of a multirun whose parts make no sense
    together is skipped.
    Raises: Mistake, DataError, CannotWrite, Interrupted, or what the training raised; the run's status says so too.
    """
    end_with_ancestors()
    with leaving():
        return _run(config)


def _run(config: DictConfig) -> dict[str, Any]:
    hydra = HydraConfig.get()
    composed = Composed(config, list(hydra.overrides.task))
    if hydra.mode == RunMode.MULTIRUN and senseless(composed):  # the command has said why
        return {"state": "skipped"}
    directory = RunDirectory(str(config.run_dir))
    check(composed)
    from attnlab.cli.build import build
    from attnlab.training import ranks

    parts = build(config)
    must_start = ranks.are_missing(parts.trainer)
    together = ranks.Ranks() if must_start else ranks.join(parts.trainer)
    if together.decide(lambda: is_over(composed)):
        if together.rank == 0:
            say_over(composed)
        return dict(read_json(directory.status_json, {}))
    if not must_start:
        return _train(composed, parts, directory, together)
    with descendants():
        ranks.start(parts.trainer, _as_rank, *map(_as_plain, (config, HydraConfig.instance().cfg)), sys.path)
    return dict(read_json(directory.status_json, {}))


def _as_plain(config: Any) -> Any:
    """A configuration without the types that plugins of Hydra give it: Hydra loads those anew, and they cannot be pickled then."""
    return OmegaConf.to_container(config, resolve=False, structured_config_mode=SCMode.DICT) if config else None


def _as_rank(config: Any, hydra: Any, path: list[str]) -> None:
    """One rank of a run in a process of its own."""
    sys.path[:] = path
    HydraConfig.instance().cfg = OmegaConf.create(hydra)
    run(OmegaConf.create(config))


def _train(composed: Composed, parts: Parts, directory: RunDirectory, ranks: Ranks) -> dict[str, Any]:
    ranks.first_on_each_node(parts.data.prepare_data)
    parts.data.setup()
    parts.data.order_seed = int(composed.config.seed)
    number = ranks.decide(lambda: _claim(directory))
    if isinstance(number, Held):
        if ranks.rank == 0:
            _say(composed.config, f"{directory.path}: {number}; left to it")
        return {"state": number.state}
    from attnlab.cli.training_run import TrainingRun

    try:
        return TrainingRun(composed, parts, directory).go()
    finally:
        directory.release()


def _claim(directory: RunDirectory) -> int | Held:
    """
    Claims a run for this process.

    Slurm may start a job again before the owner that it has just killed on another node counts as dead; a live owner is known by its
    next heartbeat.
    """
    number, beat = directory.claim(), directory.last_beat()
    while isinstance(number, Held) and number.state == "running" and slurm_job() and directory.last_beat() == beat:
        time.sleep(LOOK_AGAIN_SECONDS)
        number = directory.claim()
    return number


def is_over(composed: Composed) -> bool:
    """
    Whether nothing is left to do for a run.

    Raises: Mistake where its directory holds a run of another configuration, or its cell one of other code of the user's own.
    """
    directory = RunDirectory(str(composed.config.run_dir))
    record = read_json(directory.run_json)
    changes = differences(identity(record["config"]), identity(composed.resolved)) if record else []
    if changes:
        raise Mistake(drift_message(directory.path, changes))
    refuse_other_source(composed)
    return directory.state() in SETTLED


def say_over(composed: Composed) -> None:
    """Says of a run that is over that nothing is left to do."""
    directory = RunDirectory(str(composed.config.run_dir))
    _say(composed.config, f"{directory.path}: {directory.state()} already; nothing to do")


def _say(config: DictConfig, line: str) -> None:
    if config.progress != "off":
        print(line, file=sys.stderr)


def make_record(composed: Composed, directory: RunDirectory, facts: dict[str, Any]) -> dict[str, Any]:
    """What run.json says: what this run is, on what, by which code."""
    config = composed.config
    study = read_json(directory.path.parent.parent / "plan.json", {})
    cells = {cell["name"]: cell["choices"] for cell in study.get("cells", [])}
    choices = cells.get(str(config.cell)) or dict(map(key_and_text, choice_overrides(own_choices(composed.overrides))))
    code, sources = code_version(), own_sources(composed.resolved)
    by = {
        "git": code,
        "versions": library_versions(composed.resolved),
        "sources": sources,
        "repositories": own_repositories(sources),
    }
    before = (read_json(directory.run_json) or {}).get("attempts", [])
    return {
        "study": str(config.study.name),
        "cell": choices,
        "cell_name": str(config.cell),
        "seed": int(config.seed),
        "name": f"{config.study.name}-{config.cell}-s{config.seed}",
        "config": composed.resolved,
        "overrides": composed.overrides,
        "command": "attnlab train " + shlex.join(composed.overrides),
        "attnlab": code["version"],
        **by,
        "attempts": [*before, {"attempt": directory.attempt, **by}],
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        **facts,
    }


def write_record(directory: RunDirectory, composed: Composed, record: dict[str, Any]) -> None:
    """Writes run.json and .hydra."""
    write_json(directory.run_json, record)
    write_text(directory.path / ".hydra" / "config.yaml", OmegaConf.to_yaml(composed.config))
    write_text(directory.path / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(composed.overrides))


def choice_overrides(overrides: list[str]) -> list[str]:
    """Those overrides that tell a run from its neighbours: not where it stands, nor its seed."""
    from attnlab.cli.compose import outside_identity

    return [o for o in overrides if "=" in o and not outside_identity(o.split("=", 1)[0])]
