"""Position-wise feed-forward layers, plain and gated. Legend: B batch, T length, D model width, F hidden width."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.dropout import Dropout
from attnlab.ranges import PositiveInt, Probability, check_ranges


@check_ranges
class FeedForward(nn.Module):
    """down(dropout(activate(up(x)))), (B, T, D) -> (B, T, D) (Vaswani et al. 2017, section 3.3).

    A choice overrides `activate`.
    """

    def __init__(self, d_model: PositiveInt, d_ff: PositiveInt, bias: bool = False, dropout: Probability = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def activate(self, h_BTF: Tensor) -> Tensor:
        """The non-linearity; max(0, h) unless a choice says otherwise."""
        return F.relu(h_BTF)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.dropout(self.activate(self.up(x_BTD))))


@check_ranges
class GatedFeedForward(FeedForward):
    """down(dropout(activate(gate(x)) * up(x))) (Shazeer 2020, arXiv 2002.05202, section 2).

    `matched` shrinks the hidden width to 2/3 d_ff, so that three matrices weigh what two of the plain layer do.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        bias: bool = False,
        dropout: Probability = 0.0,
        matched: bool = True,
    ) -> None:
        d_hidden = gated_width(d_ff, matched)
        super().__init__(d_model, d_hidden, bias, dropout)
        self.gate = nn.Linear(d_model, d_hidden, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.dropout(self.activate(self.gate(x_BTD)) * self.up(x_BTD)))


def gated_width(d_ff: int, matched: bool) -> int:
    """The hidden width of a gated layer: 2/3 d_ff to the nearest integer where `matched`, else d_ff."""
    return max(1, round(2 * d_ff / 3)) if matched else d_ff


class ReLU(FeedForward):
    """max(0, h) (Vaswani et al. 2017, eq. 2)."""


@check_ranges
class GELU(FeedForward):
    """h Phi(h) (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    approximate: none is the exact form (BERT); tanh the paper's approximation of it, section 2 (GPT-2, BLOOM).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        bias: bool = False,
        dropout: Probability = 0.0,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__(d_model, d_ff, bias, dropout)
        self.approximate = approximate

    def activate(self, h_BTF: Tensor) -> Tensor:
        """h times the normal distribution function of h."""
        return F.gelu(h_BTF, approximate=self.approximate)


class SiLU(FeedForward):
    """h sigmoid(h), Swish with beta = 1 (Ramachandran et al. 2017, arXiv 1710.05941; Marian's models)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        """h times its logistic function."""
        return F.silu(h_BTF)


class SquaredReLU(FeedForward):
    """max(0, h)^2 (So et al. 2021, Primer, arXiv 2109.08668)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        """The square of the rectified h."""
        return F.relu(h_BTF).square()


class GLU(GatedFeedForward):
    """sigmoid gate (Dauphin et al. 2017, arXiv 1612.08083)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        """The logistic function of h."""
        return h_BTF.sigmoid()


@check_ranges
class GEGLU(GatedFeedForward):
    """GELU gate (Shazeer 2020). approximate: as in GELU; T5 1.1 has tanh."""

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        bias: bool = False,
        dropout: Probability = 0.0,
        matched: bool = True,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__(d_model, d_ff, bias, dropout, matched)
        self.approximate = approximate

    def activate(self, h_BTF: Tensor) -> Tensor:
        """h times the normal distribution function of h."""
        return F.gelu(h_BTF, approximate=self.approximate)


class SwiGLU(GatedFeedForward):
    """Swish gate, beta = 1 (Shazeer 2020)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        """h times its logistic function."""
        return F.silu(h_BTF)


class ReGLU(GatedFeedForward):
    """ReLU gate (Shazeer 2020)."""
