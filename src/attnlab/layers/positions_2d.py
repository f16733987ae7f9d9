"""Position encodings of images: a position is the index of a patch in a grid read row by row; a negative one has no
place in it.

Shapes: B batch, T patches, D model width, K head width, P rotated pairs.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from attnlab.layers.positions import PositionEncoding, geometric_frequencies, interpolated, sinusoids, stretched
from attnlab.layers.rotary import Rotary
from attnlab.parts import Choices
from attnlab.ranges import Gt, PositiveInt, check_ranges, must_be


class InGrid(PositionEncoding):
    """What the encodings of a grid share. grid: rows and columns; trained: those that coordinates are counted in.
    Tokens without a place in the image, such as a class token, stand at negative positions, where nothing acts.
    """

    grid: tuple[int, int]
    trained: tuple[int, int]

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if choices.get("model.patch_size") is None:
            yield (
                f"position: {choices.name('position')} indexes a grid of image patches, and this model reads text; "
                "choose one of sinusoidal, learned, rotary, alibi, relative_bias, none"
            )

    def set_grid(self, grid: tuple[int, int]) -> None:
        self.set_trained(grid)
        self.resize(0, grid, grid)

    def set_trained(self, grid: tuple[int, int]) -> None:
        self.trained = grid

    def image_positions(
        self, before: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device
    ) -> Tensor:
        return torch.arange(-before, grid[0] * grid[1], device=device)[None]

    def resize(self, before: int, grid: tuple[int, int], new: tuple[int, int]) -> None:
        self.grid, self.longest = new, new[0] * new[1]

    def cells(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each position, that of the first cell for one without a place."""
        return positions_BT.clamp(min=0) // self.grid[1], positions_BT.clamp(min=0) % self.grid[1]

    def coordinates(self, positions_BT: Tensor) -> tuple[Tensor, ...]:
        """Row and column of each position in the trained grid, between its cells where another one is served."""
        cells = self.cells(positions_BT)
        if self.grid == self.trained:
            return cells
        sizes = zip(cells, self.grid, self.trained, strict=True)
        return tuple(stretched(new, old, positions_BT.device)[axis_BT] for axis_BT, new, old in sizes)


@check_ranges
class Sinusoidal2D(InGrid):
    """Sinusoids of the row on the first half of the width, of the column on the second (He et al. 2022, arXiv
    2111.06377).
    """

    def __init__(self, d_model: PositiveInt, grid: tuple[int, int], base: Annotated[float, Gt(1)] = 10000.0) -> None:
        super().__init__()
        if d_model % 4:
            raise ValueError(must_be("d_model", "a multiple of 4, for two axes of sine and cosine", d_model))
        self.d_model, self.base = d_model, base
        self.set_grid(grid)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        frequencies_P = geometric_frequencies(self.d_model // 2, self.base, positions_BT.device)
        halves = [sinusoids(axis_BT, frequencies_P) for axis_BT in self.coordinates(positions_BT)]
        return x_BTD + torch.cat(halves, dim=-1).mul_(is_placed(positions_BT)).to(x_BTD.dtype)


@check_ranges
class Learned2D(InGrid):
    """Learned tables of rows and of columns, each of half the width (Dosovitskiy et al. 2021, arXiv
    2010.11929, D.4).
    """

    def __init__(self, d_model: PositiveInt, grid: tuple[int, int]) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(must_be("d_model", "even, as rows and columns take half of it each", d_model))
        self.rows = nn.Embedding(grid[0], d_model // 2)
        self.columns = nn.Embedding(grid[1], d_model // 2)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.02)
        self.set_grid(grid)

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        self.check_all(positions_BT)
        row_BT, column_BT = self.cells(positions_BT)
        entries_BTD = torch.cat([self.rows(row_BT), self.columns(column_BT)], dim=-1)
        return x_BTD + (entries_BTD * is_placed(positions_BT)).to(x_BTD.dtype)

    def resize(self, before: int, grid: tuple[int, int], new: tuple[int, int]) -> None:
        for name, size in zip(("rows", "columns"), new, strict=True):
            weight = getattr(self, name).weight
            if len(weight) != size:
                rows_YD = interpolated(weight.t()[:, :, None], (size, 1))[:, :, 0].t().detach()
                setattr(self, name, nn.Embedding.from_pretrained(rows_YD, freeze=not weight.requires_grad))
        super().resize(before, grid, new)


@check_ranges
class AxialRotary(InGrid, Rotary):
    """Rotary whose first pairs turn with the row, last ones with the column (Heo et al. 2024, arXiv 2403.13298, sec.
    3.1).
    """

    def __init__(
        self,
        d_head: PositiveInt,
        grid: tuple[int, int],
        base: Annotated[float, Gt(1)] = 100.0,
        interleaved: bool = False,
    ) -> None:
        if d_head % 4:
            raise ValueError(must_be("d_head", "a multiple of 4, for two axes of pairs", d_head))
        super().__init__(d_head, base, interleaved=interleaved)
        self.set_grid(grid)

    def frequencies(self, device: torch.device) -> Tensor:
        return geometric_frequencies(self.width // 2, self.base, device)

    def angles(self, positions_BT: Tensor) -> Tensor:
        frequencies = self.frequencies(positions_BT.device)
        angles = [axis_BT[..., None].float() * frequencies for axis_BT in self.coordinates(positions_BT)]
        return torch.cat(angles, dim=-1).mul_(is_placed(positions_BT))


def is_placed(positions_BT: Tensor) -> Tensor:
    """1 for positions in the grid, 0 for negative ones, (B or 1, T, 1), fp32."""
    return (positions_BT >= 0).float()[..., None]
