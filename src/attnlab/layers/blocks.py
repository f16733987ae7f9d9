"""A sequence cut into blocks, in which a narrow window costs T x window scores and not T x T.

Shapes: B batch, T target length, S source length, H heads, G key/value heads, N blocks, M keys that a block sees, X any
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# Where blocks are faster on a CPU than a mask (experiments/speed): from this length on, with at least so many queries
# in a block, where the blocks that a query sees are at most half of the sequence.
LEAST_LENGTH, SMALLEST_BLOCK = 512, 32


@dataclass(frozen=True)
class Blocks:
    """N blocks of `size` queries, each of which sees the keys of its own block, of the one before and, where it may see
    what comes after, of the one after: M = 2 or 3 times `size`.

    size is at least the window, so that nothing that a token may attend to is left out; what is padding itself, and
    attends to anything, counts for nothing.
    """

    size: int
    sees_after: bool

    @classmethod
    def of(cls, window: int, sees_after: bool, positions_BT: Tensor) -> Blocks | None:
        """The blocks for a window; None where they would not pay."""
        blocks = cls(max(window, SMALLEST_BLOCK), sees_after)
        pays = positions_BT.device.type == "cpu" and positions_BT.shape[1] >= max(LEAST_LENGTH, 2 * blocks.num_keys)
        return blocks if pays else None

    @property
    def num_keys(self) -> int:
        """M."""
        return (3 if self.sees_after else 2) * self.size

    def queries(self, x_BGTX: Tensor) -> Tensor:
        """(B, G, T, X) as (B N, G, size, X), filled up with zeros."""
        x_BGNTX: Tensor = pad(x_BGTX, (0, 0, 0, -x_BGTX.shape[2] % self.size)).unflatten(2, (-1, self.size))
        return x_BGNTX.transpose(1, 2).flatten(0, 1)

    def keys(self, x_BGSX: Tensor) -> Tensor:
        """(B, G, S, X) as (B N, G, M, X), filled up on both sides."""
        x_BGSX = pad(x_BGSX, (0, 0, self.size, self._after(x_BGSX.shape[2])))
        x_BGNXM = x_BGSX.unfold(2, self.num_keys, self.size)
        return x_BGNXM.permute(0, 2, 1, 4, 3).flatten(0, 1)

    def joined(self, x_BHTX: Tensor, batch: int, length: int) -> Tensor:
        """Blocks of queries (B N, H, size, X) as (B, H, T, X)."""
        x_BNHTX: Tensor = x_BHTX.unflatten(0, (batch, -1))
        return x_BNHTX.transpose(1, 2).flatten(2, 3)[:, :, :length]

    def bias(self, bias_BHTS: Tensor) -> Tensor:
        """A bias (B or 1, H, T, S) as (B N or N, H, size, M)."""
        filled = (self.size, self._after(bias_BHTS.shape[3]), 0, -bias_BHTS.shape[2] % self.size)
        rows_BHTS = pad(bias_BHTS, filled)
        starts = range(0, rows_BHTS.shape[2], self.size)
        cut = [rows_BHTS[:, :, start : start + self.size, start : start + self.num_keys] for start in starts]
        return torch.stack(cut, dim=1).flatten(0, 1)

    def _after(self, length: int) -> int:
        return -length % self.size + (self.size if self.sees_after else 0)


def is_unbroken(positions_BT: Tensor, is_token_BT: Tensor | None) -> bool:
    """Whether the real tokens of each row stand side by side at positions that count on."""
    steps_BT = positions_BT.diff(dim=1)
    if is_token_BT is None:
        return bool((steps_BT == 1).all())
    here_BT, before_BT = is_token_BT[:, 1:], is_token_BT[:, :-1]
    runs_B = is_token_BT[:, 0].int() + (here_BT & ~before_BT).sum(dim=1)
    return bool((runs_B <= 1).all() and ((steps_BT == 1) | ~(here_BT & before_BT)).all())
