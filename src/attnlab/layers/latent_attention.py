"""Multi-head latent attention: keys and values are made of one narrow state a token, which is all that decoding keeps.

Shapes: B batch, T target length, S source length, D model width, H heads, K width of the part of a head that does not
rotate, R of the part that does, V width of values, C width of the latent state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.attention import SCORE_DEFAULTS, DotProductAttention, ScoreFields, head_width, split_heads
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import Sides
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
    sides: ClassVar[Mapping[str, Sides]] = {
        **dict.fromkeys(("query_down", "query", "latent", "rotary_key", "key", "value", "output"), "both"),
        **dict.fromkeys(("query_norm", "latent_norm"), "out"),
    }

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

    def attended(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None) -> Tensor:
        """With a cache, where that takes fewer operations, queries attend to the latent states themselves: what makes
        keys of these is multiplied to the queries, what makes values to the outputs (section 2.1.2).
        """
        if cache is None:
            return super().attended(x_BTD, scope, cache, memory)
        q_BHTX, kept_B1SX = self._queries(x_BTD, scope), self._kept(x_BTD, scope, cache, memory)
        if not self._absorbs(x_BTD.shape[1], kept_B1SX.shape[2]):
            return self.attend(q_BHTX, *self._keys_and_values(kept_B1SX), x_BTD, scope, cache)
        key_HKC, value_HVC = (up.weight.unflatten(0, (self.num_heads, -1)) for up in (self.key, self.value))
        q_BHTK, q_BHTR = q_BHTX.split([key_HKC.shape[1], self.d_head], dim=-1)
        q_BHTX = torch.cat([torch.einsum("bhtk,hkc->bhtc", q_BHTK, key_HKC), q_BHTR], dim=-1)
        latent_B1SC = kept_B1SX[..., : self.key.in_features]
        out_BHTC = self.attend(q_BHTX, kept_B1SX, latent_B1SC, x_BTD, scope, cache)
        return torch.einsum("bhtc,hvc->bhtv", out_BHTC, value_HVC)

    def projected(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._queries(x_BTD, scope), *self._keys_and_values(self._kept(x_BTD, scope, cache, memory))

    def _absorbs(self, num_queries: int, num_keys: int) -> bool:
        """Whether so many queries and keys cost less in the width of the latent states than in those of the heads."""
        rank, widths = self.key.in_features, (self.key.out_features + self.value.out_features) // self.num_heads
        return rank * widths * (num_keys - num_queries) > num_queries * num_keys * (2 * rank - widths)

    def _kept(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None) -> Tensor:
        """What keys and values are made of: latent states and rotated keys side by side, (B, 1, S, C + R)."""
        latent_B1SC, rotary_B1SR = self.keys_and_values(x_BTD) if memory is None else memory.keys_and_values(self)
        if scope.rotation is not None:
            rotary_B1SR = scope.rotation.keys(rotary_B1SR)
        kept_B1SX = torch.cat([latent_B1SC, rotary_B1SR], dim=-1)
        return kept_B1SX if cache is None else cache.append(kept_B1SX, window=self.window_of_cache)[0]

    def _keys_and_values(self, kept_B1SX: Tensor) -> tuple[Tensor, Tensor]:
        latent_BSC, rotary_BSR = kept_B1SX[:, 0].split([self.key.in_features, self.d_head], dim=-1)
        k_BHSK, v_BHSV = (split_heads(up(latent_BSC), self.num_heads) for up in (self.key, self.value))
        return torch.cat([k_BHSK, rotary_BSR[:, None].expand(-1, self.num_heads, -1, -1)], dim=-1), v_BHSV

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """What keys and values are made of: latent states (B, 1, S, C), and keys, not rotated yet, (B, 1, S, R)."""
        return self.latent_norm(self.latent(x_BSD))[:, None], self.rotary_key(x_BSD)[:, None]

    def _queries(self, x_BTD: Tensor, scope: Scope) -> Tensor:
        if self.query_down is not None and self.query_norm is not None:
            x_BTD = self.query_norm(self.query_down(x_BTD))
        q_BHTX = split_heads(self.query(x_BTD), self.num_heads)
        if scope.rotation is None:
            return q_BHTX
        q_BHTK, q_BHTR = q_BHTX.split([q_BHTX.shape[-1] - self.d_head, self.d_head], dim=-1)
        return torch.cat([q_BHTK, scope.rotation.queries(q_BHTR)], dim=-1)
