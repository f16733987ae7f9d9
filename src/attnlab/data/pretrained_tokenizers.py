"""Tokenizers of published models: their rules, numbers and special tokens, as they are.

Letters of shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from attnlab.data.cache import DataError
from attnlab.data.slow_tokenizers import BLANK, sentencepiece
from attnlab.data.special_tokens import SpecialTokens, Tokens
from attnlab.data.tokenizers import TOKENIZERS, UNSPACED, Tokenizer, smallest_type

if TYPE_CHECKING:
    import tokenizers as hf
    from jinja2 import Environment

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
UNUSED = re.compile(r"\[unused\d+\]")
PROBES = ("a", "the", "1", ".")


class Published(Tokenizer):
    """Tokenizers that were learned elsewhere: they learn nothing, may change letters and blanks, omit special tokens.

    A text is encoded as the model's own library does it. special: the texts of special tokens by the names that Hugging
    Face gives them (cls_token, eos_token, ...). decoder_start: the number that a decoder's input starts with.
    generation: what else the model's own library is told of tokens where it generates, such as one that is forced at
    the end (BART); kept for an export.
    """

    is_lossless = False
    special: Mapping[str, str]
    decoder_start: int | None
    generation: Mapping[str, object]

    def train(self, text: str) -> Self:
        return self

    @property
    def text_lead(self) -> str:
        return ""


@dataclass(frozen=True)
class PretrainedTokenizer(Published):
    """A tokenizer of the library `tokenizers` with special tokens; `read_tokenizer` makes one of a model's files.

    rules: its tokenizer.json. vocabulary_size: rows of the model's table, perhaps more than there are tokens.
    also_ends: further tokens that end a generated text. splits_marks: whether a text that spells a special token is
    text. chat_template: Jinja, of a conversation.
    """

    name = "pretrained"
    vocabulary_size: int = 0
    rules: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    decoder_start: int | None = None
    also_ends: Sequence[int] = ()
    splits_marks: bool = False
    chat_template: str | None = None
    generation: Mapping[str, object] = field(default_factory=dict)

    @property
    def ends_documents(self) -> bool:
        """Where it has a special token for it."""
        return self.special_tokens.end is not None

    @cached_property
    def word_lead(self) -> str:
        """A blank, unless a word is the same at the start of a text and within it."""
        try:
            first, second, both = (self.encode(text).tolist() for text in ("the", "of", "the of"))
        except DataError:
            return " "
        return "" if first + second == both else " "

    def encode(self, text: str) -> np.ndarray:
        """No special token is put around it. Raises DataError for a text with something that it has no token for."""
        try:
            (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # the library has no type of its own
            raise DataError(
                f"the tokenizer cannot encode {shorten(text, 80, placeholder=' ...')!r} ({error}); accepted: texts of "
                "what it has tokens for, as it has none for what is unknown"
            ) from error
        return np.array(encoding.ids, dtype=smallest_type(self.vocabulary_size))

    def decode(self, tokens: ArrayLike) -> str:
        """Special tokens, and numbers that are no token's, are left out."""
        return self._library.decode(np.asarray(tokens, dtype=np.int64).tolist(), skip_special_tokens=True)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._library.encode(text, add_special_tokens=False)
        tokens_N = np.array(encoding.ids, dtype=smallest_type(self.vocabulary_size))
        return tokens_N, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """No special tokens, none that were kept free, none that only the model's table has."""
        added = self._library.get_added_tokens_decoder().items()
        others = {self._library.token_to_id(text) for text in self.special.values()}
        others |= {*self.special_tokens.sentinels, *(number for number, token in added if token.special)}
        kept = (number for number, text in enumerate(self._texts) if text and not UNUSED.fullmatch(text))
        return np.array([number for number in kept if number not in others])

    def begins_word(self) -> np.ndarray:
        """By how the tokenizer spells that: ##, ▁ or a blank."""
        model = json.loads(self.rules)["model"]
        if model.get("type") == "WordPiece":
            return np.array([not text.startswith(model["continuing_subword_prefix"]) for text in self._texts])
        if any(text.startswith(BLANK) for text in self._texts):
            return np.array([text.startswith(BLANK) or bool(UNSPACED.match(text)) for text in self._texts])
        return super().begins_word()

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Its own, and where its post-processor puts them."""
        numbers = {name: self._library.token_to_id(text) for name, text in self.special.items()}
        start, end = (
            next((number for name in names if (number := numbers.get(name)) is not None), None)
            for names in (("cls_token", "bos_token"), ("eos_token", "sep_token"))
        )
        before, after = self._around("text")
        with_end = after if end is None or after[-1:] == (end,) else (*after, end)
        target_start = start if self.decoder_start is None else self.decoder_start
        # Where a decoder's input starts with what stands before every text, that is no part of the target.
        before_target = before[1:] if before[:1] == (target_start,) else before
        return SpecialTokens(
            pad=numbers.get("pad_token"),
            start=start,
            end=end,
            mask=numbers.get("mask_token"),
            separator=numbers.get("sep_token"),
            target_start=target_start,
            ends=tuple(dict.fromkeys([*(() if end is None else (end,)), *self.also_ends])),
            sentinels=self._sentinels(),
            text=(before, after),
            pair=self._around("text", "other"),  # type: ignore[arg-type]  # three for two texts
            source=(before, with_end),
            target=(before_target, with_end),
        )

    def _around(self, *texts: str) -> tuple[Tokens, ...]:
        """What the tokenizer itself puts before, between and after so many texts."""
        found: list[Tokens] = [()] * (len(texts) + 1)
        if (probe := self._probe()) is not None:
            encoding, place = self._library.encode(probe, probe if len(texts) > 1 else None), 0
            for number, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
                if sequence is None:
                    found[place] = (*found[place], number)
                else:
                    place = sequence + 1
        return tuple(found)

    def _probe(self) -> str | None:
        """A text that it has tokens for; None: there is none."""
        own = map(self._library.id_to_token, range(self._library.get_vocab_size(with_added_tokens=False)))
        for word in chain(PROBES, filter(None, own)):
            with suppress(DataError):
                if len(self.encode(word)):
                    return word
        return None

    def _sentinels(self) -> Tokens:
        """The numbers of <extra_id_0>, <extra_id_1> and so on, as far as they follow each other."""
        tokens = self._library.get_vocab(with_added_tokens=True)
        found = {int(match[1]): number for text, number in tokens.items() if (match := SENTINEL.fullmatch(text))}
        numbers: list[int] = []
        while len(numbers) in found:
            numbers.append(found[len(numbers)])
        return tuple(numbers)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation as the text that the model answers to; messages have a role and content. Raises DataError."""
        return render(self.chat_template, messages, self.special)

    @cached_property
    def _texts(self) -> list[str]:
        """How each token (V,) is spelt; rows of no token are empty."""
        return [self._library.id_to_token(number) or "" for number in range(self.vocabulary_size)]

    @cached_property
    def _library(self) -> hf.Tokenizer:
        from tokenizers import Tokenizer as Library

        library = Library.from_str(self.rules)
        library.encode_special_tokens = self.splits_marks
        return library


