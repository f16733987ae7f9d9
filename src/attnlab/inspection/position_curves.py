"""What a position encoding does to scores by distance, read off its hooks: embeddings, rotations, biases by head.

Shapes: B batch, N positions, D model width, H heads, K head width, P rotated pairs. A distance is query minus key:
positive for keys before the query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.layers.positions import PositionEncoding, RelativeBias, Sinusoidal, geometric_frequencies
from attnlab.layers.positions_2d import InGrid
from attnlab.layers.rotary import Rotary
from attnlab.layers.stack import Stack

MOST = 4096  # positions at once
QUANTITIES = {
    "embedding": "dot product of embeddings",
    "rotation": "score of an equal query and key",
    "bound": "bound (Su et al. 2021, 3.4.3)",
    "bias": "added to the score",
}


@dataclass(frozen=True)
class Curve:
    """One quantity (see QUANTITIES) of one head, or of all (None), by distance: its mean, least and most over the
    positions of the query.

    bucket: the bucket of each distance (T5), or None.
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

    @property
    def is_none(self) -> bool:
        """Whether it does nothing."""
        return type(self.module) is PositionEncoding

    def farthest(self, length: int) -> int:
        """How many positions of `length` it can serve; of an image, those of one row."""
        longest = self.module.grid[1] if isinstance(self.module, InGrid) else self.module.longest
        return length if longest is None else min(length, longest)

    def slow_pairs(self, length: int) -> tuple[int, int] | None:
        """How many of its pairs do not turn once within `length`, and of how many; None where nothing turns."""
        device = torch.device("cpu")
        if isinstance(self.module, Rotary):
            frequencies_P = self.module.frequencies(device)
        elif isinstance(self.module, Sinusoidal):
            frequencies_P = geometric_frequencies(self.module.d_model, self.module.base, device)
        else:
            return None
        return int((2 * math.pi / frequencies_P > length).sum()), len(frequencies_P)


def encodings_of(model: nn.Module) -> list[Encoding]:
    """The encodings of a model's stacks, each once."""
    found = []
    for name, stack in model.named_modules():
        if isinstance(stack, Stack):
            attention = stack.layers[0].attention
            width, d_head = attention.query.in_features, attention.d_head  # type: ignore[union-attr]
            found.append(Encoding(name, stack.position, width, d_head, stack.causal))  # type: ignore[arg-type]
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
    return curves + _biases(encoding, count)


def _products(encoding: Encoding, count: int) -> Curve:
    positions_BN = torch.arange(count)[None]
    e_BND = encoding.module.embed(torch.zeros(1, count, encoding.d_model), positions_BN)
    e_ND = e_BND[0].double()
    products_NN = e_ND @ e_ND.T
    diagonals = [products_NN.diagonal(-m) for m in range(count)]
    mean, low, high = ([float(getattr(d, of)()) for d in diagonals] for of in ("mean", "min", "max"))
    return Curve("embedding", None, list(range(count)), mean, low, high)


def _rotations(encoding: Encoding, count: int, module: Rotary) -> list[Curve]:
    positions_BN = torch.arange(count)[None]
    turned_BHNK = module.rotate(torch.ones(1, 1, count, encoding.d_head), positions_BN).double()
    scores_N = (turned_BHNK[0, 0] @ turned_BHNK[0, 0, -1]).flip(0) / encoding.d_head
    angles_NP = module.angles(positions_BN)[0].double()
    steps_NP = angles_NP[-1] - angles_NP.flip(0)
    sums_NP = torch.polar(torch.ones_like(steps_NP), steps_NP).cumsum(dim=1)  # S_1 .. S_P of the paper
    found = (("rotation", scores_N), ("bound", sums_NP.abs().mean(dim=1)))
    return [_exact(quantity, None, list(range(count)), values_N) for quantity, values_N in found]


def _biases(encoding: Encoding, count: int) -> list[Curve]:
    last = count - 1
    keys_BN = torch.arange(count if encoding.causal else 2 * count - 1)[None]
    bias_BHTS = encoding.module.bias(torch.tensor([[last]]), keys_BN)
    if bias_BHTS is None:
        return []
    distances = [last - key for key in keys_BN[0].tolist()][::-1]
    module = encoding.module
    buckets = module.buckets(-torch.tensor(distances)).tolist() if isinstance(module, RelativeBias) else None
    return [_exact("bias", head, distances, row_S.flip(0), buckets) for head, row_S in enumerate(bias_BHTS[0, :, 0])]


def _exact(
    quantity: str, head: int | None, distances: list[int], values_N: Tensor, buckets: list[int] | None = None
) -> Curve:
    values = values_N.double().tolist()
    return Curve(quantity, head, distances, values, values, values, buckets)
