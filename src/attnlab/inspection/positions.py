"""What positions do in a model: a position encoding to scores by distance, read off its hooks, and which positions can
reach an output layer by layer, by gradients and by the formula of windows and kernels.

Shapes: B batch, N or S positions, D model width, H heads, K head width, P rotated pairs. A distance is query minus key.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from attnlab.layers.attention import DotProductAttention
from attnlab.layers.baselines import ConvolutionStack, GatedConvolution
from attnlab.layers.mixer import Mixer
from attnlab.layers.positions import PositionEncoding, RelativeBias, Sinusoidal
from attnlab.layers.positions_2d import InGrid
from attnlab.layers.rotary import Rotary
from attnlab.layers.stack import Layer, Stack
from attnlab.models.base import reach

MOST = 4096  # positions of curves at once
MOST_REACHED = 512  # positions that are looked at by default
UNWINDOWED = 32  # the same where every layer sees all
QUANTITIES = {
    "embedding": "dot product of embeddings",
    "rotation": "score of an equal query and key",
    "bound": "bound (Su et al. 2021, 3.4.3)",
    "bias": "added to the score",
}


@dataclass(frozen=True)
class Curve:
    """One quantity (see QUANTITIES) of one head, or of all (None), by distance: its mean, least and most over the
    positions of the query. buckets: of each distance (T5).
    """

    quantity: str
    head: int | None
    distances: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    buckets: list[int] | None = None


@dataclass(frozen=True)
class Encoding:
    """A position encoding with what its stack knows: the widths, and whether keys after the query are seen."""

    name: str
    module: PositionEncoding
    d_model: int
    d_head: int
    causal: bool

    def farthest(self, length: int) -> int:
        """How many positions of `length` it can serve; of an image, those of one row."""
        longest = self.module.grid[1] if isinstance(self.module, InGrid) else self.module.longest
        return length if longest is None else min(length, longest)

    def slow_pairs(self, length: int) -> tuple[int, int] | None:
        """How many of its pairs do not turn once within `length`, and of how many; None where nothing turns."""
        device = torch.device("cpu")
        if not isinstance(self.module, Rotary | Sinusoidal):
            return None
        frequencies_P = self.module.frequencies(device)
        return int((2 * math.pi / frequencies_P > length).sum()), len(frequencies_P)


def encodings_of(model: nn.Module) -> list[Encoding]:
    """The encodings of a model's stacks, each once; those of single layers by the name of their entry."""
    found = []
    for name, stack in model.named_modules():
        if isinstance(stack, Stack):
            for entry, position in stack.encodings().items():
                head = stack.first_layer(entry).attention.d_head
                full = f"{name}: {entry}" if entry else name
                found.append(Encoding(full, position, stack.d_model, head, stack.causal))
    return found


@torch.no_grad()
def curves_of(encoding: Encoding, length: int) -> list[Curve]:
    """All that an encoding does at distances below `length`. Raises ValueError for lengths outside of 2 to 4096."""
    if not 2 <= length <= MOST:
        raise ValueError(f"{length} positions cannot be shown; accepted: 2 to {MOST}")
    count, module = encoding.farthest(length), encoding.module
    curves = []
    if type(module).embed is not PositionEncoding.embed:
        curves.append(_products(encoding, count))
    if isinstance(module, Rotary):
        curves += _rotations(encoding, count, module)
    return [*curves, *_biases(encoding, count)]


def _products(encoding: Encoding, count: int) -> Curve:
    positions_BN = torch.arange(count)[None]
    e_ND = encoding.module.embed(torch.zeros(1, count, encoding.d_model), positions_BN)[0].double()
    products_NN = e_ND @ e_ND.T
    diagonals = [products_NN.diagonal(-m) for m in range(count)]
    mean, low, high = ([float(getattr(d, of)()) for d in diagonals] for of in ("mean", "min", "max"))
    return Curve("embedding", None, list(range(count)), mean, low, high)


def _rotations(encoding: Encoding, count: int, module: Rotary) -> list[Curve]:
    positions_BN = torch.arange(count)[None]
    ones_BHNK, (of_queries, of_keys) = torch.ones(1, 1, count, encoding.d_head), module.rotation(positions_BN)
    query_K, keys_NK = of_queries(ones_BHNK)[0, 0, -1].double(), of_keys(ones_BHNK)[0, 0].double()
    scores_N = (keys_NK @ query_K).flip(0) / encoding.d_head
    angles_NP = module.angles(positions_BN)[0].double()
    steps_NP = angles_NP[-1] - angles_NP.flip(0)
    sums_NP = torch.polar(torch.ones_like(steps_NP), steps_NP).cumsum(dim=1)  # S_1 .. S_P of the paper
    found = (("rotation", scores_N), ("bound", sums_NP.abs().mean(dim=1)))
    return [_exact(quantity, None, list(range(count)), values_N) for quantity, values_N in found]


