"""Hydra's parser and loader, which do once what they would do for every run anew: a word is parsed once, and what the
choices of parts come to is composed once, for the fields that each run sets in it."""

from __future__ import annotations

import copy
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra._internal import defaults_list as defaults
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, grammar_parser, open_dict
from omegaconf import _utils as omegaconf_utils
from omegaconf import base as omegaconf_base

from attnlab.config import LISTS, UsageError, place_of
from attnlab.config.layers import PLACE, expand
from attnlab.ranges import must_be
from attnlab.training.study_fields import did_you_mean

MOST_KEPT = 512  # configurations, of some tens of KB each
MOST_WORDS = 4096

Key = tuple[object, ...]


class Seen(NamedTuple):
    """A file of a choice as it was once; written: in ns, None for what is no file on its own. size: in bytes."""

    provider: str
    place: str
    name: str
    written: int | None
    size: int


class Kept(NamedTuple):
    """A configuration with no field set, pickled, and the files that it was read from as they were then."""

    config: bytes
    files: dict[str, Seen | None]


KEPT: OrderedDict[Key, Kept] = OrderedDict()
HYDRAS: dict[Key, bytes] = {}
READ: dict[Seen, bytes] = {}  # pickled: read so ten times as fast as copied


_choices_by_name = defaults._create_interpolation_map


def _choices_where_named(overrides: Overrides, defaults_list: list[InputDefault], self_added: bool) -> DictConfig:
    """What `${...}` in a list of defaults means: a third of Hydra's time went into it, where the list has none."""
    is_named = any("${" in str(vars(one)) for one in defaults_list)
    return _choices_by_name(overrides, defaults_list, self_added) if is_named else DictConfig({})


defaults._create_interpolation_map = _choices_where_named
# What `${...}` in a value means is read from a tree that nothing changes: each is parsed once a process.
_parsed_value = lru_cache(MOST_WORDS)(grammar_parser.parse)
for module in (omegaconf_base, omegaconf_utils):
    module.parse = _parsed_value  # type: ignore[attr-defined]


@lru_cache(MOST_WORDS)
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def parse_one(word: str) -> Override:
    """As `OverridesParser.parse_override`, each word once a process. Raises: HydraException."""
    return copy.copy(_parsed(word))


