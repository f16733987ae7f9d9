"""Which positions can reach an output, layer by layer: counted by gradients, and by the formula of windows and kernels.

Shapes: B batch, S positions, D model width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from attnlab.layers.attention import Attention
from attnlab.layers.convolution import ConvolutionStack
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.stack import Layer, Stack
from attnlab.models.measures import reach

MOST = 512  # positions that are looked at by default
UNWINDOWED = 32  # the same where every layer sees all


@dataclass(frozen=True)
class Field:
    """What reaches the output at position `at` after 1, 2, ... layers of a stack.

    back, ahead: how many positions before and after its own a layer sees; None: all. reached: one row a layer, True
    where a gradient is not zero.
    """

    name: str
    kind: str
    at: int
    back: int | None
    ahead: int | None
    reached: list[list[bool]]

    @property
    def counted(self) -> list[int]:
        """How many positions reach the output, by layer."""
        return [sum(row) for row in self.reached]

    @property
    def expected(self) -> list[int]:
        """The same by the formula: a layer reaches `back` further back and `ahead` further ahead, up to the ends."""
        length = len(self.reached[0])
        sides = ((self.back, self.at), (self.ahead, length - 1 - self.at))
        layers = range(1, len(self.reached) + 1)
        return [1 + sum(room if side is None else min(room, layer * side) for side, room in sides) for layer in layers]


def fields_of(model: nn.Module, length: int | None = None) -> list[Field]:
    """
    The fields of all stacks of a model, at the last position where causal, else at the middle one.

    The weights are drawn anew and positions left out: what can be reached is a matter of masks and windows alone.
    length: None: somewhat more than the field. Raises ValueError for a length below 2.
    """
    if length is not None and length < 2:
        raise ValueError(f"--length {length}: accepted are 2 or more positions")
    modules = model.named_modules()
    return [_field(name, module, length) for name, module in modules if isinstance(module, Stack | ConvolutionStack)]


def _field(name: str, stack: Stack | ConvolutionStack, length: int | None) -> Field:
    kind, causal, side = _step(stack)
    ahead = 0 if causal else side
    if length is None:
        whole = UNWINDOWED if side is None else 1 + len(stack.layers) * (side + (ahead or 0))
        length = min(MOST, max(8, whole + whole // 4))
    at = length - 1 if causal else length // 2
    return Field(name, kind, at, side, ahead, _reached(stack, length, at))


def _step(stack: Stack | ConvolutionStack) -> tuple[str, bool, int | None]:
    """What a layer is in words, whether it sees only what is before, and how many positions on a side."""
    first = stack.layers[0]
    if isinstance(stack, ConvolutionStack):
        size, causal = int(first.kernel_size), bool(first.causal)  # type: ignore[arg-type]
        return f"convolution, kernel {size}", causal, size - 1 if causal else size // 2
    window = first.attention.window  # type: ignore[union-attr]
    words = "attention to all" if window is None else f"attention in a window of {window}"
    return words, stack.causal, None if window is None else int(window) - 1  # type: ignore[arg-type]


def _reached(stack: Stack | ConvolutionStack, length: int, at: int) -> list[list[bool]]:
    bare = _redrawn(stack)
    layers, first, rows = bare.layers, stack.layers[0], []
    if isinstance(stack, ConvolutionStack):
        width = int(first.windows.out_features) // 2  # type: ignore[union-attr,arg-type]
    else:
        width = int(first.attention.query.in_features)  # type: ignore[union-attr,arg-type]
    for count in range(1, len(layers) + 1):
        bare.layers = layers[:count]
        rows.append(reach(bare, length, width, outputs=[at])[0].tolist())
    return rows


def _redrawn(stack: Stack | ConvolutionStack) -> Stack | ConvolutionStack:
    """A copy in fp64, in evaluation, with small random weights, without positions and without a memory."""
    bare = copy.deepcopy(stack).double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    if isinstance(bare, Stack):
        bare.position = PositionEncoding()
        for layer in bare.layers:
            assert isinstance(layer, Layer)
            layer.cross_attention = None
    for module in bare.modules():
        if isinstance(module, Attention):
            module.backend = "math"
    return bare