def _biases(encoding: Encoding, count: int) -> Iterator[Curve]:
    last, module = count - 1, encoding.module
    keys_BN = torch.arange(count if encoding.causal else 2 * count - 1)[None]
    bias_BHTS = module.bias(torch.tensor([[last]]), keys_BN)
    if bias_BHTS is None:
        return
    distances = [last - key for key in keys_BN[0].tolist()][::-1]
    buckets = module.buckets(-torch.tensor(distances)).tolist() if isinstance(module, RelativeBias) else None
    for head, row_S in enumerate(bias_BHTS[0, :, 0]):
        yield _exact("bias", head, distances, row_S.flip(0), buckets)


def _exact(
    quantity: str, head: int | None, distances: list[int], values_N: Tensor, buckets: list[int] | None = None
) -> Curve:
    values = values_N.double().tolist()
    return Curve(quantity, head, distances, values, values, values, buckets)


@dataclass(frozen=True)
class Field:
    """What reaches the output at position `at` after 1, 2, ... layers of a stack. back, ahead: how many positions
    before and after its own each layer sees; None: all. reached: one row a layer, True where a gradient is not zero.
    """

    name: str
    kind: str
    at: int
    back: Sequence[int | None]
    ahead: Sequence[int | None]
    reached: list[list[bool]]

    @property
    def counted(self) -> list[int]:
        """How many positions reach the output, by layer."""
        return [sum(row) for row in self.reached]

    @property
    def expected(self) -> list[int]:
        """The same by the formula: each layer reaches so much further back and further ahead, up to the ends."""
        rooms = self.at, len(self.reached[0]) - 1 - self.at
        before, after = (
            list(accumulate(room if side is None else side for side in sides))
            for sides, room in zip((self.back, self.ahead), rooms, strict=True)
        )
        return [1 + min(rooms[0], back) + min(rooms[1], ahead) for back, ahead in zip(before, after, strict=True)]


def fields_of(model: nn.Module, length: int | None = None) -> list[Field]:
    """The fields of all stacks of a model, at the last position where causal, else at the middle one. The weights are
    drawn anew and positions left out: what can be reached is a matter of masks and windows alone. length: None:
    somewhat more than the field. Raises ValueError for a length below 2.
    """
    if length is not None and length < 2:
        raise ValueError(f"--length {length}: accepted are 2 or more positions")
    modules = model.named_modules()
    return [_field(name, module, length) for name, module in modules if isinstance(module, Stack | ConvolutionStack)]


def _field(name: str, stack: Stack | ConvolutionStack, length: int | None) -> Field:
    kind, width, causal, sides = _layers_of(stack)
    if length is None:
        known = [side for side in sides if side is not None]
        whole = UNWINDOWED if len(known) < len(sides) else 1 + sum(known) * (1 if causal else 2)
        length = min(MOST_REACHED, max(8, whole + whole // 4))
    at = length - 1 if causal else length // 2
    bare = _redrawn(stack)
    layers, rows = bare.layers, []
    for count in range(1, len(layers) + 1):
        bare.layers = layers[:count]
        rows.append(reach(bare, length, width, outputs=[at])[0].tolist())
    return Field(name, kind, at, sides, [0] * len(sides) if causal else sides, rows)


def _layers_of(stack: Stack | ConvolutionStack) -> tuple[str, int, bool, list[int | None]]:
    """What the layers are in words, their width, whether they see only what is before, and how far each to a side."""
    if isinstance(stack, ConvolutionStack):
        first = stack.layers[0]
        assert isinstance(first, GatedConvolution)
        size, causal = first.kernel_size, first.causal
        width = first.windows.out_features // 2
        return f"convolution, kernel {size}", width, causal, [size - 1 if causal else size // 2] * len(stack.layers)
    mixers = [cast(Layer, layer).attention for layer in stack.layers]
    windows = [mixer.window if isinstance(mixer, DotProductAttention) else None for mixer in mixers]
    words = dict.fromkeys(map(_in_words, mixers))
    return ", ".join(words), stack.d_model, stack.causal, [None if width is None else width - 1 for width in windows]


def _in_words(mixer: Mixer) -> str:
    if not isinstance(mixer, DotProductAttention):
        return type(mixer).__name__
    return "attention to all" if mixer.window is None else f"attention in a window of {mixer.window}"


def _redrawn(stack: Stack | ConvolutionStack) -> Stack | ConvolutionStack:
    """A copy in fp64, in evaluation, with small random weights, without positions and without a memory."""
    bare = copy.deepcopy(stack).double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    for module in bare.modules():
        if isinstance(module, Stack):
            module.position, module.positions = PositionEncoding(), nn.ModuleDict()
        elif isinstance(module, Layer):
            module.cross_attention = None
        elif isinstance(module, DotProductAttention):
            module.backend = "math"
    return bare
