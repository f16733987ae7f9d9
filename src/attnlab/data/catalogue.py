"""Every source of data that attnlab knows: what it is, and whether it is prepared. Listing them imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from attnlab.data.cache import cache_root
from attnlab.data.entities import TAGGED_SOURCES
from attnlab.data.images import IMAGE_SOURCES
from attnlab.data.labelled import LABELLED_SOURCES
from attnlab.data.pairs import PAIR_SOURCES
from attnlab.data.questions import QUESTION_SOURCES
from attnlab.data.sources import SOURCES


class Described(Protocol):
    """What a source says about itself; `fetched`: it is always the same data, so that they may already be there."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool]


@dataclass(frozen=True)
class Shelf:
    """The sources of one kind, by name, and the folder of the cache in which what is prepared of them is kept as NAME-..."""

    kind: str
    kept: str
    sources: Mapping[str, type[Described]]


CATALOGUE = (
    Shelf("text", "corpora", SOURCES),
    Shelf("sentence pairs", "pairs", PAIR_SOURCES),
    Shelf("labelled text", "labelled", LABELLED_SOURCES),
    Shelf("named entities", "tagged", TAGGED_SOURCES),
    Shelf("questions", "questions", QUESTION_SOURCES),
    Shelf("images", "images", IMAGE_SOURCES),
)


@dataclass(frozen=True)
class SourceRow:
    """One source of the list; `is_prepared` is None for one whose data the user names. class_name: what a configuration calls it."""

    kind: str
    name: str
    class_name: str
    what: str
    size: str
    licence: str
    is_prepared: bool | None


def describe_sources(cache: str | Path | None = None) -> list[SourceRow]:
    """Every source, and whether something of it is already prepared in the cache."""
    rows = []
    for shelf in CATALOGUE:
        folder = cache_root(cache) / shelf.kept
        for name, source in shelf.sources.items():
            is_prepared = any(folder.glob(f"{name}-*")) if source.fetched else None
            facts = (source.what, source.size, source.licence)
            rows.append(SourceRow(shelf.kind, name, source.__name__, *facts, is_prepared))
    return rows
