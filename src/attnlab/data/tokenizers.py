"""Text to token numbers and back, without loss: a trained tokenizer is its constructor's arguments, and is saved as them."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.marks import Marks
from attnlab.data.scripts import UNSPACED
from attnlab.ranges import Interval, check_ranges

PIECE = 1 << 20  # characters handed to the subword library at once: it keeps offsets of everything it is given


@dataclass(frozen=True)
class Tokenizer:
    """Maps any text to numbers below `vocabulary_size` (uint16 where they fit, else uint32) and back to the same text."""

    name: ClassVar[str]
    sees_whole_text: ClassVar[bool] = False  # trained on the training split alone, unless this says otherwise

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""
        raise NotImplementedError

    @property
    def marks(self) -> Marks | None:
        """The marks that are among its tokens; None: all tokens are text, and marks are put before them (see Vocabulary)."""
        return None

    @property
    def ends_documents(self) -> bool:
        """Whether documents that a language model reads usually end in a mark: those in sub-words do."""
        return False

    @property
    def of_text(self) -> "Tokenizer":
        """Itself without a mark that only the data of a language model added."""
        return self

    @property
    def of_source(self) -> "Tokenizer":
        """
        The one that encodes sources by the same numbers: itself, but of models whose targets are cut otherwise
        (Marian).
        """
        return self

    @property
    def is_lossless(self) -> bool:
        """Whether `decode` gives every text back as it was."""
        return True

    @property
    def text_lead(self) -> str:
        """What a text that stands by itself is encoded behind, so that its first word looks like the others."""
        return " "

    @property
    def word_lead(self) -> str:
        """What a word is encoded behind, so that it looks as it does within a text."""
        return " "

    @property
    def text_tokens(self) -> np.ndarray:
        """The numbers of the tokens that are text."""
        return np.arange(self.vocabulary_size)

    def begins_word(self) -> np.ndarray:
        """
        Of each token (V,), whether a word begins with it: its text begins with white space, or is of a script without
        any.
        """
        texts = (self.decode([token]) for token in range(self.vocabulary_size))
        return np.array([text[:1].isspace() or bool(UNSPACED.match(text)) for text in texts])

    @abstractmethod
    def train(self, text: str) -> Self:
        """A copy that has learned its vocabulary from `text`."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the tokens of `text`."""
        raise NotImplementedError

    @abstractmethod
    def decode(self, tokens: Any) -> str:
        """The text of token numbers (N,)."""
        raise NotImplementedError

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers (N,) of the tokens of `text`, and the characters (N, 2) that each is of: from, and up to but not including.

        Tokens that share a character, its bytes being in several, name it each.
        """
        raise NotImplementedError(f"the tokenizer {self.name} cannot say which characters a token is of")

    def as_json(self) -> str:
        """The arguments that make this tokenizer."""
        return json.dumps({"name": self.name, **asdict(self)}, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Writes the arguments that make this tokenizer, as JSON."""
        Path(path).write_text(self.as_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Tokenizer":
        """The tokenizer that `save` wrote."""
        return Tokenizer.of(json.loads(Path(path).read_text(encoding="utf-8")))

    @staticmethod
    def of(fields: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer that these arguments, its name among them, make."""
        return TOKENIZERS[fields["name"]](**{name: value for name, value in fields.items() if name != "name"})


@dataclass(frozen=True)
class Character(Tokenizer):
    """One token a character; an empty `alphabet` means the characters of the whole text, in code point order."""

    name = "character"
    sees_whole_text = True
    alphabet: str = ""

    @property
    def vocabulary_size(self) -> int:
        """How many characters the alphabet has."""
        return len(self.alphabet)

    def train(self, text: str) -> "Character":
        """Learns the alphabet, unless one was given."""
        return self if self.alphabet else replace(self, alphabet="".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Raises DataError that names a character outside of the alphabet."""
        points = _code_points(text)
        tokens = self._tokens_of_points[np.minimum(points, len(self._tokens_of_points) - 1)]
        unknown = tokens >= self.vocabulary_size
        if unknown.any():
            character = chr(points[unknown.argmax()])
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the alphabet of the training text; accepted: "
                f"{self.alphabet!r}; a model trained with tokenizer=byte or tokenizer=bpe takes any text"
            )
        return tokens.astype(smallest_type(self.vocabulary_size))

    def decode(self, tokens: Any) -> str:
        """The text of token numbers (N,)."""
        points = _code_points(self.alphabet)[np.asarray(tokens, dtype=np.int64)]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """A token is a character."""
        places_N = np.arange(len(text))
        return self.encode(text), np.stack([places_N, places_N + 1], axis=1)

    @cached_property
    def _tokens_of_points(self) -> np.ndarray:
        """Token number of each code point; vocabulary_size for those outside of the alphabet, of which the last entry is one."""
        points = _code_points(self.alphabet)
        tokens = np.full(int(points.max(initial=0)) + 2, self.vocabulary_size, dtype=np.uint32)
        tokens[points] = np.arange(self.vocabulary_size)
        return tokens


@dataclass(frozen=True)
class Byte(Tokenizer):
    """One token a byte of UTF-8, as in ByT5 (Xue et al. 2022); nothing to learn."""

    name = "byte"

    @property
    def vocabulary_size(self) -> int:
        """256, whatever the text."""
        return 256

    def train(self, text: str) -> "Byte":
        """Itself."""
        return self

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    def decode(self, tokens: Any) -> str:
        """The text; bytes that are no UTF-8 (a model may write any) become U+FFFD."""
        return np.asarray(tokens).astype(np.uint8).tobytes().decode(errors="replace")

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Each byte with its character."""
        tokens_N = self.encode(text)
        places_N = (
            np.cumsum((tokens_N & 0xC0) != 0x80) - 1
        )  # all bytes of a character but its first begin with the bits 10
        return tokens_N, np.stack([places_N, places_N + 1], axis=1)


@check_ranges
@dataclass(frozen=True)
class Subwords(Tokenizer):
    """What BPE and Unigram share: words cut as in GPT-2, spelt in bytes, so that no text is unknown. `rules` is what was learned.

    `vocabulary_size` is what is asked for, at least the 256 bytes; a short text may give fewer.
    """

    vocabulary_size: Annotated[int, Interval(ge=256, le=1 << 24)] = 4096
    rules: str = ""

    @property
    def ends_documents(self) -> bool:
        """They do, as GPT-2's."""
        return True

    @abstractmethod
    def _untrained(self) -> tuple[Any, Any]:
        """The library's model and the trainer for it."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """What every trainer of the library is told: all bytes are tokens, and nothing but pieces of text is."""
        from tokenizers import pre_tokenizers

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        size = self.vocabulary_size
        return {"vocab_size": size, "initial_alphabet": alphabet, "special_tokens": [], "show_progress": False}

    def train(self, text: str) -> Self:
        """Learns the rules from `text`, unless they were given."""
        if self.rules:
            return self
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, pre_tokenizers

        model, trainer = self._untrained()
        library = Library(model)
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        library.train_from_iterator(_pieces(text), trainer)
        return replace(self, rules=library.to_str(), vocabulary_size=library.get_vocab_size())

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the tokens of `text`."""
        kind = smallest_type(self.vocabulary_size)
        parts = [np.array(self._library.encode(piece).ids, dtype=kind) for piece in _pieces(text)]
        return np.concatenate([np.array([], dtype=kind), *parts])

    def decode(self, tokens: Any) -> str:
        """The text; bytes that are no UTF-8 (a model may write any) become U+FFFD."""
        return self._library.decode(np.asarray(tokens, dtype=np.int64).tolist(), skip_special_tokens=False)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The library's offsets."""
        offsets, start = [np.zeros((0, 2), dtype=np.int64)], 0
        for piece in _pieces(text):
            offsets.append(np.array(self._library.encode(piece).offsets, dtype=np.int64).reshape(-1, 2) + start)
            start += len(piece)
        return self.encode(text), np.concatenate(offsets)

    @cached_property
    def _library(self) -> Any:
        from tokenizers import Tokenizer as Library

        assert self.rules, "a tokenizer has to be trained before it encodes"
        return Library.from_str(self.rules)


class BPE(Subwords):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in Radford et al. 2019)."""

    name = "bpe"

    def _untrained(self) -> tuple[Any, Any]:
        from tokenizers import models, trainers

        return models.BPE(), trainers.BpeTrainer(**self._options())


class Unigram(Subwords):
    """Byte-level unigram language model (Kudo 2018)."""

    name = "unigram"

    def train(self, text: str) -> Self:
        """Learns the rules from `text`, the same ones every time.

        The library goes through hash tables in a random order. It shows in the last bits of the scores, in the order of pieces nearly
        as likely, and in the scores of rare bytes, below all others in random order: rounding, sorting and one score for these undo it.
        """
        trained = super().train(text)
        if trained is self:
            return self
        rules = json.loads(trained.rules)
        scores = {piece: round(score, 6) for piece, score in rules["model"]["vocab"]}
        lowest = min((score for piece, score in scores.items() if len(piece) > 1), default=0.0)
        scores |= {piece: lowest - 1 for piece, score in scores.items() if len(piece) == 1 and score <= lowest}
        rules["model"]["vocab"] = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
        return replace(trained, rules=json.dumps(rules, ensure_ascii=False))

    def _untrained(self) -> tuple[Any, Any]:
        from tokenizers import models, trainers

        return models.Unigram(), trainers.UnigramTrainer(**self._options())


@dataclass(frozen=True)
class WithEndOfText(Tokenizer):
    """
    A trained tokenizer and, after its own tokens, the mark that ends a document: GPT-2's <|endoftext|> (Radford et
    al. 2019).

    In a text it stands where the newline between two documents stood, and decodes to it, so that no text changes with
    it.
    """

    name = "with_end_of_text"
    spelling: ClassVar[str] = "<|endoftext|>"
    own: Tokenizer

    def __post_init__(self) -> None:
        if isinstance(self.own, Mapping):  # out of a file
            object.__setattr__(self, "own", Tokenizer.of(self.own))

    @property
    def end(self) -> int:
        """The number of the mark."""
        return self.own.vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        """The tokens of text and the mark."""
        return self.own.vocabulary_size + 1

    @cached_property
    def marks(self) -> Marks:
        """The one mark, which also starts a text that has nothing before it; none is put around a text."""
        return Marks(start=self.end, end=self.end, ends=(self.end,))

    @property
    def ends_documents(self) -> bool:
        """They do."""
        return True

    @property
    def of_text(self) -> Tokenizer:
        """The one without it."""
        return self.own

    @property
    def text_lead(self) -> str:
        """As without the mark."""
        return self.own.text_lead

    @property
    def word_lead(self) -> str:
        """As without the mark."""
        return self.own.word_lead

    @property
    def text_tokens(self) -> np.ndarray:
        """All but the mark."""
        return self.own.text_tokens

    def train(self, text: str) -> Self:
        """As without the mark."""
        return replace(self, own=self.own.train(text))

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the tokens of `text`; a text that spells the mark is text."""
        return self.own.encode(text).astype(smallest_type(self.vocabulary_size), copy=False)

    def decode(self, tokens: Any) -> str:
        """The text of token numbers (N,), a newline between documents."""
        tokens_N = np.asarray(tokens, dtype=np.int64)
        documents = np.split(tokens_N, np.flatnonzero(tokens_N == self.end))
        return "\n".join(self.own.decode(document[document != self.end]) for document in documents)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """As without the mark."""
        return self.encode(text), self.own.locate(text)[1]

    def as_json(self) -> str:
        """The arguments of the tokenizer without the mark, in one of their own."""
        return json.dumps({"name": self.name, "own": json.loads(self.own.as_json())}, ensure_ascii=False)


TOKENIZERS: dict[str, type[Any]] = {kind.name: kind for kind in (Character, Byte, BPE, Unigram, WithEndOfText)}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def smallest_type(vocabulary_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _pieces(text: str) -> Iterator[str]:
    """
    Cuts a long text before a blank or a line's end between two letters, where GPT-2's words are cut anyway: the
    tokens stay the same.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        while end < len(text) - 1 and not (text[end] in " \n" and text[end - 1].isalpha() and text[end + 1].isalpha()):
            end += 1
        if end == len(text) - 1:
            break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