@dataclass(frozen=True)
class MarianTokenizer(Published):
    """What transformers' MarianTokenizer gives, text for text, but that a text that spells a special token is text.

    source, target: the files source.spm and target.spm, in base64, one for sources and one for targets. numbers:
    vocab.json, the numbers of their pieces. side: which of the two files a text is cut by. A text may begin with the
    language that it is to be translated into (>>fra<<). Raises DataError for a file that is no unigram model of
    SentencePiece.
    """

    name = "marian"
    vocabulary_size: int = 0
    source: str = ""
    target: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    decoder_start: int | None = None
    generation: Mapping[str, object] = field(default_factory=dict)
    side: str = "target"

    @property
    def of_source(self) -> MarianTokenizer:
        return replace(self, side="source")

    @property
    def word_lead(self) -> str:
        """Nothing, as before a text: SentencePiece puts a blank there."""
        return ""

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """An end after sources and targets; what a decoder's input starts with is said by the model's configuration."""
        end, pad = (self.numbers.get(self.special.get(name, "")) for name in ("eos_token", "pad_token"))
        after = () if end is None else (end,)
        start = pad if self.decoder_start is None else self.decoder_start
        around: tuple[Tokens, Tokens] = ((), after)
        return SpecialTokens(
            pad=pad, end=end, target_start=start, ends=after, text=around, source=around, target=around
        )

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """All that are in vocab.json, without the special tokens."""
        others = {self.numbers.get(text) for text in self.special.values()}
        return np.array(sorted({*self.numbers.values()} - others))

    def begins_word(self) -> np.ndarray:
        """Whether it begins with a blank."""
        return np.array([self._texts.get(number, "").startswith(BLANK) for number in range(self.vocabulary_size)])

    def encode(self, text: str) -> np.ndarray:
        """Pieces that vocab.json lacks are unknown."""
        code, text = _apart(text)
        pieces = [*code, *self._library.encode(text).tokens]
        unknown = self.numbers[self.special["unk_token"]]
        return np.array([self.numbers.get(piece, unknown) for piece in pieces], smallest_type(self.vocabulary_size))

    def decode(self, tokens: ArrayLike) -> str:
        """Special tokens, and numbers that are no token's, are left out."""
        special = {*self.special.values()}
        pieces = [self._texts.get(int(number), "") for number in np.asarray(tokens, dtype=np.int64)]
        return "".join(piece for piece in pieces if piece not in special).replace(BLANK, " ").strip()

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """A language's characters are those of its name."""
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
    def _library(self) -> hf.Tokenizer:
        return sentencepiece(base64.b64decode(getattr(self, self.side)), f"{self.side}.spm")


TOKENIZERS |= {kind.name: kind for kind in (PretrainedTokenizer, MarianTokenizer)}


def _apart(text: str) -> tuple[list[str], str]:
    """The language that a text begins with, and the rest of it."""
    end = text.find("<<") + 2 if text.startswith(">>") else 1
    return ([text[:end]], text[end:]) if end >= 2 else ([], text)


def render(template: str | None, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the answer begins.

    special: texts of special tokens by name, which templates write (bos_token, eos_token). Raises DataError where there
    is no template, and where it is wrong or refuses the messages.
    """
    from jinja2 import TemplateError

    if template is None:
        raise DataError(
            "the tokenizer has no chat template (chat_template.jinja); its model was not trained to answer messages"
        )
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **special}
    try:
        return _environment().from_string(template).render(messages=list(messages), **given)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template does not take these messages: {error}") from error


def _environment() -> Environment:
    """What templates are written for: no access to Python, blocks that leave no lines, and three functions more."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the model says, for those who train on it; here it is text like any other."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
