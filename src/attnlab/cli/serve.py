"""`attnlab serve`: the pages of studies in a browser, following what runs."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attnlab.cli.compose import Mistake
from attnlab.cli.overrides import key_and_text
from attnlab.cli.reports import has_runs, runs_dir_of, study_folder


def serve(arguments: argparse.Namespace) -> int:
    """
    Serves the studies named, or all under runs_dir, until it is stopped; returns the exit status: 0 after SIGTERM, 130 after Ctrl-C.

    Raises: Mistake for a study that has not run, or a port that cannot be taken.
    """
    from attnlab.analysis.live.server import Server

    if not 0 <= arguments.port <= 65535:
        raise Mistake(f"--port {arguments.port}: expected a number from 1 to 65535, or 0 for the first that is free")
    names, overrides = split_words(arguments.overrides)
    runs_dir = runs_dir_of(overrides)
    names = names or [key_and_text(word)[1] for word in overrides if word.startswith("study.name=")]
    chosen = named([study_folder(name, overrides) for name in names])
    if not names and not runs_dir.is_dir():
        raise Mistake(f"runs_dir={runs_dir}: there is no such folder; `attnlab sweep STUDY` makes one")
    try:
        server = Server((lambda: chosen) if names else (lambda: studies_in(runs_dir)), arguments.port)
    except ValueError as error:
        raise Mistake(str(error)) from error
    path = f"/study/{quote(next(iter(chosen)), safe='')}/" if len(chosen) == 1 else "/"
    print(invitation(server.address(path), server.port), flush=True)
    if arguments.open:
        threading.Thread(target=webbrowser.open, args=(server.address(path, once=True),), daemon=True).start()
    return until_stopped(server)


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Studies, and settings that stand among them: a word with = names no folder that is there."""
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    return [word for word in words if word not in settings], settings


def studies_in(runs_dir: Path) -> dict[str, Path]:
    """The studies that have run there, by name."""
    with contextlib.suppress(OSError):  # the folder itself may be away for a moment
        return {path.name: path for path in sorted(runs_dir.iterdir()) if _is_study(path)}
    return {}


def _is_study(path: Path) -> bool:
    """Whether it is a study's directory that can be read."""
    with contextlib.suppress(OSError):
        return has_runs(path)
    return False


def named(folders: list[Path]) -> dict[str, Path]:
    """Folders by their names; one of a name that is taken is numbered."""
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        same = sum(known.name == folder.name for known in found.values())
        found[f"{folder.name} ({same + 1})" if same else folder.name] = folder
    return found


def invitation(address: str, port: int) -> str:
    """Where to look, also from another machine, and how to end it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = "USER"
    lines = [
        address,
        f"from another machine: ssh -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}, then the same address there",
        "Ctrl-C ends it",
    ]
    return "\n".join(lines)


def until_stopped(server: Any) -> int:
    """Serves in this thread until SIGTERM (0) or Ctrl-C (130)."""

    def stop(*_: object) -> None:
        raise SystemExit(0)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("attnlab: ended", file=sys.stderr)
        return 130
    except SystemExit:
        return 0
    finally:
        server.server_close()
        if is_main:
            signal.signal(signal.SIGTERM, before)
    return 0
