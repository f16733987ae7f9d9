"""The data module of images with texts. Shapes: B batch, C channels, Y and X rows and columns of pixels, T tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Annotated, Unpack

import numpy as np
import torch
from torch import Tensor

from attnlab.data.augment import Augmentation
from attnlab.data.cache import DataError
from attnlab.data.captions import Captioned, CaptionedSource
from attnlab.data.image_data import PixelData, PixelRows
from attnlab.data.module import ExampleFields, TextedData
from attnlab.data.order import Batch
from attnlab.data.source import SPLITS, Given
from attnlab.data.special_tokens import add_special_tokens, num_special_tokens
from attnlab.data.token_data import token_batch, trained_tokenizer
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.ranges import Ge, PositiveInt, check_ranges


class CaptionedRows(PixelRows):
    """One split: images with their captions, the rows of tokens of these and, where there are classes, their numbers
    (N,).
    """

    def __init__(self, part: Captioned, rows: list[np.ndarray], labels: np.ndarray | None, cut: int) -> None:
        super().__init__(part.pixels, {"without caption": part.dropped, "cut": cut})
        self.captions, self.rows, self.labels = part.captions, rows, labels

    @cached_property
    def image_of(self) -> np.ndarray:
        """The number (N,) of the picture that each row shows: the same one where an image has several captions."""
        numbers: dict[bytes, int] = {}
        digests = (hashlib.sha256(pixels.tobytes()).digest() for pixels in self.pixels)
        return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], dtype=np.int64)


@check_ranges
class ImageTextData(PixelData[CaptionedRows], TextedData[CaptionedRows]):
    """Images with a text each, which ends in the vocabulary's token for the end of a text.

    source: a CaptionedSource, or a class or partial of one that is completed with `path`. tokenizer: trained on the
    captions of the training part. augmentation: of training images, without mixup and cutmix. batch_size: pairs of a
    batch, on each rank. max_length: the most tokens of a caption with its special tokens; what is longer is cut, its
    end kept, and counted. Images are normalised by mean and deviation of the training part. seed draws the training
    order and the augmentation. Attributes: `classes`, the names of the images' classes, None where they have none.
    Raises DataError.
    """

    examples, unit, frame = "pairs", "pair", "source"
    classes: list[str] | None = None
    takes_batch_ramp = False  # a pair's loss is of all pairs in its batch

    def __init__(
        self,
        source: Given[CaptionedSource],
        tokenizer: Tokenizer,
        augmentation: Augmentation | None = None,
        batch_size: PositiveInt = 128,
        max_length: Annotated[int, Ge(3)] = 77,
        **fields: Unpack[ExampleFields],
    ) -> None:
        super().__init__(source, augmentation, batch_size, **fields)
        self.untrained, self.max_length = tokenizer, max_length
        if self.augmentation.mixes:
            raise DataError(
                "augmentation.mixup and augmentation.cutmix must be 0 with data of images and texts: there is no text "
                "of two images; set both to 0, or take another augmentation"
            )

    def dims_of(self, vocabulary: Vocabulary) -> dict[str, object]:
        images = self.image_dims(known=self._splits is not None)
        return images | super().dims_of(vocabulary) | {"max_length": self.max_length}

    def particulars(self) -> str:
        classes = "" if self.classes is None else f"; {len(self.classes):,} classes"
        return f"{super().particulars()}{classes}; vocabulary {self.vocabulary.size:,}"

    def collate(self, part: CaptionedRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """images (B, C, Y, X), in training augmented; tokens (B, T) filled on the right, is_token (B, T), ids (B,)."""
        images_BCYX = part.images(rows_B) if drawn_B is None else self.augmented(part, rows_B, drawn_B)
        ids_B = torch.from_numpy(rows_B.astype(np.int64))
        return {
            "images": self.normalised(images_BCYX),
            **self._tokens([part.rows[row] for row in rows_B]),
            "ids": ids_B,
        }

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The tokens (B, T) of texts as captions are encoded, filled on the right, and where they are (B, T)."""
        self.prepare()
        batch = self._tokens([self._encode(text)[0] for text in texts])
        return batch["tokens"], batch["is_token"]

    def texts_cut(self, texts: Sequence[str]) -> list[int]:
        """The places of those texts that `encode_texts` cuts."""
        self.prepare()
        return [place for place, text in enumerate(texts) if self._encode(text)[1]]

    def images_of(self, name: str, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Images (B, C, Y, X) of a split as a model sees them in evaluation."""
        return self.normalised(self.split(name).images(np.asarray(rows, dtype=np.int64)))

    def make_splits(self) -> dict[str, CaptionedRows]:
        parts: dict[str, Captioned] = self.read()
        captions = {name: partial(_lines, part) for name, part in parts.items()}
        self.vocabulary = Vocabulary(
            trained_tokenizer(self.untrained, captions, self.source, self.fingerprint, self.cache)
        )
        self.vocabulary.special_tokens.require("end")
        named = {label for part in parts.values() for label in part.labels}
        self.classes = None if named == {""} else sorted(named)
        self.normalise_by(parts["train"].pixels)
        return {name: self._rows(parts[name]) for name in SPLITS}

    def _rows(self, part: Captioned) -> CaptionedRows:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        labels = np.array([numbers[label] for label in part.labels], dtype=np.int64) if self.classes else None
        encoded = [self._encode(caption) for caption in part.captions]
        return CaptionedRows(part, [row for row, _ in encoded], labels, sum(is_cut for _, is_cut in encoded))

    def _encode(self, text: str) -> tuple[np.ndarray, bool]:
        """The tokens of a text between its special tokens, and whether it is cut."""
        around = self.vocabulary.special_tokens.source
        tokens, room = self.vocabulary.encode_text(text), self.max_length - num_special_tokens(around)
        return add_special_tokens(around, tokens[:room]), len(tokens) > room

    def _tokens(self, rows: Sequence[np.ndarray]) -> Batch:
        return token_batch(rows, self.vocabulary.special_tokens.pad_id)


def _lines(part: Captioned) -> Iterator[str]:
    return (f" {caption}" for caption in part.captions)
