"""Does what a page of the documentation says, in the folder where it is called: writes the files that it shows, and runs
its commands, one after the other and in one process. `python follow_docs.py PAGE [SETTING ...]`; ends with the first
command that fails."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def follow(page: Path, also: tuple[str, ...] = ()) -> int:
    """The exit status of the page's commands: 0, or that of the first that fails. also: settings for each training."""
    sys.path.insert(0, os.getcwd())  # as Python does for a script
    for language, name, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        for line in text.splitlines() if language == "bash" else ():
            print(f"$ {line}", flush=True)
            if status := run(shlex.split(line, comments=True), also):
                print(f"{line} ended with {status}", file=sys.stderr)
                return status
    return 0


def run(words: list[str], also: tuple[str, ...]) -> int:
    from attnlab.cli.main import main

    command, *rest = words
    if command == "python":
        runpy.run_path(rest[0])
        return 0
    assert command == "attnlab", f"the page runs {command}"
    return main([*rest, *(also if rest[0] == "train" else ())])


if __name__ == "__main__":
    sys.exit(follow(Path(sys.argv[1]).resolve(), tuple(sys.argv[2:])))
