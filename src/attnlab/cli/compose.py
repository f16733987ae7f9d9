"""From words on a command line to one composed configuration, or one message that says what is wrong with them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

import attnlab
from attnlab.cli.overrides import name_of_choices
from attnlab.training.study_fields import did_you_mean

CONFIG_NAME = "train"
OWN = "--config-dir"  # of whom Hydra has the user's own folders
MOST_JOBS, MANY_JOBS = (
    10_000,
    50,
)  # of a multirun; and from when on its check is announced, for it takes a fifth of a second each
DEPTHS = ("*.yaml", "*/*.yaml", "hydra/*/*.yaml")  # where choices stand in a folder of configurations
# What may differ between two runs of one identity: where they stand and how they are watched, never what they compute.
OUTSIDE_IDENTITY = (
    *("cell", "study", "run_dir", "runs_dir", "progress", "logger", "data.cache", "mixed_code"),
    *("trainer.threads", "trainer.checkpoint_every_seconds", "trainer.checkpoint_budget_gb"),
)


NO_REASON = re.compile(r"\^?$|(object_type|reference_type|full_key)\b|See https")  # what stands around what was wrong
MOST_REASONS = 6  # lines


class Mistake(Exception):
    """Something that a user can mend: the message says what was given, what is accepted and what to do."""


@dataclass(frozen=True)
class Composed:
    """A composed configuration and the overrides that made it."""

    config: DictConfig
    overrides: list[str]

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration as plain nested dictionaries, every interpolation resolved."""
        return _plain(self.config)

    def with_seed(self, seed: int) -> dict[str, Any]:
        """`resolved` as the same overrides with another seed give it, without composing anew."""
        other = self.config.copy()
        other.seed = seed
        return _plain(other)


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def shipped(folder: str) -> Path:
    """`conf` or `experiments`: inside the installed wheel, or at the top of the checkout."""
    package = Path(attnlab.__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parents[1] / folder


def read_yaml(path: Path) -> Any:
    """
    What a YAML file holds, as Hydra reads its own: 1e-2 is a number, and no key stands twice.

    Raises: Mistake for a file that cannot be read, with the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), get_yaml_loader())
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Mistake(f"{path}: cannot be read as YAML: {yaml_reason(error)}") from error


def yaml_reason(error: Exception) -> str:
    """Why something is no YAML, in one line: the fault and where it is."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or ""
    if problem.startswith("but"):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    reason = problem or reason_of(error).rstrip(".")
    return f"line {mark.line + 1}, column {mark.column + 1}: {reason}" if mark else reason


def cell_name(overrides: Sequence[str]) -> str:
    """A readable name of the choices in `overrides`, in an order of its own; `default` where there is none."""
    words = [override.removeprefix("++") for override in overrides if "=" in override]
    pairs = sorted(word.split("=", 1) for word in words if not outside_identity(word.split("=", 1)[0]))
    if not pairs:
        return "default"
    full = [key.lstrip("+~") for key, _ in pairs]
    last = [key.rsplit(".", 1)[-1] for key in full]
    keys = [short if last.count(short) == 1 else key for key, short in zip(full, last, strict=True)]
    return name_of_choices([(key, value) for key, (_, value) in zip(keys, pairs, strict=True)])


def outside_identity(key: str) -> bool:
    """Whether a setting decides where a run stands or how it is watched (or its seed), not which cell it is."""
    key = key.lstrip("+~")
    return key == "seed" or any(key == out or key.startswith(f"{out}.") for out in (*OUTSIDE_IDENTITY, "hydra"))


def identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the numbers, as flat `a.b.c` keys."""
    return {key: value for key, value in flatten(resolved) if not (outside_identity(key) and key != "seed")}


def twins(named: Iterable[tuple[str, Composed]]) -> tuple[str, str] | None:
    """The names of the first two that are the same run, however their overrides are written, or None."""
    seen: dict[str, str] = {}
    for name, composed in named:
        pairs = identity(composed.resolved).items()
        run = repr(sorted((key, float(value) if type(value) is int else value) for key, value in pairs))
        if run in seen:
            return seen[run], name
        seen[run] = name
    return None


def targets_of(node: Any) -> Iterator[str]:
    """Every _target_ in a configuration."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets_of(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from targets_of(value)


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries as (dotted key, value)."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def register_resolvers() -> None:
    """Teaches OmegaConf `${attnlab_cell:}`, the cell's name from the overrides of the job at hand."""
    from attnlab.cli.init_from import own_choices  # here: it knows this module

    def name() -> str:
        return cell_name(own_choices(HydraConfig.get().overrides.task))

    OmegaConf.register_new_resolver("attnlab_cell", name, replace=True, use_cache=False)


class ConfigSpace:
    """The configuration groups of attnlab (and of the user's own folders), open for any number of compositions."""

    def __init__(self, config_dirs: Sequence[str] = ()) -> None:
        self.config_dirs = [str(Path(d).resolve()) for d in config_dirs]
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._last: tuple[tuple[str, ...], DictConfig] | None = None  # with Hydra's own part
        self._is_new = True

    def __enter__(self) -> ConfigSpace:
        register_resolvers()
        GlobalHydra.instance().clear()
        for folder in self.config_dirs:
            if not Path(folder).is_dir():
                raise Mistake(f"--config-dir {folder}: there is no such folder")
        version.setbase("1.3")
        # What hydra.initialize_config_dir does, with the user's own folders first: what Hydra finds first, it takes.
        path = create_config_search_path(str(shipped("conf").resolve()))
        for folder in reversed(self.config_dirs):
            path.prepend(OWN, f"file://{folder}")
        Hydra.create_main_hydra2(task_name="attnlab", config_search_path=path)
        if self._is_new:
            self._say_replaced()
        self._is_new = False
        return self

    def __exit__(self, *_: object) -> None:
        GlobalHydra.instance().clear()

    def _say_replaced(self) -> None:
        """Which of the user's own files stand in place of others of the same name."""
        sources = self._loader.get_sources()
        for place, folder in enumerate(self.config_dirs):
            for file in sorted(file for depth in DEPTHS for file in Path(folder).glob(depth)):
                name = file.relative_to(folder).as_posix()
                if any(source.is_config(name) for source in sources[place + 1 :]):
                    print(f"attnlab: {file} takes the place of attnlab's own {name}", file=sys.stderr)

    def compose(self, overrides: Sequence[str]) -> Composed:
        """
        Composes one run's configuration, kept for the next who asks for it (Hydra takes a fifth of a second).

        Raises: Mistake for an unknown group member, an unknown field, or an override that cannot be read.
        """
        words = tuple(overrides)
        if words not in self._composed:
            self._composed[words] = self._compose(words)
        return self._composed[words]

    def _compose(self, overrides: Sequence[str]) -> Composed:
        parsed = self._parse(overrides)
        for override in parsed:
            if override.is_sweep_override():
                raise Mistake(
                    f"{override.input_line}: one run takes one choice; `attnlab train -m` runs each of them, and [a,b] is a list"
                )
            self._check_group(override)
        try:
            config = hydra_compose(CONFIG_NAME, list(overrides), return_hydra_config=True)
        except yaml.YAMLError as error:  # in a file of the user's own
            file = getattr(getattr(error, "problem_mark", None), "name", "a configuration")
            raise Mistake(f"{file}: cannot be read as YAML: {yaml_reason(error)}") from error
        except RecursionError as error:
            raise Mistake(
                "a file of --config-dir must not name itself in its defaults; give it a name of its own"
            ) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise Mistake(self._explain(parsed, error)) from error
        HydraConfig.instance().set_config(config)
        self._last = (tuple(overrides), config)
        try:
            plain = OmegaConf.to_container(config, resolve=False)
            assert isinstance(plain, dict)
            del plain["hydra"]
            without_hydra = OmegaConf.create(plain)
            without_hydra.cell = config.cell
        except OmegaConfBaseException as error:
            raise Mistake(reason_of(error)) from error
        return Composed(without_hydra, list(overrides))

    def launcher(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of the launcher that these overrides choose. Raises: Mistake as `compose`."""
        if self._last is None or self._last[0] != tuple(overrides):
            self._composed[tuple(overrides)] = self._compose(overrides)
        assert self._last is not None
        HydraConfig.instance().set_config(self._last[1])
        return self._last[1].hydra.launcher

    def expand(self, overrides: Sequence[str]) -> list[list[str]]:
        """The jobs of a multirun: every combination of the comma-separated choices in `overrides`. Raises: Mistake."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        parsed = self._parse(overrides)
        sweeps = [override for override in parsed if override.is_sweep_override()]
        try:
            count = math.prod(len(list(islice(one.sweep_string_iterator(), MOST_JOBS + 1))) for one in sweeps)
            if count <= MOST_JOBS:
                return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]
        except HydraException as error:
            raise Mistake(reason_of(error)) from error
        raise Mistake(f"a multirun must have at most {MOST_JOBS:,} jobs, got {count:,} or more; name fewer choices")

    def _parse(self, overrides: Sequence[str]) -> list[Override]:
        try:
            parsed = OverridesParser.create(config_loader=self._loader).parse_overrides(list(overrides))
        except HydraException as error:
            raise Mistake(f"{reason_of(error)} An override is written name=value, as in model.d_model=128.") from error
        for override in parsed:
            if not override.key_or_group:
                raise Mistake(
                    f"{override.input_line}: the name is missing; an override is written name=value, as in model.d_model=128"
                )
        return parsed

    @property
    def _loader(self) -> ConfigLoader:
        return GlobalHydra.instance().config_loader()

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every configuration group of attnlab with its choices."""
        names = [n for n in self._options("", ObjectType.GROUP) if n != "hydra"]
        return {name: self._options(name) for name in names}

    def _options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        """What a group holds, by its sources: Hydra's own list reads the whole of conf/train.yaml anew each time."""
        sources = [source for source in self._loader.get_sources() if source.is_group(group)]
        return sorted({name for source in sources for name in source.list(group, kind)})

    def _check_group(self, override: Override) -> None:
        key, value = override.key_or_group, override.value()
        groups = self.groups
        if key in groups and not override.is_add() and (override.is_delete() or not isinstance(value, str)):
            raise Mistake(
                f"{override.input_line}: {key} takes exactly one of {', '.join(groups[key])}; write {key}=NAME, and its fields as {key}.FIELD=VALUE"
            )
        if not isinstance(value, str):
            return
        if key.startswith("hydra/"):
            known = self._options(key)
            if value not in known:
                raise Mistake(f"{key}={value}: choose one of {', '.join(known)}.{did_you_mean(value, known)}")
        if key in groups and value not in groups[key]:
            known = groups[key]
            raise Mistake(
                f"{key}={value}: there is no such {key}; choose one of {', '.join(known)}." + did_you_mean(value, known)
            )

    def _explain(self, parsed: Sequence[Override], error: Exception) -> str:
        """Which override could not be placed, and what stands where it points."""
        groups = self.groups
        chosen = [o.input_line for o in parsed if o.key_or_group in groups and o.input_line]
        config = hydra_compose(CONFIG_NAME, chosen)
        plain = OmegaConf.to_container(config, resolve=False)
        fields = [key for key, _ in flatten(plain)]
        for override in parsed:
            key = override.key_or_group
            known = key in groups or any(field == key or field.startswith(f"{key}.") for field in fields)
            if not (known or override.is_add() or key.startswith("hydra")):
                return unknown_field(key, plain, fields)
        return reason_of(error)


def unknown_field(key: str, plain: Any, fields: Sequence[str]) -> str:
    """The message for a field that does not exist: its nearest neighbour and all that stand beside it."""
    node: Any = plain
    path: list[str] = []
    for word in key.split(".")[:-1]:
        if not isinstance(node, dict) or not isinstance(node.get(word), dict):
            break
        node, path = node[word], [*path, word]
    beside = [".".join([*path, str(k)]) for k in node if not str(k).startswith("_")] if isinstance(node, dict) else []
    where = ".".join(path) or "a run"
    near = did_you_mean(key, [*beside, *fields])
    return f"{key}: there is no such field.{near} Fields of {where}: {', '.join(beside)}."


def reason_of(error: BaseException) -> str:
    """All that Hydra or OmegaConf say of an error and of what caused it, in one line; a mistake that they wrap, as it is."""
    said: list[str] = []
    link: BaseException | None = error
    while link is not None and len(said) < MOST_REASONS:
        if isinstance(link, Mistake):
            return str(link)
        lines = [line.strip() for line in (str(link).strip() or type(link).__name__).splitlines()]
        said += [line for line in lines if not NO_REASON.match(line) and line not in said]
        if (field := getattr(link, "full_key", None)) and not any(field in line for line in said):
            said.append(f"The field is {field}.")
        link = link.__cause__
    return " ".join(line if line.endswith((".", "!", "?", ":")) else f"{line}." for line in said)
