"""Files and tables that nobody typed, read for what they say: text and its traps, lines, columns, rows of the hub."""

from __future__ import annotations

import codecs
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, TypedDict, overload

from attnlab.data import cache as caching
from attnlab.data.cache import DIGESTS, DataError, cache_root

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}
HALF = re.compile("[\ud800-\udfff]")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def utf8_text(content: bytes, name: str) -> str:
    """UTF-8 without its byte-order mark. Raises DataError that names the text, the line and the byte in it."""
    if content.startswith(UTF16):
        raise DataError(f"{name} is in UTF-16; accepted: UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 FILE > new.txt")
    text = content.removeprefix(codecs.BOM_UTF8)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        line, place = text[: error.start].count(b"\n") + 1, error.start + len(content) - len(text)
        raise DataError(
            f"line {line:,} of {name} is no UTF-8 text (byte {place} is 0x{content[place]:02x}: {error.reason}); "
            "accepted: UTF-8. If it is text in Latin-1, convert it: iconv -f LATIN1 -t UTF-8 FILE > new.txt"
        ) from error


def read_text(file: Path) -> str:
    """A file as text, its line ends as newlines. Raises DataError."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; make it readable or leave it out") from error
    if (zero := content.find(b"\0")) >= 0 and not content.startswith(UTF16):
        raise DataError(f"{file} is binary (byte {zero} is zero); accepted: a text in UTF-8")
    return utf8_text(content, str(file)).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, plain or gzip, whatever its line ends, without a byte-order mark. Raises DataError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; give a readable file, plain or gzip") from error
    return lines_of(content, str(path))


def lines_of(content: bytes, name: str) -> list[str]:
    """The lines of UTF-8 text, whatever its line ends, without a byte-order mark. Raises DataError that names it."""
    # Only real line ends: str.splitlines would also cut at marks that stand inside of sentences. A single carriage
    # return is such a mark, too, where lines end in newlines.
    text = utf8_text(content, name).replace("\r\n", "\n")
    lines = text.split("\n" if "\n" in text else "\r")
    return lines[:-1] if lines and not lines[-1] else lines


def plain_or_gzip(path: Path) -> Path | None:
    """A file of this name, or of this name and .gz, where there is one."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def refuse_half_characters(text: str, place: str) -> None:
    """Raises DataError for half of a surrogate pair, which escapes of JSON and names of files may give, not UTF-8."""
    if half := HALF.search(text):
        raise DataError(
            f"{place} holds {half[0]!a}, half of a character or a byte that is no UTF-8; accepted: text that UTF-8 can "
            "hold. Take it out, or rename what has it in its name"
        )


def is_missing(value: object) -> bool:
    """Whether a table has nothing here: None, or the NaN that tables of numbers have in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: object, place: str) -> str:
    """A text; of a whole number, its digits. Raises DataError for anything else, which says the place."""
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{place} is {_shown(value)}; accepted: a text")


def whole_number_of(value: object, place: str) -> int:
    """A whole number, or a text that spells one. Raises DataError for anything else."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if (isinstance(value, str) and WHOLE_NUMBER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(f"{place} is {_shown(value)}; accepted: a whole number")


def truth_of(value: object, place: str) -> bool:
    """True or false, or a text or number that spells one of them. Raises DataError for anything else."""
    truth = TRUTHS.get(str(value).lower())
    if truth is None:
        raise DataError(f"{place} is {_shown(value)}; accepted: true or false")
    return truth


def class_of(given: object, names: Sequence[str] | None, place: str) -> str:
    """The name of a class: that of its number where numbers have names, else what is given.

    A column of whole numbers that lacks one became one of floats somewhere, so 1.0 is the class 1. Raises DataError
    for what has none.
    """
    if names:
        if not isinstance(given, int) or not 0 <= given < len(names):
            accepted = f"0 to {len(names) - 1} ({shorten(', '.join(names), 200)})"
            raise DataError(f"{place} has the class {given}; accepted: {accepted}. Leave out rows without a class")
        return names[given]
    if is_missing(given) or not str(given).strip():
        raise DataError(f"{place} has no class; accepted: a class in every row")
    return str(int(given)) if isinstance(given, float) and given.is_integer() else str(given)


def _shown(value: object) -> str:
    return f"{shorten(repr(value), 60, placeholder='...')} ({type(value).__name__})"


# --- tables of the hub


