"""Layers on one residual stream. Legend: B batch, T target length, D model width."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.dropout import Dropout
from attnlab.layers.feed_forward import GELU, FeedForward
from attnlab.layers.memory import Memory
from attnlab.layers.parts import complete
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.residuals import PreNorm, Residual, final_norm_part, norm_part
from attnlab.layers.scope import Scope, build_scope
from attnlab.ranges import PositiveInt, Probability, check_ranges


class Layer(nn.Module):
    """Self-attention and feed-forward, joined to the stream by a residual; (B, T, D) -> (B, T, D).

    cross_attention: stands between the two and attends to a memory (Vaswani et al. 2017, section 3.1).
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        residual: Residual,
        cross_attention: Attention | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.residual = residual

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        sublayers: list[Callable[[Tensor], Tensor]] = [
            lambda h_BTD: self.attention(h_BTD, scope, cache),
            self.feed_forward,
        ]
        cross = self.cross_attention
        if cross is not None:
            assert memory is not None, "a layer with cross-attention needs a memory"
            sublayers.insert(1, lambda h_BTD: cross(h_BTD, memory.scope(h_BTD), memory=memory))
        return self.residual(x_BTD, *sublayers)


@check_ranges
class Stack(nn.Module):
    """Layers that share one position encoding, and a final norm where the residual asks for one; (B, T, D), in and out.

    position, residual, attention, feed_forward are parts: classes or partials, completed with the widths. d_ff defaults
    to 4 d_model.
    cross_attention: every layer also attends to a memory, by a second attention of the same kind without a window, which
    would mean nothing there. embedding_norm: a norm on the embedded input with its positions (BERT), of the
    residual's kind. grid: rows and columns of an image, for two-dimensional positions. dropout also acts on the embedded input
    (Vaswani et al. 2017, section 5.4). Set `checkpoint_activations` to recompute activations in the backward pass. Raises
    ValueError where num_layers < 1 or a part refuses a width.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        num_layers: PositiveInt,
        causal: bool,
        max_length: PositiveInt | None = None,
        d_ff: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = False,
        grid: tuple[int, int] | None = None,
        cross_attention: bool = False,
        embedding_norm: bool = False,
        position: Callable[..., PositionEncoding] = PositionEncoding,
        residual: Callable[..., Residual] = PreNorm,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GELU,
    ) -> None:
        super().__init__()
        widths = stack_widths(
            d_model, num_heads, num_layers, causal, max_length, d_ff, dropout, bias, grid, cross_attention
        )
        self.causal = causal
        self.checkpoint_activations = False
        layers = [
            Layer(
                complete(attention, **widths),
                complete(feed_forward, **widths),
                complete(residual, **widths),
                complete(without_window(attention), **widths) if cross_attention else None,
            )
            for _ in range(num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        # After the layers: an encoding is told the head width that the attention settled on.
        self.position = complete(position, **{**widths, "d_head": layers[0].attention.d_head})
        self.embedding_norm = complete(norm_part(residual), d_model=d_model) if embedding_norm else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        final_norm = final_norm_part(residual)
        self.norm = nn.Identity() if final_norm is None else complete(final_norm, d_model=d_model)

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
        prefix_B1: Tensor | None = None,
    ) -> Tensor:
        """Positions default to 0.. (after what is cached, padding not counted); is_token_BT is False at padding.

        prefix_B1: how many first positions all see; where it is given, what follows them is causal whatever the stack is.
        Raises ValueError past the last position that the encoding can serve.
        """
        causal = self.causal or prefix_B1 is not None
        scope = build_scope(x_BTD, self.position, causal, positions_BT, is_token_BT, cache=cache, prefix_B1=prefix_B1)
        x_BTD = self.position.embed(x_BTD, scope.query_positions_BT)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        if self.checkpoint_activations and torch.is_grad_enabled() and cache is None:
            for layer in self.layers:
                x_BTD = checkpoint(_with_own_memo, layer, x_BTD, scope, memory, use_reentrant=False)
        else:
            for index, layer in enumerate(self.layers):
                x_BTD = layer(x_BTD, scope, None if cache is None else cache.layer(index), memory)
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
    cross_attention: bool = False,
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
        "num_sublayers": 3 if cross_attention else 2,
    }
    return widths | {name: value for name, value in (("max_length", max_length), ("grid", grid)) if value is not None}


def without_window(attention: Callable[..., Attention]) -> Callable[..., Attention]:
    """The part with no window, where it has such a field."""
    return partial(attention, window=None) if "window" in inspect.signature(attention).parameters else attention


def _with_own_memo(layer: nn.Module, x_BTD: Tensor, scope: Scope, memory: Memory | None) -> Tensor:
    # A recomputed layer must build again what it built the first time, so it cannot share the masks that another
    # layer made.
    own_memory = None if memory is None else memory.without_memo()
    out_BTD: Tensor = layer(x_BTD, replace(scope, _made={}), None, own_memory)
    return out_BTD
