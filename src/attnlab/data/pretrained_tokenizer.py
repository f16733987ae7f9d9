"""The tokenizer of a published model: its rules, its numbers and its marks, as they are. Letters of shapes: N tokens, V vocabulary."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from attnlab.data.chat import render
from attnlab.data.marks import Marks, Tokens
from attnlab.data.scripts import UNSPACED
from attnlab.data.tokenizers import TOKENIZERS, Tokenizer, smallest_type

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
UNUSED = re.compile(r"\[unused\d+\]")
PROBES = ("a", "the", "1", ".")


@dataclass(frozen=True)
class PretrainedTokenizer(Tokenizer):
    """
    A tokenizer of the library `tokenizers` with marks among its tokens; `read_tokenizer` makes one out of a model's files.

    rules: its tokenizer.json. vocabulary_size: rows of the model's table, perhaps more than there are tokens.
    special: the texts of its special tokens by the names that Hugging Face gives them (cls_token, eos_token, ...).
    decoder_start: the number that a decoder's input starts with. also_ends: further tokens that end a generated text.
    splits_marks: whether a text that spells a mark is text. chat_template: Jinja, of a conversation. generation: what
    else the model's own library is told of tokens where it generates, such as one that is forced at the end (BART);
    it is kept for an export.
    """

    name = "pretrained"
    vocabulary_size: int = 0
    rules: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    decoder_start: int | None = None
    also_ends: Sequence[int] = ()
    splits_marks: bool = False
    chat_template: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def train(self, text: str) -> "PretrainedTokenizer":
        """Itself."""
        return self

    @property
    def ends_documents(self) -> bool:
        """Where it has a mark for it."""
        return self.marks.end is not None

    @property
    def is_lossless(self) -> bool:
        """It may change letters, and leaves marks out."""
        return False

    @property
    def text_lead(self) -> str:
        """Nothing: a text is encoded as the model's own library does it."""
        return ""

    @cached_property
    def word_lead(self) -> str:
        """A blank, unless a word is the same at the start of a text and within it."""
        first, second, both = (self.encode(text).tolist() for text in ("the", "of", "the of"))
        return "" if first + second == both else " "

    def encode(self, text: str) -> np.ndarray:
        """The numbers (N,) of the tokens of `text`, which no mark is put around."""
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=smallest_type(self.vocabulary_size))

    def decode(self, tokens: Any) -> str:
        """The text; marks, and numbers that are no token's, are left out."""
        return self._library.decode(np.asarray(tokens, dtype=np.int64).tolist(), skip_special_tokens=True)

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The library's offsets."""
        encoding = self._library.encode(text, add_special_tokens=False)
        tokens_N = np.array(encoding.ids, dtype=smallest_type(self.vocabulary_size))
        return tokens_N, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def text_tokens(self) -> np.ndarray:
        """The numbers of the tokens that are text: no marks, none that were kept free, none that only the model's table has."""
        others = {number for number, token in self._library.get_added_tokens_decoder().items() if token.special}
        others |= {self._library.token_to_id(text) for text in self.special.values()} | set(self.marks.sentinels)
        return np.array(
            [
                number
                for number in range(self.vocabulary_size)
                if number not in others and (text := self._library.id_to_token(number)) and not UNUSED.fullmatch(text)
            ]
        )

    def begins_word(self) -> np.ndarray:
        """Of each token (V,), whether a word begins with it, by how the tokenizer spells that: ##, ▁ or a blank."""
        model = json.loads(self.rules)["model"]
        spelt = [self._library.id_to_token(number) or "" for number in range(self.vocabulary_size)]
        if model.get("type") == "WordPiece":
            return np.array([not text.startswith(model["continuing_subword_prefix"]) for text in spelt])
        if any(text.startswith("▁") for text in spelt):
            return np.array([text.startswith("▁") or bool(UNSPACED.match(text)) for text in spelt])
        return super().begins_word()

    @cached_property
    def marks(self) -> Marks:
        """Its own, and where its post-processor puts them."""
        numbers = {name: self._library.token_to_id(text) for name, text in self.special.items()}
        start, end = (_first(numbers, names) for names in (("cls_token", "bos_token"), ("eos_token", "sep_token")))
        before, after = self._around("text")
        with_end = after if end is None or after[-1:] == (end,) else (*after, end)
        # Where a decoder's input starts with the mark that stands before every text, this mark is no part of the target.
        before_target = before[1:] if self.decoder_start is None and before[:1] == (start,) else before
        return Marks(
            pad=numbers.get("pad_token"),
            start=start,
            end=end,
            mask=numbers.get("mask_token"),
            separator=numbers.get("sep_token"),
            target_start=start if self.decoder_start is None else self.decoder_start,
            ends=tuple(dict.fromkeys([*(() if end is None else (end,)), *self.also_ends])),
            sentinels=self._sentinels(),
            text=(before, after),
            pair=self._around("text", "other"),  # type: ignore[arg-type]  # three for two texts
            source=(before, with_end),
            target=(before_target, with_end),
        )

    def _around(self, *texts: str) -> Any:
        """The marks before, between and after so many texts, as the tokenizer itself puts them."""
        probe = next((word for word in PROBES if len(self.encode(word))), None)
        if probe is None:
            return ((),) * (len(texts) + 1)
        encoding = self._library.encode(*[probe] * len(texts))
        found: list[Tokens] = [()] * (len(texts) + 1)
        place = 0
        for number, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
            if sequence is None:
                found[place] = (*found[place], number)
            else:
                place = sequence + 1
        return tuple(found)

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
    def _library(self) -> Any:
        from tokenizers import Tokenizer as Library

        library = Library.from_str(self.rules)
        library.encode_special_tokens = self.splits_marks
        return library


TOKENIZERS[PretrainedTokenizer.name] = PretrainedTokenizer


def _first(numbers: Mapping[str, int | None], names: Sequence[str]) -> int | None:
    return next((number for name in names if (number := numbers.get(name)) is not None), None)
