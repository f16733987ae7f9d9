"""Text to token numbers and back, without loss: a trained tokenizer is saved as its constructor's arguments.

Letters of shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from attnlab.data.cache import DataError
from attnlab.data.special_tokens import SpecialTokens
from attnlab.ranges import Interval, check_ranges

if TYPE_CHECKING:
    import tokenizers as hf

PIECE = 1 << 20  # characters handed to the subword library at once: it keeps offsets of everything it is given
# Scripts without white space between words: Han, kana, bopomofo; Thai, Lao, Tibetan, Burmese, Khmer.
UNSPACED = re.compile(
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\uff66-\uff9f\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)


def words_of(text: str) -> list[str]:
    """The words of a text: what stands between white space, and each character of a script without any."""
    return UNSPACED.sub(r" \g<0> ", text).split() if UNSPACED.search(text) else text.split()


@dataclass(frozen=True)
class Tokenizer:
    """Maps any text to numbers below `vocabulary_size`, in uint16 or, if need be, uint32, and back to the same text."""

    name: ClassVar[str]
    sees_whole_text: ClassVar[bool] = False  # trained on the training split alone, unless this says otherwise
    is_lossless: ClassVar[bool] = True  # `decode` gives every text back as it was

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""

    @property
    def special_tokens(self) -> SpecialTokens | None:
        """Those that are among its tokens; None: all tokens are text, and others stand before them (see Vocabulary)."""
        return None

    @property
    def ends_documents(self) -> bool:
        """Whether documents that a language model reads usually end in a special token: those in sub-words do."""
        return False

    @property
    def of_text(self) -> Tokenizer:
        """Itself without the special token that only the data of a language model added."""
        return self

    @property
    def of_source(self) -> Tokenizer:
        """The one that encodes sources by the same numbers: itself, unless targets are cut otherwise (Marian)."""
        return self

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
        """Whether each token (V,) begins a word: with white space, or as part of a script without any."""
        texts = (self.decode([token]) for token in range(self.vocabulary_size))
        return np.array([text[:1].isspace() or bool(UNSPACED.match(text)) for text in texts])

    @abstractmethod
    def train(self, text: str) -> Self:
        """A copy that has learned its vocabulary from `text`, unless it was given one."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the tokens of `text`."""

    @abstractmethod
    def decode(self, tokens: ArrayLike) -> str:
        """The text of token numbers (N,); bytes that are no UTF-8 (a model may write any) become U+FFFD."""

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (N,) of `text`, and the characters (N, 2) that each is of: from, up to but not including.

        Tokens that share a character, its bytes being in several, name it each.
        """
        raise NotImplementedError(f"the tokenizer {self.name} cannot say which characters a token is of")

    def as_json(self) -> str:
        """The arguments that make this tokenizer."""
        return json.dumps({"name": self.name, **asdict(self)}, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.as_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """The tokenizer that `save` wrote."""
        return Tokenizer.of(json.loads(Path(path).read_text(encoding="utf-8")))

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Tokenizer:
        return TOKENIZERS[fields["name"]](**{name: value for name, value in fields.items() if name != "name"})


@dataclass(frozen=True)
class Character(Tokenizer):
    """One token a character; an empty `alphabet` means the characters of the whole text, in code point order."""

    name = "character"
    sees_whole_text = True
    alphabet: str = ""

    @property
    def vocabulary_size(self) -> int:
        return len(self.alphabet)

    def train(self, text: str) -> Self:
        return self if self.alphabet else replace(self, alphabet="".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Raises DataError that names a character outside of the alphabet."""
        points = _code_points(text)
        tokens: np.ndarray = self._tokens_of_points[np.minimum(points, len(self._tokens_of_points) - 1)]
        unknown = tokens >= self.vocabulary_size
        if unknown.any():
            character = chr(points[unknown.argmax()])
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) is not in the alphabet of the training text; "
                f"accepted: {self.alphabet!r}; a model trained with tokenizer=byte or tokenizer=bpe takes any text"
            )
        return tokens.astype(smallest_type(self.vocabulary_size))

    def decode(self, tokens: ArrayLike) -> str:
        points = _code_points(self.alphabet)[np.asarray(tokens, dtype=np.int64)]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        places_N = np.arange(len(text))
        return self.encode(text), np.stack([places_N, places_N + 1], axis=1)

    @cached_property
    def _tokens_of_points(self) -> np.ndarray:
        """Token number of each code point; vocabulary_size for those outside of the alphabet, as the last one is."""
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
        return 256

    def train(self, text: str) -> Self:
        return self

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)

    def decode(self, tokens: ArrayLike) -> str:
        return np.asarray(tokens).astype(np.uint8).tobytes().decode(errors="replace")

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        tokens_N = self.encode(text)
        # All bytes of a character but its first begin with the bits 10.
        places_N = np.cumsum((tokens_N & 0xC0) != 0x80) - 1
        return tokens_N, np.stack([places_N, places_N + 1], axis=1)


