"""The Lightning data module of text classification. Shapes: B batch, T length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Annotated, Any

import numpy as np
import torch

from attnlab.data.cache import DataError
from attnlab.data.encoded import Encoded, EncodedData, collate_rows
from attnlab.data.labelled import Labelled, LabelledSource
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import framed, num_marks
from attnlab.ranges import Ge, Interval, Seed, check_ranges

REHEARSAL_CLASSES = 2


@dataclass
class EncodedTexts(Encoded):
    """Texts with their class numbers."""

    labels: np.ndarray


@check_ranges
class ClassificationData(EncodedData[EncodedTexts]):
    """
    Labelled texts as batches within a token budget, each a text between start and end marks.

    max_length: what is longer is cut and counted. train_fraction: how much of the training part is trained on, the same texts for
    every seed. The other fields as in EncodedData. Raises DataError.
    """

    kind, examples = "labelled", "texts"
    unit = "text"

    def __init__(
        self,
        source: Callable[..., LabelledSource] | LabelledSource,
        tokenizer: Tokenizer,
        tokenizer_from: str | None = None,
        max_length: Annotated[int, Ge(3)] = 128,
        batch_tokens: Annotated[int, Ge(3)] = 4096,
        train_fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__(source, tokenizer, tokenizer_from, max_length, batch_tokens, path, seed, cache)
        self.train_fraction = train_fraction

    def lines(self, part: Labelled) -> Iterable[str]:
        """The texts, as they are encoded."""
        return (f" {text}" for text in part.texts)

    def encode_parts(self, parts: dict[str, Labelled]) -> dict[str, EncodedTexts]:
        """The classes of the training part, and every part encoded."""
        self.classes, unseen = classes_of({split: part.labels for split, part in parts.items()}, self.name)
        self.remarks += unseen
        return {split: self._encode(part, split == "train") for split, part in parts.items()}

    def collate(self, part: EncodedTexts, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
        """tokens (B, T) padded on the right, is_token, labels (B,), ids (B,)."""
        return collate_rows(part, rows_B, self.vocabulary.marks.filler, labels=part.labels[rows_B])

    def labels(self, name: str) -> np.ndarray:
        """The number of each text's class, in a split."""
        return self.split(name).labels

    def widths(self) -> dict[str, Any]:
        """The size of the vocabulary, and how many classes there are."""
        return super().widths() | {"num_classes": len(self.classes)}

    def rehearsal_widths(self) -> dict[str, Any]:
        """Stand-ins."""
        return super().rehearsal_widths() | {"num_classes": REHEARSAL_CLASSES}

    def facts(self) -> dict[str, Any]:
        """Sizes, classes, and how many texts were cut or dropped."""
        return super().facts() | {"classes": self.classes}

    def particulars(self) -> list[str]:
        """How many classes."""
        return [f"{len(self.classes)} classes"]

    def _encode(self, part: Labelled, training: bool) -> EncodedTexts:
        kept = range(len(part.texts))
        if training and self.train_fraction < 1:
            order = np.random.Generator(np.random.Philox(0)).permutation(len(part.texts))
            kept = sorted(order[: max(1, round(self.train_fraction * len(order)))].tolist())  # type: ignore[assignment]
        rows, cut, marks = [], 0, self.vocabulary.marks.text
        room = self.max_length - num_marks(marks)
        for index in kept:
            tokens = self.vocabulary.encode_text(part.texts[index])
            cut += len(tokens) > room
            rows.append(framed(marks, tokens[:room]))
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = np.array([numbers[part.labels[index]] for index in kept], dtype=np.int64)
        return EncodedTexts(rows, {"without text": part.dropped, "cut": cut}, labels)


def classes_of(labels: Mapping[str, Sequence[str]], name: str) -> tuple[list[str], list[str]]:
    """
    The classes of the training part, sorted, then those that only other parts have; and what is to be said of these.

    labels: of each split. Nothing trains the outputs of classes that training has no example of, so their examples
    count as missed. Raises DataError for a training part of fewer than two classes.
    """
    classes = sorted(set(labels["train"]))
    if len(classes) < 2:
        raise DataError(
            f"the training part of {name} has {len(classes)} class; to classify there have to be two or more"
        )
    return [*classes, *unseen_in(labels, classes)], about_unseen(labels, classes, "classes")


def unseen_in(found: Mapping[str, Iterable[str]], known: Sequence[str]) -> list[str]:
    """What only other parts than the training part have, sorted."""
    return sorted(set().union(*map(set, found.values())) - set(known))


def about_unseen(found: Mapping[str, Sequence[str]], known: Sequence[str], what: str) -> list[str]:
    """One sentence for each part that has classes or types which the training part lacks."""
    remarks = []
    for split, names in found.items():
        unseen = sorted(set(names) - set(known))
        if unseen:
            count = sum(name in unseen for name in names)
            listed = shorten(", ".join(map(repr, unseen)), 100, placeholder="...")
            remarks.append(
                f"{count:,} in {split} of {what} that training has no example of ({listed}): they count as missed"
            )
    return remarks
