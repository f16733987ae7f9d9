"""Augmentation of images in [0, 1], each in its own way.

Shapes: B images, C channels, Y and X rows and columns of pixels, L levels, N channels of all images, P pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.data.cache import DataError
from attnlab.data.order import uniforms
from attnlab.parts import Part
from attnlab.ranges import Interval, NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, check_ranges, must_be

AREAS, RATIOS = (0.02, 0.33), (0.3, 1 / 0.3)  # of what is erased (Zhong et al. 2020, section 5.2)
STRONGEST = 30  # of RandAugment's magnitudes
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in PIL


@check_ranges
@dataclass(frozen=True)
class Augmentation(Part):
    """Images as a training sees them: a function of seed, epoch and example alone, whatever batch an example is in.

    crop: the least and the largest share of the area that is cut out and scaled to the whole, with sides of 3:4 to 4:3
    (Szegedy et al. 2015). shift: up to so many whole pixels each way, each as probable, which is a random crop of the
    image padded with black (He et al. 2016, section 4.2). flip: how probable a mirror image is. degrees, scale, shear
    (in degrees): how far an image is turned at most, the range it is scaled in, how far it is sheared at most.
    operations, magnitude: of RandAugment (0: none). erase: how probable it is that a rectangle becomes noise (Zhong et
    al. 2020). mixup, cutmix: the parameter of the Beta distribution that draws the share of another image of the
    training part (Zhang et al. 2018; Yun et al. 2019), 0: none, both: one or the other; the label is shared alike.
    Raises DataError.
    """

    crop: Sequence[Annotated[float, Interval(gt=0, le=1)]] = (1.0, 1.0)
    shift: NonNegativeFloat = 0.0
    flip: Probability = 0.0
    degrees: Annotated[float, Interval(ge=0, le=180)] = 0.0
    scale: Sequence[PositiveFloat] = (1.0, 1.0)
    shear: Annotated[float, Interval(ge=0, le=80)] = 0.0
    operations: NonNegativeInt = 0
    magnitude: Annotated[float, Interval(ge=0, le=STRONGEST)] = 9.0
    erase: Probability = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        for name, pair in (("crop", self.crop), ("scale", self.scale)):
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise DataError(must_be(f"augmentation.{name}", "two numbers, the lower one first", pair))
        if self.shift % 1:
            raise DataError(must_be("augmentation.shift", "whole pixels", self.shift))

    @property
    def mixes(self) -> bool:
        """Whether another image and its class become a part of each."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images_BCYX: Tensor, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int) -> Tensor:
        """The images, each for itself; examples_B: their numbers in the training part, epochs_B: when they are seen."""
        images_BCYX = self._warped(images_BCYX, examples_B, seed, epochs_B)
        if self.operations:
            images_BCYX = rand_augment(images_BCYX, examples_B, seed, epochs_B, self.operations, self.magnitude)
        return self._erased(images_BCYX, examples_B, seed, epochs_B) if self.erase else images_BCYX

    def partners(self, examples_B: np.ndarray, count: int, seed: int, epochs_B: np.ndarray | int) -> np.ndarray:
        """Which of all `count` examples is mixed into each."""
        return (uniforms(seed, epochs_B, examples_B, "partner", 1)[:, 0] * count).astype(np.int64)

    def mix(
        self, images_BCYX: Tensor, others_BCYX: Tensor, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int
    ) -> tuple[Tensor, Tensor]:
        """Images with their partners mixed in, and the share (B,) of its own that each has kept."""
        from scipy.special import betaincinv

        which_B, share_B, row_B, column_B = uniforms(seed, epochs_B, examples_B, "mix", 4).T
        cuts_B = which_B < (0.5 if self.mixup else 1.0) if self.cutmix else np.zeros(len(which_B), dtype=bool)
        alpha_B = np.where(cuts_B, self.cutmix, self.mixup)
        kept_B = torch.from_numpy(betaincinv(alpha_B, alpha_B, share_B)).float()
        rows, columns = images_BCYX.shape[2:]
        side_B = (1 - kept_B).sqrt()  # a box of this share of the area, cut off at the edges of the image
        inside_B1YX = box(row_B, column_B, side_B * rows, side_B * columns, rows, columns)
        cut_B = torch.from_numpy(cuts_B)
        kept_B = torch.where(cut_B, 1 - inside_B1YX.float().mean(dim=(1, 2, 3)), kept_B)
        weight_B1YX = torch.where(cut_B[:, None, None, None], (~inside_B1YX).float(), kept_B[:, None, None, None])
        return weight_B1YX * images_BCYX + (1 - weight_B1YX) * others_BCYX, kept_B

    def _warped(self, images_BCYX: Tensor, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int) -> Tensor:
        drawn = torch.from_numpy(uniforms(seed, epochs_B, examples_B, "warp", 11)).float()
        signed = 2 * drawn - 1
        if (self.shift, self.flip, self.degrees, self.shear) == (0, 0, 0, 0) and {*self.crop, *self.scale} == {1.0}:
            return images_BCYX
        rows, columns = images_BCYX.shape[2:]
        shares_B = self.crop[0] + (self.crop[1] - self.crop[0]) * drawn[:, 0]
        ratios_B = (4 / 3) ** signed[:, 1] if self.crop[0] < 1 else torch.ones_like(shares_B)
        width_B, height_B = (shares_B * ratios_B).sqrt().clamp(max=1), (shares_B / ratios_B).sqrt().clamp(max=1)
        room_B2 = torch.stack([(1 - width_B) * columns / 2, (1 - height_B) * rows / 2], dim=1)
        mirror_B = torch.where(drawn[:, 4] < self.flip, -1.0, 1.0)
        zoom_B = self.scale[0] + (self.scale[1] - self.scale[0]) * drawn[:, 5]
        most = math.tan(math.radians(self.shear))
        matrix_B22 = (
            rotation(math.radians(self.degrees) * signed[:, 6])
            @ shearing(most * signed[:, 7], torch.zeros_like(zoom_B))
            @ scaling(zoom_B * mirror_B / width_B, zoom_B / height_B)
        )
        whole_B2 = ((2 * self.shift + 1) * drawn[:, 9:11]).floor().clamp(max=2 * self.shift)  # in fp32 a draw may be 1
        return warp_affine(images_BCYX, matrix_B22, whole_B2 - self.shift, room_B2 * signed[:, 2:4])

    def _erased(self, images_BCYX: Tensor, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int) -> Tensor:
        rows, columns = images_BCYX.shape[2:]
        drawn = uniforms(seed, epochs_B, examples_B, "erase", 5)
        area_B = AREAS[0] + (AREAS[1] - AREAS[0]) * drawn[:, 1]
        ratio_B = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** drawn[:, 2]
        height_B, width_B = np.minimum(1, np.sqrt(area_B * ratio_B)), np.minimum(1, np.sqrt(area_B / ratio_B))
        row_B, column_B = (  # middles, such that the rectangle lies inside
            size_B / 2 + (1 - size_B) * place_B for size_B, place_B in ((height_B, drawn[:, 3]), (width_B, drawn[:, 4]))
        )
        inside_B1YX = box(
            row_B, column_B, torch.from_numpy(height_B * rows), torch.from_numpy(width_B * columns), rows, columns
        )
        inside_B1YX &= torch.from_numpy(drawn[:, 0] < self.erase)[:, None, None, None]
        noise = uniforms(seed, epochs_B, examples_B, "noise", images_BCYX[0].numel())
        return torch.where(inside_B1YX, torch.from_numpy(noise).float().view_as(images_BCYX), images_BCYX)


