"""Hydra's engine: parts built of a configuration, jobs handed to launchers and sweepers, words as sweeps need them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.instantiate._instantiate2 import _call_target, _resolve_target
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.core.utils import JobStatus, configure_log, run_job
from hydra.errors import HydraException, InstantiationException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import UsageError, find_parts
from attnlab.config.check import constructor_types
from attnlab.config.compose import CONFIG_NAME, SEARCHPATH, Composed, ConfigSpace, plain, search_path
from attnlab.config.loader import parse, parse_one
from attnlab.config.seams import load
from attnlab.ranges import outside
from attnlab.training.processes import descendants
from attnlab.training.run_directory import CannotWrite, cannot_write

Function = Callable[[Composed], object]
OF_HYDRA = (
    "_target_",
    "_partial_",
    "_recursive_",
    "_convert_",
    "_open_",
)  # fields that say how a part is made, and are not its own


def instantiate(node: Mapping[str, object], path: str) -> Any:
    """What a resolved node at a path names, built. Raises: UsageError with the constructor's own message."""
    try:
        return _built(node, path)
    except InstantiationException as error:
        # Hydra wraps what a constructor raised; its own words are the ones that help.
        said = str(error.__cause__ or error)
        raise UsageError(said if said.startswith((f"{path}.", f"{path}=")) else f"{path}: {said}") from error


def _built(node: object, path: str) -> Any:
    """As `hydra.utils.instantiate` has it with `_convert_: all`, of plain data, which it would copy four times."""
    if isinstance(node, list):
        return [_built(item, f"{path}[{place}]") for place, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    given = {key: value for key, value in node.items() if key not in OF_HYDRA}
    if node.get("_recursive_", True):
        given = {key: _built(value, f"{path}.{key}") for key, value in given.items()}
    if "_target_" not in node:
        return given
    return _call_target(_resolve_target(node["_target_"], path), node.get("_partial_", False), (), given, path)


class Task:
    """What Hydra calls for each job, wherever it runs: `function`, a module's, gets its configuration as plain data.

    config_dirs: the user's own folders, in which parts are found.
    """

    def __init__(self, function: Function, config_dirs: Sequence[str] = ()) -> None:
        self.function, self.config_dirs = function, list(config_dirs)

    def __call__(self, config: DictConfig) -> object:
        find_parts(self.config_dirs)
        hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        composed = Composed(
            raw=plain(config, resolve=False),
            overrides=list(hydra.overrides.task),
            cell=config.cell,
            names=plain(hydra.runtime.choices),
            is_multirun=hydra.mode == RunMode.MULTIRUN,
            sweeper=plain(hydra.sweeper) if config.study.search is not None else {},
            config_dirs=self.config_dirs,
        )
        with contextlib.suppress(OmegaConfBaseException):  # a check says it in words
            assert composed.resolved  # here, where resolvers of Hydra's own can answer
        return self.function(composed)


def launch(function: Function, overrides: Sequence[str], space: ConfigSpace, multirun: bool) -> None:
    """Runs Hydra over `overrides`, with `function` for each job. Raises whatever run, launcher or sweeper raise."""
    # What @hydra.main comes to, which would compose once more, print a traceback of its own, and exit.
    with descendants(), space, _clear_errors():
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        if multirun:
            engine.multirun(CONFIG_NAME, Task(function, space.config_dirs), [*overrides, "hydra.mode=MULTIRUN"])
        else:
            _run_one(function, overrides, space)


def _run_one(function: Function, overrides: Sequence[str], space: ConfigSpace) -> None:
    """As `Hydra.run`, which would compose anew and print a line of its own about an exception."""
    composed, config = space.compose(overrides), deepcopy(space.with_hydra(overrides))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.mode = RunMode.RUN
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name=CONFIG_NAME)
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
    own = list(config.hydra.overrides.task)
    composed = composed if own == composed.overrides else replace(composed, overrides=own)
    done = run_job(lambda _: function(composed), config, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=config, config_name=CONFIG_NAME, job_return=done)
    if done.status == JobStatus.FAILED:
        raise done._return_value


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


def launcher_of(space: ConfigSpace, overrides: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The fields of the launcher that overrides choose for a run, if it hands jobs to Slurm, and settings for it.

    The settings are of those that follow the trainer, for Hydra composes a launcher without the jobs. Raises:
    UsageError as `compose`, and for a number that attnlab's own launcher or sweeper does not take.
    """
    hydra = space.with_hydra(overrides).hydra
    for path, node in (("hydra.launcher", hydra.launcher), ("hydra.sweeper", hydra.sweeper)):
        for field, annotation in constructor_types(load(path, {"_target_": node._target_})).items():
            if field in node and (reason := outside(f"{path}.{field}", annotation, node[field])):
                raise UsageError(reason)
    if not str(hydra.launcher._target_).endswith("SlurmLauncher"):
        return None, []
    raw = plain(hydra.launcher, resolve=False)
    fields = {key: OmegaConf.select(hydra.launcher, key, throw_on_resolution_failure=False) for key in raw}
    return fields, [f"hydra.launcher.{key}={fields[key]}" for key, value in raw.items() if "${trainer." in str(value)]


def split_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(settings of the run, settings of Hydra, folders of hydra.searchpath). Raises: UsageError for no such folders."""
    hydra_own = [o for o in overrides if o.lstrip("+~").startswith("hydra")]
    paths = [o for o in hydra_own if o.lstrip("+~").startswith(SEARCHPATH)]
    places = [place for o in paths for place in search_path(parse_one(o).value())]
    return [o for o in overrides if o not in hydra_own], [o for o in hydra_own if o not in paths], places


def for_each_job(overrides: Sequence[str], space: ConfigSpace) -> list[str]:
    """The same overrides, with the fields of parts as sweeps of one choice.

    Hydra puts what is no sweep into a configuration without the choices that are swept, in which a field of a swept
    part, or of the task and data that a swept model brings, may not be there.
    """
    parts = tuple(f"{group}." for group in space.group_names)
    return [_as_sweep(override) if override.startswith(parts) else override for override in overrides]


def _as_sweep(override: str) -> str:
    key, _, value = override.partition("=")
    given = parse_one(override)
    if not value or given.is_sweep_override():
        return override
    with contextlib.suppress(HydraException):
        (job,) = parse_one(f"{key}=choice({value})").sweep_string_iterator()
        read = parse_one(f"{key}={job}").value()
        if read == given.value() and type(read) is type(given.value()):
            return f"{key}=choice({value})"
    return f"++{override}"  # a sweep loses the quotes of its choices: added by force, a field may be there or not


def split_search(overrides: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The overrides of each cell of a search (a,b makes cells), and its interval(..), range(..) and choice(..)."""
    parsed = parse(overrides)
    searched = [override.input_line for override in parsed if _is_searched(override)]
    jobs = BasicSweeper.split_arguments([override for override in parsed if not _is_searched(override)], None)[0]
    return [list(job) for job in jobs], [line for line in searched if line]


def _is_searched(override: Override) -> bool:
    value = override.value()
    if isinstance(value, ChoiceSweep):  # one choice is nothing to search
        return not value.simple_form and len(value.list) > 1
    return override.is_sweep_override()


def corners(overrides: Sequence[str]) -> list[str]:
    """The same overrides with the two ends of each interval in its place: what is checked before a search begins."""
    parsed = parse(overrides)
    return [
        f"{override.get_key_element()}={value.start},{value.end}"
        if isinstance(value := override.value(), IntervalSweep)
        else str(override.input_line)
        for override in parsed
    ]
