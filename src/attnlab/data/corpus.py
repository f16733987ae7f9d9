"""A text as token arrays on disk, in three parts that cannot overlap, made once for each text, tokenizer and split."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from attnlab.data.cache import DataError, prepared
from attnlab.data.source import SPLITS, TextSource, check_split
from attnlab.data.tokenizers import Tokenizer, WithEndOfText, words_of

FORMAT = 1


@dataclass(frozen=True)
class Part:
    """
    One split: its tokens (N,), mapped from disk, and how much text they are: what turns nats a token into bits a byte.

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
        return getattr(self, split)


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
    """
    The corpus from the cache, or made and kept there. Raises DataError.

    end_of_text: the newline between two documents of the source becomes the tokenizer's mark for the end of a text,
    which a tokenizer without marks gets.
    """
    fingerprint = source.fingerprint(cache)
    settings = [FORMAT, fingerprint, tokenizer.name, asdict(tokenizer), [float(fraction) for fraction in split]]
    settings += ["end_of_text"] if end_of_text else []

    def make(scratch: Path) -> None:
        _write(scratch, *_split(source, split, cache, end_of_text), tokenizer, fingerprint, end_of_text)

    return prepared(cache, source.shelf, f"{source.name}-{tokenizer.name}", settings, make, _load)


def _split(
    source: TextSource, split: Sequence[float], cache: str | Path | None, by_document: bool
) -> tuple[tuple[str, str, str], list[list[int]]]:
    """The parts of a text and, where asked for, the characters of each that are newlines between documents."""
    texts = split_text(source.read(cache), split)
    lengths = [len(document) for document in source.documents(cache)] if by_document else []
    breaks_N = np.cumsum(np.array(lengths[:-1], dtype=np.int64) + 1) - 1
    starts = np.cumsum([0, *map(len, texts)])
    return texts, [
        (breaks_N[(first <= breaks_N) & (breaks_N < end)] - first).tolist() for first, end in pairwise(starts)
    ]


def _write(
    folder: Path,
    texts: tuple[str, str, str],
    breaks_by_text: list[list[int]],
    tokenizer: Tokenizer,
    fingerprint: str,
    end_of_text: bool,
) -> None:
    trained = tokenizer.train("".join(texts) if tokenizer.sees_whole_text else texts[0])
    if end_of_text and trained.special_tokens is None:
        trained = WithEndOfText(trained)
    trained.save(folder / "tokenizer.json")
    counts = {}
    for name, text, breaks in zip(SPLITS, texts, breaks_by_text, strict=True):
        if trained.is_lossless:
            tokens, _ = _tokens(trained, text, breaks)
        else:
            tokens, places_N2 = _tokens(trained, text, breaks, located=True)
            np.save(folder / f"{name}_starts.npy", bytes_before(text, np.maximum.accumulate(places_N2[:, 0])))
            (folder / f"{name}.txt").write_bytes(text.encode())
        np.save(folder / f"{name}.npy", tokens)
        counts[name] = {"num_tokens": len(tokens), "num_bytes": len(text.encode()), "num_words": len(words_of(text))}
    (folder / "corpus.json").write_text(json.dumps({"fingerprint": fingerprint, "parts": counts}))


def _tokens(
    tokenizer: Tokenizer, text: str, breaks: Sequence[int], located: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (N,) of a text, with a mark for each break of documents; where asked, their characters (N, 2)."""
    tokens, places, start = [], [], 0
    for end in (*breaks, len(text)):
        document = text[start:end]
        tokens_N, places_N2 = (
            tokenizer.locate(document) if located else (tokenizer.encode(document), np.zeros((0, 2), np.int64))
        )
        tokens.append(tokens_N)
        places.append(places_N2 + start)
        if end < len(text):
            assert tokenizer.special_tokens is not None
            tokens.append(np.array([tokenizer.special_tokens.require("end")], dtype=tokens_N.dtype))
            places.append(np.array([[end, end + 1]] if located else np.zeros((0, 2), np.int64)))
        start = end + 1
    return np.concatenate(tokens), np.concatenate(places)


def bytes_before(text: str, places_N: np.ndarray) -> np.ndarray:
    """The bytes (N,) of UTF-8 before these characters."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + sum((points >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(sizes)])[places_N]


def _load(folder: Path) -> Corpus:
    facts = json.loads((folder / "corpus.json").read_text())
    parts = {name: _load_part(folder / f"{name}.npy", facts["parts"][name]) for name in SPLITS}
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return Corpus(**parts, tokenizer=tokenizer, fingerprint=facts["fingerprint"], folder=folder)


def _load_part(path: Path, counts: dict[str, int]) -> Part:
    tokens = np.load(path, mmap_mode="r" if counts["num_tokens"] else None)
    text, starts = path.with_suffix(".txt"), path.with_name(f"{path.stem}_starts.npy")
    part = Part(tokens.view(np.ndarray), **counts)  # type: ignore[arg-type]  # the rest is told below
    if not text.is_file():
        return part
    return replace(part, text=text, starts=np.load(starts, mmap_mode="r" if part.num_tokens else None))