class HubRows(Sized, Iterable[Mapping[str, object]], Protocol):
    """What is used of a table of the library datasets."""

    column_names: list[str]
    features: Mapping[str, object]
    cache_files: list[dict[str, str]]
    flatten: Callable[[], HubRows]  # the same with a column for each field of a column

    @overload
    def __getitem__(self, key: str) -> Sequence[object]: ...
    @overload
    def __getitem__(self, key: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class HubTable:
    """A data set of the Hugging Face hub, or a local folder in its format: its path, configuration and revision."""

    path: str
    name: str | None = None
    revision: str | None = None

    def rows(self, split: str, cache: str | Path | None, **columns: str) -> HubRows:
        """The rows of a split. columns: names that have to be there, by the fields that say them. Raises DataError."""
        rows = load_hub(self.path, self.name, split, self.revision, cache)
        for field, column in columns.items():
            if column not in rows.column_names:
                accepted = ", ".join(rows.column_names)
                raise DataError(f"{self.path} has no column {column!r} (data.source.{field}); accepted: {accepted}")
        return rows

    def place(self, split: str, number: int) -> str:
        return f"row {number:,} of {self.path} ({split})"


class HubSet(TypedDict, total=False):
    """Which configuration, split to validate on and revision of a data set every source of the hub takes."""

    name: str | None
    validation: str | None
    revision: str | None


def load_hub(path: str, name: str | None, split: str, revision: str | None, cache: str | Path | None) -> HubRows:
    """The rows of one split of a data set of the hub, or of a local folder in its format. Raises DataError."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            'data from the hub need the library datasets; install it with: pip install "attnlab[hub]"'
        ) from error
    folder = cache_root(cache) / "hub"
    load: Callable[[], HubRows] = partial(
        load_dataset, path, name, split=split, revision=revision, cache_dir=str(folder)
    )
    try:
        try:
            rows = load()
            tables = {Path(file["filename"]).parent for file in rows.cache_files}
        except Exception:  # perhaps for one of the tables that the library has made of data sets
            if not _drop_damaged({found.parent for found in folder.rglob(DIGESTS)}):
                raise
            rows = load()
        else:
            rows = load() if _drop_damaged(tables) else rows
    except Exception as error:  # the library raises a dozen unrelated types; all mean that this data set cannot be had
        raise DataError(
            f"cannot load the data set {path} (name {name}, split {split}, revision {revision}): "
            f"{' '.join(str(error).split())[:300]}; look at its name, configuration, split and the network"
        ) from error
    for file in rows.cache_files:
        table = Path(file["filename"]).parent
        if table.is_relative_to(folder) and not (table / DIGESTS).exists():
            with caching.writing_to(table):
                caching.write_digests(table)
    return rows


def _drop_damaged(tables: Iterable[Path]) -> bool:
    """Removes those of the library's folders whose files have changed since, and says so; whether there was one."""
    damaged = {t: problem for t in tables if (t / DIGESTS).exists() and (problem := caching.problem_of(t))}
    for table, problem in damaged.items():
        caching.say_damaged(table, problem)
        caching.remove(table)
    return bool(damaged)


# --- tab-separated files of texts and classes

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

    @classmethod
    def read(cls, path: Path) -> Table:
        lines = read_lines(path)
        rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
        return cls(path, rows, len(lines))

    @property
    def first(self) -> list[str]:
        return self.rows[0][1] if self.rows else []

    @property
    def names(self) -> list[str]:
        """What the first line calls the columns, if it is a header."""
        return [column.strip().lower() for column in self.first]

    @property
    def has_names(self) -> bool:
        """Whether these are the usual words: a text's and a class's are among them, or only such."""
        names = set(self.names)
        texts, labels = names & set(TEXTS), names & set(LABELS)
        return bool(texts and labels) or bool((texts or labels) and names <= {*TEXTS, *LABELS, *NUMBERS})

    def class_names(self) -> set[str]:
        """The classes of all lines but the first, where every line is a text and a class."""
        return {columns[1].strip() for _, columns in self.rows[1:] if len(columns) == 2}

    def looks_like_header(self, classes: set[str]) -> bool | None:
        """Whether line 1 is a header; None where it may be an example as well.

        It is an example where its class is one of those of other lines, and a header where it has the usual names, or
        where it has a word for what all others have a number for.
        """
        given = self.first[1].strip() if len(self.first) == 2 else ""
        if self.has_names:
            return None if given in classes else True
        if given in classes:
            return False
        return True if given and classes and all(map(_is_number, classes)) and not _is_number(given) else None


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def looked_at(tables: Mapping[str, Table]) -> dict[str, bool | None]:
    """Of each file, by split, whether its line 1 looks like a header."""
    classes = set().union(*(table.class_names() for split, table in tables.items() if split != "test"))
    return {split: table.looks_like_header(classes) for split, table in tables.items()}


def headers_of(tables: Mapping[str, Table], asked: bool | None) -> dict[str, bool]:
    """Of each file, by split, whether its line 1 is a header: as asked, or as its lines show; an unclear one is where
    it shares a name with the training part's.

    Raises DataError where that is unclear too, and where the lines contradict what was asked.
    """
    found, train = looked_at(tables), tables["train"]
    if asked is False and found["train"] and train.has_names:
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
    names = set(train.names) if found["train"] else set()
    return {
        split: bool(names & set(tables[split].names)) if header is None else header for split, header in found.items()
    }


@dataclass(frozen=True)
class Columns:
    """The numbers of the columns of texts and classes (None: there are no classes), and how many columns there are."""

    text: int
    label: int | None
    count: int

    def names(self, table: Table) -> tuple[str, ...]:
        """What a header line calls the columns of texts and classes."""
        return tuple(table.names[place] for place in (self.text, self.label) if place is not None)


def columns_of(
    table: Table, header: bool, asked: tuple[str | None, str | None], usual: tuple[str, ...], labelled: bool
) -> Columns:
    """Where a file's texts and classes stand: by the names asked for, else by usual ones, else a text and a class.

    usual: names that come before those that tables usually have. labelled: whether there have to be classes. Raises
    DataError.
    """
    if not header:
        if any(asked):
            raise DataError(f"data.source.text and data.source.label name columns, and {table.path} has no header line")
        is_list = not labelled and bool(table.rows) and all(len(columns) == 1 for _, columns in table.rows)
        return Columns(0, None, 1) if is_list else Columns(0, 1, 2)
    names = table.names
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
    wanted = usual if asked is None else (asked.strip().lower(),)
    found = next((table.names.index(name) for name in wanted if name in table.names), None)
    if found is None and asked is not None and must:
        raise DataError(f"data.source.{field}={asked} is no column of {table.path}; accepted: {', '.join(table.first)}")
    return found
