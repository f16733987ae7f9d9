"""How softmax(scores) V is computed: the backends of attention, and which of them `auto` takes.

Shapes: B batch, T target length, S source length, H heads, G key/value heads, K head width, N blocks, M keys of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from attnlab.layers.pointwise import dropout as drop
from attnlab.layers.pointwise import wide
from attnlab.layers.positions import ContextBias
from attnlab.layers.scope import LEAST_CAUSAL, Mask

# What F.scaled_dot_product_attention calls on a CPU, forward and backward.
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


# Scores (B, H, T, S) and what is added to them, with -inf where a query may not attend (None: nothing), to the weights
# (B, H, T, S); the heads of the scores may be others than those of the weights.
Weigh = Callable[[Tensor, Tensor | None], Tensor]


class Scores(NamedTuple):
    """How scores, and weights of them, are made. scale: None: K ** -0.5. dropout: probability of dropping a weight, 0
    outside training. weigh: None: softmax. context_bias: a term that depends on queries and scores; None: none.
    """

    scale: float | None = None
    soft_cap: float | None = None
    dropout: float = 0.0
    weigh: Weigh | None = None
    context_bias: ContextBias | None = None

    @property
    def explicit(self) -> bool:
        """Whether only a backend that makes all scores can serve them."""
        return self.weigh is not None or self.context_bias is not None


# (q_BHTK, k_BGSK, v_BGSK, mask, scores) to (B, H, T, K). A query with nothing to attend to gives exact zeros.
Backend = Callable[[Tensor, Tensor, Tensor, Mask, Scores], Tensor]


class Fused:
    """torch's scaled_dot_product_attention, with the causal flag or nothing instead of a mask where it can."""

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        check_backend("fused", scores.soft_cap, scores.dropout, scores.explicit)
        mask_BHTS = None
        if not mask.is_causal:
            mask_BHTS = mask.attendable_BHTS if mask.bias_BHTS is None else mask.additive(q_BHTK.dtype)
        qkv, grouped = (q_BHTK, k_BGSK, v_BGSK), q_BHTK.shape[1] != k_BGSK.shape[1]
        out_BHTK = F.scaled_dot_product_attention(
            *qkv, mask_BHTS, scores.dropout, mask.is_causal, scale=scores.scale, enable_gqa=grouped
        )
        return mask.zero_fully_masked(out_BHTK)


class Math:
    """Matrix products in the model's type and a softmax in fp32 or fp64; serves everything; memory grows with T x S. On
    a CPU it drops weights faster than torch, whose fused kernel there does not, and is quicker for one query.
    keep_weights: keeps the attention weights (B, H, T, S) of the last call, before dropout, in `weights_BHTS`.
    """

    def __init__(self, keep_weights: bool = False) -> None:
        self.keep_weights = keep_weights
        self.weights_BHTS: Tensor | None = None

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        scores_BHTS = wide(_by_groups(q_BHTK, k_BGSK.transpose(-2, -1)))
        scale = q_BHTK.shape[-1] ** -0.5 if scores.scale is None else scores.scale
        scores_BHTS = scores_BHTS * scale
        if scores.soft_cap is not None:
            scores_BHTS = scores.soft_cap * torch.tanh(scores_BHTS / scores.soft_cap)
        if scores.context_bias is not None:
            scores_BHTS = scores_BHTS + scores.context_bias(q_BHTK * scale, scores_BHTS, mask.allowed_BHTS)
        weigh = softmax if scores.weigh is None else scores.weigh
        weights_BHTS = mask.zero_fully_masked(weigh(scores_BHTS, mask.additive(scores_BHTS.dtype)))
        if self.keep_weights:
            self.weights_BHTS = weights_BHTS.detach()
        return _by_groups(drop(weights_BHTS.to(v_BGSK.dtype), scores.dropout), v_BGSK)


def softmax(scores_BHTS: Tensor, additive_BHTS: Tensor | None) -> Tensor:
    """The weights of all choices but those that say otherwise."""
    return (scores_BHTS if additive_BHTS is None else scores_BHTS + additive_BHTS).softmax(dim=-1)


