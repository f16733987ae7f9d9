"""Where sentences with tagged words come from: each source gives, for every split, words and their tags in IOB2."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from attnlab.data.cache import DataError
from attnlab.data.pairs import read_lines
from attnlab.data.sources import existing, load_hub
from attnlab.data.tags import entities_of, iob2_of, is_tag, typed
from attnlab.data.values import class_of, is_missing, text_of
from attnlab.ranges import Interval, check_ranges

DOCUMENT = "-DOCSTART-"
ACCEPTED = "O, or B-, I-, E- or S- and a type, such as B-person, or B, I, E or S alone"


@dataclass(frozen=True)
class Tagged:
    """
    Sentences as words, with a tag a word in IOB2; `dropped` sentences had no word. remarks: what a reader should know
    of the reading.
    """

    words: list[list[str]]
    tags: list[list[str]]
    dropped: int = 0
    remarks: tuple[str, ...] = ()


class TaggedSource:
    """Sentences with tagged words. Subclasses give `read`."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        """The sentences of train, validation and test. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} gives no read")

    def fingerprint(self, splits: dict[str, Tagged]) -> str:
        """sha256 of all words and tags."""
        digest = hashlib.sha256()
        for name, part in sorted(splits.items()):
            lines = (
                "\n".join(map("\t".join, zip(*both, strict=True))) for both in zip(part.words, part.tags, strict=True)
            )
            digest.update("\n\n".join([name, *lines]).encode())
        return digest.hexdigest()


@check_ranges
class CoNLL(TaggedSource):
    """
    Files in the form of the CoNLL shared tasks in a folder: a word a line, columns between tabs or blanks, an empty
    line after a sentence. Other white space than these is part of a word. Before a sentence there may be comments:
    lines that begin with # and are no tagged word.

    The files are train, dev (or validation, valid) and test with the ending .conll, .txt or .tsv. token_column and
    tag_column: from 0, or from -1 backwards. Tags in IOB1, IOB2 or BIOES, with types or without, become IOB2 (see
    entities_of). Lines of -DOCSTART- are left out. Raises DataError that names file and line.
    """

    name = "conll"
    what = "named entities in CoNLL files of your own: data.path=FOLDER with train.conll, dev.conll, test.conll"
    size = "yours"
    licence = "yours"
    stems: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "validation": ("dev", "validation", "valid"),
        "test": ("test",),
    }
    endings: ClassVar[tuple[str, ...]] = (".conll", ".txt", ".tsv")

    def __init__(
        self,
        path: str | Path,
        token_column: Annotated[int, Interval()] = 0,
        tag_column: Annotated[int, Interval()] = -1,
    ) -> None:
        self.path = existing(path, "a folder with train.conll, dev.conll and test.conll (or .txt, .tsv)")
        self.token_column, self.tag_column = token_column, tag_column

    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        """The files' parts."""
        return {split: self._part(self._file(stems)) for split, stems in self.stems.items()}

    def _file(self, stems: Sequence[str]) -> Path:
        found = [path for s in stems for e in self.endings if (path := self.path / f"{s}{e}").is_file()]
        if len(found) == 1:
            return found[0]
        there = f"both {found[0].name} and {found[1].name}" if found else f"no {' or '.join(stems)}"
        raise DataError(
            f"data.path={self.path} holds {there}; give a folder with one file each of train, dev (or validation, valid) and test, "
            f"with the ending {', '.join(self.endings)}"
        )

    def _part(self, path: Path) -> Tagged:
        sentences: list[tuple[list[str], list[str]]] = [([], [])]
        lines, comments = [columns_of(line) for line in read_lines(path)], 0
        width = next(
            (len(columns) for columns in lines if columns and columns[0][:1] != "#" and columns[0] != DOCUMENT), 0
        )
        for number, columns in enumerate(lines, start=1):
            if not columns:
                sentences.append(([], []))
            elif not sentences[-1][0] and self._is_comment(columns, width):
                comments += 1
            elif columns[0] != DOCUMENT:
                word, tag = self._columns(columns, f"line {number:,} of {path}")
                sentences[-1][0].append(word)
                sentences[-1][1].append(tag)
        kept = [sentence for sentence in sentences if sentence[0]]
        remarks = (f"{comments:,} lines of comments in {path.name}",) if comments else ()
        return Tagged([words for words, _ in kept], [iob2(tags) for _, tags in kept], remarks=remarks)

    def _is_comment(self, columns: Sequence[str], width: int) -> bool:
        """
        Whether a line before a sentence is none of its words: # may begin a word too, which has as many columns as
        others and a tag.
        """
        if not columns[0].startswith("#") or (len(columns) == 1 and columns[0] != "#"):
            return False
        if len(columns) != width:
            return True
        has_tag = -width <= self.tag_column < width
        return has_tag and not is_tag(columns[self.tag_column])

    def _columns(self, columns: Sequence[str], place: str) -> tuple[str, str]:
        try:
            word, tag = columns[self.token_column], columns[self.tag_column]
        except IndexError:
            word = tag = ""
        if len(columns) < 2 or not word:
            raise DataError(
                f"{place} has {len(columns)} columns ({' '.join(columns)[:60]!r}), none of them a word (data.source.token_column="
                f"{self.token_column}) and a tag (data.source.tag_column={self.tag_column}); accepted: a word, other columns where there are "
                "any, and a tag, between tabs or blanks"
            )
        if not is_tag(tag):
            raise DataError(
                f"{place}: {tag!r} is no tag; accepted: {ACCEPTED}. data.source.tag_column={self.tag_column} says in which column the "
                "tags stand"
            )
        return word, typed(tag)


