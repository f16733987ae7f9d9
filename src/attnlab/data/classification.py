"""The data modules of texts with a class, and of words with a tag each. Shapes: B batch, T length, W words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Annotated, TypeVar, Unpack

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.entities import Tagged, TaggedSource, entities_of
from attnlab.data.labelled import Labelled, LabelledSource
from attnlab.data.module import IGNORED, PLACEHOLDER_CLASSES, padded
from attnlab.data.order import Batch
from attnlab.data.source import SPLITS, Given
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.token_data import RowData, RowFields, Rows, collate_rows
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import Interval, check_ranges

T = TypeVar("T")


@dataclass
class TextRows(Rows):
    """Texts with their class numbers."""

    labels: np.ndarray


@check_ranges
class ClassificationData(RowData[TextRows]):
    """Labelled texts as batches within a token budget, each a text between start and end tokens.

    max_length: what is longer is cut and counted. train_fraction: how much of the training part is trained on, the
    same texts for every seed. The other fields as in RowData. Raises DataError.
    """

    examples, unit = "texts", "text"
    classes: list[str] = [""] * PLACEHOLDER_CLASSES

    def __init__(
        self,
        source: Given[LabelledSource],
        tokenizer: Tokenizer,
        train_fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        **fields: Unpack[RowFields],
    ) -> None:
        super().__init__(source, tokenizer, **fields)
        self.train_fraction = train_fraction

    def lines(self, part: Labelled) -> Iterable[str]:
        return (f" {text}" for text in part.texts)

    def encode(self, parts: dict[str, Labelled]) -> dict[str, TextRows]:
        self.classes, unseen = classes_of({split: part.labels for split, part in parts.items()}, self.name)
        self.remarks += unseen
        return {split: self._encode(part, split == "train") for split, part in parts.items()}

    def collate(self, part: TextRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """tokens (B, T) padded on the right, is_token, labels (B,), ids (B,)."""
        return collate_rows(part, rows_B, self.vocabulary.special_tokens.pad_id, labels=part.labels[rows_B])

    def labels(self, name: str) -> np.ndarray:
        return self.split(name).labels

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return super().dims_of(vocabulary) | {"num_classes": len(self.classes)}

    def facts(self) -> dict[str, object]:
        labels = {name: self.labels(name) for name in SPLITS}
        return super().facts() | {"classes": self.classes, "chance": chance_of(labels)}

    def about_examples(self) -> list[str]:
        return [f"{len(self.classes)} classes"]

    def _encode(self, part: Labelled, training: bool) -> TextRows:
        kept: Sequence[int] = range(len(part.texts))
        if training and self.train_fraction < 1:
            order = np.random.Generator(np.random.Philox(0)).permutation(len(part.texts))
            kept = sorted(order[: max(1, round(self.train_fraction * len(order)))].tolist())
        special_tokens = self.vocabulary.special_tokens.text
        room = self.max_length - num_special_tokens(special_tokens)
        tokens = [self.vocabulary.encode_text(part.texts[index]) for index in kept]
        rows = [add_special_tokens(special_tokens, tokens_T[:room]) for tokens_T in tokens]
        counts = {"without text": part.dropped, "cut": sum(len(tokens_T) > room for tokens_T in tokens)}
        numbers = {name: number for number, name in enumerate(self.classes)}
        return TextRows(rows, counts, np.array([numbers[part.labels[index]] for index in kept], dtype=np.int64))


def chance_of(labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The accuracy on each split of saying the class that training examples have most often."""
    guess = np.bincount(labels["train"]).argmax()
    return {split: float((found == guess).mean()) for split, found in labels.items() if len(found)}


def classes_of(labels: Mapping[str, Sequence[str]], name: str) -> tuple[list[str], list[str]]:
    """The classes of the training part, sorted, then those that only other parts have; and what is to be said of these.

    labels: of each split. Nothing trains the outputs of classes that training has no example of, so their examples
    count as missed. Raises DataError for a training part of fewer than two classes.
    """
    classes = sorted(set(labels["train"]))
    if len(classes) < 2:
        raise DataError(
            f"the training part of {name} has {len(classes)} class; to classify there have to be two or more"
        )
    return with_unseen(classes, labels, "classes")


def with_unseen(known: Sequence[str], found: Mapping[str, Sequence[str]], what: str) -> tuple[list[str], list[str]]:
    """What training has and, sorted, what only other parts have; and a sentence for each part that has such."""
    remarks, unseen = [], set().union(*map(set, found.values())) - set(known)
    for split, names in found.items():
        if its := sorted(unseen & set(names)):
            count = sum(name in unseen for name in names)
            listed = shorten(", ".join(map(repr, its)), 100, placeholder="...")
            remarks.append(
                f"{count:,} in {split} of {what} that training has no example of ({listed}): they count as missed"
            )
    return [*known, *sorted(unseen)], remarks


