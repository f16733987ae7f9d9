"""The Lightning data module of tagged words. Shapes: B batch, T length, W words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.classification import about_unseen, unseen_in
from attnlab.data.encoded import Encoded, EncodedData, collate_rows, padded
from attnlab.data.entities import Tagged, TaggedSource
from attnlab.data.tags import entities_of
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import framed, num_marks
from attnlab.ranges import Ge, Seed, check_ranges

IGNORED = -100  # the label of a token that begins no word
REHEARSAL_TYPES = 2


@dataclass
class EncodedSentences(Encoded):
    """
    Sentences in rows, a row being a sentence or, of one that is too long, a piece.

    labels: beside each row, the label of a word at its first token and IGNORED elsewhere. sentence_of: which sentence each row is of;
    the rows of one stand in its order. texts: the sentences.
    """

    labels: list[np.ndarray]
    sentence_of: list[int]
    texts: Tagged

    @property
    def num_examples(self) -> int:
        """Sentences."""
        return len(self.texts.words)

    @property
    def num_terms(self) -> int:
        """Words."""
        return sum(map(len, self.texts.words))


@check_ranges
class TokenClassificationData(EncodedData[EncodedSentences]):
    """
    Sentences of tagged words as batches within a token budget, each the words' tokens between start and end marks.

    A word is encoded with a blank before it, as it looks within a text. Its label belongs to its first token (Devlin et al. 2019,
    section 5.3); a word that the tokenizer has no token for is the mask. A sentence of more than `max_length` tokens is split between words
    into rows, so that each word stands in one row exactly; a word longer than a row is cut in its last tokens; both are counted.
    The other fields as in EncodedData. Raises DataError.
    """

    kind, examples = "tagged", "sentences"
    unit = "word"

    def __init__(
        self,
        source: Callable[..., TaggedSource] | TaggedSource,
        tokenizer: Tokenizer,
        tokenizer_from: str | None = None,
        max_length: Annotated[int, Ge(3)] = 128,
        batch_tokens: Annotated[int, Ge(3)] = 4096,
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(source, tokenizer, tokenizer_from, max_length, batch_tokens, path, seed, cache)

    def lines(self, part: Tagged) -> Iterable[str]:
        """The sentences, as they are encoded."""
        return ("".join(f" {word}" for word in words) for words in part.words)

    def encode_parts(self, parts: dict[str, Tagged]) -> dict[str, EncodedSentences]:
        """The tags of the training part's types, and every part encoded."""
        self.types, unseen = types_of(parts, self.name)
        self.remarks += unseen
        self.labels = ["O", *(f"{prefix}-{kind}" for kind in self.types for prefix in "BI")]
        self._tokens_of: dict[str, np.ndarray] = {}
        return {split: self._encode(part) for split, part in parts.items()}

    def collate(self, part: EncodedSentences, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
        """tokens (B, T) padded on the right, is_token, labels (B, T), ids (B,)."""
        labels_BT = padded([part.labels[row] for row in rows_B], IGNORED)
        return collate_rows(part, rows_B, self.vocabulary.marks.filler, labels=labels_BT)

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary, and how many tags there are."""
        return super().widths() | {"num_classes": len(self.labels)}

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        return super().rehearsal_widths() | {"num_classes": 1 + 2 * REHEARSAL_TYPES}

    def facts(self) -> dict[str, Any]:
        """Sizes, types, and how many sentences were split."""
        return super().facts() | {"types": self.types}

    def particulars(self) -> list[str]:
        """The types."""
        return [f"{len(self.types)} types of entity"]

    def by_sentence(self, split: str, found: dict[int, Sequence[Any]]) -> list[list[Any]]:
        """What was found for the words of each row, by the row's id, as one list a sentence."""
        part = self.split(split)
        sentences: list[list[Any]] = [[] for _ in part.texts.words]
        for row, sentence in enumerate(part.sentence_of):
            sentences[sentence].extend(found[row])
        return sentences

    def _encode(self, part: Tagged) -> EncodedSentences:
        numbers, marks = {label: number for number, label in enumerate(self.labels)}, self.vocabulary.marks.text
        room, ignored = self.max_length - num_marks(marks), tuple((IGNORED,) * len(each) for each in marks)
        encoded = EncodedSentences([], {"without words": part.dropped, "split": 0, "words cut": 0}, [], [], part)
        for sentence, (words, tags) in enumerate(zip(part.words, part.tags, strict=True)):
            pieces = [self._tokens(word) for word in words]
            groups = groups_within([len(piece) for piece in pieces], room)
            encoded.counts["split"] += len(groups) > 1
            encoded.counts["words cut"] += sum(len(piece) > room for piece in pieces)
            for group in groups:
                labels = [labels_of(pieces[word][:room], numbers[tags[word]]) for word in group]
                encoded.rows.append(framed(marks, np.concatenate([pieces[word][:room] for word in group])))
                encoded.labels.append(framed(ignored, np.concatenate(labels)))
                encoded.sentence_of.append(sentence)
        return encoded

    def _tokens(self, word: str) -> np.ndarray:
        if word not in self._tokens_of:
            tokens = self.vocabulary.encode_word(word)
            self._tokens_of[word] = tokens if len(tokens) else np.array([self.vocabulary.mask])
        return self._tokens_of[word]


def labels_of(tokens_T: np.ndarray, label: int) -> np.ndarray:
    """A word's label at its first token, IGNORED at the others."""
    return np.array([label] + [IGNORED] * (len(tokens_T) - 1))


def groups_within(lengths: Sequence[int], room: int) -> list[range]:
    """Neighbours in groups of at most `room` together, each group as long as it can be; one that is longer stands alone."""
    groups, start, taken = [], 0, 0
    for place, length in enumerate(lengths):
        if place > start and taken + length > room:
            groups.append(range(start, place))
            start, taken = place, 0
        taken += length
    return [*groups, range(start, len(lengths))]


def types_of(texts: dict[str, Tagged], name: str) -> tuple[list[str], list[str]]:
    """
    The training part's types of entity, then those of other parts alone, and what is to be said of these. Raises
    DataError for none.
    """
    found = {
        split: [entity.type for tags in part.tags for entity in entities_of(tags)] for split, part in texts.items()
    }
    types = sorted(set(found["train"]))
    if not types:
        raise DataError(f"the training part of {name} has no entity: every tag is O; look at data.source.tag_column")
    return [*types, *unseen_in(found, types)], about_unseen(found, types, "entities of types")
