"""Files that hold images, and their pixels as numbers. Letters of shapes: C channels, Y and X rows and columns of pixels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from attnlab.data.cache import DataError
from attnlab.data.sources import refuse_half_characters
from attnlab.ranges import must_be

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}


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


def read_pixels(what: str, opens: Callable[[], Any], image_size: int | None, channels: int) -> np.ndarray:
    """The pixels (C, Y, X) of an image, given by words that name it and what opens it. Raises DataError where it cannot be read."""
    try:
        upright = opaque(eight_bits(ImageOps.exif_transpose(opens()))).convert(MODES[channels])
        if image_size is not None and upright.size != (image_size, image_size):
            upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(upright).reshape(upright.height, upright.width, channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, AttributeError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} cannot be read as an image ({error}); mend it or take it out") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel with 8, others as they are. Raises ValueError for numbers of 32 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(f"it opens in mode {image.mode}, whose range is not known; accepted: 8 or 16 bits a channel")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))


def opaque(image: Image.Image) -> Image.Image:
    """What is transparent laid on black, so that no hidden colour shows; others as they are."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)


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
    """Whether a file has the name of an image."""
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()


def check_channels(channels: int) -> None:
    """Raises DataError for channels that are neither grey nor colour."""
    if channels not in MODES:
        raise DataError(must_be("data.source.channels", "1 (grey) or 3 (colour)", channels))