def _by_groups(x_BHTX: Tensor, y_BGXY: Tensor) -> Tensor:
    """The product of each head with what its group shares, which is not copied for each of its heads."""
    heads, groups = x_BHTX.shape[1], y_BGXY.shape[1]
    if heads == groups:
        return x_BHTX @ y_BGXY
    grouped_BGXX: Tensor = x_BHTX.unflatten(1, (groups, heads // groups)).flatten(2, 3)
    product_BGXY: Tensor = (grouped_BGXX @ y_BGXY).unflatten(2, (heads // groups, x_BHTX.shape[2]))
    return product_BGXY.flatten(1, 2)


class Eager(Math):
    """The same in fp32 whatever the model's type: the oracle of the other backends."""

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        with torch.autocast(q_BHTK.device.type, enabled=False):
            out_BHTK = super().__call__(q_BHTK.float(), k_BGSK.float(), v_BGSK.float(), mask, scores)
        return out_BHTK.to(q_BHTK.dtype)


class Flex:
    """torch's flex_attention: soft cap, bias and mask in one kernel, compiled on CUDA; elsewhere forward only."""

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        check_backend("flex", scores.soft_cap, scores.dropout, scores.explicit)
        compiled = q_BHTK.is_cuda
        if not compiled and q_BHTK.requires_grad:
            raise ValueError(f"backend=flex trains only on cuda, not on {q_BHTK.device.type}; accepted: {ACCEPTED}")
        attend = _compiled_flex() if compiled else cast(Callable[..., Tensor], flex_attention)
        out_BHTK = attend(
            *(q_BHTK, k_BGSK, v_BGSK),
            score_mod=_score_mod(mask.bias_BHTS, scores.soft_cap),
            block_mask=mask.once("flex", lambda: _block_mask(mask.attendable_BHTS, q_BHTK.shape[2])),
            scale=scores.scale,
            enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        )
        return mask.zero_fully_masked(out_BHTK)


class InBlocks:
    """Another backend, which sees a sequence with a narrow window in blocks (see `Blocks`): T x window scores in the
    place of T x S."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        if (blocks := mask.blocks) is None:
            return self.backend(q_BHTK, k_BGSK, v_BGSK, mask, scores)
        batch, _, length, _ = q_BHTK.shape
        parts = blocks.queries(q_BHTK), blocks.keys(k_BGSK), blocks.keys(v_BGSK)
        return blocks.joined(self.backend(*parts, mask.in_blocks(batch), scores), batch, length)


class InRows:
    """Another backend, which sees some queries after another: nothing of T x S elements is made, or kept for the
    backward pass, which makes masks and biases again; and scores, too, but for the fused kernel of a CPU.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        on_cpu, as_wide = q_BHTK.device.type == "cpu", q_BHTK.shape[-1] == v_BGSK.shape[-1]
        fused = isinstance(self.backend, Fused) and on_cpu and as_wide and not scores.dropout
        if fused and not _is_learned(mask):
            return _fused_rows(q_BHTK, k_BGSK, v_BGSK, mask, scores)
        made = [
            checkpoint(
                *(self._rows, mask, queries, keys, q_BHTK[:, :, queries], k_BGSK[:, :, keys], v_BGSK[:, :, keys]),
                scores,
                use_reentrant=False,
                preserve_rng_state=scores.dropout > 0,
            )
            for queries, keys in _rows_of(mask)
        ]
        return torch.cat(made, dim=2)

    def _rows(
        self, mask: Mask, queries: slice, keys: slice, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, scores: Scores
    ) -> Tensor:
        return self.backend(q_BHTK, k_BGSK, v_BGSK, mask.part(queries, keys), scores)


def _rows_of(mask: Mask) -> list[tuple[slice, slice]]:
    return mask.once("rows", lambda: mask.scope.rows(mask.window))


def _is_learned(mask: Mask) -> bool:
    """Whether the bias has a gradient, by that of one query and key."""
    first_BHTS = mask.part(slice(1), slice(1)).bias_BHTS
    return first_BHTS is not None and first_BHTS.requires_grad


def _fused_rows(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
    check_backend("fused", scores.soft_cap, scores.dropout)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BHTK.dtype
    qkv = (q_BHTK.to(dtype), k_BGSK.to(dtype), v_BGSK.to(dtype))
    return cast(Tensor, _FusedRows.apply(*qkv, mask, scores.scale))  # type: ignore[no-untyped-call]


class _Context(FunctionCtx):
    mask: Mask
    scale: float | None
    saved_tensors: tuple[Tensor, ...]


class _FusedRows(torch.autograd.Function):
    """torch's fused kernel of a CPU in rows, with a bias that has no gradient. The kernel keeps no scores, so that only
    masks are made again.
    """

    @staticmethod
    def forward(
        ctx: _Context, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scale: float | None
    ) -> Tensor:
        batch, heads, length, width = q_BHTK.shape
        out_BHTK = q_BHTK.new_empty(batch, length, heads, width).transpose(1, 2)  # as the kernel lays it out
        norms = []
        for queries, keys in _rows_of(mask):
            part, qkv = mask.part(queries, keys), (q_BHTK[:, :, queries], k_BGSK[:, :, keys], v_BGSK[:, :, keys])
            rows_BHTK, norm_BHT = FLASH(*qkv, attn_mask=part.additive(q_BHTK.dtype), scale=scale)
            out_BHTK[:, :, queries] = part.zero_fully_masked(rows_BHTK)
            norms.append(norm_BHT)
        ctx.save_for_backward(q_BHTK, k_BGSK, v_BGSK, out_BHTK, *norms)
        ctx.mask, ctx.scale = mask, scale
        return out_BHTK

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_BHTK: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTK, k_BGSK, v_BGSK, out_BHTK, *norms = ctx.saved_tensors
        grads = torch.empty_like(q_BHTK), torch.zeros_like(k_BGSK), torch.zeros_like(v_BGSK)
        for (queries, keys), norm_BHT in zip(_rows_of(ctx.mask), norms, strict=True):
            part = ctx.mask.part(queries, keys)
            qkv = (q_BHTK[:, :, queries], k_BGSK[:, :, keys], v_BGSK[:, :, keys])
            rows_BHTK = part.zero_fully_masked(grad_BHTK[:, :, queries])
            made = (rows_BHTK, *qkv, out_BHTK[:, :, queries], norm_BHT, 0.0, False)
            q_grad, *kv_grads = FLASH_BACKWARD(*made, attn_mask=part.additive(q_BHTK.dtype), scale=ctx.scale)
            grads[0][:, :, queries] = q_grad
            for grad_BGSK, part_BGSK in zip(grads[1:], kv_grads, strict=True):
                grad_BGSK[:, :, keys] += part_BGSK
        return *grads, None, None


ACCEPTED = "auto, fused, math, eager, flex"
BACKENDS: dict[str, Backend] = {"fused": Fused(), "math": Math(), "eager": Eager(), "flex": Flex()}
IN_BLOCKS: dict[str, Backend] = {name: InBlocks(BACKENDS[name]) for name in ("fused", "math")}
IN_ROWS: dict[str, Backend] = {name: InRows(BACKENDS[name]) for name in ("fused", "math")}


def choose_backend(
    backend: str | Backend,
    soft_cap: float | None,
    device_type: str,
    dropout: float = 0.0,
    mask: Mask | None = None,
    num_queries: int = 2,
    explicit: bool = False,
) -> Backend:
    """The backend of this name, or the Backend object itself. auto is fused; math where all scores have to be made
    (`Scores.explicit`); with a soft cap flex on CUDA (without
    dropout) and math elsewhere; on a CPU math also with dropout and for one query, in blocks where a window is narrow,
    and for long sequences in rows where T x S of anything would be made (experiments/speed has the figures). Raises
    ValueError with the reason for what cannot be served.
    """
    if not isinstance(backend, str):
        return backend
    check_backend(backend, soft_cap, dropout, explicit)
    if backend != "auto":
        return BACKENDS[backend]
    if explicit:
        return BACKENDS["math"]
    on_cpu = device_type == "cpu"
    if soft_cap is not None and device_type == "cuda" and not dropout:
        return BACKENDS["flex"]
    whole = "math" if soft_cap is not None or (on_cpu and (dropout > 0 or num_queries == 1)) else "fused"
    if not on_cpu or mask is None:
        return BACKENDS[whole]
    if mask.blocks is not None:
        return IN_BLOCKS[whole]
    is_long = num_queries >= (LEAST_CAUSAL if mask.scope.causal else 2 * LEAST_CAUSAL)
    return (IN_ROWS if is_long and (mask.by_query or whole == "math") else BACKENDS)[whole]


def check_backend(name: str, soft_cap: float | None, dropout: float, explicit: bool = False) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend={name!r} is unknown; accepted: {ACCEPTED}")
    if explicit and name in ("fused", "flex"):
        raise ValueError(
            f"backend={name} makes weights by a softmax alone, and this attention needs all scores; "
            "accepted: auto, math, eager"
        )
    if name == "fused" and soft_cap is not None:
        raise ValueError(
            f"backend=fused cannot cap scores (soft_cap={soft_cap}); "
            "accepted: backend auto, math, eager or flex, or soft_cap=null"
        )
    if name == "flex" and dropout > 0:
        raise ValueError(
            f"backend=flex cannot drop attention weights (dropout={dropout}); "
            "accepted: dropout=0, or backend auto, math or eager"
        )


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


def _block_mask(attendable_BHTS: Tensor | None, num_queries: int) -> BlockMask | None:
    if attendable_BHTS is None:
        return None
    attendable_BHTS = attendable_BHTS.expand(-1, -1, num_queries, -1)
    rows, num_keys = len(attendable_BHTS), attendable_BHTS.shape[3]

    def mask_mod(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return attendable_BHTS[b if rows > 1 else 0, 0, t, s]

    return create_block_mask(mask_mod, rows if rows > 1 else None, None, num_queries, num_keys, attendable_BHTS.device)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)