def box(row_B: np.ndarray, column_B: np.ndarray, height_B: Tensor, width_B: Tensor, rows: int, columns: int) -> Tensor:
    """True inside rectangles (B, 1, Y, X) of whole pixels; middles as shares of the image's sides, sides in pixels."""
    insides = []
    for middle_B, size_B, length in ((row_B, height_B, rows), (column_B, width_B, columns)):
        middle_B1 = torch.from_numpy(middle_B)[:, None] * length
        first_B1, last_B1 = (middle_B1 - size_B[:, None] / 2).round(), (middle_B1 + size_B[:, None] / 2).round()
        pixel = torch.arange(length)
        insides.append((pixel >= first_B1) & (pixel < last_B1))
    return (insides[0][:, :, None] & insides[1][:, None, :])[:, None]


def warp_affine(
    images_BCYX: Tensor, matrix_B22: Tensor, shift_B2: Tensor | None = None, origin_B2: Tensor | None = None
) -> Tensor:
    """What stood at p stands at M (p - o) + s, bilinear, black outside.

    Points are (to the right, down) in pixels from the middle of the image; matrix M, shift s (None: 0), origin o (None:
    0).
    """
    rows, columns = images_BCYX.shape[2:]
    back_B22 = torch.linalg.inv(matrix_B22)
    zeros_B2 = torch.zeros_like(matrix_B22[:, 0])
    shift_B2, origin_B2 = (zeros_B2 if given is None else given for given in (shift_B2, origin_B2))
    offset_B2 = origin_B2 - (back_B22 @ shift_B2[:, :, None])[:, :, 0]
    half_2 = torch.tensor([columns / 2, rows / 2])  # grid_sample counts from -1 to 1 over the image
    grid_B23 = torch.cat([back_B22 * half_2 / half_2[:, None], (offset_B2 / half_2)[:, :, None]], dim=2).float()
    grid_BYX2 = F.affine_grid(grid_B23, list(images_BCYX.shape), align_corners=False)
    return F.grid_sample(images_BCYX, grid_BYX2, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotation(radians_B: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that turn clockwise, as seen with rows going down."""
    cos_B, sin_B = radians_B.cos(), radians_B.sin()
    return torch.stack([torch.stack([cos_B, -sin_B], dim=1), torch.stack([sin_B, cos_B], dim=1)], dim=1)


def shearing(right_B: Tensor, down_B: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that move a point right by a share of how far down it is, and down by one of how far right."""
    ones_B = torch.ones_like(right_B)
    return torch.stack([torch.stack([ones_B, right_B], dim=1), torch.stack([down_B, ones_B], dim=1)], dim=1)


def scaling(right_B: Tensor, down_B: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([right_B, down_B], dim=1))


def rand_augment(
    images_BCYX: Tensor,
    examples_B: np.ndarray,
    seed: int,
    epochs_B: np.ndarray | int,
    operations: int,
    magnitude: float,
) -> Tensor:
    """`operations` of 14 in turn, drawn for each image, at `magnitude` 0 to 30 (Cubuk et al. 2020, arXiv 1909.13719).

    The ranges are those of AutoAugment (Cubuk et al. 2019, table 6), where an operation has two directions either is
    taken.
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


def translate(images_BCYX: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    ones_B = torch.ones_like(right_B)
    return warp_affine(images_BCYX, scaling(ones_B, ones_B), torch.stack([right_B, down_B], dim=1))


# Each takes images and a level from -1 to 1 for each of them.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda x, level_B: x,
    "shear_x": lambda x, level_B: warp_affine(x, shearing(0.3 * level_B, 0 * level_B)),
    "shear_y": lambda x, level_B: warp_affine(x, shearing(0 * level_B, 0.3 * level_B)),
    "translate_x": lambda x, level_B: translate(x, 150 / 331 * x.shape[3] * level_B, 0 * level_B),
    "translate_y": lambda x, level_B: translate(x, 0 * level_B, 150 / 331 * x.shape[2] * level_B),
    "rotate": lambda x, level_B: warp_affine(x, rotation(math.radians(30) * level_B)),
    "brightness": lambda x, level_B: brightness(x, 1 + 0.9 * level_B),
    "colour": lambda x, level_B: colour(x, 1 + 0.9 * level_B),
    "contrast": lambda x, level_B: contrast(x, 1 + 0.9 * level_B),
    "sharpness": lambda x, level_B: sharpness(x, 1 + 0.9 * level_B),
    "posterize": lambda x, level_B: posterize(x, 8 - round(4 * float(level_B.abs().max()))),
    "solarize": lambda x, level_B: solarize(x, 1 - float(level_B.abs().max())),
    "autocontrast": lambda x, level_B: autocontrast(x),
    "equalize": lambda x, level_B: equalize(x),
}