class HubEntities(TaggedSource):
    """Columns of a data set of the hub, or of a local folder in its format: lists of words, and of tags or the numbers of named tags."""

    name = "hub_entities"
    what = 'named entities of the hub, such as CoNLL-2003: data.path=NAME (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        tokens: str = "tokens",
        tags: str = "ner_tags",
        validation: str = "validation",
        test: str = "test",
        revision: str | None = None,
    ) -> None:
        self.path, self.config, self.revision = path, name, revision
        self.tokens, self.tags = tokens, tags
        self.splits = {"train": "train", "validation": validation, "test": test}

    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        """Its splits."""
        return {name: self._part(split, cache) for name, split in self.splits.items()}

    def _part(self, split: str, cache: str | Path | None) -> Tagged:
        rows = load_hub(self.path, self.config, split, self.revision, cache)
        for field, column in {"tokens": self.tokens, "tags": self.tags}.items():
            if column not in rows.column_names:
                raise DataError(
                    f"{self.path} has no column {column!r} (data.source.{field}); accepted: {', '.join(rows.column_names)}"
                )
        names: Any = getattr(getattr(rows.features[self.tags], "feature", None), "names", None)
        both = [
            self._row(words or [], tags or [], names, f"row {number:,} of {self.path} ({split})")
            for number, (words, tags) in enumerate(zip(rows[self.tokens], rows[self.tags], strict=True))
        ]
        kept = [(words, tags) for words, tags in both if words]
        return Tagged([words for words, _ in kept], [iob2(tags) for _, tags in kept], len(both) - len(kept))

    def _row(
        self, words: Sequence[Any], tags: Sequence[Any], names: Sequence[str] | None, place: str
    ) -> tuple[list[str], list[str]]:
        named = [class_of(tag, names, place) for tag in tags]
        wrong = next((f"{tag!r}, which is no tag" for tag in named if not is_tag(tag)), None)
        missing = sum(map(is_missing, words))
        if wrong is None and (len(words) != len(named) or missing):
            wrong = f"{len(words) - missing} words and {len(named)} tags"
        if wrong is not None:
            raise DataError(f"{place} has {wrong}; accepted: {ACCEPTED}, one a word")
        return [text_of(word, f"a word of {place}") for word in words], list(map(typed, named))


class WNUT17(TaggedSource):
    """
    The shared task on emerging entities in posts of the web (Derczynski et al. 2017): persons, places, groups and others not seen in training.

    path: a folder as CoNLL reads it; None: the hub, at `revision`.
    """

    name = "wnut17"
    what = "emerging entities in posts: data.path=FOLDER with train.conll, dev.conll, test.conll, or the hub where it is null"
    size = "3,394 + 1,009 + 1,287 sentences"
    licence = "CC-BY 4.0"

    def __init__(self, path: str | Path | None = None, revision: str | None = None) -> None:
        hub = partial(HubEntities, "leondz/wnut_17", revision=revision)
        self.source: TaggedSource = hub() if path is None else CoNLL(path)

    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        """The official parts."""
        return self.source.read(cache)


TAGGED_SOURCES: dict[str, type[TaggedSource]] = {s.name: s for s in (WNUT17, CoNLL, HubEntities)}


def columns_of(line: str) -> list[str]:
    """The columns of a line, between tabs where it has any, else between blanks; none of an empty line."""
    inside = line.strip(" \t")
    return [c.strip(" ") for c in line.split("\t")] if "\t" in inside else [c for c in inside.split(" ") if c]


def iob2(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence in IOB2, whatever the scheme they came in."""
    return iob2_of(entities_of(tags), len(tags))
