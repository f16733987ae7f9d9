"""Where sentences with tagged words come from, and the entities that tags spell, as conlleval and seqeval read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Unpack

from attnlab.data.cache import DataError
from attnlab.data.readers import HubSet, class_of, is_missing, read_lines, text_of
from attnlab.data.source import Examples, ExampleSource, InHub, completed, existing
from attnlab.ranges import Interval, check_ranges

PREFIXES, UNTYPED = "BIES", "entity"
DOCUMENT = "-DOCSTART-"
ACCEPTED = "O, or B-, I-, E- or S- and a type, such as B-person, or B, I, E or S alone"
Sentence = tuple[list[str], list[str]]  # words and their tags


class Entity(NamedTuple):
    """The words from `start` up to but not including `end`, and what they name."""

    start: int
    end: int
    type: str


def is_tag(tag: str) -> bool:
    """Whether this is O, or one of B, I, E, S, alone or with a hyphen and a type."""
    return tag == "O" or tag in tuple(PREFIXES) or (len(tag) > 2 and tag[0] in PREFIXES and tag[1] == "-")


def typed(tag: str) -> str:
    """A tag with its type: entities of a file that tells no types apart are of the type `entity`."""
    return f"{tag}-{UNTYPED}" if tag in tuple(PREFIXES) else tag


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence's tags, in IOB1, IOB2 or BIOES (a tag being as `typed` gives it).

    A word begins an entity where its tag is B or S, and where no entity of its type is open: after O, E and S, and
    after another type. This one rule reads all three schemes, and gives sequences that belong to none a meaning (Tjong
    Kim Sang and De Meulder 2003, conlleval).
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


def iob2(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence in IOB2, whatever scheme they came in: B on an entity's first word, I on its others."""
    found = ["O"] * len(tags)
    for start, end, kind in entities_of(tags):
        found[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return found


def may_follow(before: str | None, tag: str) -> bool:
    """Whether IOB2 allows a tag after another, or at the beginning (None): an I only within an entity of its type."""
    return tag[0] != "I" or (before is not None and before != "O" and before[2:] == tag[2:])


# --- sources


@dataclass(frozen=True)
class Tagged(Examples):
    """Sentences as words, with a tag a word in IOB2; those without a word are dropped."""

    words: list[list[str]]
    tags: list[list[str]]

    @property
    def keys(self) -> list[str]:
        return list(map(" ".join, self.words))

    def update(self, digest: hashlib._Hash, name: str) -> None:
        both = zip(self.words, self.tags, strict=True)
        lines = ("\n".join(map("\t".join, zip(*sentence, strict=True))) for sentence in both)
        digest.update("\n\n".join([name, *lines]).encode())


class TaggedSource(ExampleSource[Tagged]):
    """Sentences with a tag a word."""

    kind, shelf = "named entities", "tagged"


def tagged(sentences: Sequence[Sentence], remarks: tuple[str, ...] = ()) -> Tagged:
    """Sentences whose tags are of any scheme, in IOB2; those without a word dropped and counted."""
    kept = [(words, iob2(tags)) for words, tags in sentences if words]
    dropped = len(sentences) - len(kept)
    return Tagged([words for words, _ in kept], [tags for _, tags in kept], dropped=dropped, remarks=remarks)


@check_ranges
class CoNLL(TaggedSource):
    """Files in the form of the CoNLL shared tasks in a folder: a word a line, columns between tabs or blanks, an empty
    line after a sentence. Other white space than these is part of a word. Before a sentence there may be comments:
    lines that begin with # and are no tagged word.

    The files are train, dev (or validation, valid) and test with the ending .conll, .txt or .tsv. token_column and
    tag_column: from 0, or from -1 backwards. Tags in IOB1, IOB2 or BIOES, with types or without, become IOB2 (see
    entities_of). Lines of -DOCSTART- are left out. Raises DataError that names file and line.
    """

    name = "conll"
    what = "named entities in CoNLL files of your own: data.path=FOLDER with train.conll, dev.conll, test.conll"
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
        return {split: self._part(self._file(stems)) for split, stems in self.stems.items()}

    def _part(self, path: Path) -> Tagged:
        found: list[Sentence] = [([], [])]
        lines, comments = [_columns_of(line) for line in read_lines(path)], 0
        widths = (len(c) for c in lines if c and not c[0].startswith("#") and c[0] != DOCUMENT)
        width = next(widths, 0)
        for number, columns in enumerate(lines, start=1):
            if not columns:
                found.append(([], []))
            elif not found[-1][0] and self._is_comment(columns, width):
                comments += 1
            elif columns[0] != DOCUMENT:
                word, tag = self._tagged_word(columns, f"line {number:,} of {path}")
                found[-1][0].append(word)
                found[-1][1].append(tag)
        remarks = (f"{comments:,} lines of comments in {path.name}",) if comments else ()
        return tagged([sentence for sentence in found if sentence[0]], remarks)

    def _file(self, stems: Sequence[str]) -> Path:
        found = [path for s in stems for e in self.endings if (path := self.path / f"{s}{e}").is_file()]
        if len(found) == 1:
            return found[0]
        there = f"both {found[0].name} and {found[1].name}" if found else f"no {' or '.join(stems)}"
        raise DataError(
            f"data.path={self.path} holds {there}; give a folder with one file each of train, dev (or validation, "
            f"valid) and test, with the ending {', '.join(self.endings)}"
        )

    def _is_comment(self, columns: Sequence[str], width: int) -> bool:
        """Whether a line before a sentence is none of its words: a word may begin with #, and has columns and a tag."""
        if not columns[0].startswith("#") or (len(columns) == 1 and columns[0] != "#"):
            return False
        if len(columns) != width:
            return True
        return -width <= self.tag_column < width and not is_tag(columns[self.tag_column])

    def _tagged_word(self, columns: Sequence[str], place: str) -> tuple[str, str]:
        try:
            word, tag = columns[self.token_column], columns[self.tag_column]
        except IndexError:
            word = tag = ""
        if len(columns) < 2 or not word:
            raise DataError(
                f"{place} has {len(columns)} columns ({' '.join(columns)[:60]!r}), none of them a word "
                f"(data.source.token_column={self.token_column}) and a tag (data.source.tag_column={self.tag_column}); "
                "accepted: a word, other columns where there are any, and a tag, between tabs or blanks"
            )
        if not is_tag(tag):
            raise DataError(
                f"{place}: {tag!r} is no tag; accepted: {ACCEPTED}. data.source.tag_column={self.tag_column} says in "
                "which column the tags stand"
            )
        return word, typed(tag)


class HubEntities(InHub, TaggedSource):
    """Columns of a data set of the hub: words, and tags or the numbers of named tags."""

    name = "hub_entities"
    what = 'named entities of the hub, such as CoNLL-2003: data.path=NAME (needs pip install "attnlab[hub]")'
    defaults: ClassVar[HubSet] = {"validation": "validation"}

    def __init__(
        self, path: str, tokens: str = "tokens", tags: str = "ner_tags", test: str = "test", **fields: Unpack[HubSet]
    ) -> None:
        super().__init__(path, test, **self.defaults | fields)
        self.tokens, self.tags = tokens, tags

    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        return completed({name: tagged(list(self._rows(split, cache))) for name, split in self.splits.items()})

    def _rows(self, split: str, cache: str | Path | None) -> Iterator[Sentence]:
        rows = self.table.rows(split, cache, tokens=self.tokens, tags=self.tags)
        names = getattr(getattr(rows.features[self.tags], "feature", None), "names", None)
        pairs: Iterator[tuple[Any, Any]] = zip(rows[self.tokens], rows[self.tags], strict=True)
        for number, (words, tags) in enumerate(pairs):
            yield self._row(words or [], tags or [], names, self.table.place(split, number))

    def _row(self, words: Sequence[Any], tags: Sequence[Any], names: Sequence[str] | None, place: str) -> Sentence:
        named = [class_of(tag, names, place) for tag in tags]
        wrong = next((f"{tag!r}, which is no tag" for tag in named if not is_tag(tag)), None)
        missing = sum(map(is_missing, words))
        if wrong is None and (len(words) != len(named) or missing):
            wrong = f"{len(words) - missing} words and {len(named)} tags"
        if wrong is not None:
            raise DataError(f"{place} has {wrong}; accepted: {ACCEPTED}, one a word")
        return [text_of(word, f"a word of {place}") for word in words], list(map(typed, named))


class WNUT17(TaggedSource):
    """The shared task on emerging entities in posts of the web (Derczynski et al. 2017): persons, places, groups and
    others not seen in training.

    path: a folder as CoNLL reads it; None: the hub, at `revision`.
    """

    name = "wnut17"
    what = "emerging entities in posts: data.path=FOLDER as data=conll reads it, or the hub where it is null"
    size = "3,394 + 1,009 + 1,287 sentences"
    licence = "CC-BY 4.0"

    def __init__(self, path: str | Path | None = None, revision: str | None = None) -> None:
        hub = partial(HubEntities, "leondz/wnut_17", revision=revision)
        self.source: TaggedSource = hub() if path is None else CoNLL(path)

    def read(self, cache: str | Path | None = None) -> dict[str, Tagged]:
        return self.source.read(cache)


def _columns_of(line: str) -> list[str]:
    """The columns of a line, between tabs where it has any, else between blanks; none of an empty line."""
    inside = line.strip(" \t")
    return [c.strip(" ") for c in line.split("\t")] if "\t" in inside else [c for c in inside.split(" ") if c]
