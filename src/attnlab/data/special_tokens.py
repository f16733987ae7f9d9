"""The tokens that are no text (padding, start, end, mask, sentinels), and where they stand around a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attnlab.data.cache import DataError

PURPOSES = {
    "pad": "rows are filled with it",
    "start": "a text starts with it",
    "end": "every target has to end in one",
    "mask": "one stands where a token is hidden",
    "separator": "one stands between two texts",
    "target_start": "a decoder's input starts with it",
}
PAD, START, END, MASK, SEPARATOR = range(5)  # before the tokens of a tokenizer that has none of its own
NUM_SPECIAL_TOKENS = 5

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the tokens that are no text; None where a vocabulary has none.

    target_start: where a decoder's input starts. ends: all tokens that end a generated text, `end` among them. never:
    further ones that no generated text has. sentinels: T5's <extra_id_i>, by i. text: what stands before and after a
    text; pair: before, between and after two of them, `between` empty where nothing tells them apart; source, target:
    before and after those of a sequence-to-sequence model, where a target's last one is `end`.
    """

    pad: int | None = None
    start: int | None = None
    end: int | None = None
    mask: int | None = None
    separator: int | None = None
    target_start: int | None = None
    ends: Tokens = ()
    never: Tokens = ()
    sentinels: Tokens = ()
    text: tuple[Tokens, Tokens] = ((), ())
    pair: tuple[Tokens, Tokens, Tokens] = ((), (), ())
    source: tuple[Tokens, Tokens] = ((), ())
    target: tuple[Tokens, Tokens] = ((), ())

    def require(self, name: str) -> int:
        """The number of the one of this name. Raises DataError where there is none."""
        number: int | None = getattr(self, name)
        if number is None:
            there = ", ".join(f"{other} {value}" for other in PURPOSES if (value := getattr(self, other)) is not None)
            raise DataError(
                f"this tokenizer has no {name.replace('_', ' ')} token ({there or 'none of those that tasks need'}), "
                f"and here {PURPOSES[name]}; take a tokenizer that has one, such as attnlab's own (tokenizer=bpe)"
            )
        return number

    @property
    def pad_id(self) -> int:
        """What rows are filled with; masks tell it from tokens, for it may be one."""
        return next((number for number in (self.pad, self.end) if number is not None), 0)

    @property
    def suppressed(self) -> Tokens:
        """Those that no target has."""
        in_targets = {self.end, *self.target[0], *self.target[1]}
        found = (self.pad, self.start, self.mask, self.separator, *self.never)
        return tuple(dict.fromkeys(number for number in found if number is not None and number not in in_targets))


def leading_special_tokens(num_sentinels: int = 0) -> SpecialTokens:
    """Those of a tokenizer that has none of its own."""
    return SpecialTokens(
        pad=PAD,
        start=START,
        end=END,
        mask=MASK,
        separator=SEPARATOR,
        target_start=START,
        ends=(END,),
        sentinels=tuple(range(NUM_SPECIAL_TOKENS, NUM_SPECIAL_TOKENS + num_sentinels)),
        text=((START,), (END,)),
        pair=((START,), (SEPARATOR,), (END,)),
        source=((), (END,)),
        target=((), (END,)),
    )


def add_special_tokens(special_tokens: Sequence[Tokens], *texts: np.ndarray) -> np.ndarray:
    """Tokens (..., N) of one text or two with the special tokens before, between and after them."""
    parts: list[np.ndarray] = []
    for place, numbers in enumerate(special_tokens):
        parts.append(np.broadcast_to(np.array(numbers, dtype=texts[0].dtype), (*texts[0].shape[:-1], len(numbers))))
        parts.extend(texts[place : place + 1])
    return np.concatenate(parts, axis=-1)


def num_special_tokens(special_tokens: Sequence[Tokens]) -> int:
    return sum(map(len, special_tokens))
