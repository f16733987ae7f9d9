"""Position encodings of images: a position is the index of a patch in a grid read row by row.

Shapes: B batch, T patches, D model width, K head width, P rotated pairs.
"""

import torch
from torch import Tensor, nn

from attnlab.layers.positions import PositionEncoding, geometric_frequencies, sinusoids
from attnlab.layers.rotary import Rotary


class Sinusoidal2D(PositionEncoding):
    """Sinusoids of the row on the first half of the width, of the column on the second (He et al. 2022, arXiv 2111.06377).

    grid: rows and columns. Raises ValueError where d_model is no multiple of 4.
    """

    def __init__(self, d_model: int, grid: tuple[int, int], base: float = 10000.0) -> None:
        super().__init__()
        if d_model % 4:
            raise ValueError(f"two axes of sine and cosine need d_model={d_model} to be a multiple of 4")
        self.d_model, self.base = d_model, base
        self.num_columns, self.longest = grid[1], grid[0] * grid[1]

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """x plus the sinusoids."""
        halves = (sinusoids(axis_BT, self.d_model // 2, self.base) for axis_BT in cells(positions_BT, self.num_columns))
        return x_BTD + torch.cat(list(halves), dim=-1).to(x_BTD.dtype)


class Learned2D(PositionEncoding):
    """A learned table for rows and one for columns, each of half the width (Dosovitskiy et al. 2021, arXiv 2010.11929, D.4).

    grid: rows and columns. Raises ValueError for an odd d_model.
    """

    def __init__(self, d_model: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(
                f"rows and columns take half the width each: d_model={d_model} is odd; accepted: even numbers"
            )
        self.rows = nn.Embedding(grid[0], d_model // 2)
        self.columns = nn.Embedding(grid[1], d_model // 2)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.02)
        self.num_columns, self.longest = grid[1], grid[0] * grid[1]

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """x plus the entries of row and column. Raises ValueError past the grid."""
        if not positions_BT.is_cuda and not torch.compiler.is_compiling():
            self.check(int(positions_BT.max()))  # reading a value stalls a GPU: there `build_scope` has checked
        row_BT, column_BT = cells(positions_BT, self.num_columns)
        return x_BTD + torch.cat([self.rows(row_BT), self.columns(column_BT)], dim=-1).to(x_BTD.dtype)

    @staticmethod
    def parameter_count(d_model: int, grid: tuple[int, int]) -> int:
        """Of both tables."""
        return sum(grid) * (d_model // 2)


class AxialRotary(Rotary):
    """Rotary whose first pairs turn with the row and last pairs with the column (Heo et al. 2024, arXiv 2403.13298, sec. 3.1).

    grid: rows and columns. Raises ValueError where d_head is no multiple of 4.
    """

    def __init__(self, d_head: int, grid: tuple[int, int], base: float = 100.0, interleaved: bool = False) -> None:
        if d_head % 4:
            raise ValueError(f"two axes of pairs need d_head={d_head} to be a multiple of 4")
        super().__init__(d_head, base, interleaved=interleaved)
        self.num_columns, self.longest = grid[1], grid[0] * grid[1]

    def frequencies(self, device: torch.device) -> Tensor:
        """Those of one axis, (P / 2,)."""
        return geometric_frequencies(self.width // 2, self.base, device)

    def angles(self, positions_BT: Tensor) -> Tensor:
        """Those of the row, then those of the column, (B or 1, T, P)."""
        frequencies = self.frequencies(positions_BT.device)
        return torch.cat([a[..., None].float() * frequencies for a in cells(positions_BT, self.num_columns)], dim=-1)


def cells(positions_BT: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Row and column of each position."""
    return positions_BT // num_columns, positions_BT % num_columns
