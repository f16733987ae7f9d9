"""Where sentence pairs come from: each source gives, for every split, two aligned lists of sentences."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from attnlab.data.cache import DataError, reading_from
from attnlab.data.corpus import check_split
from attnlab.data.fetch import wheel
from attnlab.data.sources import existing, load_hub, utf8_text
from attnlab.data.values import is_missing, text_of
from attnlab.ranges import Probability, check_ranges


@dataclass(frozen=True)
class Pairs:
    """
    Aligned sentences; `dropped` pairs had an empty side. remarks: what was decided in reading them that a reader
    should know.
    """

    sources: list[str]
    targets: list[str]
    dropped: int = 0
    remarks: tuple[str, ...] = ()


class PairSource:
    """Sentence pairs of one direction, such as en-de. Subclasses give `read`."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False

    def __init__(self, pair: str, path: str | Path | None = None) -> None:
        self.source_language, self.target_language = split_pair(pair)
        self.pair, self.path = pair, path

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """The pairs of every split: train, validation, test and those that only this source has. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} gives no read")

    def fingerprint(self, splits: dict[str, Pairs]) -> str:
        """sha256 of all sentences."""
        digest = hashlib.sha256()
        for name, pairs in sorted(splits.items()):
            digest.update(name.encode())
            for line in chain(pairs.sources, ["\t"], pairs.targets):  # one by one: together they may be gigabytes
                digest.update(b"\n" + line.encode())
        return digest.hexdigest()


class HomeAssistant(PairSource):
    """
    The interface texts of Home Assistant, translated by its users: sentences of 3 to 30 English words without placeholders.

    All pairs of one English sentence stand in one split, which its own text decides. `path` is a copy of the wheel.
    """

    name = "home_assistant"
    what = "interface texts of Home Assistant in en-de, en-es, en-nl, en-fr (PyPI wheel homeassistant 2026.2.3, fetched once)"
    size = "5,000 to 13,000 pairs"
    licence = "Apache-2.0"
    fetched = True
    languages: ClassVar[tuple[str, ...]] = ("de", "es", "nl", "fr")
    wheel: ClassVar[dict[str, str]] = {
        "package": "homeassistant",
        "version": "2026.2.3",
        "sha256": "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
    }
    placeholders: ClassVar[tuple[str, ...]] = ("{", "}", "$", "%", "http")

    def __init__(self, pair: str = "en-de", path: str | Path | None = None) -> None:
        super().__init__(
            pair, path and existing(path, "a copy of the wheel homeassistant 2026.2.3, or null to fetch it")
        )
        known = [f"en-{language}" for language in self.languages]
        known += [f"{language}-en" for language in self.languages]
        check_pair(pair, known, self.name)

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """About 90 % of the English sentences for training, 5 % each for validation and test."""
        other = self.target_language if self.source_language == "en" else self.source_language
        path = wheel(**self.wheel, cache=cache, local=self.path)
        with reading_from(path), zipfile.ZipFile(path) as archive:
            found = sorted(set(self._aligned(archive, other)))
        parts: dict[str, tuple[list[str], list[str]]] = {"train": ([], []), "validation": ([], []), "test": ([], [])}
        for english, translated in found:
            sources, targets = parts[split_of(english, (0.9, 0.05, 0.05))]
            sources.append(english if self.source_language == "en" else translated)
            targets.append(translated if self.source_language == "en" else english)
        return {name: Pairs(*both) for name, both in parts.items()}

    def _aligned(self, archive: zipfile.ZipFile, other: str) -> Iterator[tuple[str, str]]:
        names = set(archive.namelist())
        for name in sorted(names):
            counterpart = name.removesuffix("en.json") + f"{other}.json"
            if not name.endswith("/translations/en.json") or counterpart not in names:
                continue
            english, translated = (dict(flat(json.loads(archive.read(n)))) for n in (name, counterpart))
            for key, text in english.items():
                if key in translated and self._serves(text, translated[key]):
                    yield text, translated[key]

    def _serves(self, english: str, translated: str) -> bool:
        plain = not any(mark in text for text in (english, translated) for mark in (*self.placeholders, "\n"))
        return plain and english != translated and 3 <= len(english.split()) <= 30 and bool(translated.strip())


class Multi30k(PairSource):
    """
    Descriptions of pictures in en, de, fr and cs (Elliott et al. 2016): a folder in the layout of the upstream repository, or the hub.

    The test split is test_2016_flickr; the later test sets keep their own names where they are there.
    """

    name = "multi30k"
    what = (
        "descriptions of pictures: data.path=FOLDER with the upstream repository, or the hub (en-de) where it is null"
    )
    size = "29,000 pairs"
    licence = "CC-BY-NC-SA"
    languages: ClassVar[tuple[str, ...]] = ("en", "de", "fr", "cs")
    files: ClassVar[dict[str, str]] = {
        "train": "train",
        "validation": "val",
        "test": "test_2016_flickr",
        "test_2017_flickr": "test_2017_flickr",
        "test_2017_mscoco": "test_2017_mscoco",
        "test_2018_flickr": "test_2018_flickr",
    }

    def __init__(self, pair: str = "en-de", path: str | Path | None = None) -> None:
        super().__init__(pair, path and existing(path, "a folder of the multi30k repository, or null for the hub"))
        check_pair(pair, [f"{a}-{b}" for a in self.languages for b in self.languages if a != b], self.name)

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """Every split whose two files are there; train, validation and test have to be."""
        if self.path is None:
            return HubPairs(self.pair, "bentrevett/multi30k").read(cache)
        folder = next(
            (f for f in (Path(self.path) / "data" / "task1" / "raw", Path(self.path)) if f.is_dir()), Path(self.path)
        )
        found: dict[str, Pairs] = {}
        for split, stem in self.files.items():
            both = [_plain_or_gzip(folder / f"{stem}.{language}") for language in self.pair.split("-")]
            if all(both):
                found[split] = read_aligned(both[0], both[1])  # type: ignore[arg-type]  # both were found
            elif split in ("train", "validation", "test"):
                raise DataError(
                    f"data.path={self.path} holds no {stem}.{self.source_language} and {stem}.{self.target_language} (plain or .gz), "
                    "there or in data/task1/raw; give the folder of the multi30k repository"
                )
        return found


@check_ranges
class ParallelText(PairSource):
    """
    Two aligned files, line by line, or one tab-separated file; plain or gzip.

    path: the tab-separated file, or the source's file with `target_path` beside it, or the common beginning of two files that
    end in the languages (corpus for corpus.en and corpus.de). validation and test: further data of the same form (`test_path`
    for one file or a beginning); without them, sentences are split by `split`, all pairs of one source sentence together.
    """

    name = "parallel_text"
    what = "two aligned files or one tab-separated file of your own: data.path=FILE"
    size = "yours"
    licence = "yours"

    def __init__(
        self,
        pair: str,
        path: str | Path,
        target_path: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
    ) -> None:
        super().__init__(pair, path)
        self.target_path, self.validation_path, self.test_path = target_path, validation_path, test_path
        self.split = check_split(split, "data.source.split")

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """The files' splits; those that have none of their own are cut off the training file."""
        given = {"validation": self.validation_path, "test": self.test_path}
        own = {name: self._load(path, f"data.source.{name}_path") for name, path in given.items() if path}
        rest = self._rest()
        shares = {
            name: share
            for name, share in zip(("train", "validation", "test"), self.split, strict=True)
            if name not in own
        }
        total = sum(shares.values())
        parts: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in shares}
        for source, target in zip(rest.sources, rest.targets, strict=True):
            chosen = split_of(source, [share / total for share in shares.values()], tuple(shares))
            parts[chosen][0].append(source)
            parts[chosen][1].append(target)
        found = {name: Pairs(*both) for name, both in parts.items()}
        if "train" in found:
            found["train"] = replace(found["train"], dropped=rest.dropped, remarks=rest.remarks)
        return found | own

    def _rest(self) -> Pairs:
        assert self.path is not None
        if self.target_path is None:
            return self._load(str(self.path), "data.path")
        target = existing(self.target_path, "the file of the targets", "data.source.target_path")
        return read_aligned(existing(self.path, FORMS), target)

    def _load(self, path: str, field: str) -> Pairs:
        source = Path(path).expanduser()
        first, second = (_plain_or_gzip(Path(f"{source}.{language}")) for language in self.pair.split("-"))
        if first is not None and second is not None:
            return read_aligned(first, second)
        alone = first or second
        if alone is not None and not source.exists():
            missing = f"{source.name}.{self.target_language if first else self.source_language}"
            raise DataError(
                f"{field}={source}: there is {alone.name}, but no {missing} beside it (plain or .gz); accepted: {FORMS}"
            )
        return read_tabbed(existing(source, FORMS, field), self.pair)


