"""Gated convolutions over sequences.

Legend: B batch, T length, D model width, K kernel size, P inputs before the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.pointwise import Dropout
from attnlab.ranges import PositiveInt, Probability, check_ranges, must_be

HALF = math.sqrt(0.5)  # of the sum of two streams of one variance: keeps it


@check_ranges
class GatedConvolution(nn.Module):
    """A convolution over time to twice the width, half of which gates the other (Dauphin et al. 2017, arXiv 1612.08083,
    eq. 1); (B, T, D) in and out.

    causal: the window ends at its token, else it lies around it. Computed as one matrix product of windows laid side by
    side. dropout: on the input. Raises ValueError for a kernel below 1, and an even one that has no middle.
    """

    def __init__(
        self, d_model: PositiveInt, kernel_size: PositiveInt, causal: bool, dropout: Probability = 0.0
    ) -> None:
        super().__init__()
        if not causal and kernel_size % 2 == 0:
            raise ValueError(must_be("kernel_size", "odd where it lies around its token", kernel_size))
        self.kernel_size, self.causal = kernel_size, causal
        self.windows = nn.Linear(kernel_size * d_model, 2 * d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """The gated sums; what stands at padding reaches nothing, as if zeros stood there."""
        around = self.kernel_size - 1
        before = around if self.causal else around // 2
        return self._convolve(F.pad(self.clean(x_BTD, is_token_BT), (0, 0, before, around - before)))

    def go_on(
        self, x_BTD: Tensor, before_BPD: Tensor | None, is_token_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A causal convolution after the inputs `before_BPD` (None: zeros), and what comes before the next ones."""
        assert self.causal, "a window around its token waits for what follows"
        x_BTD = self.clean(x_BTD, is_token_BT)
        if before_BPD is None:
            before_BPD = x_BTD.new_zeros(len(x_BTD), self.kernel_size - 1, x_BTD.shape[2])
        padded_BTD = torch.cat([before_BPD, x_BTD], dim=1)
        return self._convolve(padded_BTD), padded_BTD[:, x_BTD.shape[1] :]

    def clean(self, x_BTD: Tensor, is_token_BT: Tensor | None) -> Tensor:
        """The input after dropout, zero at padding."""
        x_BTD = self.dropout(x_BTD)
        return x_BTD if is_token_BT is None else x_BTD.masked_fill(~is_token_BT[:, :, None], 0.0)

    def _convolve(self, padded_BTD: Tensor) -> Tensor:
        length = padded_BTD.shape[1] - self.kernel_size + 1
        shifted = [padded_BTD[:, place : place + length] for place in range(self.kernel_size)]
        return F.glu(self.windows(torch.cat(shifted, dim=2)), dim=2)


@check_ranges
class ConvolutionStack(nn.Module):
    """Gated convolutions on a residual stream that keeps its variance: (x + f(x)) sqrt(1/2) (Gehring et al. 2017, arXiv
    1705.03122, section 3.5); (B, T, D) in and out. Raises ValueError for fewer than one layer, and a kernel that cannot
    be.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_layers: PositiveInt,
        kernel_size: PositiveInt,
        causal: bool,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedConvolution(d_model, kernel_size, causal, dropout) for _ in range(num_layers))

    def forward(
        self,
        x_BTD: Tensor,
        is_token_BT: Tensor | None = None,
        before: list[Tensor] | None = None,
        between: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """is_token_BT: False at padding, on the right, or on the left of the first token. before: each layer's last
        inputs (an empty list: none yet), which are moved on; the tokens follow those of the call before. between: acts
        on what the layer of an index gives.
        """
        kept = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, GatedConvolution)
            if before is None:
                convolved_BTD = layer(x_BTD, is_token_BT)
            else:
                convolved_BTD, inputs_BPD = layer.go_on(x_BTD, before[index] if before else None, is_token_BT)
                kept.append(inputs_BPD)
            x_BTD = (x_BTD + (convolved_BTD if between is None else between(index, convolved_BTD))) * HALF
        if before is not None:
            before[:] = kept
        return x_BTD
