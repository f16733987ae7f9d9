"""What all layers of one forward pass share: who may attend to whom, the bias on the scores, the rotation of queries and keys.

Shapes: B batch, T target (query) length, S source (key) length, D model width, H heads, G key/value heads, K head width.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from attnlab.layers.masks import build_mask

if TYPE_CHECKING:
    from attnlab.layers.cache import KeyValueCache
    from attnlab.layers.positions import PositionEncoding

T = TypeVar("T")


@dataclass
class Scope:
    """Who sees whom in one forward pass. Masks are made on demand and once, whatever the number of layers.

    contiguous: keys stand at positions 0..S-1, queries at the last T of them, and nothing is padding; then a flag or nothing
    at all replaces the mask. is_token_BS: True for real keys, None when all are. prefix_B1: how many first positions every
    query sees, in spite of `causal`. bias_BHTS: (B or 1, H, T, S) or None.
    rotate: callable on (B, H or G, T, K) or None.
    """

    query_positions_BT: Tensor
    key_positions_BS: Tensor
    causal: bool
    is_token_BS: Tensor | None = None
    contiguous: bool = False
    bias_BHTS: Tensor | None = None
    rotate: Callable[[Tensor], Tensor] | None = None
    query_segments_BT: Tensor | None = None
    key_segments_BS: Tensor | None = None
    prefix_B1: Tensor | None = None
    _made: dict[object, Any] = field(default_factory=dict, repr=False)

    def is_causal_only(self, window: int | None) -> bool:
        """Whether scaled_dot_product_attention's causal flag alone says who sees whom: no mask, no bias."""
        num_queries, num_keys = self._lengths
        inside = window is None or window >= num_keys
        is_plain = self.contiguous and self.prefix_B1 is None and self.bias_BHTS is None
        return self.causal and is_plain and num_queries == num_keys and inside

    def allowed(self, window: int | None) -> Tensor | None:
        """True where a query may attend to a key: (B or 1, 1, T, S); None when everyone sees everyone."""
        if self._sees_everything(window):
            return None
        return self.once(("allowed", window), lambda: self._mask(window))

    def lonely(self, window: int | None) -> Tensor | None:
        """True for queries that have nothing to attend to, (B or 1, 1, T, 1); None when there can be none.

        In self-attention a query sees at least itself unless it is padding.
        """
        allowed_BHTS = None if self.is_token_BS is None else self.allowed(window)
        if allowed_BHTS is None:
            return None
        return self.once(("lonely", window), lambda: ~allowed_BHTS.any(dim=-1, keepdim=True))

    def attendable(self, window: int | None) -> Tensor | None:
        """`allowed`, but a lonely query sees all keys: no softmax over nothing. Whoever uses it zeroes the lonely outputs."""
        allowed_BHTS, lonely_BHT1 = self.allowed(window), self.lonely(window)
        if allowed_BHTS is None or lonely_BHT1 is None:
            return allowed_BHTS
        return self.once(("attendable", window), lambda: allowed_BHTS | lonely_BHT1)

    def additive(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The bias with -inf where `attendable` is False, in `dtype`, (B or 1, H or 1, T, S); None when there is neither."""
        attendable_BHTS, bias_BHTS = self.attendable(window), self.bias_BHTS
        if attendable_BHTS is None and bias_BHTS is None:
            return None
        return self.once(("additive", window, dtype), lambda: _merge(attendable_BHTS, bias_BHTS, dtype))

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key and shared by all later ones of this forward pass."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    @property
    def _lengths(self) -> tuple[int, int]:
        return self.query_positions_BT.shape[1], self.key_positions_BS.shape[1]

    def _sees_everything(self, window: int | None) -> bool:
        num_queries, num_keys = self._lengths
        if self.is_token_BS is not None or self.query_segments_BT is not None:
            return False
        if window is not None and not (self.contiguous and window >= num_keys):
            return False
        return not self.causal or (self.contiguous and num_queries == 1)

    def _mask(self, window: int | None) -> Tensor:
        return build_mask(
            self.query_positions_BT,
            self.key_positions_BS,
            self.causal,
            window,
            self.is_token_BS,
            self.query_segments_BT,
            self.key_segments_BS,
            self.prefix_B1,
        )


def build_scope(
    x_BTD: Tensor,
    position: PositionEncoding,
    causal: bool,
    positions_BT: Tensor | None = None,
    is_token_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
    cache: KeyValueCache | None = None,
    prefix_B1: Tensor | None = None,
) -> Scope:
    """The Scope of a self-attending stack; called once a forward, before its layers. Extends the cache by this forward's tokens.

    Without `positions_BT`, positions count on from what is cached, and padding (is_token_BT False) is not counted.
    Raises ValueError past the cache's capacity or past the last position that the encoding can serve.
    """
    contiguous = positions_BT is None and is_token_BT is None and segments_BT is None
    if positions_BT is None:
        positions_BT = _next_positions(x_BTD, is_token_BT, cache)
    key_positions_BS, is_token_BS = positions_BT, is_token_BT
    if cache is not None:
        if segments_BT is not None:
            raise ValueError(
                "packed sequences (segments_BT) cannot be continued from a cache; accepted: segments_BT=None"
            )
        cache.extend(positions_BT, is_token_BT, contiguous)
        key_positions_BS, is_token_BS, contiguous = cache.positions_BS, cache.is_token_BS, cache.contiguous
    if position.longest is not None:
        # Reading a value stalls a GPU, so the usual case is decided by the shape alone.
        position.check(key_positions_BS.shape[1] - 1 if contiguous else int(positions_BT.max()))
    return Scope(
        positions_BT,
        key_positions_BS,
        causal,
        is_token_BS,
        contiguous,
        position.bias(positions_BT, key_positions_BS),
        position.rotation(positions_BT),
        segments_BT,
        segments_BT,
        prefix_B1,
    )


def _next_positions(x_BTD: Tensor, is_token_BT: Tensor | None, cache: KeyValueCache | None) -> Tensor:
    if is_token_BT is None and (cache is None or cache.contiguous):
        start = 0 if cache is None else cache.length
        return torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
    if is_token_BT is None:
        is_token_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    counted_BT = is_token_BT.long().cumsum(dim=1)
    if cache is not None and cache.length > 0:
        counted_BT = counted_BT + cache.num_tokens_B1
    return (counted_BT - 1).clamp(min=0)


def _merge(attendable_BHTS: Tensor | None, bias_BHTS: Tensor | None, dtype: torch.dtype) -> Tensor:
    if attendable_BHTS is None:
        assert bias_BHTS is not None
        return bias_BHTS.to(dtype)
    if bias_BHTS is None:
        zeros_BHTS = torch.zeros(attendable_BHTS.shape, dtype=dtype, device=attendable_BHTS.device)
        return zeros_BHTS.masked_fill(~attendable_BHTS, float("-inf"))
    return bias_BHTS.to(dtype).masked_fill(~attendable_BHTS, float("-inf"))
