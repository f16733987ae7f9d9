"""A bidirectional encoder of image patches, and the one that classifies, on the seams.

Legend: B batch, C channels, Y and X rows and columns of pixels, P pixels along a patch, N patches, E tokens before
them, T = E + N, D model width, L classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.init import GPT2Init, Init
from attnlab.layers.pointwise import Output, Sides
from attnlab.layers.positions import Learned
from attnlab.layers.stack import Stack, StackFields
from attnlab.models.base import Model
from attnlab.ranges import NonNegativeInt, PositiveInt, check_ranges


class PatchEncoder(nn.Module):
    """Patches of an image, with tokens before them, through a bidirectional stack; images (B, C, Y, X).

    image_size: pixels along each side, or rows and columns. num_before: learned tokens before the patches. patch_bias:
    of the embedding of patches. A two-dimensional position gives the tokens before the patches no place; other
    positions count them first. Raises ValueError for a patch that does not divide the image, and where a part refuses a
    width.
    """

    def __init__(
        self,
        fields: StackFields,
        image_size: PositiveInt | Sequence[PositiveInt],
        channels: PositiveInt,
        patch_size: PositiveInt,
        num_before: NonNegativeInt,
        patch_bias: bool = True,
    ) -> None:
        super().__init__()
        d_model = fields["d_model"]
        self.channels, self.patch_size, self.d_model = channels, patch_size, d_model
        self.image_size, self.grid = divide(image_size, patch_size)
        self.trained_grid = self.grid
        self.patches = nn.Linear(channels * patch_size**2, d_model, bias=patch_bias)
        self.num_before = num_before
        self.before = nn.Embedding(self.num_before, d_model) if self.num_before else None
        num_tokens = self.num_before + self.grid[0] * self.grid[1]
        self.stack = Stack(fields, causal=False, max_length=num_tokens, grid=self.grid)

    def encode(self, images_BCYX: Tensor) -> Tensor:
        """The states (B, T, D): of the class token, where there is one, the registers, then the patches, row by row.
        Raises ValueError for images of another size.
        """
        if tuple(images_BCYX.shape[1:]) != (self.channels, *self.image_size):
            raise ValueError(
                f"images of {tuple(images_BCYX.shape[1:])} (channels, rows, columns) do not fit; accepted: "
                f"{(self.channels, *self.image_size)}, or {type(self).__name__}.at_size for other rows and columns"
            )
        x_BTD = self.patches(cut_patches(images_BCYX, self.patch_size))
        if self.before is not None:
            x_BTD = torch.cat([self.before.weight.to(x_BTD.dtype).expand(len(x_BTD), -1, -1), x_BTD], dim=1)
        positions_1T = self.stack.position.image_positions(
            self.num_before, self.grid, self.trained_grid, images_BCYX.device
        )
        states_BTD: Tensor = self.stack(x_BTD, positions_1T)
        return states_BTD

    def get_extra_state(self) -> Tensor:
        """The grid that was trained on belongs to the weights: positions are seen in it whatever the images' size."""
        return torch.tensor(self.trained_grid)

    def set_extra_state(self, state: Tensor) -> None:
        rows, columns = state.tolist()
        self.trained_grid = (rows, columns)
        for position in self.stack.encodings().values():
            position.set_trained(self.trained_grid)

    def at_size(self, image_size: PositiveInt | Sequence[PositiveInt]) -> Self:
        """A copy that takes images of another size, its positions interpolated (section 3.2). Tables are interpolated
        bicubically over the image; other encodings see each patch where it lies in the grid that was trained on. The
        same size gives the same bits. Raises ValueError where the patch does not divide the size.
        """
        other = copy.deepcopy(self)
        other.image_size, other.grid = divide(image_size, self.patch_size)
        for position in other.stack.encodings().values():
            position.resize(self.num_before, self.grid, other.grid)
        return other


@check_ranges
class ViT(PatchEncoder, Output, Model):
    """The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929); images (B, C, Y, X) to logits (B, L).

    pooling: classify a class token's state, or the mean of the patches' (section D.3 there). registers: tokens that
    nothing is read from (Darcet et al. 2024, arXiv 2309.16588). fields: see StackFields; the others: PatchEncoder.
    """

    sees_both_sides = True
    sides: ClassVar[Mapping[str, Sides] | None] = {"patches": "out"}
    head: nn.Linear
    defaults: ClassVar[StackFields] = {
        **Stack.defaults,
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4,
        "bias": True,
        "position": Learned,
    }

    def __init__(
        self,
        num_classes: PositiveInt,
        image_size: PositiveInt | Sequence[PositiveInt],
        channels: PositiveInt = 3,
        patch_size: PositiveInt = 4,
        pooling: Literal["class", "mean"] = "mean",
        registers: NonNegativeInt = 0,
        init: Callable[..., Init] = GPT2Init,
        **fields: Unpack[StackFields],
    ) -> None:
        if pooling not in ("class", "mean"):
            raise ValueError(f"pooling={pooling}: there is no such pooling; accepted: class, mean")
        fields = self.described(self.defaults, fields)
        super().__init__(fields, image_size, channels, patch_size, registers + (pooling == "class"))
        self.pooling = pooling
        self.head = nn.Linear(self.d_model, num_classes)
        self.draw(init)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        states_BTD = self.encode(images_BCYX)
        pooled_BD = states_BTD[:, 0] if self.pooling == "class" else states_BTD[:, self.num_before :].mean(dim=1)
        pooled_BD = pooled_BD if self.output_scale == 1.0 else pooled_BD * self.output_scale
        logits_BL: Tensor = self.head(pooled_BD)
        return logits_BL


def cut_patches(images_BCYX: Tensor, patch_size: int) -> Tensor:
    """The pixels of each patch, channel by channel and row by row, (B, N, C P P); patches row by row."""
    batch, channels, rows, columns = images_BCYX.shape
    divided = (rows // patch_size, patch_size, columns // patch_size, patch_size)
    parts_BCYPXP = images_BCYX.reshape(batch, channels, *divided)
    return parts_BCYPXP.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def divide(image_size: PositiveInt | Sequence[PositiveInt], patch_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of pixels, and of patches. Raises ValueError where the patch does not divide them."""
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size={image_size} is no size; accepted: a whole number from 1 on, or rows and columns")
    if any(side % patch_size for side in sides):
        both = [size for size in range(1, min(sides) + 1) if not any(side % size for side in sides)]
        raise ValueError(
            f"patch_size={patch_size} does not divide images of {sides[0]} x {sides[1]} pixels; accepted: "
            f"{', '.join(map(str, both))} (model.patch_size)"
        )
    rows, columns = (int(side) for side in sides)
    return (rows, columns), (rows // patch_size, columns // patch_size)
