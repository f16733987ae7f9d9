"""The layers of nGPT, the normalized Transformer (Loshchilov et al. 2024, arXiv 2410.01131), whose states and weights
have length 1; `attnlab.models.NGPT` puts them together.

Legend: B batch, T length, D model width, F hidden width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.attention import MultiHead
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import GatedFeedForward, SwiGLU, wide
from attnlab.layers.positions import Rotation
from attnlab.layers.residuals import Residual, Sublayer, dropping
from attnlab.layers.scope import Scope
from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Probability, Rate, check_ranges


def of_length_1(x: Tensor, dim: int = -1) -> Tensor:
    """Vectors along a dimension divided by their lengths, which are taken in fp32, in the type of x."""
    return F.normalize(wide(x), dim=dim, eps=1e-12).to(x.dtype)


class Scale(nn.Module):
    """A learned scale of each channel, which starts at `start` and is kept as a parameter that starts at `kept`: the
    larger that is, the less a step of Adam changes of the scale.
    """

    def __init__(self, width: int, start: float = 1.0, kept: float = 1.0) -> None:
        super().__init__()
        self.ratio = start / kept
        self.weight = nn.Parameter(torch.full((width,), float(kept)))

    def forward(self) -> Tensor:
        return self.weight * self.ratio


@check_ranges
class NormalizedResidual(Residual):
    """A step on the sphere from x towards a sublayer's output: norm(x + a (norm(f(x)) - x)), a the learned rate of each
    channel, not negative, from `rate` on, which is of the order of 1 / num_layers; there is no other norm.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        rate: PositiveFloat = 0.05,
        dropout: Probability = 0.0,
        stochastic_depth: Rate = 0.0,
        num_sublayers: PositiveInt = 2,
        num_layers: PositiveInt = 1,
        layer_index: NonNegativeInt = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.rates = nn.ModuleList(Scale(d_model, rate, d_model**-0.5) for _ in range(num_sublayers))
        self.dropout = dropping(dropout, stochastic_depth, layer_index, num_layers)

    def enter(self, x_BTD: Tensor) -> Tensor:
        return of_length_1(x_BTD)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        step_BTD = self.dropout(of_length_1(sublayer(x_BTD)) - x_BTD)
        return of_length_1(x_BTD + self.rates[index]().abs() * step_BTD)


@check_ranges
class NormalizedAttention(MultiHead):
    """Attention by scaled cosines: queries and keys, once rotated, have length 1 times a learned scale of each channel,
    from 1 on, and their products are multiplied by sqrt(d_head).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        dropout: Probability = 0.0,
        window: PositiveInt | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(d_model, num_heads, dropout=dropout, window=window, backend=backend)
        self.scale = self.d_head**0.5
        self.query_key_scale = Scale(d_model, 1.0, d_model**-0.5)

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        scale_H1K = self.query_key_scale().view(self.num_heads, 1, self.d_head)
        turns = scope.rotation or Rotation(nn.Identity(), nn.Identity())
        scaled = Rotation(*(partial(_scaled_cosine, turn=turn, scale_H1K=scale_H1K) for turn in turns))
        return super().forward(x_BTD, replace(scope, rotation=scaled), cache, memory)


def _scaled_cosine(x_BHTK: Tensor, turn: Callable[[Tensor], Tensor], scale_H1K: Tensor) -> Tensor:
    # After rotation, as in the authors' code: the scale is not the same on both channels of a pair.
    return (scale_H1K * of_length_1(turn(x_BHTK))).to(x_BHTK.dtype)


@check_ranges
class NormalizedSwiGLU(SwiGLU):
    """SwiGLU with learned scales of what is gated and of the gate, which is also multiplied by sqrt(d_model), so that
    its activation is not almost linear.
    """

    def __init__(
        self, d_model: PositiveInt, d_ff: PositiveInt, matched: bool = True, dropout: Probability = 0.0
    ) -> None:
        GatedFeedForward.__init__(self, d_model, d_ff, matched, dropout=dropout)
        d_hidden = self.up.out_features
        self.up_scale, self.gate_scale = Scale(d_hidden), Scale(d_hidden, d_model**0.5, 1.0)

    def forward(self, x_BTD: Tensor) -> Tensor:
        v_BTF, u_BTF = self.gate_scale() * self.gate(x_BTD), self.up_scale() * self.up(x_BTD)
        out_BTD: Tensor = self.down(self.dropout(self.activate(v_BTF) * u_BTF))
        return out_BTD