def parse(words: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """As `OverridesParser.parse_overrides`, each word once a process. Raises: HydraException, with where it stands."""
    try:
        parsed = [parse_one(word) for word in words]
    except HydraException:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    for override in parsed:
        override.config_loader = loader
    return parsed


class Files(ConfigRepository):
    """Hydra's repository of choices, which reads no file again that is as it was."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A choice by its name, to change at will."""
        seen = self.seen(config_path)
        if seen is None or seen.place.startswith("structured://"):  # what a program may register anew
            return self._load(config_path)
        if seen not in READ:
            READ[seen] = pickle.dumps(self._load(config_path))
        found: ConfigResult | None = pickle.loads(READ[seen])
        return found

    def _load(self, config_path: str) -> ConfigResult | None:
        found: ConfigResult | None = super().load_config(config_path)
        group, _, name = config_path.rpartition("/")
        if found is not None and group in LISTS and not found.header.get("package"):
            place = place_of(group, name, found.config)  # type: ignore[arg-type]  # a table
            found.header["package"] = None if place == group else place
        return found

    def __deepcopy__(self, memo: object) -> Files:
        """Its sources are replaced as a whole and never changed, so that a copy of each is not needed."""
        return copy.copy(self)

    def seen(self, name: str) -> Seen | None:
        """The file of a choice as it is now; None where there is none."""
        source = self._find_object_source(name, ObjectType.CONFIG)
        if source is None:
            return None
        place, file = source.full_path(), source._normalize_file_name(name)
        if source.scheme() != "file":
            return Seen(source.provider, place, file, None, 0)
        status = Path(source.path.removeprefix("file://"), file).stat()
        return Seen(source.provider, place, file, status.st_mtime_ns, status.st_size)


class Loader(ConfigLoaderImpl):
    """Hydra's loader of configurations, of which a run costs a fraction where another had the same choices before."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository: Files = Files(config_search_path)
        self._read: CachingConfigRepository | None = None

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, self._read = parse(overrides), CachingConfigRepository(self.repository)
        self._process_config_searchpath(config_name, parsed, self._read)
        return parsed, self._read

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        how = (run_mode, from_shell, validate_sweep_overrides)
        parsed = parse(overrides)
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        # What stands in the entries of a pattern is no plain field: a choice by name may have fields beside it.
        own, rest = list[Override](), list[Override]()
        for override in parsed:
            is_own = override.key_or_group.startswith(f"{PLACE}.") and not override.is_delete()
            (own if is_own else rest).append(override)
        config = self._with_fields(config_name, rest, *how) or super()._load_configuration_impl(
            config_name, [str(one.input_line) for one in rest], *how
        )
        self._expand_layers(config_name, own, rest, config, how)
        _describe(config, parsed)
        return config

    def _expand_layers(
        self,
        config_name: str | None,
        own: Sequence[Override],
        rest: Sequence[Override],
        config: DictConfig,
        how: tuple[RunMode, bool, bool],
    ) -> None:
        """Puts the parts that its choices come to into the entries of a model's pattern."""
        others = [one for one in rest if not self._is_field(one)]

        def choice_of(place: str, group: str, name: str) -> dict[str, Any]:
            known = self.repository.get_group_options(group)
            if name not in known:
                raise UsageError(must_be(place, f"one of {', '.join(known)}", name) + "." + did_you_mean(name, known))
            words = [str(one.input_line) for one in others if one.key_or_group != group or one.package]
            made = self._of_choices(config_name, [*words, f"{group}={name}"], *how)
            return cast("dict[str, Any]", OmegaConf.to_container(made[group], resolve=False))

        given = [(one.key_or_group.removeprefix(f"{PLACE}."), one.value()) for one in own]
        names = dict(expand(config, given, choice_of))
        with open_dict(config.hydra):
            config.hydra.runtime.choices.update(names)

    def _with_fields(
        self, config_name: str | None, parsed: Sequence[Override], run_mode: RunMode, from_shell: bool, validate: bool
    ) -> DictConfig | None:
        """What the choices come to, with the fields of the other words; None where Hydra's own way may tell more."""
        fields, choices = list[Override](), list[str]()
        for override in parsed:
            if self._is_field(override):
                fields.append(override)
            else:
                choices.append(str(override.input_line))
        try:
            config = self._of_choices(config_name, choices, run_mode, from_shell, validate)
        except Exception:
            return None
        if config.hydra.searchpath:  # groups that this repository does not know
            return None
        try:
            self._apply_overrides_to_config(fields, config)
        except HydraException:
            if any(override.is_hydra_override() for override in fields):  # of fields that are filled in later
                return None
            raise
        return config

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """Hydra's own part stands first and is the larger one: it is merged once for all runs that have the same."""
        hydras = list(takewhile(lambda one: (one.package or "").split(".")[0] == "hydra", defaults))
        key = tuple((one.package, self.repository.seen(one.config_path or "")) for one in hydras)
        try:
            if key not in HYDRAS:
                HYDRAS[key] = pickle.dumps(super()._compose_config_from_defaults_list(hydras, repo))
            config: DictConfig = pickle.loads(HYDRAS[key])
            with flag_override(config, "no_deepcopy_set_nodes", True):
                config.merge_with(super()._compose_config_from_defaults_list(defaults[len(hydras) :], repo))
        except Exception:  # Hydra's own way says of which file; and what a plugin registers may be no class to pickle
            config = super()._compose_config_from_defaults_list(defaults, repo)
        _open_tables(config)
        return config

    def _is_field(self, override: Override) -> bool:
        """Whether an override changes nothing but values in what the choices come to."""
        if override.is_sweep_override() or override.get_key_element().lstrip("+~") == "hydra.searchpath":
            return False
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)

    def _of_choices(
        self, config_name: str | None, choices: list[str], run_mode: RunMode, from_shell: bool, validate: bool
    ) -> DictConfig:
        places = tuple((one.provider, one.path) for one in self.config_search_path.get_path())
        key = (places, config_name, run_mode, from_shell, validate, *choices)
        kept = KEPT.pop(key, None)
        if kept is None or any(self.repository.seen(name) != seen for name, seen in kept.files.items()):
            config = super()._load_configuration_impl(config_name, choices, run_mode, from_shell, validate)
            assert self._read is not None
            kept = Kept(
                pickle.dumps(config), {name: self.repository.seen(name) for name in map(_name, self._read.cache)}
            )
            self._read = None  # a loader is sent to other processes
        KEPT[key] = kept
        while len(KEPT) > MOST_KEPT:
            KEPT.popitem(last=False)
        found: DictConfig = pickle.loads(kept.config)
        return found


def _open_tables(node: DictConfig) -> None:
    """Lets fields be set that are not there yet: in tables that are empty, or say `_open_: true`."""
    for key, child in node._content.items():  # type: ignore[union-attr]
        if isinstance(child, DictConfig) and isinstance(child._content, dict) and key != "hydra":
            if not child._content or "_open_" in child._content:
                OmegaConf.set_struct(child, False)
            _open_tables(child)


def _name(key: str) -> str:
    """The name of a file of choices, of Hydra's key for what it keeps of it."""
    return key.removeprefix("config_path=")


def _describe(config: DictConfig, overrides: Sequence[Override]) -> None:
    """What Hydra's own part says of the words, the place and the environment of this run."""
    hydra = config.hydra
    hydra.overrides.hydra, hydra.overrides.task = [], []
    for override in overrides:
        part = hydra.overrides.hydra if override.is_hydra_override() else hydra.overrides.task
        part.append(override.input_line)
    with open_dict(hydra):
        for name in hydra.job.env_copy:
            hydra.job.env_set[name] = os.environ[name]
    hydra.runtime.cwd = os.getcwd()
    named = hydra.job.config.override_dirname
    own = [override for override in overrides if not override.is_hydra_override()]
    hydra.job.override_dirname = get_overrides_dirname(own, named.exclude_keys, named.item_sep, named.kv_sep)
