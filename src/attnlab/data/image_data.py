"""The Lightning data module of image classification. Shapes: B batch, C channels, Y and X rows and columns of pixels, L classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Self

import numpy as np
import torch
from torch import Tensor

from attnlab.data.augment import Augmentation
from attnlab.data.budget import EvaluationBatches
from attnlab.data.cache import DataError
from attnlab.data.classification import REHEARSAL_CLASSES, classes_of
from attnlab.data.encoded import remarks_of
from attnlab.data.image_cache import read_images
from attnlab.data.images import Images, ImageSource, cut_off
from attnlab.data.module import DataModule
from attnlab.data.sources import opened
from attnlab.data.windows import ENDLESS
from attnlab.ranges import Interval, PositiveInt, Seed, check_ranges

EVALUATED_AT_ONCE = 256


@check_ranges
class ImageData(DataModule):
    """
    Images with a class each, normalised by mean and deviation of the training part, channel by channel.

    source: an ImageSource, or a class or partial of one that is completed with `path`. augmentation: of training images. batch_size:
    images of a batch, on each rank. validation_share: of each class of the training part, at least one image, held out to validate on,
    where the source has no such part; 0: all are trained on, and a tenth of them is validated on as well, which says nothing about
    images that are new. seed draws the training order and the augmentation. Raises DataError.
    """

    unit = "image"

    def __init__(
        self,
        source: Callable[..., ImageSource] | ImageSource,
        augmentation: Augmentation | None = None,
        batch_size: PositiveInt = 128,
        validation_share: Annotated[float, Interval(ge=0, le=0.5)] = 0.1,
        path: str | None = None,
        seed: Seed = 0,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(source, ImageSource):
            source = opened(source, path)
        self.source, self.name = source, source.name
        self.augmentation, self.batch_size = augmentation or Augmentation(), batch_size
        self.validation_share, self.seed, self.cache = validation_share, seed, cache
        self._parts: dict[str, Images] | None = None
        self._batches: ImageBatches | None = None
        self._order_state: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Fetches the images, where they are not in the cache yet."""
        self.split("train")

    def setup(self, stage: str | None = None) -> None:
        """Reads every split."""
        for name in ("train", "validation", "test"):
            self.split(name)

    def split(self, name: str) -> Images:
        """The images of a split. Raises DataError for one that is not there, or is empty."""
        if self._parts is None:
            self._parts = self._read()
        if name not in self._parts or not len(self._parts[name]):
            known = ", ".join(split for split, part in self._parts.items() if len(part))
            raise DataError(f"{self.name} has no images in a split {name!r}; accepted: {known}")
        return self._parts[name]

    def labels(self, name: str) -> np.ndarray:
        """The number of each image's class, in a split."""
        return self._numbers(self.split(name))

    def widths(self) -> dict[str, Any]:
        """The images' size and channels, and how many classes there are."""
        _, channels, rows, columns = self.split("train").pixels.shape
        return {"image_size": (rows, columns), "channels": channels, "num_classes": len(self.classes)}

    def rehearsal_widths(self) -> dict[str, Any]:
        """What the source says of itself, with a stand-in for the number of classes; else the true widths."""
        size, channels = self.source.image_size, self.source.channels
        if size is None or channels is None:
            return self.widths()
        return {"image_size": (size, size), "channels": channels, "num_classes": REHEARSAL_CLASSES}

    @property
    def train_tokens(self) -> int:
        """Images of an epoch: each is one term of the loss."""
        return len(self.split("train"))

    @property
    def tokens_per_batch(self) -> int:
        """Images of a training batch."""
        return self.batch_size

    def facts(self) -> dict[str, Any]:
        """Sizes, classes, what pixels are normalised by, and whether validation is on images that are trained on."""
        self.split("train")
        assert self._parts is not None
        return {
            "fingerprint": self.fingerprint,
            "train_tokens": self.train_tokens,
            "classes": self.classes,
            "images": {name: len(part) for name, part in self._parts.items()},
            "shape": list(self.split("train").pixels.shape[1:]),
            "mean": self.mean_C.tolist(),
            "deviation": self.deviation_C.tolist(),
            "validated_on_training_images": self.validates_on_training,
            **({"remarks": self.remarks} if self.remarks else {}),
        }

    def describe(self) -> str:
        """Images of every split, their size, and how many classes there are."""
        facts = self.facts()
        images = ", ".join(f"{name} {count:,}" for name, count in facts["images"].items())
        channels, rows, columns = facts["shape"]
        note = "; validation is on a part of the training images" if self.validates_on_training else ""
        note += "".join(f"; {remark}" for remark in self.remarks)
        return f"{self.name}: images {images} of {rows} x {columns} x {channels}; {len(self.classes)} classes{note}"

    def train_dataloader(self) -> ImageBatches:
        """The endless training order, from where `load_state_dict` set it."""
        self._batches = ImageBatches(self, *self.place())
        if self._order_state is not None:
            self._batches.load_state_dict(self._order_state)
        return self._batches

    def val_dataloader(self) -> EvaluationBatches:
        """The images to validate on."""
        return self.evaluation_loader("validation")

    def evaluation_loader(self, split: str) -> EvaluationBatches:
        """Every image of a split once over all ranks, as it is, with `ids`."""
        ones = np.ones(len(self.split(split)), dtype=np.int64)
        labels = torch.from_numpy(self.labels(split))

        def collate(rows_B: np.ndarray) -> dict[str, Tensor]:
            ids_B = torch.from_numpy(rows_B.astype(np.int64))
            return {"images": self.normalised(self.pixels(split, rows_B)), "labels": labels[ids_B], "ids": ids_B}

        return EvaluationBatches(ones, EVALUATED_AT_ONCE, collate, *self.place())

    def training_batch(self, rows_B: np.ndarray, epochs_B: np.ndarray) -> dict[str, Tensor]:
        """Images as their epochs augment them: images (B, C, Y, X), labels (B,), ids (B,), and targets (B, L) where images are mixed."""
        seed, count = self.seed, self.train_tokens
        images_BCYX = self.augmentation(self.pixels("train", rows_B), rows_B, seed, epochs_B)
        ids_B = torch.from_numpy(rows_B.astype(np.int64))
        batch = {"labels": self._train_labels[ids_B], "ids": ids_B}
        if self.augmentation.mixes:
            other_B = self.augmentation.partners(rows_B, count, seed, epochs_B)
            others_BCYX = self.augmentation(self.pixels("train", other_B), other_B, seed, epochs_B)
            images_BCYX, kept_B = self.augmentation.mix(images_BCYX, others_BCYX, rows_B, seed, epochs_B)
            own_BL, other_BL = (
                self._one_hot[batch["labels"]],
                self._one_hot[self._train_labels[torch.from_numpy(other_B)]],
            )
            batch["targets"] = kept_B[:, None] * own_BL + (1 - kept_B[:, None]) * other_BL
            batch["labels"] = batch["targets"].argmax(dim=1)  # the class of which there is more
        return {"images": self.normalised(images_BCYX), **batch}

    def pixels(self, split: str, rows_B: np.ndarray) -> Tensor:
        """Images in [0, 1], (B, C, Y, X), fp32."""
        return torch.from_numpy(self.split(split).pixels[rows_B]).float().div_(255)

    def normalised(self, images_BCYX: Tensor) -> Tensor:
        """Less the mean of the training part, over its deviation."""
        mean_C11, deviation_C11 = (
            torch.from_numpy(values_C).float()[:, None, None] for values_C in (self.mean_C, self.deviation_C)
        )
        return (images_BCYX - mean_C11) / deviation_C11

    def state_dict(self) -> dict[str, Any]:
        """The place in the training order."""
        return {} if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader go on from a saved place."""
        self._order_state = dict(state_dict) or None

    def _read(self) -> dict[str, Images]:
        parts = read_images(self.source, self.cache)
        self.classes, unseen = classes_of({name: part.labels for name, part in parts.items()}, self.name)
        self.remarks = [*remarks_of(parts), *unseen]
        self.fingerprint = self.source.fingerprint(parts)
        shapes = {name: part.pixels.shape[1:] for name, part in parts.items()}
        for name, shape in shapes.items():
            if shape != shapes["train"]:
                raise DataError(
                    f"the {name} part of {self.name} has images of {shape} (channels, rows, columns), the training part of "
                    f"{shapes['train']}; set data.source.image_size to scale all alike"
                )
        self.validates_on_training = "validation" not in parts and self.validation_share == 0
        if "validation" not in parts:
            least = 1 if self.validates_on_training else 2
            both = cut_off(parts["train"], "validation", self.validation_share or 0.1, least)
            parts = {**parts, "validation": both["validation"]}
            parts["train"] = parts["train"] if self.validates_on_training else both["train"]
        self.mean_C, self.deviation_C = moments(parts["train"].pixels)
        self._train_labels = torch.from_numpy(self._numbers(parts["train"]))
        self._one_hot = torch.eye(len(self.classes))
        return {name: parts[name] for name in ("train", "validation", "test")}

    def _numbers(self, part: Images) -> np.ndarray:
        numbers = {label: number for number, label in enumerate(self.classes)}
        return np.array([numbers[label] for label in part.labels], dtype=np.int64)


class ImageBatches:
    """The endless training order: every epoch gives each image once, shuffled.

    A batch may begin in one epoch and end in the next, so all are full, and a step has the same images, augmented alike, whether one
    rank takes them at once, two ranks take half each, or one takes two halves. Step i is a function of the data, their seed and i alone.
    """

    def __init__(self, data: ImageData, rank: int = 0, world_size: int = 1) -> None:
        self.data, self.rank, self.world_size = data, rank, world_size
        self.count, self.seen = data.train_tokens, 0
        self._epoch: tuple[int, np.ndarray] = (-1, np.array([]))

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Tensor]:
        first = self.seen + self.rank * self.data.batch_size
        self.seen += self.data.batch_size * self.world_size
        places_B = np.arange(first, first + self.data.batch_size)
        epochs_B = places_B // self.count
        orders = [
            self._order(epoch)[places_B[epochs_B == epoch] % self.count] for epoch in np.unique(epochs_B).tolist()
        ]
        return self.data.training_batch(np.concatenate(orders), epochs_B)

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.data.seed, epoch])))
            self._epoch = (epoch, random.permutation(self.count))
        return self._epoch[1]

    def state_dict(self) -> dict[str, int]:
        """The place in the order: images seen by all ranks together, so that it holds for another number of ranks too."""
        return {"images_seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a place that `state_dict` gave."""
        self.seen = int(state["images_seen"])


def moments(pixels_NCYX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of bytes over 255, exact, in fp64; a channel of one value has deviation 1."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(pixels_NCYX.shape[1]):
        counts = np.bincount(pixels_NCYX[:, channel].reshape(-1), minlength=256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5 or 1.0)
    return np.array(means), np.array(deviations)
