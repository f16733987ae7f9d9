"""From words on a command line to one composed configuration, or one message that says what is wrong with them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from attnlab.config import LISTS, UsageError, absolute, find_parts, gone, scale, shipped
from attnlab.config.identity import WRITTEN, cell_name, flatten, own_choices, reason_of
from attnlab.config.loader import Loader, parse
from attnlab.parts import find
from attnlab.ranges import must_be
from attnlab.training.study_fields import did_you_mean

CONFIG_NAME = "train"
OWN, SEARCHPATH = "--config-dir", "hydra.searchpath"  # of whom Hydra has the user's own folders
# Of a multirun; and from when on its check is announced, for it takes a fifth of a second each.
MOST_JOBS, MANY_JOBS = 10_000, 50
DEPTHS = ("*.yaml", "*/*.yaml", "hydra/*/*.yaml")  # where choices stand in a folder of configurations

# `${attnlab_cell:}` is the cell's name from the overrides of the job at hand.
OmegaConf.register_new_resolver(
    "attnlab_cell", lambda: cell_name(own_choices(HydraConfig.get().overrides.task)), replace=True, use_cache=False
)
# `${attnlab_scale:d_model,${scale},...}` is what follows from one dial.
OmegaConf.register_new_resolver("attnlab_scale", scale.resolve, replace=True, use_cache=False)
# So many steps where nothing is said of steps or epochs.
OmegaConf.register_new_resolver(
    "attnlab_steps", lambda steps, epochs: steps if epochs is None else None, replace=True, use_cache=False
)


@dataclass(frozen=True, eq=False)
class Composed:
    """One run's configuration as plain data, and the overrides that made it.

    raw: nested, with its interpolations as they are written. names: each group's choice, as it is typed. sweeper:
    Hydra's, for a trial of a search that has begun. config_dirs: the user's own folders.
    """

    raw: dict[str, Any]
    overrides: list[str]
    cell: str
    names: dict[str, str] = field(default_factory=dict)
    is_multirun: bool = False
    sweeper: dict[str, Any] = field(default_factory=dict)
    config_dirs: list[str] = field(default_factory=list)

    config = cached_property(lambda self: OmegaConf.create({**self.raw, "cell": self.cell}))  # for this room alone
    seed = cached_property(lambda self: int(self.config.seed))
    study = cached_property(lambda self: str(self.config.study.name))
    progress = cached_property(lambda self: str(self.config.progress))
    runs_dir = cached_property(lambda self: Path(str(self.config.runs_dir)))
    run_dir = cached_property(lambda self: Path(str(self.config.run_dir)))

    @property
    def search(self) -> str | None:
        """The cell that the run is a trial of, in a search."""
        return cast("str | None", self.config.study.search)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The configuration as nested dictionaries, every interpolation resolved; shared, so only to be read."""
        return plain(self.config)

    def with_seed(self, seed: int) -> dict[str, Any]:
        """`resolved` as the same overrides with another seed give it, without composing anew."""
        return plain(OmegaConf.create({**self.raw, "cell": self.cell, "seed": seed}))

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, or `default` where there is none."""
        return find(self.resolved, path, default)

    def as_yaml(self, resolve: bool = False) -> str:
        """The configuration as .hydra/config.yaml keeps it, with its interpolations, or with what they come to."""
        return OmegaConf.to_yaml(self.config if resolve else OmegaConf.create(self.raw), resolve=resolve)

    def overrides_yaml(self) -> str:
        """The overrides, as a run keeps them in .hydra/overrides.yaml."""
        return OmegaConf.to_yaml(OmegaConf.create(self.overrides))


def plain(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A configuration as nested dictionaries."""
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=resolve))


def _hydras_own(config: DictConfig) -> Any:
    """As `HydraConfig.set_config` has Hydra's own part at hand, without its copy of it: nobody changes it here."""
    OmegaConf.set_readonly(config.hydra, True)
    part = DictConfig({"hydra": config.hydra}, flags={"no_deepcopy_set_nodes": True})
    part.hydra._set_parent(config)
    return part


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as Hydra reads it: 1e-2 is a number, no key stands twice. Raises: UsageError."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), get_yaml_loader())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {_yaml_reason(error)}") from error


def _yaml_reason(error: Exception) -> str:
    """Why something is no YAML, in one line: the fault and where it is."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or ""
    if problem.startswith("but"):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    reason = problem or reason_of(error).rstrip(".")
    return f"line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else reason


def search_path(value: object) -> list[str]:
    """The folders that a value of hydra.searchpath names, in Hydra's words. Raises: UsageError."""
    if not isinstance(value, list) or not all(isinstance(place, str) for place in value):
        raise UsageError(must_be(SEARCHPATH, "a list of folders, as in [file:///my/conf,pkg://my_package.conf]", value))
    return [absolute(place if "://" in place else f"file://{place}") for place in value]


