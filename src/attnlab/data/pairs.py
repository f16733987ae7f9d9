"""Where sentence pairs come from: aligned sources and targets."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from attnlab.data.cache import DataError, reading_from
from attnlab.data.fetch import wheel
from attnlab.data.readers import HubTable, is_missing, plain_or_gzip, read_lines, text_of
from attnlab.data.source import SPLITS, Examples, ExampleSource, check_split, copy_of, divide, existing
from attnlab.ranges import Probability, check_ranges

FORMS = (
    "a tab-separated file; or a source file with data.source.target_path; or the common beginning of two files that "
    "end in the languages of data.pair, such as corpus for corpus.en and corpus.de; plain or .gz"
)
SIDES = (("source", "target"), ("src", "tgt"), ("src", "trg"), ("input", "output"), ("input", "target"))


@dataclass(frozen=True)
class Pairs(Examples):
    """Aligned sentences; those with an empty side are dropped."""

    sources: list[str]
    targets: list[str]

    @property
    def keys(self) -> list[str]:
        return self.sources


class PairSource(ExampleSource[Pairs]):
    """Sentence pairs of one direction, such as en-de."""

    kind, shelf = "sentence pairs", "pairs"

    def __init__(self, pair: str, path: str | Path | None = None) -> None:
        languages = pair.split("-")
        if len(languages) != 2 or not all(languages):
            raise DataError(f"data.pair={pair} is no pair of languages; accepted: SOURCE-TARGET, such as en-de")
        self.source_language, self.target_language = languages
        self.pair, self.path = pair, path

    def refuse_unless(self, known: Sequence[str]) -> None:
        """Raises DataError for a pair that the data set does not have."""
        if self.pair not in known:
            raise DataError(f"data.pair={self.pair}: {self.name} has no such pair; it has {', '.join(known)}")


class HomeAssistant(PairSource):
    """
    The interface texts of Home Assistant, translated by its users: sentences of 3 to 30 English words without
    placeholders.

    All pairs of one English sentence stand in one split, which its own text decides. `path` is a copy of the wheel.
    """

    name = "home_assistant"
    what = (
        "interface texts of Home Assistant in en-de, en-es, en-nl, en-fr (PyPI wheel homeassistant 2026.2.3, fetched "
        "once)"
    )
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
        super().__init__(pair, copy_of(self.wheel, path))
        self.refuse_unless([f"en-{other}" for other in self.languages] + [f"{other}-en" for other in self.languages])

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """About 90 % of the English sentences for training, 5 % each for validation and test."""
        from_english = self.source_language == "en"
        path = wheel(**self.wheel, cache=cache, local=self.path)
        with reading_from(path), zipfile.ZipFile(path) as archive:
            other = self.target_language if from_english else self.source_language
            found = sorted(set(self._aligned(archive, other)))
        english = Pairs([pair[0] for pair in found], [pair[1] for pair in found])
        parts = divide(english, {"train": 0.9, "validation": 0.05, "test": 0.05})
        if from_english:
            return parts
        return {name: Pairs(part.targets, part.sources) for name, part in parts.items()}

    def _aligned(self, archive: zipfile.ZipFile, other: str) -> Iterator[tuple[str, str]]:
        names = set(archive.namelist())
        for name in sorted(names):
            counterpart = name.removesuffix("en.json") + f"{other}.json"
            if not name.endswith("/translations/en.json") or counterpart not in names:
                continue
            english, translated = (dict(_flat(json.loads(archive.read(n)))) for n in (name, counterpart))
            for key, text in english.items():
                if key in translated and self._serves(text, translated[key]):
                    yield text, translated[key]

    def _serves(self, english: str, translated: str) -> bool:
        plain = not any(mark in text for text in (english, translated) for mark in (*self.placeholders, "\n"))
        return plain and english != translated and 3 <= len(english.split()) <= 30 and bool(translated.strip())


class Multi30k(PairSource):
    """
    Descriptions of pictures in en, de, fr and cs (Elliott et al. 2016): a folder in the layout of the upstream
    repository, or the hub.

    The test split is test_2016_flickr; the later test sets keep their own names where they are there.
    """

    name = "multi30k"
    what = (
        "descriptions of pictures: data.path=FOLDER with the upstream repository, or the hub (en-de) where it is null"
    )
    size = "29,000 pairs"
    licence = "CC-BY-NC-SA"
    languages: ClassVar[tuple[str, ...]] = ("en", "de", "fr", "cs")
    later: ClassVar[tuple[str, ...]] = ("test_2017_flickr", "test_2017_mscoco", "test_2018_flickr")
    stems: ClassVar[dict[str, str]] = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

    def __init__(self, pair: str = "en-de", path: str | Path | None = None) -> None:
        super().__init__(pair, path and existing(path, "a folder of the multi30k repository, or null for the hub"))
        self.refuse_unless([f"{a}-{b}" for a in self.languages for b in self.languages if a != b])

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        """Every split whose two files are there; train, validation and test have to be."""
        if self.path is None:
            return HubPairs(self.pair, "bentrevett/multi30k").read(cache)
        inner = Path(self.path) / "data" / "task1" / "raw"
        folder = inner if inner.is_dir() else Path(self.path)
        found: dict[str, Pairs] = {}
        for split, stem in {**self.stems, **{name: name for name in self.later}}.items():
            source, target = (plain_or_gzip(folder / f"{stem}.{language}") for language in self.pair.split("-"))
            if source and target:
                found[split] = read_aligned(source, target)
            elif split in SPLITS:
                raise DataError(
                    f"data.path={self.path} holds no {stem}.{self.source_language} and {stem}.{self.target_language} "
                    "(plain or .gz), there or in data/task1/raw; give the folder of the multi30k repository"
                )
        return found


@check_ranges
class ParallelText(PairSource):
    """
    Two aligned files, line by line, or one tab-separated file; plain or gzip.

    path: the tab-separated file, or the source's file with `target_path` beside it, or the common beginning of two
    files that end in the languages (corpus for corpus.en and corpus.de). validation_path, test_path: further data of
    the same form (one file or a beginning); without them, sentences are split by `split`, all pairs of one source
    sentence together.
    """

    name = "parallel_text"
    what = "two aligned files or one tab-separated file of your own: data.path=FILE"

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
        if self.target_path is None:
            rest = self._load(str(self.path), "data.path")
        else:
            target = existing(self.target_path, "the file of the targets", "data.source.target_path")
            rest = read_aligned(existing(str(self.path), FORMS), target)
        shares = {name: share for name, share in zip(SPLITS, self.split, strict=True) if name not in own}
        total = sum(shares.values())
        return divide(rest, {name: share / total for name, share in shares.items()}) | own

    def _load(self, path: str, field: str) -> Pairs:
        source = Path(path).expanduser()
        first, second = (plain_or_gzip(Path(f"{source}.{language}")) for language in self.pair.split("-"))
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
    """A translation data set of the hub, or a folder in its format: `translation` rows, or a column a language."""

    name = "hub_pairs"
    what = 'a translation data set of the hub, such as WMT14: data=wmt14 (needs pip install "attnlab[hub]")'
    size = licence = "its own"

    def __init__(self, pair: str, path: str, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(pair, path)
        self.table = HubTable(path, name, revision)

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        found = {}
        for split in SPLITS:
            rows = self.table.rows(split, cache)
            found[split] = aligned(*(self._column(rows, language) for language in self.pair.split("-")))
        return found

    def _column(self, rows: Any, language: str) -> list[str]:
        columns = rows.flatten()  # a column translation.de for the field de of translation
        known = [name.removeprefix("translation.") for name in columns.column_names]
        if language not in known:
            raise DataError(
                f"{self.path} has no language {language!r} (data.pair={self.pair}); it has: {', '.join(sorted(known))}"
            )
        place = f"a text in {language} of {self.path}"
        texts = columns[columns.column_names[known.index(language)]]
        return ["" if is_missing(text) else text_of(text, place) for text in texts]


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The texts of nested dictionaries by their dotted keys."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}")
    elif isinstance(node, str):
        yield prefix, node.strip()


def aligned(sources: list[str], targets: list[str]) -> Pairs:
    """Pairs of stripped sentences, those with an empty side dropped and counted."""
    both = ((source.strip(), target.strip()) for source, target in zip(sources, targets, strict=True))
    kept = [pair for pair in both if all(pair)]
    return Pairs([source for source, _ in kept], [target for _, target in kept], dropped=len(sources) - len(kept))


def read_aligned(source: Path, target: Path) -> Pairs:
    """Two files whose lines belong together. Raises DataError where one has more lines than the other."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        longer, shorter = (source, target) if len(sources) > len(targets) else (target, source)
        fewer = min(len(sources), len(targets))
        raise DataError(
            f"{source} has {len(sources):,} lines and {target} has {len(targets):,}: line {fewer + 1:,} of {longer} "
            f"has no counterpart in {shorter}; aligned files have the same number of lines"
        )
    return aligned(sources, targets)


def read_tabbed(path: Path, pair: str) -> Pairs:
    """
    One file with a source, a tab and a target on each line.

    A line 1 of the pair's languages, or of words such as source and target, names the columns, in either order.
    Raises DataError for a line of another form.
    """
    lines = read_lines(path)
    names = lines[0].lower().split("\t") if lines else []
    stripped = [name.strip() for name in names]
    known = [list(sides) for sides in (pair.lower().split("-"), *SIDES)]
    order = 1 if stripped in known else -1 if stripped[::-1] in known else 0
    rows = []
    for number, line in enumerate(lines[bool(order) :], start=1 + bool(order)):
        columns = line.split("\t") if line.strip() else ["", ""]
        if len(columns) != 2:
            raise DataError(
                f"line {number:,} of {path} has {len(columns)} columns; accepted: a source, one tab and a target on "
                f"every line. Pairs stand in {FORMS}"
            )
        rows.append(columns[:: order or 1])
    pairs = aligned([row[0] for row in rows], [row[1] for row in rows])
    if not order:
        return pairs
    return replace(pairs, remarks=(f"line 1 of {path.name} names the columns ({', '.join(names)})",))
