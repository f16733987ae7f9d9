"""`attnlab serve`: the pages of studies in a browser, following what runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.cli.main import command, flag, option, refused
from attnlab.config import UsageError, usage_errors

if TYPE_CHECKING:
    from attnlab.report.live.server import Server


@command(
    "serve",
    "show studies in a browser while they run: on this machine alone, to who has the token",
    option("overrides", "names, or directories of runs (default: all); runs_dir=DIR", nargs="*", metavar="STUDY"),
    option("--port", "default: the first that is free", type=int, default=0),
    flag("--open", "open the browser"),
)
def serve(arguments: Namespace) -> int:
    """Serves the studies named, or all under runs_dir, until it is stopped: returns 0 after SIGTERM, 130 after Ctrl-C.

    Raises: UsageError for a study that has not run, or a port that cannot be taken.
    """
    from urllib.parse import quote

    from attnlab.config.identity import key_and_text
    from attnlab.report.live.server import Server
    from attnlab.studies.plan import runs_dir_of, study_folder

    if not 0 <= arguments.port <= 65535:
        raise refused("--port", "from 1 to 65535, or 0 for the first that is free", arguments.port)
    names, overrides = split_words(arguments.overrides)
    runs_dir = runs_dir_of(overrides)
    names = names or [key_and_text(word)[1] for word in overrides if word.startswith("study.name=")]
    chosen = named([study_folder(name, overrides) for name in names])
    if not names and not runs_dir.is_dir():
        raise UsageError(f"runs_dir={runs_dir}: there is no such folder; `attnlab sweep STUDY` makes one")
    with usage_errors():
        server = Server((lambda: chosen) if names else (lambda: studies_in(runs_dir)), arguments.port)
    path = f"/study/{quote(next(iter(chosen)), safe='')}/" if len(chosen) == 1 else "/"
    print(invitation(server.address(path), server.port), flush=True)
    if arguments.open:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(server.address(path, once=True),), daemon=True).start()
    return _until_stopped(server)


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Studies, and settings that stand among them: a word with = names no folder that is there."""
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    return [word for word in words if word not in settings], settings


def studies_in(runs_dir: Path) -> dict[str, Path]:
    """The studies that have run there, by name."""
    from attnlab.studies.plan import has_runs

    found = {}
    with contextlib.suppress(OSError):  # the folder itself may be away for a moment
        for path in sorted(runs_dir.iterdir()):
            with contextlib.suppress(OSError):
                if has_runs(path):
                    found[path.name] = path
    return found


def named(folders: list[Path]) -> dict[str, Path]:
    """Folders by their names; one of a name that is taken is numbered."""
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        same = sum(known.name == folder.name for known in found.values())
        found[f"{folder.name} ({same + 1})" if same else folder.name] = folder
    return found


def invitation(address: str, port: int) -> str:
    """Where to look, also from another machine, and how to end it."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = "USER"
    tunnel = f"ssh -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}"
    return f"{address}\nfrom another machine: {tunnel}, then the same address there\nCtrl-C ends it"


def _until_stopped(server: Server) -> int:
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
