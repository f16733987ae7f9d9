"""Augmentation of images in [0, 1], each in its own way.

Shapes: B images, C channels, Y and X rows and columns of pixels, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from attnlab.data.cache import DataError
from attnlab.data.draws import uniforms
from attnlab.data.rand_augment import STRONGEST, rand_augment
from attnlab.data.warp import rotation, scaling, shearing, warp
from attnlab.ranges import Interval, NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, check_ranges, must_be

AREAS, RATIOS = (0.02, 0.33), (0.3, 1 / 0.3)  # of what is erased (Zhong et al. 2020, section 5.2)


@check_ranges
class Augmentation:
    """
    Images as a training sees them in an epoch: a function of seed, epoch and example alone, whatever batch an example is in.

    crop: the least and the largest share of the area that is cut out and scaled to the whole, with sides of 3:4 to 4:3 (Szegedy et al.
    2015). shift: up to so many whole pixels each way, each as probable, which is a random crop of the image padded with black (He et
    al. 2016, section 4.2). flip: how probable a mirror image is. degrees, scale, shear (in degrees): how far an image is turned at
    most, the range it is scaled in, how far it is sheared at most. operations, magnitude: of RandAugment (0: none). erase: how probable it is that a rectangle
    becomes noise (Zhong et al. 2020). mixup, cutmix: the parameter of the Beta distribution that draws the share of another image of
    the training part (Zhang et al. 2018; Yun et al. 2019), 0: none, both: one or the other; the label is shared alike. Raises DataError.
    """

    def __init__(
        self,
        crop: Sequence[Annotated[float, Interval(gt=0, le=1)]] = (1.0, 1.0),
        shift: NonNegativeFloat = 0.0,
        flip: Probability = 0.0,
        degrees: Annotated[float, Interval(ge=0, le=180)] = 0.0,
        scale: Sequence[PositiveFloat] = (1.0, 1.0),
        shear: Annotated[float, Interval(ge=0, le=80)] = 0.0,
        operations: NonNegativeInt = 0,
        magnitude: Annotated[float, Interval(ge=0, le=STRONGEST)] = 9.0,
        erase: Probability = 0.0,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
    ) -> None:
        for name, pair in (("crop", crop), ("scale", scale)):
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise DataError(must_be(f"augmentation.{name}", "two numbers, the lower one first", pair))
        if shift % 1:
            raise DataError(must_be("augmentation.shift", "whole pixels", shift))
        self.crop, self.shift, self.flip, self.degrees, self.scale, self.shear = (
            crop,
            shift,
            flip,
            degrees,
            scale,
            shear,
        )
        self.operations, self.magnitude, self.erase = operations, magnitude, erase
        self.mixup, self.cutmix = mixup, cutmix

    @property
    def mixes(self) -> bool:
        """Whether another image and its class become a part of each."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images_BCYX: Tensor, examples_B: np.ndarray, seed: int, epochs_B: np.ndarray | int) -> Tensor:
        """The images, each for itself; `examples_B` are their numbers in the training part, `epochs_B` the epochs they are seen in."""
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
        return warp(images_BCYX, matrix_B22, whole_B2 - self.shift, room_B2 * signed[:, 2:4])

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
    """True inside a rectangle of whole pixels, (B, 1, Y, X); its middle as a share of the sides, its sides in pixels."""
    insides = []
    for middle_B, size_B, length in ((row_B, height_B, rows), (column_B, width_B, columns)):
        middle_B1 = torch.from_numpy(middle_B)[:, None] * length
        first_B1, last_B1 = (middle_B1 - size_B[:, None] / 2).round(), (middle_B1 + size_B[:, None] / 2).round()
        pixel = torch.arange(length)
        insides.append((pixel >= first_B1) & (pixel < last_B1))
    return (insides[0][:, :, None] & insides[1][:, None, :])[:, None]
