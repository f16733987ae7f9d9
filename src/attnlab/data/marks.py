"""The tokens that are no text (padding, start, end, mask, sentinels), and where they stand around a text."""

from __future__ import annotations

from dataclasses import dataclass

from attnlab.data.cache import DataError

PURPOSES = {
    "pad": "rows are filled with it",
    "start": "a text starts with it",
    "end": "every target has to end in one",
    "mask": "one stands where a token is hidden",
    "separator": "one stands between two texts",
    "target_start": "a decoder's input starts with it",
}

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Marks:
    """
    Numbers of the tokens that are no text; None where a vocabulary has none.

    target_start: where a decoder's input starts. ends: all tokens that end a generated text, `end` among them. sentinels: T5's
    <extra_id_i>, by i. text: what stands before and after a text; pair: before, between and after two of them, `between` empty where
    nothing tells them apart; source, target: before and after those of a sequence-to-sequence model, where a target's last one is `end`.
    """

    pad: int | None = None
    start: int | None = None
    end: int | None = None
    mask: int | None = None
    separator: int | None = None
    target_start: int | None = None
    ends: Tokens = ()
    sentinels: Tokens = ()
    text: tuple[Tokens, Tokens] = ((), ())
    pair: tuple[Tokens, Tokens, Tokens] = ((), (), ())
    source: tuple[Tokens, Tokens] = ((), ())
    target: tuple[Tokens, Tokens] = ((), ())

    def need(self, name: str) -> int:
        """The number of the mark of this name. Raises DataError where there is none."""
        number: int | None = getattr(self, name)
        if number is None:
            there = ", ".join(f"{other} {value}" for other in PURPOSES if (value := getattr(self, other)) is not None)
            raise DataError(
                f"this tokenizer has no {name.replace('_', ' ')} mark ({there or 'none of those that tasks need'}), and here "
                f"{PURPOSES[name]}; take a tokenizer that has one, such as attnlab's own (tokenizer=bpe)"
            )
        return number

    @property
    def filler(self) -> int:
        """What rows are filled with; masks tell it from tokens, for it may be one."""
        return next((number for number in (self.pad, self.end) if number is not None), 0)

    @property
    def never(self) -> Tokens:
        """Marks that no target has."""
        in_targets = {self.end, *self.target[0], *self.target[1]}
        marks = (self.pad, self.start, self.mask, self.separator)
        return tuple(dict.fromkeys(mark for mark in marks if mark is not None and mark not in in_targets))
