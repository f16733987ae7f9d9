"""From words on a command line to a checked configuration, as plain data: the room that knows Hydra.

overrides: words as Hydra's grammar reads them -> compose: one configuration of all groups -> check: its fields, types
and ranges against the classes that it names -> seams: whether each class is of its group's base, what cannot be
combined -> engine: parts built of it, or jobs handed to launchers. identity: which run it is. loader: Hydra's own, with
a memory.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attnlab

# Groups of which a run has any number of choices, `callbacks=[a,b]`: each stands under its own name in its group.
LISTS = ("callbacks", "logger")
# The class of what all choices of such a group come to: a choice of it, or without a class, sets fields of the group.
WHOLE = {"logger": "attnlab.training.Tracking"}


class UsageError(Exception):
    """Something that a user can mend: the message says what must hold, what was given and what to do."""


def shipped(folder: str) -> Path:
    """`conf` or `experiments`: inside the installed wheel, or at the top of the checkout."""
    package = Path(attnlab.__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parents[1] / folder


def absolute(folder: str, beside: Path | None = None) -> str:
    """A folder of the user's own groups by its whole path (relative to `beside`, by default to where one stands).

    `file://...` and `pkg://...` are Hydra's words for those that come after attnlab's own.
    """
    scheme, _, path = folder.rpartition("://")
    whole = path if scheme == "pkg" else str(((beside or Path.cwd()) / Path(path).expanduser()).resolve())
    return f"{scheme}://{whole}" if scheme else whole


def gone(config_dirs: Iterable[str]) -> list[str]:
    """Which of these folders are not there."""
    return [str(folder) for folder in _on_disk(config_dirs) if not folder.is_dir()]


def find_parts(config_dirs: Iterable[str]) -> None:
    """Has Python find modules in these folders and beside them, wherever one stands; after all others."""
    for folder in _on_disk(config_dirs):
        for place in (str(folder), str(folder.parent)):
            if folder.is_dir() and place not in sys.path:
                sys.path.append(place)


def _on_disk(config_dirs: Iterable[str]) -> list[Path]:
    return [Path(folder.removeprefix("file://")) for folder in config_dirs if not folder.startswith("pkg://")]


def place_of(group: str, name: str, content: Mapping[str, object]) -> str:
    """Where the fields of a choice stand in a run's configuration."""
    is_whole = group not in LISTS or (group in WHOLE and content.get("_target_", WHOLE[group]) == WHOLE[group])
    return group if is_whole else f"{group}.{name}"


@contextlib.contextmanager
def usage_errors(before: str = "", after: str = "") -> Iterator[None]:
    """What a ValueError says is a UsageError's message, with words before and after it."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{before}{error}{after}") from error
