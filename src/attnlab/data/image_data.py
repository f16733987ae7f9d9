"""The data module of image classification, and what every data module of images has.

Shapes: B batch, C channels, Y and X rows and columns of pixels, L classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from attnlab.data.augment import Augmentation
from attnlab.data.cache import DataError, prepared
from attnlab.data.classification import chance_of, classes_of
from attnlab.data.images import Images, ImageSource, Pictures, PictureSource, cut_off
from attnlab.data.module import PLACEHOLDER_CLASSES, ExampleData, ExampleFields, Split, remarks_of
from attnlab.data.order import Batch, ShuffledOrder
from attnlab.data.source import SPLITS, VALIDATION_SHARE, Given
from attnlab.ranges import Interval, PositiveInt, check_ranges

FORMAT = 2
EVALUATED_AT_ONCE = 256
P = TypeVar("P", bound=Pictures)


class PixelRows(Split):
    """One split: its images, and what was cut or left out."""

    def __init__(self, pixels_NCYX: np.ndarray, counts: dict[str, int] | None = None) -> None:
        self.pixels, self.counts = pixels_NCYX, counts or {}

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows_B: np.ndarray) -> Tensor:
        """Images in [0, 1], (B, C, Y, X), fp32."""
        return torch.from_numpy(self.pixels[rows_B]).float().div_(255)


S = TypeVar("S", bound=PixelRows)


class PixelData(ExampleData[S]):
    """Images with something beside each, normalised by mean and deviation of the training part, channel by channel.

    augmentation: of training images. batch_size: images of a batch, on each rank. seed draws the training order and the
    augmentation. A subclass gives `make_splits`, which sets the moments by `normalise_by`, and `collate`.
    """

    source: PictureSource[Any]
    takes_batch_ramp = True

    def __init__(
        self, source: Any, augmentation: Augmentation | None, batch_size: int, **fields: Unpack[ExampleFields]
    ) -> None:
        super().__init__(source, **fields)
        self.augmentation, self.batch_size = augmentation or Augmentation(), batch_size

    @property
    def train_tokens(self) -> int:
        return len(self.split("train"))

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size

    def image_dims(self, known: bool = True) -> dict[str, object]:
        """Size and channels of the images; where no data are `known` yet, as the source says them, if it does."""
        size, channels = self.source.image_size, self.source.channels
        if not (known or size is None or channels is None):
            return {"image_size": (size, size), "channels": channels}
        _, channels, rows, columns = self.split("train").pixels.shape
        return {"image_size": (rows, columns), "channels": channels}

    def facts(self) -> dict[str, object]:
        return super().facts() | {
            "shape": list(self.split("train").pixels.shape[1:]),
            "mean": self.mean_C.tolist(),
            "deviation": self.deviation_C.tolist(),
        }

    def particulars(self) -> str:
        channels, rows, columns = self.split("train").pixels.shape[1:]
        return f" of {rows} x {columns} x {channels}"

    def order(self, parts: int, rank: int = 0, world_size: int = 1) -> ShuffledOrder:
        return ShuffledOrder(self.train_tokens, self.batch_size, self.seed, rank, world_size, self.examples)

    def evaluation_budget(self, part: S) -> int:
        return EVALUATED_AT_ONCE

    def augmented(self, part: S, rows_B: np.ndarray, drawn_B: np.ndarray) -> Tensor:
        """Images (B, C, Y, X) in [0, 1] as the training sees them at these numbers of its order."""
        return self.augmentation(part.images(rows_B), rows_B, self.seed, drawn_B // len(part))

    def normalised(self, images_BCYX: Tensor) -> Tensor:
        """Less the mean of the training part, over its deviation."""
        mean_C11, deviation_C11 = (
            torch.from_numpy(values_C).float()[:, None, None] for values_C in (self.mean_C, self.deviation_C)
        )
        return (images_BCYX - mean_C11) / deviation_C11

    def normalise_by(self, pixels_NCYX: np.ndarray) -> None:
        self.mean_C, self.deviation_C = moments(pixels_NCYX)

    def read(self) -> dict[str, Any]:
        """The parts of the source, all of one shape. Sets `fingerprint` and `remarks`. Raises DataError."""
        parts = read_images(self.source, self.cache)
        self.remarks, self.fingerprint = remarks_of(parts), self.source.fingerprint(parts)
        shapes = {name: part.pixels.shape[1:] for name, part in parts.items()}
        for name, shape in shapes.items():
            if shape != shapes["train"]:
                raise DataError(
                    f"the {name} part of {self.name} has images of {shape} (channels, rows, columns), the training "
                    f"part of {shapes['train']}; set data.source.image_size to scale all alike"
                )
        return parts


class ImageRows(PixelRows):
    """One split: its images with the numbers (N,) of their classes."""

    def __init__(self, images: Images, classes: list[str]) -> None:
        super().__init__(images.pixels)
        numbers = {label: number for number, label in enumerate(classes)}
        self.labels = np.array([numbers[label] for label in images.labels], dtype=np.int64)


@check_ranges
class ImageData(PixelData[ImageRows]):
    """Images with a class each, normalised by mean and deviation of the training part, channel by channel.

    source: an ImageSource, or a class or partial of one that is completed with `path`. augmentation: of training
    images. batch_size: images of a batch, on each rank. validation_share: of each class of the training part, at least
    one image, held out to validate on, where the source has no such part; 0: all are trained on, and a tenth of them is
    validated on as well, which says nothing about images that are new. seed draws the training order and the
    augmentation. Raises DataError.
    """

    examples, unit = "images", "image"

    def __init__(
        self,
        source: Given[ImageSource],
        augmentation: Augmentation | None = None,
        batch_size: PositiveInt = 128,
        validation_share: Annotated[float, Interval(ge=0, le=0.5)] = 0.1,
        **fields: Unpack[ExampleFields],
    ) -> None:
        super().__init__(source, augmentation, batch_size, **fields)
        self.validation_share = validation_share

    def labels(self, name: str) -> np.ndarray:
        return self.split(name).labels

    def dims(self) -> dict[str, object]:
        return self.image_dims() | {"num_classes": len(self.classes)}

    def placeholder_dims(self) -> dict[str, object]:
        """What the source says of itself, with a stand-in for the number of classes; else the true widths."""
        dims = self.image_dims(known=False)
        return dims | {"num_classes": PLACEHOLDER_CLASSES if self._splits is None else len(self.classes)}

    def facts(self) -> dict[str, object]:
        return super().facts() | {
            "classes": self.classes,
            "chance": chance_of({name: self.labels(name) for name in SPLITS}),
            "validated_on_training_images": self.validates_on_training,
        }

    def particulars(self) -> str:
        note = "; validation is on a part of the training images" if self.validates_on_training else ""
        return f"{super().particulars()}; {len(self.classes)} classes{note}"

    def collate(self, part: ImageRows, rows_B: np.ndarray, drawn_B: np.ndarray | None = None) -> Batch:
        """images (B, C, Y, X), labels (B,), ids (B,); in training augmented, with targets (B, L) if mixed."""
        ids_B = torch.from_numpy(rows_B.astype(np.int64))
        batch = {"labels": torch.from_numpy(part.labels[rows_B]), "ids": ids_B}
        if drawn_B is None:
            return {"images": self.normalised(part.images(rows_B)), **batch}
        images_BCYX = self.augmented(part, rows_B, drawn_B)
        if self.augmentation.mixes:
            epochs_B = drawn_B // len(part)
            other_B = self.augmentation.partners(rows_B, len(part), self.seed, epochs_B)
            others_BCYX = self.augmented(part, other_B, drawn_B)
            images_BCYX, kept_B = self.augmentation.mix(images_BCYX, others_BCYX, rows_B, self.seed, epochs_B)
            labels_2B = torch.from_numpy(part.labels[np.stack([rows_B, other_B])])
            own_BL, other_BL = torch.eye(len(self.classes))[labels_2B]
            batch["targets"] = kept_B[:, None] * own_BL + (1 - kept_B[:, None]) * other_BL
            batch["labels"] = batch["targets"].argmax(dim=1)  # the class of which there is more
        return {"images": self.normalised(images_BCYX), **batch}

    def make_splits(self) -> dict[str, ImageRows]:
        parts: dict[str, Images] = self.read()
        self.classes, unseen = classes_of({name: part.labels for name, part in parts.items()}, self.name)
        self.remarks += unseen
        self.validates_on_training = "validation" not in parts and self.validation_share == 0
        if "validation" not in parts:
            least = 1 if self.validates_on_training else 2
            both = cut_off(parts["train"], "validation", self.validation_share or VALIDATION_SHARE, least)
            parts = {**both, **({"train": parts["train"]} if self.validates_on_training else {}), "test": parts["test"]}
        self.normalise_by(parts["train"].pixels)
        return {name: ImageRows(parts[name], self.classes) for name in SPLITS}


def read_images(source: PictureSource[P], cache: str | Path | None = None) -> dict[str, P]:
    """The splits of a source; of one that is always the same out of the cache, so that no run decodes them again."""
    if not source.fetched:
        return source.read(cache)
    settings = [FORMAT, source.name, source.version()]
    load = partial(_load, source.part_type)
    return prepared(cache, source.shelf, source.name, settings, lambda to: _save(source.read(cache), to), load)


def _save(splits: Mapping[str, Pictures], folder: Path) -> None:
    for name, part in splits.items():
        arrays: dict[str, Any] = {column: np.array(its, dtype=np.str_) for column, its in part.texts().items()}
        np.savez(folder / f"{name}.npz", pixels=part.pixels, **arrays)
    told = {name: {"dropped": part.dropped, "remarks": part.remarks} for name, part in splits.items()}
    (folder / "splits.json").write_text(json.dumps(told))


def _load(part_type: type[P], folder: Path) -> dict[str, P]:
    splits = {}
    for name, told in json.loads((folder / "splits.json").read_text()).items():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            columns = {column: its if column == "pixels" else its.tolist() for column, its in arrays.items()}
        splits[name] = part_type(**columns, dropped=told["dropped"], remarks=tuple(told["remarks"]))
    return splits


def moments(pixels_NCYX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of bytes over 255, exact, in fp64; a channel of one value has deviation 1."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(pixels_NCYX.shape[1]):
        counts = np.bincount(pixels_NCYX[:, channel].reshape(-1), minlength=256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5 or 1.0)
    return np.array(means), np.array(deviations)
