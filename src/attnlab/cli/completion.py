"""`attnlab completion`: what a shell offers behind TAB: commands, groups, choices, fields, studies and runs."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from attnlab.cli.main import command, groups_in, option
from attnlab.config import place_of, shipped

SHELLS = ("bash", "zsh", "fish")
Completer = Callable[..., list[str]]


@command(
    "completion",
    'print what a shell needs to complete words by TAB, as in eval "$(attnlab completion bash)"',
    option("shell", "the shell", choices=SHELLS),
)
def completion(arguments: Namespace) -> int:
    """Prints the shell's own code."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["attnlab"], shell=arguments.shell))
    return 0


def complete(parser: ArgumentParser) -> NoReturn:
    """Tells the shell how the word at the cursor may go on, and ends the process."""
    import argcomplete

    for sub in _commands(parser):
        for action in sub._actions:
            if action.dest in COMPLETERS:
                action.completer = COMPLETERS[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)
    os._exit(0)


def _commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from _commands(sub)


def _settings(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Groups and their choices, and the fields of what is chosen."""
    folders = _folders(parsed_args)
    key, equals, begun = prefix.partition("=")
    if equals:  # of several choices the last one is at the cursor
        before = begun[: 1 + max(begun.rfind(","), begun.rfind("["))]
        return [f"{key}={before}{name}" for name in _names(folders, key)]
    groups = groups_in(*folders)
    group = key.partition(".")[0]
    if "." not in key or group not in groups:
        return [f"{name}=" for name in [*groups, *_fields(_read(folders, "train"))]]
    given = dict(word.split("=", 1) for word in _words(parsed_args) if "=" in word)
    chosen = given.get(group) or _default(folders, group)
    many = {name: _read(folders, f"{group}/{name}") for name in chosen.strip("[]").split(",") if name}
    return [f"{place_of(group, name, fields)}.{field}=" for name, fields in many.items() for field in _fields(fields)]


def _choices(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Groups, and behind a slash their choices."""
    folders, (group, slash, _rest) = _folders(parsed_args), prefix.partition("/")
    names = groups_in(*folders)
    return [f"{group}/{name}" for name in _names(folders, group)] if slash else names


def _studies(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Studies that come with attnlab, those that stand here, and those that have run."""
    own = [path.parent.name for path in Path().glob("*/study.yaml")]
    run = [path.name for path in _runs_dir(parsed_args).glob("*") if path.is_dir() and path.name != "wandb"]
    return sorted({*own, *run, *(path.parent.name for path in shipped("experiments").glob("*/study.yaml"))})


def _runs(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """The directories of runs, a study's first."""
    runs_dir = _runs_dir(parsed_args)
    if prefix.count("/") <= str(runs_dir).count("/") + 1:
        return sorted(f"{path}/" for path in runs_dir.glob("*") if path.is_dir())
    return sorted(str(path) for path in runs_dir.glob("*/*/seed=*") if str(path).startswith(prefix))


COMPLETERS: Mapping[str, Completer] = {
    "overrides": _settings,
    "words": _settings,
    "choice": _choices,
    "study": _studies,
    "run": _runs,
}


def _words(parsed_args: Namespace) -> list[str]:
    return [*(getattr(parsed_args, "overrides", None) or []), *(getattr(parsed_args, "words", None) or [])]


def _runs_dir(parsed_args: Namespace) -> Path:
    given = [word.partition("=")[2] for word in _words(parsed_args) if word.startswith("runs_dir=")]
    return Path(given[-1] if given else "runs")


def _folders(parsed_args: Namespace) -> list[Path]:
    own = [Path(folder) for folder in getattr(parsed_args, "config_dir", None) or []]
    return [*(folder for folder in own if folder.is_dir()), shipped("conf")]


def _names(folders: list[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _default(folders: list[Path], group: str) -> str:
    named = [one for one in _read(folders, "train").get("defaults", []) if isinstance(one, dict)]
    return next((str(one[group]) for one in named if group in one), "")


def _read(folders: list[Path], name: str) -> dict[str, Any]:
    """The file of a choice as it stands; nothing where there is none, or it is no YAML."""
    import yaml

    path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _fields(node: Mapping[str, Any]) -> list[str]:
    """The fields of a node and of those below it, by their dotted names."""
    found: list[str] = []
    for key, value in node.items():
        if not str(key).startswith("_") and key not in ("defaults", "hydra"):
            found += [f"{key}.{inner}" for inner in _fields(value)] if isinstance(value, dict) else [str(key)]
    return found
