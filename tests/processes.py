"""Processes that begin where their imports are done: forked from a server that has loaded attnlab, which takes longer than most trainings."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from attnlab.cli.main import main

LOADED = ["attnlab.cli.train", "attnlab.runs.run", "attnlab.tasks", "attnlab.data"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LOADED)


class Started:
    """`call(*arguments)` in a process and a group of its own, which ends with what it returns; `said` keeps both of its streams."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115  it is there as long as the process may write
        given = (self._said.name, dict(os.environ), call, arguments)
        self._process = SERVER.Process(target=_begin, args=given)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs; negative for the signal that ended it."""
        self._process.join(0)
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it has said until now."""
        return Path(self._said.name).read_text()

    def wait(self, seconds: float = 250) -> int:
        """The exit status, once it has ended. Raises TimeoutError, with what it said, where it does not."""
        self._process.join(seconds)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise TimeoutError(self.said)
        return status


def command(*words: str) -> Started:
    """The `attnlab` command."""
    return Started(main, list(words))


def program(code: str, *arguments: str) -> Started:
    """`python -c code arguments`."""
    return Started(_execute, code, arguments)


def wait_for(condition: Callable[[], object], process: Started, seconds: float = 250) -> None:
    """Until the condition holds. Raises AssertionError where the process ends before, or it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {process.said}"
        assert process.poll() is None, process.said
        time.sleep(0.02)


@contextmanager
def ranks_from_server() -> Iterator[None]:
    """In it, `ranks.start` forks its processes from the server, too; a run starts them anew, as a GPU needs it."""
    from torch.distributed.launcher import api

    def launch(config: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        return partial(given(config, _as_here), dict(os.environ), call)

    given, config = api.elastic_launch, partial(api.LaunchConfig, start_method="forkserver")
    with patch.object(api, "LaunchConfig", config), patch.object(api, "elastic_launch", launch):
        yield


def _begin(said: str, environ: Mapping[str, str], call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    stream = os.open(said, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    os.environ.clear()
    os.environ.update(environ)
    status = call(*arguments)
    for text in (sys.stdout, sys.stderr):
        text.flush()
    sys.exit(status)


def _as_here(environ: Mapping[str, str], call: Callable[..., Any], *arguments: Any) -> None:
    """The server has the environment in which it was started."""
    os.environ.update(environ)
    call(*arguments)


def _execute(code: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})
