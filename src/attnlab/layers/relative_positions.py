"""Position encodings that add a function of the distance to the scores.

Shapes: B batch, T target (query) length, S source (key) length, H heads, F hidden width, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from attnlab.layers.pointwise import Sides, without_autocast
from attnlab.layers.positions import PositionEncoding, geometric_frequencies
from attnlab.parts import Choices, unsharded
from attnlab.ranges import Gt, PositiveFloat, PositiveInt, check_ranges

EPSILON = 1e-6  # as in the paper's code: where c is learned to be 0


@check_ranges
class FIRE(PositionEncoding):
    """A learned function of the distance, relative to the query's position: f(psi(i - j) / psi(max(L, i))) for query i
    and key j, psi(x) = log(c x + 1), f of one hidden layer of ReLU, the same in all layers (FIRE-S; Li et al. 2023,
    arXiv 2310.04418, section 3 and appendix A).

    width: of the hidden layer. c, threshold: where the learned c and L start; L is learned as a multiple of that.
    """

    sides: ClassVar[Mapping[str, Sides]] = {"output_weight_HF": "neither"}

    def __init__(
        self,
        num_heads: PositiveInt,
        width: PositiveInt = 32,
        c: PositiveFloat = 0.1,
        threshold: PositiveFloat = 512.0,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.c, self.multiplier = nn.Parameter(torch.tensor(float(c))), nn.Parameter(torch.ones(()))
        # No linear layers: they keep torch's start whatever draws the model's weights.
        self.hidden_weight_F, self.hidden_bias_F = (nn.Parameter(torch.empty(width).uniform_(-1, 1)) for _ in range(2))
        # Without a bias, which adds the same to all scores of a query.
        self.output_weight_HF = nn.Parameter(torch.empty(num_heads, width).uniform_(-(width**-0.5), width**-0.5))

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from unsharded(choices, "position")

    def bias(self, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
        dtype = torch.promote_types(self.c.dtype, torch.float32)
        parameters = self.c, self.multiplier, self.hidden_weight_F, self.hidden_bias_F, self.output_weight_HF
        # In fp32: bfloat16 tells no two positions above 256 apart.
        with without_autocast(query_positions_BT):
            c, multiplier, hidden_weight_F, hidden_bias_F, output_weight_HF = (x.to(dtype) for x in parameters)
            distance_BTS = (query_positions_BT[:, :, None] - key_positions_BS[:, None, :]).abs().to(dtype)
            longest_BT = torch.maximum(query_positions_BT.to(dtype), (multiplier * self.threshold).abs())
            scale_BT = torch.log1p(c.abs() * longest_BT) + EPSILON
            share_BTS = torch.log1p(c.abs() * distance_BTS) / scale_BT[:, :, None]
            hidden_BTSF = torch.relu(share_BTS[..., None] * hidden_weight_F + hidden_bias_F)
            return (hidden_BTSF @ output_weight_HF.T).permute(0, 3, 1, 2)


@check_ranges
class SandwichPositions(PositionEncoding):
    """Sandwich (Chi et al. 2023, arXiv 2212.10356): the dot product of sinusoids of the query's and the key's position,
    sum_i cos(distance base^(-2 i / width)), over 8 h / H in head h = 1..H; nothing is learned. width: of the sinusoids.
    """

    def __init__(
        self, num_heads: PositiveInt, width: PositiveInt = 128, base: Annotated[float, Gt(1)] = 10000.0
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, as a sine and a cosine are a pair, got {width}")
        self.num_heads, self.width, self.base = num_heads, width, base

    def bias(self, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
        distance_BTS = (query_positions_BT[:, :, None] - key_positions_BS[:, None, :]).float()
        total_BTS = torch.zeros_like(distance_BTS)
        for frequency in geometric_frequencies(self.width, self.base, distance_BTS.device):
            # Less than at distance 0, which changes no softmax: bfloat16 keeps more digits of what is near.
            total_BTS += torch.cos(distance_BTS * frequency) - 1
        compression_H = torch.arange(1, self.num_heads + 1, device=total_BTS.device) * (8 / self.num_heads)
        return total_BTS[:, None] / compression_H[:, None, None]
