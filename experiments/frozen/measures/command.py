"""Commands of attnlab, each in a process of its own that is forked when everything is imported: that takes most of the time of a short one."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import runpy
import sys
import traceback
from pathlib import Path


class Failed(Exception):
    """A command ended with another status than 0."""


def preload() -> None:
    """Imports all of attnlab, whatever its modules are called."""
    import torch

    import attnlab

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(attnlab.__path__, "attnlab."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def attnlab(scratch: Path, *words: str) -> str:
    """What `attnlab WORDS` prints. Raises Failed with what it says, unless its status is 0."""
    out, err = scratch / "stdout.txt", scratch / "stderr.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(words, out, err)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise Failed(f"attnlab {' '.join(words)} ended with {status}: {err.read_text()[-2000:]}")
    return out.read_text()


def _become(words: tuple[str, ...], out: Path, err: Path) -> None:
    """The command itself, in the new process, which never returns from here."""
    status = 1
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["attnlab", *words]
        runpy.run_module("attnlab", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
