"""Where sentence pairs come from: aligned sources and targets."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from attnlab.data.cache import DataError, Wheel, reading_from
from attnlab.data.readers import HubRows, HubTable, is_missing, plain_or_gzip, read_lines, text_of
from attnlab.data.source import SPLITS, Examples, ExampleSource, InWheel, check_split, divide, existing
from attnlab.ranges import PositiveFloat, Probability, check_ranges

FORMS = (
    "a tab-separated file; or a source file with data.source.target_path; or the common beginning of two files that "
    "end in the languages of data.language_pair, such as corpus for corpus.en and corpus.de; plain or .gz"
)
MOST_REPEATS = 1000  # of an example, in an epoch of a mixture
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
    path: str | Path | None

    def __init__(self, language_pair: str, path: str | Path | None = None) -> None:
        languages = language_pair.split("-")
        if len(languages) != 2 or not all(languages):
            raise DataError(
                f"data.language_pair={language_pair} is no pair of languages; accepted: SOURCE-TARGET, such as en-de"
            )
        self.source_language, self.target_language = languages
        self.language_pair, self.path = language_pair, path

    def refuse_unless(self, known: Sequence[str]) -> None:
        """Raises DataError for a pair that the data set does not have."""
        if self.language_pair not in known:
            raise DataError(
                f"data.language_pair={self.language_pair}: {self.name} has no such pair; it has {', '.join(known)}"
            )


class HomeAssistant(InWheel, PairSource):
    """Interface texts of Home Assistant, translated by its users: 3 to 30 English words without placeholders.

    All pairs of one English sentence stand in one split, which its own text decides. `path` is a copy of the wheel.
    """

    name = "home_assistant"
    what = "interface texts of Home Assistant in en-de, en-es, en-nl, en-fr (a PyPI wheel fetched once)"
    size = "5,000 to 13,000 pairs"
    licence = "Apache-2.0"
    languages: ClassVar[tuple[str, ...]] = ("de", "es", "nl", "fr")
    wheel = Wheel("homeassistant", "2026.2.3", "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c")
    placeholders: ClassVar[tuple[str, ...]] = ("{", "}", "$", "%", "http")

    def __init__(self, language_pair: str = "en-de", path: str | Path | None = None) -> None:
        PairSource.__init__(self, language_pair, self.copy(path))
        self.refuse_unless([f"en-{other}" for other in self.languages] + [f"{other}-en" for other in self.languages])

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        from_english = self.source_language == "en"
        path = self.wheel.path(cache, self.path)
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
    """Descriptions of pictures in en, de, fr and cs (Elliott et al. 2016): the upstream folder, or the hub.

    The test split is test_2016_flickr; the later test sets keep their own names where they are there.
    """

    name = "multi30k"
    what = (
        "descriptions of pictures: data.path=FOLDER as in the upstream repository, or the hub (en-de) where it is null"
    )
    size = "29,000 pairs"
    licence = "CC-BY-NC-SA"
    languages: ClassVar[tuple[str, ...]] = ("en", "de", "fr", "cs")
    later: ClassVar[tuple[str, ...]] = ("test_2017_flickr", "test_2017_mscoco", "test_2018_flickr")
    stems: ClassVar[dict[str, str]] = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

    def __init__(self, language_pair: str = "en-de", path: str | Path | None = None) -> None:
        super().__init__(
            language_pair, path and existing(path, "a folder of the multi30k repository, or null for the hub")
        )
        self.refuse_unless([f"{a}-{b}" for a in self.languages for b in self.languages if a != b])

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        if self.path is None:
            return HubPairs(self.language_pair, "bentrevett/multi30k").read(cache)
        inner = Path(self.path) / "data" / "task1" / "raw"
        folder = inner if inner.is_dir() else Path(self.path)
        found: dict[str, Pairs] = {}
        for split, stem in {**self.stems, **{name: name for name in self.later}}.items():
            source, target = (
                plain_or_gzip(folder / f"{stem}.{language}") for language in self.language_pair.split("-")
            )
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
    """Two aligned files, line by line, or one tab-separated file; plain or gzip.

    path: the tab-separated file, or the source's file with `target_path` beside it, or the common beginning of two
    files that end in the languages (corpus for corpus.en and corpus.de). validation_path, test_path: further data of
    the same form (one file or a beginning); without them, sentences are split by `split`, all pairs of one source
    sentence together.
    """

    name = "parallel_text"
    what = "two aligned files or one tab-separated file of your own: data.path=FILE"

    def __init__(
        self,
        language_pair: str,
        path: str | Path,
        target_path: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        split: Sequence[Probability] = (0.9, 0.05, 0.05),
    ) -> None:
        super().__init__(language_pair, path)
        self.target_path, self.validation_path, self.test_path = target_path, validation_path, test_path
        self.split = check_split(split, "data.source.split")

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
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
        first, second = (plain_or_gzip(Path(f"{source}.{language}")) for language in self.language_pair.split("-"))
        if first is not None and second is not None:
            return read_aligned(first, second)
        alone = first or second
        if alone is not None and not source.exists():
            missing = f"{source.name}.{self.target_language if first else self.source_language}"
            raise DataError(
                f"{field}={source}: there is {alone.name}, but no {missing} beside it (plain or .gz); accepted: {FORMS}"
            )
        return read_tabbed(existing(source, FORMS, field), self.language_pair)


class HubPairs(PairSource):
    """A translation data set of the hub, or a folder in its format: `translation` rows, or a column a language."""

    name = "hub_pairs"
    what = 'a translation data set of the hub, such as WMT14: data=wmt14 (needs pip install "attnlab[hub]")'
    size = licence = "its own"

    def __init__(self, language_pair: str, path: str, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(language_pair, path)
        self.table = HubTable(path, name, revision)

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        found = {}
        for split in SPLITS:
            rows = self.table.rows(split, cache)
            found[split] = aligned(*(self._column(rows, language) for language in self.language_pair.split("-")))
        return found

    def _column(self, rows: HubRows, language: str) -> list[str]:
        columns = rows.flatten()  # a column translation.de for the field de of translation
        known = [name.removeprefix("translation.") for name in columns.column_names]
        if language not in known:
            raise DataError(
                f"{self.path} has no language {language!r} (data.language_pair={self.language_pair}); it has: "
                f"{', '.join(sorted(known))}"
            )
        place = f"a text in {language} of {self.path}"
        texts = columns[columns.column_names[known.index(language)]]
        return ["" if is_missing(text) else text_of(text, place) for text in texts]


@check_ranges
@dataclass(frozen=True)
class TextTask:
    """One of the tasks: pairs of texts, and the prefix that tells the model which task it is.

    source: translations, or texts with their classes as target texts (ParallelText reads both). weight: the task's
    share of the training examples, relative to the other weights; None: as the mixture's temperature says. Raises
    DataError.
    """

    prefix: str
    source: PairSource
    weight: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if not self.prefix.strip():
            raise DataError("the prefix of a task is empty; give a few words, such as 'translate English to German'")


@check_ranges
class Mixture(PairSource):
    """The pairs of several tasks, each source behind its task's prefix.

    A task has a share of the training examples by its weight, by default its number of examples to the power 1 /
    temperature (section 3.5.2: 1 is examples-proportional, a high temperature makes equal shares). Shares are reached
    by repeating examples, so that none is left out: the task that is largest for its share has each once an epoch.
    Other splits hold every example once.
    """

    name = "text_to_text"

    def __init__(
        self, tasks: Mapping[str, TextTask], temperature: PositiveFloat = 1.0, language_pair: str = "text-text"
    ) -> None:
        super().__init__(language_pair)
        if not tasks:
            raise DataError("data.tasks is empty; name one task or more, each with a prefix and a source")
        prefixes = [task.prefix for task in tasks.values()]
        if len(set(prefixes)) < len(prefixes):
            raise DataError(f"two tasks have one prefix, so no model can tell them apart: {', '.join(prefixes)}")
        self.tasks, self.temperature = dict(tasks), temperature
        self.members: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {}

    def read(self, cache: str | Path | None = None) -> dict[str, Pairs]:
        found = {name: task.source.read(cache) for name, task in self.tasks.items()}
        self.sizes = {name: len(splits["train"].sources) for name, splits in found.items()}
        empty = [name for name, size in self.sizes.items() if not size]
        if empty:
            raise DataError(f"data.tasks.{empty[0]} has no training examples; look at its source, or leave it out")
        self.members = {}
        mixed = {}
        for split in SPLITS:
            parts = [(name, self._part(name, splits.get(split), split)) for name, splits in found.items()]
            self.members[split] = [name for name, pairs in parts for _ in pairs.sources]
            mixed[split] = Pairs(
                [source for _, pairs in parts for source in pairs.sources],
                [target for _, pairs in parts for target in pairs.targets],
                dropped=sum(pairs.dropped for _, pairs in parts),
                remarks=tuple(f"{name}: {remark}" for name, pairs in parts for remark in pairs.remarks),
            )
        return mixed

    def examples(self) -> dict[str, int]:
        """How many training examples of each task an epoch has."""
        shares = {name: task.weight or self.sizes[name] ** (1 / self.temperature) for name, task in self.tasks.items()}
        epoch = max(self.sizes[name] / share for name, share in shares.items())
        counts = {name: max(self.sizes[name], round(epoch * share)) for name, share in shares.items()}
        for name, count in counts.items():
            if count > MOST_REPEATS * self.sizes[name]:
                raise DataError(
                    f"data.tasks.{name} would have each of its {self.sizes[name]:,} examples more than "
                    f"{MOST_REPEATS:,} times an epoch; give the other tasks more weight"
                )
        return counts

    def _part(self, name: str, pairs: Pairs | None, split: str) -> Pairs:
        if pairs is None:
            return Pairs([], [])
        prefixed = replace(pairs, sources=[f"{self.tasks[name].prefix}: {source}" for source in pairs.sources])
        if split != "train":
            return prefixed
        whole, more = divmod(self.examples()[name], len(pairs))
        # The same ones for every seed of a run: they are part of the data.
        chosen = np.random.Generator(np.random.Philox(0)).permutation(len(pairs))[:more]
        rows = np.concatenate([np.tile(np.arange(len(pairs)), whole), np.sort(chosen)])
        return replace(prefixed.take(rows.tolist()), dropped=pairs.dropped, remarks=pairs.remarks)


def _flat(node: object, prefix: str = "") -> Iterator[tuple[str, str]]:
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


def read_tabbed(path: Path, language_pair: str) -> Pairs:
    """One file with a source, a tab and a target on each line.

    A line 1 of the pair's languages, or of words such as source and target, names the columns, in either order. Raises
    DataError for a line of another form.
    """
    lines = read_lines(path)
    names = lines[0].lower().split("\t") if lines else []
    stripped = [name.strip() for name in names]
    known = [list(sides) for sides in (language_pair.lower().split("-"), *SIDES)]
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
