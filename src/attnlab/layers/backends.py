"""What computes softmax(scores) V: torch's fused kernel, an explicit oracle, flex attention. One call signature for all.

Shapes: B batch, T target length, S source length, H heads, G key/value heads, K head width.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnlab.layers.dropout import dropout as drop
from attnlab.layers.scope import Scope

# Called as (q_BHTK, k_BGSK, v_BGSK, scope, *, window, soft_cap, scale, dropout); returns (B, H, T, K). A query with nothing
# to attend to gives exact zeros. dropout: probability of dropping a weight, 0 outside training. scale None: K ** -0.5.
Backend = Callable[..., Tensor]


class Fused:
    """torch's scaled_dot_product_attention, with the causal flag or nothing instead of a mask wherever that says the same."""

    def __call__(
        self,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        scope: Scope,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Raises ValueError for a soft cap, which the fused kernels do not know."""
        if soft_cap is not None:
            raise ValueError(NO_SOFT_CAP.format(soft_cap))
        causal = scope.is_causal_only(window)
        mask_BHTS = None
        if not causal:
            has_bias = scope.bias_BHTS is not None
            mask_BHTS = scope.additive(window, q_BHTK.dtype) if has_bias else scope.attendable(window)
        out_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            mask_BHTS,
            dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        )
        return zero_lonely(out_BHTK, scope, window)


class Plain:
    """Scores, softmax and weighted sum as matrix products, in the model's type with the softmax in fp32; memory grows with T x S.

    On a CPU it trains short sequences several times as fast as torch's fused kernel, which is made for long ones, and drops
    weights, which that kernel does not. keep_weights: keeps the attention weights (B, H, T, S) of the last call, before dropout,
    in `weights_BHTS`.
    """

    def __init__(self, keep_weights: bool = False) -> None:
        self.keep_weights = keep_weights
        self.weights_BHTS: Tensor | None = None

    def __call__(
        self,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        scope: Scope,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Serves everything."""
        groups = q_BHTK.shape[1] // k_BGSK.shape[1]
        k_BHSK, v_BHSK = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k_BGSK, v_BGSK))
        scores_BHTS = (q_BHTK @ k_BHSK.transpose(-2, -1)).float()
        scores_BHTS = scores_BHTS * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
        if soft_cap is not None:
            scores_BHTS = soft_cap * torch.tanh(scores_BHTS / soft_cap)
        additive_BHTS = scope.additive(window, torch.float32)
        if additive_BHTS is not None:
            scores_BHTS = scores_BHTS + additive_BHTS
        weights_BHTS = zero_lonely(scores_BHTS.softmax(dim=-1), scope, window)
        if self.keep_weights:
            self.weights_BHTS = weights_BHTS.detach()
        return drop(weights_BHTS.to(v_BHSK.dtype), dropout) @ v_BHSK


class Explicit(Plain):
    """The same in fp32 whatever the model's type: the oracle of the other backends."""

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, scope: Scope, **fields: Any) -> Tensor:
        """Serves everything."""
        with torch.autocast(q_BHTK.device.type, enabled=False):
            out_BHTK = super().__call__(q_BHTK.float(), k_BGSK.float(), v_BGSK.float(), scope, **fields)
        return out_BHTK.to(q_BHTK.dtype)


class Flex:
    """torch's flex_attention: soft cap, bias and mask inside one kernel, compiled on CUDA; elsewhere it serves forward only."""

    def __call__(
        self,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        scope: Scope,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Raises ValueError for dropout, and for gradients where it is not compiled."""
        if dropout > 0:
            raise ValueError(NO_DROPOUT.format(dropout))
        compiled = q_BHTK.is_cuda
        if not compiled and q_BHTK.requires_grad:
            raise ValueError(f"backend=flex trains only on cuda, not on {q_BHTK.device.type}; accepted: {ACCEPTED}")
        attend: Callable[..., Any] = _compiled_flex() if compiled else cast(Callable[..., Any], flex_attention)
        out_BHTK: Tensor = attend(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            score_mod=_score_mod(scope.bias_BHTS, soft_cap),
            block_mask=scope.once(
                ("flex", window), lambda: _block_mask(scope, window, q_BHTK.shape[2], k_BGSK.shape[2])
            ),
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        )
        return zero_lonely(out_BHTK, scope, window)


ACCEPTED = "auto, fused, plain, explicit, flex"
SHORT = 128  # up to this length matrix products are quicker than the fused kernel on a CPU
NO_SOFT_CAP = (
    "backend=fused cannot cap scores (soft_cap={}); accepted: backend auto, plain, explicit or flex, or soft_cap=null"
)
NO_DROPOUT = (
    "backend=flex cannot drop attention weights (dropout={}); accepted: dropout=0, or backend auto, plain or explicit"
)
BACKENDS: dict[str, Backend] = {"fused": Fused(), "plain": Plain(), "explicit": Explicit(), "flex": Flex()}


def choose_backend(
    backend: str | Backend, soft_cap: float | None, device_type: str, dropout: float = 0.0, length: int = SHORT + 1
) -> Backend:
    """The backend of this name; a Backend object is returned as it is. `length` is of the longer of queries and keys.

    auto is fused; with a soft cap flex on CUDA (without dropout) and plain elsewhere; on a CPU plain also for short
    sequences and with dropout. Raises ValueError with the reason for what cannot be served.
    """
    if not isinstance(backend, str):
        return backend
    if backend == "auto":
        if device_type == "cuda":
            capped = "flex" if dropout == 0 else "plain"
            return BACKENDS["fused" if soft_cap is None else capped]
        return BACKENDS["plain" if soft_cap is not None or dropout > 0 or length <= SHORT else "fused"]
    check_backend(backend, soft_cap, dropout)
    return BACKENDS[backend]


def check_backend(name: str, soft_cap: float | None, dropout: float) -> None:
    """Raises ValueError, with the reason, where a backend cannot serve these fields on any device."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend={name!r} is unknown; accepted: {ACCEPTED}")
    if name == "fused" and soft_cap is not None:
        raise ValueError(NO_SOFT_CAP.format(soft_cap))
    if name == "flex" and dropout > 0:
        raise ValueError(NO_DROPOUT.format(dropout))


def zero_lonely(x_BHTX: Tensor, scope: Scope, window: int | None) -> Tensor:
    """Zeroes the rows of queries that have nothing to attend to; they were let see all keys, so that nothing is NaN."""
    lonely_BHT1 = scope.lonely(window)
    return x_BHTX if lonely_BHT1 is None else x_BHTX.masked_fill(lonely_BHT1, 0.0)


def _score_mod(bias_BHTS: Tensor | None, soft_cap: float | None) -> Callable[..., Tensor] | None:
    if bias_BHTS is None and soft_cap is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if soft_cap is not None:
            score = soft_cap * torch.tanh(score / soft_cap)
        if bias_BHTS is not None:
            score = score + bias_BHTS[b if bias_BHTS.shape[0] > 1 else 0, h, t, s]
        return score

    return score_mod


def _block_mask(scope: Scope, window: int | None, num_queries: int, num_keys: int) -> BlockMask | None:
    attendable_BHTS = scope.attendable(window)
    if attendable_BHTS is None:
        return None
    rows = attendable_BHTS.shape[0]

    def mask_mod(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return attendable_BHTS[b if rows > 1 else 0, 0, t, s]

    return create_block_mask(mask_mod, rows if rows > 1 else None, None, num_queries, num_keys, attendable_BHTS.device)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)