@check_ranges
@dataclass(frozen=True)
class Subwords(Tokenizer):
    """What BPE and Unigram share: words cut as in GPT-2, spelt in bytes, so that no text is unknown.

    rules: what was learned. vocabulary_size: what is asked for; a short text may give fewer.
    """

    model: ClassVar[str]  # these two by their names in the library
    trainer: ClassVar[str]
    vocabulary_size: Annotated[int, Interval(ge=256, le=1 << 24)] = 4096
    rules: str = ""

    @property
    def ends_documents(self) -> bool:
        return True

    def train(self, text: str) -> Self:
        if self.rules:
            return self
        import tokenizers as hf

        trainer = getattr(hf.trainers, self.trainer)(
            vocab_size=self.vocabulary_size,
            initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        )
        library = hf.Tokenizer(getattr(hf.models, self.model)())
        library.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = hf.decoders.ByteLevel()
        library.train_from_iterator(_pieces(text), trainer)
        return replace(self, rules=library.to_str(), vocabulary_size=library.get_vocab_size())

    def encode(self, text: str) -> np.ndarray:
        kind = smallest_type(self.vocabulary_size)
        parts = [np.array(self._library.encode(piece).ids, dtype=kind) for piece in _pieces(text)]
        return np.concatenate([np.array([], dtype=kind), *parts])

    def decode(self, tokens: ArrayLike) -> str:
        return self._library.decode(np.asarray(tokens, dtype=np.int64).tolist(), skip_special_tokens=False)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        offsets, start = [np.zeros((0, 2), dtype=np.int64)], 0
        for piece in _pieces(text):
            offsets.append(np.array(self._library.encode(piece).offsets, dtype=np.int64).reshape(-1, 2) + start)
            start += len(piece)
        return self.encode(text), np.concatenate(offsets)

    @cached_property
    def _library(self) -> hf.Tokenizer:
        from tokenizers import Tokenizer as Library

        assert self.rules, "a tokenizer has to be trained before it encodes"
        return Library.from_str(self.rules)


class BPE(Subwords):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in Radford et al. 2019)."""

    name, model, trainer = "bpe", "BPE", "BpeTrainer"


class Unigram(Subwords):
    """Byte-level unigram language model (Kudo 2018)."""

    name, model, trainer = "unigram", "Unigram", "UnigramTrainer"

    def train(self, text: str) -> Self:
        """Learns the rules from `text`, the same ones every time.

        The library goes through hash tables in a random order. It shows in the last bits of the scores, in the order of
        pieces nearly as likely, and in the scores of rare bytes, below all others in random order: rounding, sorting
        and one score for these undo it.
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


@dataclass(frozen=True)
class WithEndOfText(Tokenizer):
    """A trained tokenizer and, after its tokens, what ends a document: <|endoftext|> (Radford et al. 2019).

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
        return self.own.vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        return self.own.vocabulary_size + 1

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The one, which also starts a text that has nothing before it; none is put around a text."""
        return SpecialTokens(start=self.end, end=self.end, ends=(self.end,))

    @property
    def ends_documents(self) -> bool:
        return True

    @property
    def of_text(self) -> Tokenizer:
        return self.own

    @property
    def text_lead(self) -> str:
        return self.own.text_lead

    @property
    def word_lead(self) -> str:
        return self.own.word_lead

    @property
    def text_tokens(self) -> np.ndarray:
        return self.own.text_tokens

    def train(self, text: str) -> Self:
        return replace(self, own=self.own.train(text))

    def encode(self, text: str) -> np.ndarray:
        """A text that spells the special token is text."""
        return self.own.encode(text).astype(smallest_type(self.vocabulary_size), copy=False)

    def decode(self, tokens: ArrayLike) -> str:
        """A newline stands between documents."""
        tokens_N = np.asarray(tokens, dtype=np.int64)
        documents = np.split(tokens_N, np.flatnonzero(tokens_N == self.end))
        return "\n".join(self.own.decode(document[document != self.end]) for document in documents)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(text), self.own.locate(text)[1]

    def as_json(self) -> str:
        """The arguments of the tokenizer without the special token, in one of their own."""
        return json.dumps({"name": self.name, "own": json.loads(self.own.as_json())}, ensure_ascii=False)


TOKENIZERS: dict[str, Callable[..., Tokenizer]] = {
    kind.name: kind for kind in (Character, Byte, BPE, Unigram, WithEndOfText)
}


def smallest_type(vocabulary_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text where GPT-2's words are cut anyway, before white space between letters: no token changes."""
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
