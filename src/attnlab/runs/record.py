"""What a run's directory says of it: run.json (what it is, on which machine, by which code), its checkpoints and
settings. A run's numbers come from attnlab's code, the parts of the user's own and what these import, and the versions
of libraries: each is recorded."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np

import attnlab
from attnlab.config import UsageError
from attnlab.config.compose import Composed
from attnlab.config.identity import record_in, recorded_choices, run_name, targets_of
from attnlab.models import measure_size
from attnlab.parts import Config, Prepared, find
from attnlab.training.run_directory import (
    CHECKPOINTS,
    FORMAT,
    SETTLED,
    RunDirectory,
    differences,
    effective_state,
    read_json,
    write_json,
    write_text,
)
from attnlab.training.study_fields import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from attnlab.data import DataModule
    from attnlab.interop import Settings
    from attnlab.models.base import Size
    from attnlab.training.task import Task

LIBRARIES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "tokenizers")
MOST_LENGTHS = 5  # at which operations are counted, where a ramp has many
DIGITS = 16  # of SHA-256 in hexadecimal
PACKAGE = Path(attnlab.__file__).parent
INSTALLED = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Code(TypedDict, total=False):
    """A release, the commit of the checkout that code stands in, whether it was changed, and the code's digest."""

    version: str
    commit: str | None
    dirty: bool | None
    source: str


class Record(TypedDict):
    """What is read again of a run.json; `make_record` and the run's facts say all of it."""

    study: str
    cell: dict[str, str]
    cell_name: str
    seed: int
    name: NotRequired[str]
    config: dict[str, Any]
    widths: NotRequired[dict[str, int | list[int]]]
    config_dirs: NotRequired[list[str]]
    data: NotRequired[dict[str, Any]]
    sources: NotRequired[dict[str, str]]
    overrides: NotRequired[list[str]]
    command: NotRequired[str]
    git: NotRequired[Code]
    imported: NotRequired[dict[str, object]]


def make_record(composed: Composed, directory: RunDirectory, facts: Mapping[str, object]) -> dict[str, Any]:
    """What run.json says: what this run is, on what, by which code; `facts` are those that only its parts know."""
    study = read_json(directory.path.parent.parent / "plan.json", {})
    planned = {cell["name"]: cell["choices"] for cell in study.get("cells", [])}
    code, sources = code_version(), own_sources(composed.resolved)
    by: dict[str, object] = {"git": code, "versions": library_versions(composed.resolved)}
    by |= {"sources": sources, "repositories": own_repositories(sources)}
    before = (read_json(directory.run_json) or {}).get("attempts", [])
    folders = [word for folder in composed.config_dirs for word in ("--config-dir", folder)]
    return {
        "format": FORMAT,
        "study": composed.study,
        "question": study.get("question", ""),
        "choices": {group: name for group, name in composed.names.items() if group.isidentifier()},
        "cell": planned.get(composed.cell) or recorded_choices(composed.overrides),
        "cell_name": composed.cell,
        "seed": composed.seed,
        "name": run_name(composed.study, composed.cell, composed.seed),
        "config": composed.resolved,
        "overrides": composed.overrides,
        "command": "attnlab train " + shlex.join([*folders, *composed.overrides]),
        "config_dirs": composed.config_dirs,
        "attnlab": code["version"],
        **by,
        "attempts": [*before, {"attempt": directory.attempt, **by}],
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        **facts,
    }


def size_of(task: Task, data: DataModule, batch: Prepared, steps: int, parts: int) -> Size:
    """The size of a run's model. Where rows grow in length, its operations a token are the mean over all tokens of so
    many steps, between the lengths at which they are counted taken for linear, as those of full attention are."""

    def counted(batch: Prepared) -> Size:
        return measure_size(task.model, lambda: int(task.training_sums(batch).tokens))

    if not data.ramps.length.steps:
        return counted(batch)
    lengths, tokens = [*map(data.length_at, range(steps))], data.tokens_of_steps(steps, parts)
    distinct = sorted(set(lengths))
    chosen = sorted({distinct[round(at)] for at in np.linspace(0, len(distinct) - 1, MOST_LENGTHS)})
    found = [counted(data.at_length(length).example_batch()).flops_per_token for length in chosen]
    mean = np.average(np.interp(lengths, chosen, found), weights=tokens)
    return replace(counted(batch), flops_per_token=round(float(mean)))


