"""Hands words to Hydra itself: its parser, its launchers, its multirun."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from attnlab.cli.check import constructor_types
from attnlab.cli.cluster import refuse_impossible, shape_words, uses_slurm
from attnlab.cli.compose import CONFIG_NAME, ConfigSpace, Mistake
from attnlab.cli.run import run
from attnlab.cli.seams import load
from attnlab.ranges import outside
from attnlab.training.ancestors import descendants
from attnlab.training.run_directory import ATTEMPTS, CannotWrite, cannot_write


class JobsFailed(RuntimeError):
    """
    Some runs of a sweep failed; the others went on.

    It stands here, and not beside the sweeper that raises it: Hydra loads plugins anew, and what they define is another class then.
    """


def split_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings of the run, settings of Hydra). Raises: Mistake for a search path: --config-dir is it."""
    hydra_own = [o for o in overrides if o.lstrip("+~").startswith("hydra")]
    if paths := [o for o in hydra_own if o.lstrip("+~").startswith("hydra.searchpath")]:
        raise Mistake(f"{paths[0]}: a folder of your own is given as --config-dir FOLDER, and its files come first")
    return [o for o in overrides if o not in hydra_own], hydra_own


def launch(overrides: Sequence[str], space: ConfigSpace, multirun: bool) -> None:
    """
    Runs Hydra over `overrides`; exceptions of a run come through as they are.

    Raises: whatever the run, the launcher or the sweeper raises.
    """
    mode = "MULTIRUN" if multirun else "RUN"
    caught: list[Exception] = []

    # Hydra would print a line of its own about the exception of a single run.
    @functools.wraps(run)
    def one_run(config: DictConfig) -> dict[str, Any] | None:
        try:
            return run(config)
        except Exception as error:
            caught.append(error)
            return None

    # What @hydra.main comes to, which would compose once more to learn the mode, print a traceback of its own, and exit.
    with descendants(), space, _clear_errors():
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        start: Any = engine.multirun if multirun else engine.run
        start(CONFIG_NAME, run if multirun else one_run, [*overrides, f"hydra.mode={mode}"])
    for error in caught:
        raise error


@dataclass(frozen=True)
class Launcher:
    """The settings of a launcher, whether it trains on this machine, and the threads of each of its jobs where it says so."""

    words: list[str]
    is_here: bool = True
    threads: int | None = None


def prepare_launcher(
    space: ConfigSpace, run: Sequence[str], words: Sequence[str], trainers: Iterable[DictConfig]
) -> Launcher:
    """
    The launcher that `words` choose, for runs such as `run` with these trainers.

    Raises: Mistake where it is Slurm's and cannot do what they ask.
    """
    launcher = space.launcher([*run, *words])
    _refuse_out_of_range("hydra.launcher", launcher)
    _refuse_out_of_range("hydra.sweeper", HydraConfig.get().sweeper)
    if not uses_slurm(launcher):
        return Launcher(list(words))
    refuse_impossible(launcher, trainers)
    return Launcher([*words, *shape_words(launcher)], is_here=False, threads=launcher.cpus_per_task)


def _refuse_out_of_range(path: str, node: DictConfig) -> None:
    """Raises: Mistake for a number that a launcher or sweeper of attnlab's own does not take."""
    for field, annotation in constructor_types(load(path, {"_target_": node._target_})).items():
        if field in node and (reason := outside(f"{path}.{field}", annotation, node[field])):
            raise Mistake(reason)


def for_each_job(overrides: Sequence[str], space: ConfigSpace) -> list[str]:
    """
    The same overrides, with the fields of parts as sweeps of one choice.

    Hydra puts what is no sweep into a configuration without the choices that are swept, in which a field of a swept part, or of the
    task and data that a swept model brings, may not be there.
    """
    parts = tuple(f"{group}." for group in space.groups)
    return [_as_sweep(override) if override.startswith(parts) else override for override in overrides]


def _as_sweep(override: str) -> str:
    key, _, value = override.partition("=")
    parser = OverridesParser.create()
    given = parser.parse_override(override)
    if not value or given.is_sweep_override():
        return override
    with contextlib.suppress(HydraException):
        (job,) = parser.parse_override(f"{key}=choice({value})").sweep_string_iterator()
        read = parser.parse_override(f"{key}={job}").value()
        if read == given.value() and type(read) is type(given.value()):
            return f"{key}=choice({value})"
    return f"++{override}"  # a sweep loses the quotes of its choices: added by force, a field may be there or not


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Hydra makes the run's folder itself: where it cannot, the error says so in words."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        if error.filename is None:
            raise
        raise cannot_write(Path(str(error.filename)), error) from error


@contextlib.contextmanager
def no_empty_folders(paths: Iterable[Path]) -> Iterator[None]:
    """Of the folders on the way to the runs in `paths` that were not there before, those that are empty in the end go again."""
    within = {folder for path in paths for folder in (path / ATTEMPTS, path, *path.parents)}
    absent = [folder for folder in within if not os.path.exists(folder)]
    try:
        yield
    finally:
        for folder in sorted(absent, key=lambda folder: len(folder.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
