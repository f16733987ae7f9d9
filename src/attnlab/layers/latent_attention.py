"""Multi-head latent attention: keys and values are made of one narrow state a token, which is all that decoding keeps.

Shapes: B batch, T target length, S source length, D model width, H heads, K width of the part of a head that does not
rotate, R of the part that does, V width of values, C width of the latent state.
"""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.attention import SCORE_DEFAULTS, DotProductAttention, ScoreFields, head_width, split_heads
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.scope import Scope
from attnlab.ranges import PositiveInt, check_ranges


@check_ranges
class LatentAttention(DotProductAttention):
    """Keys and values projected up from a normed latent state of each token, and a rotated part of the keys that all
    heads share; the cache keeps these two (DeepSeek-V2, DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).

    kv_rank: C; None: 4 d_head. q_rank: of a latent state of the queries; None: they have none. d_head: K; None: d_model
    / num_heads. d_rotary: R; None: half of d_head, made even. d_value: V; None: d_head. bias: of what is projected from
    the stream and to it. scale: None: (d_head + d_rotary)^-0.5. The others: see DotProductAttention.
    """

    defaults: ClassVar[ScoreFields] = SCORE_DEFAULTS

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        kv_rank: PositiveInt | None = None,
        q_rank: PositiveInt | None = None,
        d_head: PositiveInt | None = None,
        d_rotary: PositiveInt | None = None,
        d_value: PositiveInt | None = None,
        bias: bool = False,
        **fields: Unpack[ScoreFields],
    ) -> None:
        width = head_width(d_model, num_heads, d_head)
        rotary, value = d_rotary or 2 * math.ceil(width / 4), d_value or width
        super().__init__(num_heads, rotary, width + rotary, value, **fields)
        rank = kv_rank or 4 * width
        self.query_down = None if q_rank is None else nn.Linear(d_model, q_rank, bias=bias)
        self.query_norm = None if q_rank is None else nn.RMSNorm(q_rank, eps=1e-6)
        self.query = nn.Linear(q_rank or d_model, num_heads * (width + rotary), bias=False)
        self.latent = nn.Linear(d_model, rank, bias=bias)
        self.latent_norm = nn.RMSNorm(rank, eps=1e-6)
        self.rotary_key = nn.Linear(d_model, rotary, bias=bias)
        self.key = nn.Linear(rank, num_heads * width, bias=False)
        self.value = nn.Linear(rank, num_heads * value, bias=False)
        self.output = nn.Linear(num_heads * value, d_model, bias=bias)

    @classmethod
    def refuses(cls, position: type[PositionEncoding]) -> str | None:
        if position.context_bias is not PositionEncoding.context_bias:
            return "acts on whole queries, of which {mixer} gives positions but a part; choose position=rotary"
        return super().refuses(position)

    def projected(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept = self.keys_and_values(x_BTD) if memory is None else memory.keys_and_values(self)
        latent_B1SC, rotary_B1SR = kept
        q_BHTX = self._queries(x_BTD)
        if scope.rotation is not None:
            q_BHTK, q_BHTR = q_BHTX.split([q_BHTX.shape[-1] - self.d_head, self.d_head], dim=-1)
            q_BHTX = torch.cat([q_BHTK, scope.rotation.queries(q_BHTR)], dim=-1)
            rotary_B1SR = scope.rotation.keys(rotary_B1SR)
        if cache is not None:
            latent_B1SC, rotary_B1SR = cache.append(latent_B1SC, rotary_B1SR, window=self.window_of_cache)
        k_BHSK, v_BHSV = (split_heads(up(latent_B1SC[:, 0]), self.num_heads) for up in (self.key, self.value))
        k_BHSX = torch.cat([k_BHSK, rotary_B1SR.expand(-1, self.num_heads, -1, -1)], dim=-1)
        return q_BHTX, k_BHSX, v_BHSV

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """What keys and values are made of: latent states (B, 1, S, C), and keys, not rotated yet, (B, 1, S, R)."""
        return self.latent_norm(self.latent(x_BSD))[:, None], self.rotary_key(x_BSD)[:, None]

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if self.query_down is not None and self.query_norm is not None:
            x_BTD = self.query_norm(self.query_down(x_BTD))
        return split_heads(self.query(x_BTD), self.num_heads)
