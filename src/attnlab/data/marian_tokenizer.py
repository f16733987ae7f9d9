"""
The tokenizer of a Marian model: two SentencePiece files, one for sources and one for targets, and the numbers of
their pieces in vocab.json.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.marks import Marks
from attnlab.data.tokenizers import TOKENIZERS, Tokenizer, smallest_type

BLANK = "▁"
NORMAL, UNIGRAM = 1, 1  # kinds of a piece and of a model, as SentencePiece numbers them
CONTROL = (2, 3, 5)  # the unknown piece, marks and unused ones: none of them is found in a text


@dataclass(frozen=True)
class MarianTokenizer(Tokenizer):
    """
    What transformers' MarianTokenizer gives, text for text, but that a text that spells a mark is text.

    source, target: the files source.spm and target.spm, in base64. numbers: vocab.json. special: the texts of pad,
    end and unknown by the names that Hugging Face gives them. side: which of the two files a text is cut by. A text
    may begin with the language that it is to be translated into (>>fra<<). Raises DataError for a file that is no
    unigram model of SentencePiece.
    """

    name = "marian"
    vocabulary_size: int = 0
    source: str = ""
    target: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    decoder_start: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    side: str = "target"

    def train(self, text: str) -> MarianTokenizer:
        """Itself."""
        return self

    @property
    def of_source(self) -> MarianTokenizer:
        """The one that cuts texts as sources."""
        return replace(self, side="source")

    @property
    def is_lossless(self) -> bool:
        """It changes letters and blanks."""
        return False

    @property
    def text_lead(self) -> str:
        """Nothing: SentencePiece puts a blank before a text."""
        return ""

    @property
    def word_lead(self) -> str:
        """Nothing: a word is cut as it is within a text."""
        return ""

    @cached_property
    def marks(self) -> Marks:
        """An end after sources and targets; what a decoder's input starts with is said by the model's configuration."""
        end, pad = (self.numbers.get(self.special.get(name, "")) for name in ("eos_token", "pad_token"))
        after = () if end is None else (end,)
        start = pad if self.decoder_start is None else self.decoder_start
        return Marks(
            pad=pad, end=end, target_start=start, ends=after, text=((), after), source=((), after), target=((), after)
        )

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """All that are in vocab.json, without the marks."""
        others = {self.numbers.get(text) for text in self.special.values()}
        return np.array(sorted({*self.numbers.values()} - others))

    def begins_word(self) -> np.ndarray:
        """Of each token (V,), whether it begins with a blank."""
        return np.array([self._texts.get(number, "").startswith(BLANK) for number in range(self.vocabulary_size)])

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the pieces of `text`; those that vocab.json lacks are unknown."""
        code, text = _apart(text)
        pieces = [*code, *self._library.encode(text).tokens]
        unknown = self.numbers[self.special["unk_token"]]
        return np.array([self.numbers.get(piece, unknown) for piece in pieces], smallest_type(self.vocabulary_size))

    def decode(self, tokens: Any) -> str:
        """The text; marks, and numbers that are no token's, are left out."""
        marks = {*self.special.values()}
        pieces = [self._texts.get(int(number), "") for number in np.asarray(tokens, dtype=np.int64)]
        return "".join(piece for piece in pieces if piece not in marks).replace(BLANK, " ").strip()

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The library's offsets; a language's are those of its name."""
        code, rest = _apart(text)
        before = len(text) - len(rest)
        places = [(0, before)] * len(code) + [(a + before, b + before) for a, b in self._library.encode(rest).offsets]
        return self.encode(text), np.array(places, dtype=np.int64).reshape(-1, 2)

    def write(self, folder: Path) -> None:
        """Writes source.spm, target.spm and vocab.json as they were read."""
        for side in ("source", "target"):
            (folder / f"{side}.spm").write_bytes(base64.b64decode(getattr(self, side)))
        (folder / "vocab.json").write_text(json.dumps(dict(self.numbers), ensure_ascii=False), encoding="utf-8")

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {number: text for text, number in self.numbers.items()}

    @cached_property
    def _library(self) -> Any:
        return library_of(base64.b64decode(getattr(self, self.side)), f"{self.side}.spm")


TOKENIZERS[MarianTokenizer.name] = MarianTokenizer


def read_marian(
    folder: Path,
    vocabulary_size: int,
    numbers: Mapping[str, int],
    special: Mapping[str, str],
    decoder_start: int | None,
    generation: Mapping[str, Any],
) -> MarianTokenizer:
    """The tokenizer of a folder's source.spm and target.spm. Raises DataError."""
    lost = [text for text in special.values() if text not in numbers]
    if lost or "unk_token" not in special:
        raise DataError(
            f"{folder / 'vocab.json'} lacks {', '.join(lost) or 'the unknown token'}; fetch it again from where the model came from"
        )
    source, target = (base64.b64encode((folder / f"{side}.spm").read_bytes()).decode() for side in ("source", "target"))
    found = MarianTokenizer(
        vocabulary_size=vocabulary_size,
        source=source,
        target=target,
        numbers=dict(numbers),
        special=dict(special),
        decoder_start=decoder_start,
        generation=dict(generation),
    )
    for tokenizer in (found, found.of_source):
        tokenizer.encode("")  # reads the files
    return found