def write_record(directory: RunDirectory, composed: Composed, record: Mapping[str, object]) -> None:
    """Writes run.json and .hydra."""
    write_json(directory.run_json, record)
    write_text(directory.path / ".hydra" / "config.yaml", composed.as_yaml())
    write_text(directory.path / ".hydra" / "overrides.yaml", composed.overrides_yaml())


def read_record(directory: Path) -> Record:
    """A run's run.json. Raises: UsageError where there is no run."""
    record = record_in(directory)
    if "config" in record:
        found: Record = record  # type: ignore[assignment]  # as it was written
        return found
    if (directory / "run.json").is_file():
        raise UsageError(f"{directory}: its run.json cannot be read; restore it, or remove the run and train again")
    near = sorted(str(p.parent) for p in directory.glob("**/run.json"))[:3]
    hint = f"; below it are {', '.join(near)}" if near else "; a run's directory looks like runs/STUDY/CELL/seed=0."
    hint += did_you_mean(str(directory), _near(directory))
    raise UsageError(f"{directory}: there is no run (no run.json){hint}")


def _near(directory: Path) -> list[str]:
    """The runs where a directory that is not there would be: below the first folder on the way to it that is."""
    there = next((folder for folder in directory.parents if folder.is_dir()), directory)
    below = range(1, len(directory.parts) - len(there.parts) + 1)
    return [str(path.parent) for depth in below for path in there.glob("/".join(["*"] * depth + ["run.json"]))]


def checkpoint_of(directory: Path, name: str) -> Path:
    """The file of a run's checkpoint, `best` or `last`. Raises: UsageError where it is not there yet."""
    path = directory / CHECKPOINTS / f"{name}.ckpt"
    if not path.is_file():
        raise UsageError(f"{directory}: there is no {path.name} yet; the run is {effective_state(directory)}")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names in the model. Raises: UsageError for a damaged one."""
    from attnlab.training.checkpoints import UnusableCheckpoint, read_checkpoint

    try:
        state = read_checkpoint(path)["state_dict"]
    except UnusableCheckpoint as error:
        raise UsageError(str(error)) from error
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def plain_widths(widths: Mapping[str, object]) -> dict[str, int | list[int]]:
    """What data told a model, as run.json keeps it: numbers, and lists of them."""
    lists = {name: list(value) for name, value in widths.items() if isinstance(value, list | tuple)}
    return {name: value for name, value in widths.items() if isinstance(value, int)} | lists


def settings_of(record: Record, directory: Path) -> Settings:
    """What a run's model computes. Raises: UsageError for a model that is none of attnlab's own."""
    from attnlab.interop import canonical

    try:
        return canonical(record["config"]["model"], **record.get("widths", {}))
    except KeyError as error:
        raise UsageError(f"{directory}: {error.args[0]}, so nothing is known of what it computes") from error


def trials_of(study: Path, search: str) -> Iterator[Path]:
    """The directories of a search's trials in a study's folder, as far as they have begun."""
    for path in sorted(study.glob("*/seed=*/run.json")):
        if find(read_json(path, {}), "config.study.search") == search:
            yield path.parent


@functools.cache
def code_version() -> Code:
    """attnlab's own code; null for the commit of a wheel."""
    commit: Code = {"commit": None, "dirty": None}
    if (PACKAGE.parents[1] / ".git").exists():
        commit = _commit(PACKAGE)
    whole = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        whole.update(f"{path.relative_to(PACKAGE)}\0{_digest(path)}\n".encode())
    return {"version": attnlab.__version__, **commit, "source": whole.hexdigest()[:DIGITS]}


