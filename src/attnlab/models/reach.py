"""Which inputs reach an output: receptive fields, counted by gradients. Legend: T outputs, S inputs, D model width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def reach(mix: Callable[[Tensor], Tensor], length: int, d_model: int, outputs: Sequence[int] | None = None) -> Tensor:
    """
    True where an output depends on an input, bool (T, S); `mix` takes states (1, S, D) of fp64 to states of the same length.

    Counted on one random input by the gradients of single outputs: what a mask or a window shuts out has a gradient of exactly zero. outputs: the positions
    that are asked for (None: all).
    """
    x_1SD = torch.randn(
        1, length, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    out_1TD = mix(x_1SD)
    rows = []
    for place in range(length) if outputs is None else outputs:
        (gradient_1SD,) = torch.autograd.grad(out_1TD[0, place].sum(), x_1SD, retain_graph=True)
        rows.append((gradient_1SD[0] != 0).any(dim=-1))
    return torch.stack(rows)


def layers_until(connected: Callable[[int], bool], at_most: int) -> int:
    """The fewest layers at which `connected` holds, which it does at every number above, too. Raises ValueError where `at_most` are too few."""
    low, high = 0, 1
    while not connected(high):
        if high >= at_most:
            raise ValueError(f"{at_most} layers do not connect them")
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if connected(middle) else (middle, high)
    return high
