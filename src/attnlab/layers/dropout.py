"""Dropout whose random numbers do not cost more than the layer it acts on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.ranges import Probability, check_ranges

RESOLUTION = 1 << 16


@check_ranges
class Dropout(nn.Module):
    """
    Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate) (Srivastava et al. 2014).

    On a CPU torch draws one 64-bit number after the other, one an element, which takes longer than the matrix products of
    a small model. Here four elements share a number, 16 bits each, so the rate is rounded to 1/65536 (and the scale with it).
    Raises ValueError for a rate outside of 0 to 1.
    """

    def __init__(self, rate: Probability) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate if self.training else 0.0)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with elements zeroed at this rate and the others scaled up; x itself at rate 0."""
    if rate == 0:
        return x
    if x.device.type != "cpu" or rate == 1:
        return F.dropout(x, rate)
    dropped = min(round(rate * RESOLUTION), RESOLUTION - 1)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - RESOLUTION // 2
    return x * kept.to(x.dtype).mul_(RESOLUTION / (RESOLUTION - dropped))
