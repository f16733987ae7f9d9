"""Where a run's numbers come from: the code's version, the libraries', the machine's."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attnlab

LIBRARIES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "tokenizers")


def code_version() -> dict[str, Any]:
    """The release, and the commit of the checkout that the code stands in (null for an installed wheel)."""
    package = Path(attnlab.__file__).parent
    answer: dict[str, Any] = {"version": attnlab.__version__, "commit": None, "dirty": None}
    if not (package.parents[1] / ".git").exists():
        return answer
    answer["commit"] = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    answer["dirty"] = None if changed is None else bool(changed)
    return answer


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
