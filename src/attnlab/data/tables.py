"""
Tab-separated tables of labelled texts: whether line 1 names the columns, and which columns hold the texts and their
classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnlab.data.cache import DataError

# What the columns of published tables are called.
TEXTS = (
    *("sentence", "text", "review", "tweet", "comment", "content", "message", "document", "utterance", "question"),
    *("headline", "title", "description", "body", "sms", "phrase", "post", "abstract", "summary", "query", "input"),
)
LABELS = (
    *("label", "labels", "class", "category", "sentiment", "target", "gold_label", "intent", "polarity", "emotion"),
    *("topic", "rating", "stars", "score", "is_spam", "spam", "tag", "type", "answer", "output", "y"),
)
NUMBERS = ("index", "idx", "id", "no", "nr", "#", "")  # of rows
FORM = "a text, one tab and a class on every line, or a header line that names the columns"


@dataclass(frozen=True)
class Table:
    """The rows of a file that are not blank, each with the number of its line, and how many lines there are."""

    path: Path
    rows: list[tuple[int, list[str]]]
    num_lines: int

    @property
    def first(self) -> list[str]:
        """The columns of the first line."""
        return self.rows[0][1] if self.rows else []

    def class_names(self) -> set[str]:
        """The classes of all lines but the first, where every line is a text and a class."""
        return {columns[1].strip() for _, columns in self.rows[1:] if len(columns) == 2}


def read_table(path: Path, lines: Sequence[str]) -> Table:
    """The table of these lines."""
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    return Table(path, rows, len(lines))


def names_of(columns: Sequence[str]) -> list[str]:
    """Columns as names."""
    return [column.strip().lower() for column in columns]


def has_names(columns: Sequence[str]) -> bool:
    """
    Whether columns are called by these words: a text's and a class's are among them, or there are no others than
    such.
    """
    names = set(names_of(columns))
    texts, labels = names & set(TEXTS), names & set(LABELS)
    return bool(texts and labels) or bool((texts or labels) and names <= {*TEXTS, *LABELS, *NUMBERS})


def looks_like_header(columns: Sequence[str], classes: set[str]) -> bool | None:
    """
    Whether the columns of a line 1 are a header; None where they may be either.

    They are an example where their class is one of those of other lines, and a header where they have the usual
    names, or where they have a word for what all others have a number for.
    """
    given = columns[1].strip() if len(columns) == 2 else ""
    if has_names(columns):
        return None if given in classes else True
    if given in classes:
        return False
    numbers = bool(classes) and all(map(is_number, classes))
    return True if given and numbers and not is_number(given) else None


def is_number(text: str) -> bool:
    """Whether this spells a whole number."""
    return text.removeprefix("-").isdecimal()


def looked_at(tables: Mapping[str, Table]) -> dict[str, bool | None]:
    """Of each file, by split, whether its line 1 looks like a header."""
    classes = set().union(*(table.class_names() for split, table in tables.items() if split != "test"))
    return {split: looks_like_header(table.first, classes) for split, table in tables.items()}


def headers_of(tables: Mapping[str, Table], asked: bool | None) -> dict[str, bool]:
    """
    Of each file, by split, whether its line 1 is a header: as asked, or as its lines show; an unclear one is where it
    shares a name with the training part's.

    Raises DataError where that is unclear too, and where the lines contradict what was asked.
    """
    found, train = looked_at(tables), tables["train"]
    if asked is False and found["train"] and has_names(train.first):
        raise DataError(
            f"data.source.header=false, but line 1 of {train.path} names its columns ({', '.join(train.first)}); set "
            "data.source.header=null or true"
        )
    if asked is not None:
        return dict.fromkeys(tables, asked)
    if found["train"] is None and len(train.first) == 2:
        found["train"] = any(table.first == train.first for split, table in tables.items() if split != "train")
        if not found["train"]:
            raise DataError(
                f"line 1 of {train.path} may be a header or an example ({' | '.join(train.first)[:80]}): no other line "
                f"has the class {train.first[1].strip()!r}; set data.source.header=true or false"
            )
    names = set(names_of(train.first)) if found["train"] else set()
    return {
        split: bool(names & set(names_of(tables[split].first))) if header is None else header
        for split, header in found.items()
    }


@dataclass(frozen=True)
class Columns:
    """The numbers of the columns of texts and classes (None: there are no classes), and how many columns there are."""

    text: int
    label: int | None
    count: int

    def names(self, table: Table) -> tuple[str, ...]:
        """What a header line calls the columns of texts and classes."""
        names = names_of(table.first)
        return tuple(names[place] for place in (self.text, self.label) if place is not None)


def columns_of(
    table: Table, header: bool, asked: tuple[str | None, str | None], usual: tuple[str, ...], labelled: bool
) -> Columns:
    """
    Where a file's texts and classes stand: by the names asked for, else by usual ones, else a text and a class.

    usual: names that come before those that tables usually have. labelled: whether there have to be classes. Raises
    DataError.
    """
    if not header:
        if any(asked):
            raise DataError(f"data.source.text and data.source.label name columns, and {table.path} has no header line")
        is_list = not labelled and bool(table.rows) and all(len(columns) == 1 for _, columns in table.rows)
        return Columns(0, None, 1) if is_list else Columns(0, 1, 2)
    names = names_of(table.first)
    label = _place(table, "label", asked[1], [n for n in (*usual[1:], *LABELS) if n != asked[0]], must=labelled)
    others = [n for n in (*usual[:1], *TEXTS) if label is None or n != names[label]]
    text = _place(table, "text", asked[0], others, must=True)
    if len(names) == 2:
        text, label = _of_two(names, text, label)
    if text is None or (labelled and label is None):
        missing, what = ("text", "texts") if text is None else ("label", "classes")
        raise DataError(
            f"line 1 of {table.path} names the columns {', '.join(table.first)}; set data.source.{missing} to the one "
            f"of the {what}"
        )
    return Columns(text, label, len(names))


def _of_two(names: Sequence[str], text: int | None, label: int | None) -> tuple[int | None, int | None]:
    """The one column for the other, unless it numbers the rows; where neither is known, a text and a class."""
    if text is None and label is None:
        return 0, 1
    if text is None and label is not None and names[1 - label] not in NUMBERS:
        text = 1 - label
    elif label is None and text is not None and names[1 - text] not in NUMBERS:
        label = 1 - text
    return text, label


def _place(table: Table, field: str, asked: str | None, usual: Sequence[str], must: bool) -> int | None:
    names = names_of(table.first)
    wanted = usual if asked is None else (asked.strip().lower(),)
    found = next((names.index(name) for name in wanted if name in names), None)
    if found is None and asked is not None and must:
        raise DataError(f"data.source.{field}={asked} is no column of {table.path}; accepted: {', '.join(table.first)}")
    return found
