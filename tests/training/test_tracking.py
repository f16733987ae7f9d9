"""Thumbnails and pictures as PNG files, and a table with images in every view."""

import io

import numpy as np
import pytest
from PIL import Image

from attnlab.training import Picture, Table
from attnlab.training.loggers import _as_wandb
from attnlab.training.tracking import thumbnail


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_small_image_is_kept_as_it_is(channels, mode):
    pixels_CYX = np.random.default_rng(0).integers(0, 256, (channels, 9, 7), dtype=np.uint8)
    image = Image.open(io.BytesIO(thumbnail(pixels_CYX).png))
    assert image.mode == mode
    assert np.array_equal(np.asarray(image).reshape(9, 7, channels), np.moveaxis(pixels_CYX, 0, -1))


def test_a_large_image_is_made_smaller_in_its_proportions():
    assert Image.open(io.BytesIO(thumbnail(np.zeros((3, 200, 100), dtype=np.uint8)).png)).size == (24, 48)


def test_a_picture_is_written_as_it_is():
    pixels_HW = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(Picture(pixels_HW).as_png()))), pixels_HW)


def test_images_of_a_table_are_shown_by_wandb_and_named_where_there_is_text_alone():
    table = Table(("image", "class"), [(thumbnail(np.zeros((1, 8, 6), dtype=np.uint8)), "3")])
    assert table.as_markdown().splitlines()[-1] == "| (image) | 3 |"
    ((image, label),) = _as_wandb(table).data
    assert (image.image.size, label) == ((6, 8), "3")