def _apart(text: str) -> tuple[list[str], str]:
    """The language that a text begins with, and the rest of it."""
    end = text.find("<<") + 2 if text.startswith(">>") else 1
    return ([text[:end]], text[end:]) if end >= 2 else ([], text)


# --- SentencePiece's files, which are a message in Protocol Buffers' wire format


def library_of(content: bytes, name: str) -> Any:
    """
    The library's tokenizer that cuts as a unigram model of SentencePiece does (Kudo 2018, arXiv 1804.10959), its own
    blanks and letters included.

    Raises DataError for another kind of model, and for options that cut otherwise.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        message = _message(content)
        trainer, normaliser = (_message(message[number][-1]) for number in (2, 3))
        pieces = [_piece(_message(piece)) for piece in message.get(1, [])]
    except (struct.error, LookupError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is no model of SentencePiece ({error}); fetch it again") from error
    kinds = {kind for _, _, kind in pieces} - {NORMAL, *CONTROL}
    plain = {35: 0, 24: 0}  # bytes for unknown letters; blanks behind words
    usual = {3: 1, 4: 1, 5: 1}  # a blank before the text; no blanks beside each other; blanks as ▁
    options = [trainer.get(n, [v])[-1] == v for n, v in plain.items()]
    options += [normaliser.get(n, [v])[-1] == v for n, v in usual.items()]
    if not pieces or kinds or trainer.get(3, [UNIGRAM])[-1] != UNIGRAM or not all(options):
        raise DataError(
            f"{name} is no plain unigram model of SentencePiece, as Marian's are, and is not read; give a folder with a tokenizer.json "
            "(tokenizer.path=FOLDER)"
        )
    # A mark is never a piece of a text: it is spelt with a blank, and there are none where pieces are looked for.
    vocabulary = [(text if kind == NORMAL else f" {number}", score if kind == NORMAL else 0.0)
                  for number, (text, score, kind) in enumerate(pieces)]  # fmt: skip
    unknown = next(number for number, (_, _, kind) in enumerate(pieces) if kind == 2)
    library = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    letters = normaliser.get(2, [b""])[-1]
    steps = [normalizers.Precompiled(letters)] if letters else []
    library.normalizer = normalizers.Sequence(
        [*steps, normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="always")
    return library


def _piece(message: Mapping[int, Sequence[Any]]) -> tuple[str, float, int]:
    """A piece's text, score and kind."""
    (score,) = struct.unpack("<f", message[2][-1]) if 2 in message else (0.0,)
    return message[1][-1].decode(), score, message.get(3, [NORMAL])[-1]


def _message(content: bytes) -> dict[int, list[Any]]:
    """The fields of a message by number: whole numbers, and bytes of all else."""
    found: dict[int, list[Any]] = {}
    for number, value in _fields(content):
        found.setdefault(number, []).append(value)
    return found


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(content, place)
        else:
            size = {1: 8, 5: 4}.get(kind, len(content) + 1)
        if place + size > len(content):
            raise IndexError("it ends in the middle of a field")
        yield key >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
