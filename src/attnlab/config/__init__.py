"""From words on a command line to a checked configuration, as plain data: the room that knows Hydra.

overrides: words as Hydra's grammar reads them -> compose: one configuration of all groups -> check: its fields, types
and ranges against the classes that it names -> seams: whether each class is of its group's base, what cannot be
combined -> engine: parts built of it, or jobs handed to launchers. identity: which run it is. loader: Hydra's own, with
a memory.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attnlab

# Groups of which a run has any number of choices, `callbacks=[a,b]`: each stands under its own name in its group.
LISTS = ("callbacks",)


class UsageError(Exception):
    """Something that a user can mend: the message says what must hold, what was given and what to do."""


def shipped(folder: str) -> Path:
    """`conf` or `experiments`: inside the installed wheel, or at the top of the checkout."""
    package = Path(attnlab.__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parents[1] / folder


@contextlib.contextmanager
def usage_errors(before: str = "", after: str = "") -> Iterator[None]:
    """What a ValueError says is a UsageError's message, with words before and after it."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{before}{error}{after}") from error
