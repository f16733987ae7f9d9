"""Positions that depend on the content.

Shapes: B batch, T target (query) length, S source (key) length, H heads, K head width, P positions of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlab.layers.positions import PositionEncoding
from attnlab.ranges import PositiveInt, check_ranges, must_be


@check_ranges
class CoPE(PositionEncoding):
    """A key's position before a query counts the tokens from it up to the query, each by a gate sigmoid(q k); what lies
    between two whole positions is interpolated: q (k + e[p]) (Golovneva et al. 2024, arXiv 2405.18719, section 4).

    num_positions: of the table, from 0 on, the last for all beyond; None: the model's max_length and one more. All
    heads and layers share the table, which starts at zero. Raises ValueError for layers that see both sides, and
    without a length.
    """

    sees_both_sides = False

    def __init__(
        self,
        d_head: PositiveInt,
        causal: bool,
        num_positions: PositiveInt | None = None,
        max_length: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if not causal:
            raise ValueError(
                "CoPE counts the tokens between a query and what stands before it, and these layers see both sides; "
                "accepted: causal layers"
            )
        if num_positions is None and max_length is None:
            wanted = "a number of positions where there is no max_length"
            raise ValueError(must_be("num_positions", wanted, num_positions))
        self.table = nn.Embedding(num_positions or (max_length or 0) + 1, d_head)
        nn.init.zeros_(self.table.weight)

    def context_bias(self, q_BHTK: Tensor, scores_BHTS: Tensor, allowed_BHTS: Tensor | None) -> Tensor:
        gates_BHTS = scores_BHTS.sigmoid()
        if allowed_BHTS is not None:
            gates_BHTS = gates_BHTS * allowed_BHTS
        places_BHTS = gates_BHTS.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=self.table.num_embeddings - 1)
        at_BHTP = (q_BHTK @ self.table.weight.to(q_BHTK.dtype).t()).to(scores_BHTS.dtype)
        below_BHTS, above_BHTS = (
            at_BHTP.gather(-1, place.long()) for place in (places_BHTS.floor(), places_BHTS.ceil())
        )
        return torch.lerp(below_BHTS, above_BHTS, places_BHTS - places_BHTS.floor())
