"""A short causal convolution of each channel, before what mixes positions.

Shapes: B batch, T length, D model width, X channels, P inputs before the first token, I = H K, J = G K of an attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.attention import MultiHead, QKNorm
from attnlab.layers.cache import LayerCache
from attnlab.layers.pointwise import Sides
from attnlab.layers.scope import Scope
from attnlab.parts import Choices
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges


@check_ranges
class ShortConvolution(nn.Module):
    """Each channel's sum over the last `size` tokens, weighted by its own taps; (B, T, X) in and out. The taps start
    uniform within size^-0.5, as torch's convolution of one channel does.
    """

    def __init__(self, channels: PositiveInt, size: PositiveInt) -> None:
        super().__init__()
        self.before = size - 1
        self.taps_XP = nn.Parameter(torch.empty(channels, size).uniform_(-(size**-0.5), size**-0.5))

    def forward(
        self, x_BTX: Tensor, is_token_BT: Tensor | None = None, before_BPX: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sums, and what comes before the next tokens. is_token_BT: False at padding, wherever it stands: it is
        passed over, and what is given for it means nothing. before_BPX: of the tokens before; None: zeros.
        """
        if before_BPX is None:
            before_BPX = x_BTX.new_zeros(len(x_BTX), self.before, x_BTX.shape[2])
        if is_token_BT is None:
            return self._sums(torch.cat([before_BPX.to(x_BTX.dtype), x_BTX], dim=1))
        # Real tokens first, in their order: what comes after them reaches nothing.
        order_BT = (~is_token_BT).byte().argsort(dim=1, stable=True)
        padded_BTX = torch.cat([before_BPX.to(x_BTX.dtype), _at(x_BTX, order_BT)], dim=1)
        last_BP = is_token_BT.sum(dim=1, keepdim=True) + torch.arange(self.before, device=x_BTX.device)
        return _at(self._sums(padded_BTX)[0], order_BT.argsort(dim=1)), _at(padded_BTX, last_BP)

    def _sums(self, padded_BTX: Tensor) -> tuple[Tensor, Tensor]:
        summed_BXT = F.conv1d(padded_BTX.mT, self.taps_XP[:, None], groups=len(self.taps_XP))
        return summed_BXT.mT, padded_BTX[:, padded_BTX.shape[1] - self.before :]


def maybe_convolution(channels: int, size: int | None) -> ShortConvolution | None:
    """None where there is none, of size None or 0."""
    return ShortConvolution(channels, size) if size else None


def _at(x_BTX: Tensor, places_BT: Tensor) -> Tensor:
    return x_BTX.gather(1, places_BT[:, :, None].expand(-1, -1, x_BTX.shape[2]))


class MultiHeadFields(TypedDict, total=False):
    """The fields of multi-head attention; see Attention."""

    d_head: PositiveInt | None
    dropout: Probability
    bias: bool
    qk_norm: QKNorm
    qk_norm_eps: PositiveFloat
    qk_norm_zero_centered: bool
    output_gate: bool
    window: PositiveInt | None
    soft_cap: PositiveFloat | None
    scale: PositiveFloat | None
    backend: str


@check_ranges
class MultiDConvHead(MultiHead):
    """Multi-head attention whose queries, keys and values are summed over the last `convolution` tokens, channel by
    channel (multi-DConv-head attention of Primer, So et al. 2021, arXiv 2109.08668, section 4.2).
    """

    sees_both_sides = reads_memory = False
    sides: ClassVar[Mapping[str, Sides]] = {**MultiHead.sides, "convolution": "out"}

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        convolution: PositiveInt = 3,
        **fields: Unpack[MultiHeadFields],
    ) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.convolution = ShortConvolution(3 * num_heads * self.d_head, convolution)

    def joined(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Sequence[Tensor]:
        qkv_BTX = torch.cat(list(super().joined(x_BTD, scope, cache)), dim=2)
        qkv_BTX, last_BPX = self.convolution(qkv_BTX, scope.is_token_BT, None if cache is None else cache.state)
        if cache is not None:
            cache.state = last_BPX
        projected: Sequence[Tensor] = qkv_BTX.chunk(3, dim=2)
        return projected


def only_causal(choices: Choices, size: object) -> Iterator[str]:
    """Why an attention that sees both sides cannot have a convolution."""
    model = choices.parts.get("model")
    if size and (getattr(model, "sees_both_sides", False) or getattr(model, "has_memory", False)):
        yield (
            f"attention.convolution: model={choices.name('model')} has layers that see both sides or an encoder, and a "
            "short convolution sees what stands before a token; set attention.convolution=null"
        )