def _commit(folder: Path) -> Code:
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions(resolved: Config | None = None) -> dict[str, str]:
    """The versions that decide a run's numbers: of attnlab's libraries, and of those that its parts come from."""
    found = {"python": platform.python_version()} | dict.fromkeys(LIBRARIES, "not installed")
    others = {target.split(".")[0] for target in targets_of(resolved or {})} - {"attnlab"}
    for name in (*LIBRARIES, *sorted(others - set(LIBRARIES))):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def own_sources(resolved: Config) -> dict[str, str]:
    """The digest of each module outside attnlab that parts stand in, and of all of the user's own that these import."""
    # Nothing is run for it, and what a process has seen once it does not look at again: it trains what it has loaded.
    found: dict[str, str] = {}
    waiting = [name for target in targets_of(resolved) for name in _prefixes(target)]
    while waiting:
        name = waiting.pop()
        path = _own_file(name)
        if path is not None and name not in found:
            found[name] = _digest(path)
            waiting += (prefix for used in _imports(name, path) for prefix in _prefixes(used))
    return dict(sorted(found.items()))


def own_repositories(sources: Iterable[str]) -> dict[str, Code]:
    """Commit and state of the repositories in which modules of the user's own stand, by their folders."""
    folders = {path.parent for name in sources if (path := _own_file(name)) is not None}
    tops = {top for folder in folders if (top := _git(folder, "rev-parse", "--show-toplevel"))}
    return {top: _commit(Path(top)) for top in sorted(tops)}


def refuse_other_source(composed: Composed) -> None:
    """Refuses to go on with a run, or to add one to its cell, with other code of the user's own. Raises: UsageError."""
    resolved, own = composed.resolved, composed.run_dir
    for directory in dict.fromkeys([own, *sorted(own.parent.glob("seed=*"))]):
        changes = source_changes(read_json(directory / "run.json") or {}, resolved)
        has_numbers = effective_state(directory) in SETTLED or any((directory / CHECKPOINTS).glob("*.ckpt"))
        if changes and has_numbers and not composed.get("mixed_code"):
            shown = "\n  ".join(changes)
            raise UsageError(
                f"{directory} was trained with another source of your own parts (there -> now):\n  {shown}\n"
                "Give this one another name (study.name=NAME), move the old runs away, or take both with "
                "mixed_code=true, which the comparison will say."
            )


def source_changes(record: Record | Mapping[str, Any], resolved: Config) -> list[str]:
    """Which own modules of a configuration are others than those that a run.json names, a line each."""
    before = record.get("sources")
    return [] if before is None else differences(before, own_sources(resolved))


def _prefixes(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: to import the last one runs all of them."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(1, len(words) + 1)]


@functools.cache
def _own_file(module: str) -> Path | None:
    """The file of a module, or None where it is none, or is of attnlab, of Python or of an installed package."""
    spec = _spec(module)
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    path = Path(spec.origin)
    is_installed = {"site-packages", "dist-packages"} & set(path.parts)
    is_other = is_installed or any(path.is_relative_to(folder) for folder in (*INSTALLED, PACKAGE))
    return None if is_other or not path.is_file() else path


def _spec(module: str) -> ModuleSpec | None:
    """As importlib.util.find_spec, which would import the packages that a module stands in."""
    loaded = getattr(sys.modules.get(module), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    package = module.rpartition(".")[0]
    parent = _spec(package) if package else None
    if package and (parent is None or parent.submodule_search_locations is None):
        return None
    places = parent.submodule_search_locations if parent else None
    found = (finder.find_spec(module, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


@functools.cache
def _imports(module: str, path: Path) -> list[str]:
    """What a module's source imports anywhere in it, and what may be a module or a name in one."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a module that is compiled, or none that this Python reads
        return []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            words = package.split(".")
            base = words[: len(words) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{source}.{alias.name}" for alias in node.names]
    return found
