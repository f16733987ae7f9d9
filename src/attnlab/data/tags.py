"""Tags of words and the entities that they spell, read as the official scorers read them (conlleval; seqeval's default mode)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PREFIXES, UNTYPED = "BIES", "entity"
BARE = tuple(PREFIXES)


class Entity(NamedTuple):
    """The words from `start` up to but not including `end`, and what they name."""

    start: int
    end: int
    type: str


def is_tag(tag: str) -> bool:
    """Whether this is O, or one of B, I, E, S, alone or with a hyphen and a type."""
    return tag == "O" or tag in BARE or (len(tag) > 2 and tag[0] in PREFIXES and tag[1] == "-")


def typed(tag: str) -> str:
    """A tag with its type: entities of a file that tells no types apart are of the type `entity`."""
    return f"{tag}-{UNTYPED}" if tag in BARE else tag


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """
    The entities of a sentence's tags, in IOB1, IOB2 or BIOES (a tag being as `typed` gives it).

    A word begins an entity where its tag is B or S, and where no entity of its type is open: after O, E and S, and after another
    type. This one rule reads all three schemes, and gives sequences that belong to none a meaning (Tjong Kim Sang and De Meulder
    2003, conlleval).
    """
    found: list[Entity] = []
    open_type = None
    for place, tag in enumerate(tags):
        prefix, kind = tag[0], tag[2:]
        if prefix == "O":
            open_type = None
            continue
        if prefix in "BS" or kind != open_type:
            found.append(Entity(place, place + 1, kind))
        else:
            found[-1] = found[-1]._replace(end=place + 1)
        open_type = None if prefix in "ES" else kind
    return found


def iob2_of(entities: Sequence[Entity], length: int) -> list[str]:
    """The tags of `length` words in IOB2: B on an entity's first word, I on its others, O elsewhere."""
    tags = ["O"] * length
    for start, end, kind in entities:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tags


def may_follow(before: str | None, tag: str) -> bool:
    """Whether IOB2 allows a tag after another, or at the beginning (None): an I only within an entity of its type."""
    return tag[0] != "I" or (before is not None and before != "O" and before[2:] == tag[2:])
