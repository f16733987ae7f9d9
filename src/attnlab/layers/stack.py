"""Layers on one residual stream. Legend: B batch, T target length, D model width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.feed_forward import GELU, FeedForward
from attnlab.layers.parts import complete, count_parameters
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.residuals import PreNorm, Residual, final_norm_part
from attnlab.layers.scope import Scope, build_scope


class Layer(nn.Module):
    """Self-attention and feed-forward, joined to the stream by a residual; (B, T, D) -> (B, T, D)."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, residual: Residual) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.residual = residual

    def forward(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None) -> Tensor:
        return self.residual(x_BTD, lambda h_BTD: self.attention(h_BTD, scope, cache), self.feed_forward)


class Stack(nn.Module):
    """Layers that share one position encoding, and a final norm where the residual asks for one; (B, T, D), in and out.

    position, residual, attention, feed_forward are parts: classes or partials, completed with the widths. d_ff defaults
    to 4 d_model.
    grid: rows and columns of an image, for two-dimensional positions. dropout also acts on the embedded input (Vaswani
    et al. 2017, section 5.4). Set `checkpoint_activations` to recompute activations in the backward pass. Raises
    ValueError where num_layers < 1 or a part refuses a width.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_layers: int,
        causal: bool,
        max_length: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        grid: tuple[int, int] | None = None,
        position: Callable[..., PositionEncoding] = PositionEncoding,
        residual: Callable[..., Residual] = PreNorm,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GELU,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} is no stack; accepted: 1 or more")
        widths = stack_widths(d_model, num_heads, num_layers, causal, max_length, d_ff, dropout, bias, grid)
        self.causal = causal
        self.checkpoint_activations = False
        layers = [
            Layer(complete(attention, **widths), complete(feed_forward, **widths), complete(residual, **widths))
            for _ in range(num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        # After the layers: an encoding is told the head width that the attention settled on.
        self.position = complete(position, **{**widths, "d_head": layers[0].attention.d_head})
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        final_norm = final_norm_part(residual)
        self.norm = nn.Identity() if final_norm is None else complete(final_norm, d_model=d_model)

    @staticmethod
    def parameter_count(
        position: Callable[..., PositionEncoding],
        residual: Callable[..., Residual],
        attention: Callable[..., Attention],
        feed_forward: Callable[..., FeedForward],
        **widths: Any,
    ) -> int:
        """Of all layers, the position encoding and the final norm; `widths` as `stack_widths` gives them."""
        a_layer = sum(count_parameters(part, **widths) for part in (attention, feed_forward, residual))
        final_norm = final_norm_part(residual)
        end = 0 if final_norm is None else count_parameters(final_norm, d_model=widths["d_model"])
        return widths["num_layers"] * a_layer + count_parameters(position, **widths) + end

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Positions default to 0.. (after what is cached, padding not counted); is_token_BT is False at padding.

        Raises ValueError past the last position that the encoding can serve.
        """
        scope = build_scope(x_BTD, self.position, self.causal, positions_BT, is_token_BT, cache=cache)
        x_BTD = self.dropout(self.position.embed(x_BTD, scope.query_positions_BT))
        if self.checkpoint_activations and torch.is_grad_enabled() and cache is None:
            for layer in self.layers:
                x_BTD = checkpoint(_with_own_memo, layer, x_BTD, scope, use_reentrant=False)
        else:
            for index, layer in enumerate(self.layers):
                x_BTD = layer(x_BTD, scope, None if cache is None else cache.layer(index))
        return self.norm(x_BTD)


def stack_widths(
    d_model: int,
    num_heads: int,
    num_layers: int,
    causal: bool,
    max_length: int | None = None,
    d_ff: int | None = None,
    dropout: float = 0.0,
    bias: bool = False,
    grid: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What a stack knows and its parts may ask for."""
    widths = {
        "d_model": d_model,
        "num_heads": num_heads,
        "num_layers": num_layers,
        "causal": causal,
        "d_ff": d_ff or 4 * d_model,
        "dropout": dropout,
        "bias": bias,
    }
    return widths | {name: value for name, value in (("max_length", max_length), ("grid", grid)) if value is not None}


def _with_own_memo(layer: nn.Module, x_BTD: Tensor, scope: Scope) -> Tensor:
    # A recomputed layer must build again what it built the first time, so it cannot share the masks that another
    # layer made.
    out_BTD: Tensor = layer(x_BTD, replace(scope, _made={}))
    return out_BTD