@dataclass
class SentenceRows(Rows):
    """Sentences in rows, a row being a sentence or, of one that is too long, a piece.

    labels: beside each row, the label of a word at its first token and IGNORED elsewhere. sentence_of: which sentence
    each row is of; the rows of one stand in its order. texts: the sentences.
    """

    texts: Tagged
    labels: list[np.ndarray] = field(default_factory=list)
    sentence_of: list[int] = field(default_factory=list)

    @property
    def num_examples(self) -> int:
        return len(self.texts.words)

    @property
    def num_terms(self) -> int:
        return sum(map(len, self.texts.words))


@check_ranges
class TokenClassificationData(RowData[SentenceRows]):
    """Sentences of tagged words as batches within a token budget, each the words' tokens between start and end tokens.

    A word is encoded with a blank before it, as it looks within a text. Its label belongs to its first token (Devlin et
    al. 2019, section 5.3); a word that the tokenizer has no token for is the mask. A sentence of more than `max_length`
    tokens is split between words into rows, so that each word stands in one row exactly; a word longer than a row is
    cut in its last tokens; both are counted. The other fields as in RowData. Raises DataError.
    """

    examples, unit = "sentences", "word"
    labels: list[str] = [""] * (1 + 2 * PLACEHOLDER_CLASSES)

    def __init__(self, source: Given[TaggedSource], tokenizer: Tokenizer, **fields: Unpack[RowFields]) -> None:
        super().__init__(source, tokenizer, **fields)
        self._tokens_of: dict[str, np.ndarray] = {}

    def lines(self, part: Tagged) -> Iterable[str]:
        return ("".join(f" {word}" for word in words) for words in part.words)

    def encode(self, parts: dict[str, Tagged]) -> dict[str, SentenceRows]:
        self.types, unseen = types_of(parts, self.name)
        self.remarks += unseen
        self.labels = ["O", *(f"{prefix}-{kind}" for kind in self.types for prefix in "BI")]
        return {split: self._encode(part) for split, part in parts.items()}

    def collate(self, part: SentenceRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """tokens (B, T) padded on the right, is_token, labels (B, T), ids (B,)."""
        labels_BT = padded([part.labels[row] for row in rows_B], IGNORED)
        return collate_rows(part, rows_B, self.vocabulary.special_tokens.pad_id, labels=labels_BT)

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        return super().dims_of(vocabulary) | {"num_classes": len(self.labels)}

    def facts(self) -> dict[str, object]:
        return super().facts() | {"types": self.types}

    def about_examples(self) -> list[str]:
        return [f"{len(self.types)} types of entity"]

    def by_sentence(self, split: str, found: Mapping[int, Sequence[T]]) -> list[list[T]]:
        """What was found for the words of each row, by the row's id, as one list a sentence."""
        part = self.split(split)
        sentences: list[list[T]] = [[] for _ in part.texts.words]
        for row, sentence in enumerate(part.sentence_of):
            sentences[sentence].extend(found[row])
        return sentences

    def _encode(self, part: Tagged) -> SentenceRows:
        numbers, around = {label: i for i, label in enumerate(self.labels)}, self.vocabulary.special_tokens.text
        room, ignored = self.max_length - num_special_tokens(around), [(IGNORED,) * len(each) for each in around]
        encoded = SentenceRows([], {"without words": part.dropped, "split": 0, "words cut": 0}, part)
        for sentence, (words, tags) in enumerate(zip(part.words, part.tags, strict=True)):
            pieces = [self._tokens(word) for word in words]
            groups = groups_within([len(piece) for piece in pieces], room)
            encoded.counts["split"] += len(groups) > 1
            encoded.counts["words cut"] += sum(len(piece) > room for piece in pieces)
            for group in groups:
                labels = [np.full(min(room, len(pieces[word])), IGNORED) for word in group]
                for word, label_T in zip(group, labels, strict=True):
                    label_T[0] = numbers[tags[word]]  # the first token has the label of its word
                encoded.rows.append(add_special_tokens(around, np.concatenate([pieces[word][:room] for word in group])))
                encoded.labels.append(add_special_tokens(ignored, np.concatenate(labels)))
                encoded.sentence_of.append(sentence)
        return encoded

    def _tokens(self, word: str) -> np.ndarray:
        if word not in self._tokens_of:
            tokens = self.vocabulary.encode(self.vocabulary.tokenizer.word_lead + word)
            self._tokens_of[word] = tokens if len(tokens) else np.array([self.vocabulary.mask])
        return self._tokens_of[word]


def groups_within(lengths: Sequence[int], room: int) -> list[range]:
    """Neighbours in groups of at most `room` together, each as long as it can be; one that is longer stands alone."""
    groups, start, taken = [], 0, 0
    for place, length in enumerate(lengths):
        if place > start and taken + length > room:
            groups.append(range(start, place))
            start, taken = place, 0
        taken += length
    return [*groups, range(start, len(lengths))]


def types_of(texts: Mapping[str, Tagged], name: str) -> tuple[list[str], list[str]]:
    """The types of entity, as `with_unseen` gives them. Raises DataError for a training part without any."""
    found = {s: [entity.type for tags in part.tags for entity in entities_of(tags)] for s, part in texts.items()}
    types = sorted(set(found["train"]))
    if not types:
        raise DataError(f"the training part of {name} has no entity: every tag is O; look at data.source.tag_column")
    return with_unseen(types, found, "entities of types")
