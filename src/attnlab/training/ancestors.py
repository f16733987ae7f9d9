"""Processes that end with the one that started them: workers of a sweep, ranks of a run, jobs of any launcher on this machine.

Who starts others names itself in the environment that they inherit; each of them looks whether all who are named there still run. It
holds through any number of processes in between, on every system, and whatever signal ended the one above.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from attnlab.training.run_directory import machine, process_start, slurm_job

VARIABLE = "ATTNLAB_ANCESTORS"
LOOK_SECONDS = 0.5
GRACE_SECONDS = 4.0  # to end the step and save; what is saved already stays valid without
_watching: set[int] = set()  # the process's own number: a fork has the set, but not the thread


@contextlib.contextmanager
def descendants() -> Iterator[None]:
    """What is started in it ends soon after this process does, however it does: see `end_with_ancestors`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps([*_named(), _self()])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def end_with_ancestors() -> None:
    """Ends this process when one that started it has ended: by SIGTERM, at which a training saves, and a little later in any case."""
    above = [one for one in _named() if one["pid"] != os.getpid() and _is_near(one)]
    if above and os.getpid() not in _watching:
        _watching.add(os.getpid())
        threading.Thread(target=_watch, args=(above,), name="ancestors", daemon=True).start()


def _watch(above: list[dict[str, Any]]) -> None:
    while all(process_start(one["pid"]) == one["process_start"] for one in above):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    for child in multiprocessing.active_children():  # such as those that load data
        child.kill()
    os._exit(128 + signal.SIGTERM)


def _self() -> dict[str, Any]:
    return machine() | {"pid": os.getpid(), "process_start": process_start(os.getpid()), "job": slurm_job()}


def _named() -> list[dict[str, Any]]:
    try:
        return list(json.loads(os.environ.get(VARIABLE, "[]")))
    except ValueError:
        return []


def _is_near(one: dict[str, Any]) -> bool:
    """Whether a process is in this machine's table, and not one that left a job to Slurm, which outlives it."""
    return one.get("job") == slurm_job() and all(one.get(key) == value for key, value in machine().items())
