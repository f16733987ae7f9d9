"""Where a run's numbers come from: attnlab's code, the parts of the user's own and what they import, the libraries' versions."""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attnlab
from attnlab.cli.compose import Composed, Mistake, targets_of
from attnlab.training.run_directory import CHECKPOINTS, SETTLED, differences, effective_state, read_json

LIBRARIES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "tokenizers")
DIGITS = 16  # of SHA-256 in hexadecimal
PACKAGE = Path(attnlab.__file__).parent
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@functools.cache
def code_version() -> dict[str, Any]:
    """The release, the commit of the checkout that the code stands in (null for an installed wheel), and the digest of the code itself."""
    answer: dict[str, Any] = {"version": attnlab.__version__, "commit": None, "dirty": None}
    if (PACKAGE.parents[1] / ".git").exists():
        answer |= _commit(PACKAGE)
    whole = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        whole.update(f"{path.relative_to(PACKAGE)}\0{_digest(path)}\n".encode())
    return answer | {"source": whole.hexdigest()[:DIGITS]}


def _commit(folder: Path) -> dict[str, Any]:
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions(resolved: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The versions that decide a run's numbers: of attnlab's libraries, and of those that a configuration takes parts from."""
    found = {"python": platform.python_version()}
    others = {target.split(".")[0] for target in targets_of(resolved or {})} - {"attnlab"}
    for name in (*LIBRARIES, *sorted(others - set(LIBRARIES))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in LIBRARIES:
                found[name] = "not installed"
    return found


def own_sources(resolved: Mapping[str, Any]) -> dict[str, str]:
    """
    The digest of each module that the parts outside attnlab stand in, and of every module of the user's own that these import.

    Nothing is run for it: imports are read in the source. What a process has seen once it does not look at again: it trains what it
    has loaded.
    """
    found: dict[str, str] = {}
    waiting = [name for target in targets_of(resolved) for name in _prefixes(target)]
    while waiting:
        name = waiting.pop()
        path = _own_file(name)
        if path is not None and name not in found:
            found[name] = _digest(path)
            waiting += (prefix for used in _imports(name, path) for prefix in _prefixes(used))
    return dict(sorted(found.items()))


def own_repositories(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Commit and state of the repositories in which modules of the user's own stand, by their folders."""
    folders = {path.parent for name in sources if (path := _own_file(name)) is not None}
    tops = {top for folder in folders if (top := _git(folder, "rev-parse", "--show-toplevel"))}
    return {top: _commit(Path(top)) for top in sorted(tops)}


def refuse_other_source(composed: Composed) -> None:
    """
    Refuses to go on with a run, or to add one to its cell, with other code of the user's own than it has been trained with.

    A run that has saved nothing holds no number of the old code. Raises: Mistake, unless mixed_code=true.
    """
    resolved, own = composed.resolved, Path(str(composed.config.run_dir))
    for directory in dict.fromkeys([own, *sorted(own.parent.glob("seed=*"))]):
        changes = source_changes(read_json(directory / "run.json") or {}, resolved)
        if changes and not composed.config.get("mixed_code") and _has_numbers(directory):
            shown = "\n  ".join(changes)
            raise Mistake(
                f"{directory} was trained with another source of your own parts (there -> now):\n  {shown}\n"
                "Give this one another name (study.name=NAME), move the old runs away, or take both with mixed_code=true, "
                "which the comparison will say."
            )


def source_changes(record: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[str]:
    """Which own modules of a configuration are others than those that a run.json names, a line each; none where it names none."""
    before = record.get("sources")
    return differences(before, own_sources(resolved)) if before is not None else []


def _has_numbers(directory: Path) -> bool:
    return effective_state(directory) in SETTLED or any((directory / CHECKPOINTS).glob("*.ckpt"))


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
    is_installed = "site-packages" in path.parts or "dist-packages" in path.parts
    is_installed = is_installed or any(path.is_relative_to(folder) for folder in INSTALLED)
    return None if is_installed or path.is_relative_to(PACKAGE) or not path.is_file() else path


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
    for finder in sys.meta_path:
        spec = finder.find_spec(module, places) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


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
