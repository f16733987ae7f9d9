"""RandAugment's operations on batches of images in [0, 1]. Shapes: B images, C channels, Y and X rows and columns of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.data.draws import uniforms
from attnlab.data.warp import rotation, scaling, shearing, warp

STRONGEST = 30
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in PIL


def rand_augment(
    images_BCYX: Tensor,
    examples_B: np.ndarray,
    seed: int,
    epochs_B: np.ndarray | int,
    operations: int,
    magnitude: float,
) -> Tensor:
    """`operations` of the 14 in turn, drawn for each image, at `magnitude` 0 to 30 (Cubuk et al. 2020, arXiv 1909.13719).

    The ranges are those of AutoAugment (Cubuk et al. 2019, table 6), where an operation has two directions either is taken.
    """
    level, names = magnitude / STRONGEST, list(OPERATIONS)
    draws = uniforms(seed, epochs_B, examples_B, "RandAugment", 2 * operations)
    for turn in range(operations):
        chosen_B = (draws[:, 2 * turn] * len(names)).astype(np.int64)
        signs_B = torch.from_numpy(np.where(draws[:, 2 * turn + 1] < 0.5, -1.0, 1.0)).float()
        changed_BCYX = images_BCYX.clone()
        for number, name in enumerate(names):
            rows = torch.from_numpy(np.flatnonzero(chosen_B == number))
            if len(rows):
                changed_BCYX[rows] = OPERATIONS[name](images_BCYX[rows], level * signs_B[rows])
        images_BCYX = changed_BCYX
    return images_BCYX


def grey(images_BCYX: Tensor) -> Tensor:
    """The brightness of each pixel, (B, 1, Y, X)."""
    if images_BCYX.shape[1] != 3:
        return images_BCYX.mean(dim=1, keepdim=True)
    return (images_BCYX * torch.tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)


def blend(images_BCYX: Tensor, other_BCYX: Tensor, factor_B: Tensor) -> Tensor:
    """From `other` (factor 0) over the images (1) to beyond them."""
    factor_B111 = factor_B[:, None, None, None]
    return (other_BCYX + (images_BCYX - other_BCYX) * factor_B111).clamp(0, 1)


def brightness(images_BCYX: Tensor, factor_B: Tensor) -> Tensor:
    """Darker than black is black."""
    return blend(images_BCYX, torch.zeros_like(images_BCYX), factor_B)


def contrast(images_BCYX: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the mean brightness."""
    return blend(images_BCYX, grey(images_BCYX).mean(dim=(2, 3), keepdim=True).expand_as(images_BCYX), factor_B)


def colour(images_BCYX: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, grey."""
    return blend(images_BCYX, grey(images_BCYX).expand_as(images_BCYX), factor_B)


def sharpness(images_BCYX: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the smoothed image; the outermost pixels stay."""
    channels = images_BCYX.shape[1]
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(channels, 1, 3, 3)
    smooth_BCYX = images_BCYX.clone()
    smooth_BCYX[:, :, 1:-1, 1:-1] = F.conv2d(images_BCYX, kernel, groups=channels)
    return blend(images_BCYX, smooth_BCYX, factor_B)


def posterize(images_BCYX: Tensor, bits: int) -> Tensor:
    """Keeps the highest bits of eight."""
    step = 1 << (8 - bits)
    return to_bytes(images_BCYX).div(step, rounding_mode="floor") * (step / 255)


def solarize(images_BCYX: Tensor, threshold: float) -> Tensor:
    """The negative of what is brighter than the threshold, or as bright."""
    return torch.where(images_BCYX >= threshold, 1 - images_BCYX, images_BCYX)


def autocontrast(images_BCYX: Tensor) -> Tensor:
    """Each channel stretched over 0 to 1, unless it is of one value."""
    low, high = images_BCYX.amin(dim=(2, 3), keepdim=True), images_BCYX.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images_BCYX - low) / (high - low).clamp(min=1e-9), images_BCYX)


def equalize(images_BCYX: Tensor) -> Tensor:
    """Each channel's 256 levels made equally frequent, by the rule of PIL."""
    bytes_NP = to_bytes(images_BCYX).long().flatten(2).flatten(0, 1)
    counts_NL = torch.zeros(len(bytes_NP), 256, dtype=torch.long).scatter_add_(1, bytes_NP, torch.ones_like(bytes_NP))
    brightest_N1 = bytes_NP.amax(dim=1, keepdim=True)
    step_N1 = (counts_NL.sum(dim=1, keepdim=True) - counts_NL.gather(1, brightest_N1)) // 255
    below_NL = counts_NL.cumsum(dim=1) - counts_NL
    levels_NL = ((step_N1 // 2 + below_NL) // step_N1.clamp(min=1)).clamp(max=255)
    equalized_NP = torch.where(step_N1 > 0, levels_NL.gather(1, bytes_NP), bytes_NP)
    return equalized_NP.view(images_BCYX.shape).to(images_BCYX.dtype) / 255


def to_bytes(images_BCYX: Tensor) -> Tensor:
    """The nearest of 256 levels, as numbers from 0 to 255."""
    return (images_BCYX * 255).round().clamp(0, 255)


def _shear(images_BCYX: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    return warp(images_BCYX, shearing(right_B, down_B))


def _translate(images_BCYX: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    ones_B = torch.ones_like(right_B)
    return warp(images_BCYX, scaling(ones_B, ones_B), torch.stack([right_B, down_B], dim=1))


def _none(level_B: Tensor) -> Tensor:
    return torch.zeros_like(level_B)


# Each takes images and a level from -1 to 1 for each of them.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda x, level_B: x,
    "shear_x": lambda x, level_B: _shear(x, 0.3 * level_B, _none(level_B)),
    "shear_y": lambda x, level_B: _shear(x, _none(level_B), 0.3 * level_B),
    "translate_x": lambda x, level_B: _translate(x, 150 / 331 * x.shape[3] * level_B, _none(level_B)),
    "translate_y": lambda x, level_B: _translate(x, _none(level_B), 150 / 331 * x.shape[2] * level_B),
    "rotate": lambda x, level_B: warp(x, rotation(math.radians(30) * level_B)),
    "brightness": lambda x, level_B: brightness(x, 1 + 0.9 * level_B),
    "colour": lambda x, level_B: colour(x, 1 + 0.9 * level_B),
    "contrast": lambda x, level_B: contrast(x, 1 + 0.9 * level_B),
    "sharpness": lambda x, level_B: sharpness(x, 1 + 0.9 * level_B),
    "posterize": lambda x, level_B: posterize(x, 8 - round(4 * float(level_B.abs().max()))),
    "solarize": lambda x, level_B: solarize(x, 1 - float(level_B.abs().max())),
    "autocontrast": lambda x, level_B: autocontrast(x),
    "equalize": lambda x, level_B: equalize(x),
}
