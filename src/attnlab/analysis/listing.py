"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def listing(names: Sequence[str], most: int = 7) -> str:
    """ "a, b and c"; what is beyond `most` is counted."""
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
