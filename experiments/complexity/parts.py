"""The layers that the article's Table 1 compares, each alone and with its projections, and windows that cost what they should.

python experiments/complexity/parts.py    (prints how far the blocks of a window are from the eager oracle)

Legend: B batch, n length, d width, H heads of 64, K head width, N blocks, R window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers import Eager, Fused, Mask, Math, MultiHead, PositionEncoding, Scope, Scores, build_scope
from attnlab.layers.baselines import Cell, GatedConvolution, Recurrence

HEAD = 64  # the head width of Vaswani et al. 2017: the number of heads grows with d


@dataclass(frozen=True)
class Size:
    """Length, width, kernel and window, and where it is computed."""

    n: int
    d: int
    k: int = 3
    r: int = 64
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def heads(self) -> int:
        """Heads of 64, at least one."""
        return max(1, self.d // HEAD)

    def scope(self, causal: bool) -> Scope:
        """Who sees whom: everyone, or only what is before."""
        nothing = torch.empty(1, self.n, 1, device=self.device)
        return build_scope(nothing, PositionEncoding(), causal)

    def random(self, *shape: int) -> Tensor:
        """A leaf that asks for its gradient."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_()


@dataclass(frozen=True)
class Call:
    """A forward pass, and the tensors whose gradients the backward pass computes."""

    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]

    def train(self) -> None:
        """Forward and backward."""
        out = self.forward()
        torch.autograd.grad(out, self.leaves, torch.ones_like(out))


@dataclass(frozen=True)
class Layer:
    """One series: how it is made, and what the article's table says of its time against n and d (and k or r)."""

    name: str
    part: str  # core: what the table counts; whole: with the projections around it
    make: Callable[[Size], Call]
    growth: dict[str, int]

    @property
    def title(self) -> str:
        """Name and part."""
        return f"{self.name}, {self.part}"


class Blocks:
    """Causal attention in a window of R keys, block by block: each block of R queries sees its own R keys and the R before. A Backend.

    n x 2 R scores instead of n x n; one text, not a batch. Raises ValueError where the window does not divide the length.
    """

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Mask, scores: Scores) -> Tensor:
        length, window = q_BHTK.shape[2], mask.window or q_BHTK.shape[2]
        if length % window:
            raise ValueError(f"window={window} does not divide the length {length}")
        q_BNHRK = _blocks(q_BHTK, window)
        keys, values = (_with_block_before(_blocks(x, window)) for x in (k_BHTK, v_BHTK))
        mask_N1RS = mask.once("blocks", lambda: _block_mask(length // window, window, q_BHTK.device))
        out_BNHRK = F.scaled_dot_product_attention(q_BNHRK[0], keys[0], values[0], mask_N1RS)[None]
        return out_BNHRK.transpose(1, 2).flatten(2, 3)


def _blocks(x_BHTK: Tensor, window: int) -> Tensor:
    return x_BHTK.unflatten(2, (-1, window)).transpose(1, 2)


def _with_block_before(x_BNHRK: Tensor) -> Tensor:
    before = torch.cat([torch.zeros_like(x_BNHRK[:, :1]), x_BNHRK[:, :-1]], dim=1)
    return torch.cat([before, x_BNHRK], dim=3)


def _block_mask(blocks: int, window: int, device: torch.device) -> Tensor:
    query = torch.arange(window, device=device)[:, None] + window
    key = torch.arange(2 * window, device=device)[None]
    near = (key <= query) & (query - key < window)
    first = near & (key >= window)
    return torch.cat([first[None], near.expand(blocks - 1, -1, -1)])[:, None]


def attention_core(backend: Any, windowed: bool = False) -> Callable[[Size], Call]:
    """softmax(q k) v alone, without projections."""

    def make(size: Size) -> Call:
        qkv = [size.random(1, size.heads, size.n, size.d // size.heads) for _ in range(3)]
        mask = size.scope(windowed).mask(size.r if windowed else None)
        return Call(lambda: backend(*qkv, mask, Scores()), qkv)

    return make


def attention_layer(backend: Any, windowed: bool = False) -> Callable[[Size], Call]:
    """The layer with its four projections."""

    def make(size: Size) -> Call:
        layer = MultiHead(size.d, size.heads, window=size.r if windowed else None)
        layer.backend = backend
        scope = size.scope(windowed)
        return _of(layer, size, lambda x_BTD: layer(x_BTD, scope))

    return make


def recurrence(whole: bool, cell: Cell = "lstm") -> Callable[[Size], Call]:
    """A recurrence; its core has one input a position, and so next to no projection of the inputs."""

    def make(size: Size) -> Call:
        layer = Recurrence(size.d, cell=cell, d_input=size.d if whole else 1)
        return _of(layer, size, lambda x_BTD: layer(x_BTD)[0], size.d if whole else 1)

    return make


def convolution(size: Size) -> Call:
    """A gated convolution over the positions before; it is its own core."""
    layer = GatedConvolution(size.d, size.k, causal=True)
    return _of(layer, size, layer)


def _of(layer: nn.Module, size: Size, forward: Callable[[Tensor], Tensor], width: int | None = None) -> Call:
    layer.to(size.device, size.dtype)
    x_BTD = size.random(1, size.n, width or size.d)
    return Call(lambda: forward(x_BTD), [x_BTD, *layer.parameters()])


SQUARE, LINEAR, IN_WIDTH = {"n": 2, "d": 1}, {"n": 1, "d": 1}, {"n": 1, "d": 2}
WHOLE = "whole layer"
LAYERS = [
    Layer("self-attention, explicit", "core", attention_core(Math()), SQUARE),
    Layer("self-attention, fused", "core", attention_core(Fused()), SQUARE),
    Layer("self-attention, fused", WHOLE, attention_layer(Fused()), SQUARE),
    Layer("windowed self-attention", "core", attention_core(Blocks(), True), LINEAR | {"r": 1}),
    Layer("windowed self-attention", WHOLE, attention_layer(Blocks(), True), LINEAR),
    Layer("window as a mask", "core", attention_core(Fused(), True), LINEAR),
    Layer("recurrence (LSTM)", "core", recurrence(False), IN_WIDTH),
    Layer("recurrence (LSTM)", WHOLE, recurrence(True), IN_WIDTH),
    Layer("convolution", WHOLE, convolution, IN_WIDTH | {"k": 1}),
]


def main() -> None:
    """Prints the largest difference between a window in blocks and the eager oracle."""
    torch.manual_seed(0)
    size = Size(256, 128, r=32)
    qkv = [torch.randn(1, 2, size.n, HEAD) for _ in range(3)]
    ours, oracle = (backend(*qkv, size.scope(True).mask(size.r), Scores()) for backend in (Blocks(), Eager()))
    print(f"blocks of a window against the eager oracle: at most {float((ours - oracle).abs().max()):.1e} apart")


if __name__ == "__main__":
    main()
