"""Images turned, sheared, scaled and shifted, each in its own way. Shapes: B images, C channels, Y and X rows and columns of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(
    images_BCYX: Tensor, matrix_B22: Tensor, shift_B2: Tensor | None = None, origin_B2: Tensor | None = None
) -> Tensor:
    """What stood at p stands at M (p - o) + s, bilinear, black outside.

    Points are (to the right, down) in pixels from the middle of the image; matrix M, shift s (None: 0), origin o (None: 0).
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
    """Matrices (B, 2, 2) that move a point to the right by a share of how far down it is, and down by a share of how far right."""
    ones_B = torch.ones_like(right_B)
    return torch.stack([torch.stack([ones_B, right_B], dim=1), torch.stack([down_B, ones_B], dim=1)], dim=1)


def scaling(right_B: Tensor, down_B: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that scale along each axis."""
    return torch.diag_embed(torch.stack([right_B, down_B], dim=1))