class HubPairs(PairSource):
    """A translation data set of the Hugging Face hub, or a local folder in its format: `translation` rows, or a column a language."""

    name = "hub_pairs"
    what = 'a translation data set of the hub, such as WMT14: data=wmt14 (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"

    def __init__(self, pair: str, path: str, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(pair, path)
        self.config, self.revision = name, revision

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """Its train, validation and test splits."""
        found = {}
        for split in ("train", "validation", "test"):
            rows = load_hub(str(self.path), self.config, split, self.revision, cache)
            found[split] = aligned(*(self._column(rows, language) for language in self.pair.split("-")))
        return found

    def _column(self, rows: Any, language: str) -> list[str]:
        columns = rows.flatten()  # a column translation.de for the field de of translation
        known = [name.removeprefix("translation.") for name in columns.column_names]
        if language not in known:
            raise DataError(
                f"{self.path} has no language {language!r} (data.pair={self.pair}); it has: {', '.join(sorted(known))}"
            )
        texts = columns[columns.column_names[known.index(language)]]
        place = f"a text in {language} of {self.path}"
        return ["" if is_missing(text) else text_of(text, place) for text in texts]


FORMS = (
    "a tab-separated file; or a source file with data.source.target_path; or the common beginning of two files that end in the "
    "languages of data.pair, such as corpus for corpus.en and corpus.de; plain or .gz"
)
SIDES = (("source", "target"), ("src", "tgt"), ("src", "trg"), ("input", "output"), ("input", "target"))
PAIR_SOURCES: dict[str, type[PairSource]] = {s.name: s for s in (HomeAssistant, Multi30k, ParallelText, HubPairs)}


def split_pair(pair: str) -> tuple[str, str]:
    """The two languages of a pair. Raises DataError for what is no pair."""
    languages = pair.split("-")
    if len(languages) != 2 or not all(languages):
        raise DataError(f"data.pair={pair} is no pair of languages; accepted: SOURCE-TARGET, such as en-de")
    return languages[0], languages[1]


def check_pair(pair: str, known: Sequence[str], name: str) -> None:
    """Raises DataError for a pair that a source does not have."""
    if pair not in known:
        raise DataError(f"data.pair={pair}: {name} has no such pair; it has {', '.join(known)}")


def split_of(text: str, shares: Sequence[float], names: Sequence[str] = ("train", "validation", "test")) -> str:
    """The split that a text falls into by its own hash, so that equal texts stay together and others move nothing."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    for name, share in zip(names, shares, strict=True):
        place -= share
        if place < 0:
            return name
    return names[0]


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The texts of nested dictionaries by their dotted keys."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}")
    elif isinstance(node, str):
        yield prefix, node.strip()


def aligned(sources: list[str], targets: list[str]) -> Pairs:
    """Pairs of stripped sentences, those with an empty side dropped and counted."""
    kept: tuple[list[str], list[str]] = ([], [])
    for source, target in zip(sources, targets, strict=True):
        both = source.strip(), target.strip()
        if all(both):
            kept[0].append(both[0])
            kept[1].append(both[1])
    return Pairs(*kept, dropped=len(sources) - len(kept[0]))


def read_aligned(source: Path, target: Path) -> Pairs:
    """Two files whose lines belong together. Raises DataError where one has more lines than the other."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        longer, shorter = (source, target) if len(sources) > len(targets) else (target, source)
        fewer = min(len(sources), len(targets))
        raise DataError(
            f"{source} has {len(sources):,} lines and {target} has {len(targets):,}: line {fewer + 1:,} of {longer} has no "
            f"counterpart in {shorter}; aligned files have the same number of lines"
        )
    return aligned(sources, targets)


def read_tabbed(path: Path, pair: str) -> Pairs:
    """
    One file with a source, a tab and a target on each line.

    A line 1 of the pair's languages, or of words such as source and target, names the columns, in either order.
    Raises DataError for a line of another form.
    """
    sources, targets = [], []
    lines = read_lines(path)
    names = lines[0].lower().split("\t") if lines else []
    order = next(
        (
            o
            for o in (1, -1)
            for known in (pair.lower().split("-"), *SIDES)
            if [n.strip() for n in names] == [*known][::o]
        ),
        0,
    )
    for number, line in enumerate(lines, start=1):
        if number == 1 and order:
            continue
        columns = line.split("\t") if line.strip() else ["", ""]
        if len(columns) != 2:
            raise DataError(
                f"line {number:,} of {path} has {len(columns)} columns; accepted: a source, one tab and a target on every line. "
                f"Pairs stand in {FORMS}"
            )
        sources.append(columns[0])
        targets.append(columns[1])
    if not order:
        return aligned(sources, targets)
    remark = f"line 1 of {path.name} names the columns ({', '.join(names)})"
    return replace(aligned(*((sources, targets)[::order])), remarks=(remark,))


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
    # Only real line ends: str.splitlines would also cut at marks that stand inside of sentences. A single carriage return is such
    # a mark, too, where lines end in newlines.
    text = utf8_text(content, name).replace("\r\n", "\n")
    lines = text.split("\n" if "\n" in text else "\r")
    return lines[:-1] if lines and not lines[-1] else lines


def _plain_or_gzip(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