class ConfigSpace:
    """The configuration groups of attnlab (and of the user's own folders), open for any number of compositions.

    config_dirs: as `attnlab.config.absolute` has them. told: who named them, where it was not the command line.
    """

    def __init__(self, config_dirs: Sequence[str] = (), told: str = "") -> None:
        given, self._told = list(map(absolute, config_dirs)), told
        self._own = [folder for folder in given if "://" not in folder]  # before attnlab's own groups; others after
        # A search path of the command line takes the place of that of the main file, as Hydra has it.
        is_given = len(self._own) < len(given)
        self.config_dirs = list(dict.fromkeys([*given, *([] if is_given else self._named_by_main())]))
        self.group_names: list[str] = []
        self._composed: dict[tuple[str, ...], Composed] = {}
        # With Hydra's own part, and that alone.
        self._last: tuple[tuple[str, ...], DictConfig, Any] | None = None
        self._is_new = True

    def __enter__(self) -> ConfigSpace:
        GlobalHydra.instance().clear()
        if missing := gone(self.config_dirs):
            by = f", which {self._told} names; put it back, or give its new place by {OWN}" if self._told else ""
            where = OWN if missing[0] in self._own else SEARCHPATH
            raise UsageError(f"{where} {missing[0]}: there is no such folder{by}")
        find_parts(self.config_dirs)
        version.setbase("1.3")
        # What hydra.initialize_config_dir does, with the user's own folders first: what Hydra finds first, it takes.
        path = create_config_search_path(str(shipped("conf").resolve()))
        for folder in reversed(self._own):
            path.prepend(OWN, f"file://{folder}")
        schema = path.get_path().pop()
        for folder in self.config_dirs:
            if folder not in self._own:
                path.append(SEARCHPATH, folder)
        path.append(schema.provider, schema.path)
        GlobalHydra.instance().initialize(Hydra(task_name="attnlab", config_loader=Loader(path)))
        self.group_names = [name for name in self._options("", ObjectType.GROUP) if name != "hydra"]
        for file, name in self._replaced() if self._is_new else ():
            print(f"attnlab: {file} takes the place of attnlab's own {name}", file=sys.stderr)
        self._is_new = False
        return self

    def __exit__(self, *_: object) -> None:
        GlobalHydra.instance().clear()

    def _named_by_main(self) -> list[str]:
        """hydra.searchpath of a train.yaml of the user's own."""
        mains = (Path(folder, f"{CONFIG_NAME}.yaml") for folder in self._own)
        content = next((read_yaml(main) for main in mains if main.is_file()), None)
        return search_path(find(content, SEARCHPATH) or [])

    def _replaced(self) -> list[tuple[Path, str]]:
        sources = self._loader.get_sources()
        files = [
            (place, file, file.relative_to(folder).as_posix())
            for place, folder in enumerate(self._own)
            for file in sorted(file for depth in DEPTHS for file in Path(folder).glob(depth))
        ]
        return [(f, name) for place, f, name in files if any(s.is_config(name) for s in sources[place + 1 :])]

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Composes one run's configuration, kept for the next who asks for it (Hydra takes a fifth of a second).

        Raises: UsageError for an unknown group member, an unknown field, or an override that cannot be read.
        """
        words = tuple(overrides)
        if words not in self._composed:
            self._composed[words] = self._compose(words)
        return self._composed[words]

    def _compose(self, words: tuple[str, ...]) -> Composed:
        parsed = self._parse(words)
        for override in parsed:
            if override.is_sweep_override():
                raise UsageError(
                    f"{override.input_line}: one run takes one choice; `attnlab train -m` runs each of them, "
                    "and [a,b] is a list"
                )
            self._check_group(override)
        config = self._composed_by_hydra(parsed, words)
        self._last = words, config, _hydras_own(config)
        HydraConfig.instance().cfg = self._last[2]
        try:
            raw = plain(config, resolve=False)
            del raw["hydra"]
            names = plain(config.hydra.runtime.choices)
            return Composed(raw, list(words), config.cell, names, config_dirs=self.config_dirs)
        except OmegaConfBaseException as error:
            raise UsageError(reason_of(error)) from error

    def _composed_by_hydra(self, parsed: Sequence[Override], words: Sequence[str]) -> DictConfig:
        try:
            return hydra_compose(CONFIG_NAME, list(words), return_hydra_config=True)
        except yaml.YAMLError as error:  # in a file of the user's own
            file = getattr(getattr(error, "problem_mark", None), "name", "a configuration")
            raise UsageError(f"{file}: cannot be read as YAML: {_yaml_reason(error)}") from error
        except RecursionError as error:
            raise UsageError(f"a file of {OWN} must not name itself in its defaults; rename it") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise UsageError(self._unplaced(parsed) or reason_of(error)) from error

    def with_hydra(self, overrides: Sequence[str]) -> DictConfig:
        """As `compose`, with Hydra's own part, which Hydra has at hand from now on. Raises: UsageError."""
        words = tuple(overrides)
        if self._last is None or self._last[0] != words:
            self._composed[words] = self._compose(words)
        assert self._last is not None
        HydraConfig.instance().cfg = self._last[2]
        return self._last[1]

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """The jobs of a multirun: every combination of its comma-separated choices. Raises: UsageError."""
        parsed = self._parse(overrides)
        sweeps = [override for override in parsed if override.is_sweep_override()]
        try:
            count = math.prod(len(list(islice(one.sweep_string_iterator(), MOST_JOBS + 1))) for one in sweeps)
            if count <= MOST_JOBS:
                return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]
        except HydraException as error:
            raise UsageError(reason_of(error)) from error
        raise UsageError(f"a multirun must have at most {MOST_JOBS:,} jobs, got {count:,} or more; name fewer choices")

    def _parse(self, overrides: Sequence[str]) -> list[Override]:
        try:
            parsed = parse(overrides, self._loader)
        except HydraException as error:
            raise UsageError(f"{reason_of(error)} {WRITTEN}") from error
        for override in parsed:
            if not override.key_or_group:
                raise UsageError(f"{override.input_line}: the name is missing. {WRITTEN}")
        return parsed

    @property
    def _loader(self) -> ConfigLoader:
        return GlobalHydra.instance().config_loader()

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every configuration group of attnlab with its choices."""
        return {name: self._options(name) for name in self.group_names}

    def file_of(self, name: str) -> Path:
        """The file of a choice, as `position/rotary`: that of the user's own folders where they have one."""
        source = next(source for source in self._loader.get_sources() if source.is_config(name))
        return Path(source.path.removeprefix("file://"), f"{name}.yaml")

    def _options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        """What a group holds, by its sources: Hydra's own list reads the whole of conf/train.yaml anew each time."""
        sources = [source for source in self._loader.get_sources() if source.is_group(group)]
        return sorted({name for source in sources for name in source.list(group, kind)})

    def _check_group(self, override: Override) -> None:
        key, value = override.key_or_group, override.value()
        known = self._options(key) if key in self.group_names or key.startswith("hydra/") else None
        is_list = key in LISTS
        names = value if is_list and isinstance(value, list) else [value]
        is_named = all(isinstance(name, str) for name in names) and not override.is_delete()
        if key in self.group_names and not override.is_add() and not is_named:
            many, written = ("any number", "[NAME,NAME]") if is_list else ("exactly one", "NAME")
            field = f"{key}.NAME.FIELD" if is_list else f"{key}.FIELD"
            raise UsageError(
                f"{override.input_line}: {key} takes {many} of {', '.join(known or ())}; "
                f"write {key}={written}, and its fields as {field}=VALUE"
            )
        for name in names:
            if known is not None and isinstance(name, str) and name not in known:
                near = did_you_mean(name, known)
                raise UsageError(must_be(key, f"one of {', '.join(known)}", name) + ("." + near if near else ""))

    def _unplaced(self, parsed: Sequence[Override]) -> str | None:
        """The message for the override that could not be placed: its nearest neighbour, what stands beside it."""
        groups = self.groups
        chosen = [o.input_line for o in parsed if o.key_or_group in groups and not o.package and o.input_line]
        raw = plain(hydra_compose(CONFIG_NAME, chosen), resolve=False)
        fields = [key for key, _ in flatten(raw)]
        for override in parsed:
            key = override.package or override.key_or_group
            known = key in groups or any(field == key or field.startswith(f"{key}.") for field in fields)
            if known or override.is_add() or key.startswith("hydra"):
                continue
            group, *named = key.split(".")[:2]
            if group in LISTS and named and named[0] in groups[group] and named[0] not in raw.get(group, {}):
                return f"{key}: {named[0]} is not among the {group} of this run; add {group}=[{named[0]}]"
            path = key.split(".")[:-1]
            while path and not isinstance(find(raw, ".".join(path)), Mapping):
                path.pop()
            node = find(raw, ".".join(path)) if path else raw
            beside = [".".join([*path, str(word)]) for word in node if not str(word).startswith("_")]
            near = did_you_mean(key, [*beside, *fields])
            of = ".".join(path) or "a run"
            return f"{key}: there is no such field.{near} Fields of {of}: {', '.join(beside)}."
        return None
