"""What is counted, not timed: floating-point operations, sequential operations and path lengths of the article's Table 1.

python experiments/complexity/counted.py

FLOPs: torch's FlopCounterMode on forward and backward, with kernels that it does not know (fused attention and oneDNN's LSTM on a CPU) taken apart into
matrix products. Sequential operations: the longest chain of dependent operations in the autograd graph. Path length: how many layers, or steps of a
recurrence, the first input takes to the last output, found by gradients that are exactly zero where nothing gets through.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from parts import Blocks, Call, Size, attention_core, attention_layer, convolution, recurrence
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnlab.layers import Math, MultiHead
from attnlab.layers.baselines import GatedConvolution, Recurrence
from attnlab.models.base import reach

LENGTHS = (64, 128, 256)
PATHS = (33, 65, 129)  # n - 1 is a multiple of what a layer moves forward
WINDOW, KERNEL = 17, 3

# Forward and backward operations by n, d, k, r. A product of matrices has two of its size behind it; the first step of a recurrence has no state before it.
FLOPS: dict[str, tuple[Callable[[Size], Call], str, Callable[[int, int, int, int], tuple[int, int]]]] = {
    "self-attention, core": (
        attention_core(Math()),
        "4 n^2 d",
        lambda n, d, k, r: (4 * n * n * d, 8 * n * n * d),
    ),
    "self-attention, whole layer": (
        attention_layer(Math()),
        "4 n^2 d + 8 n d^2",
        lambda n, d, k, r: (4 * n * n * d + 8 * n * d * d, 8 * n * n * d + 16 * n * d * d),
    ),
    "windowed self-attention, core": (
        attention_core(Blocks(), windowed=True),
        "8 r n d",
        lambda n, d, k, r: (8 * r * n * d, 16 * r * n * d),
    ),
    "recurrence (LSTM), core": (
        recurrence(whole=False),
        "8 n d^2 + 8 n d",
        lambda n, d, k, r: (8 * n * d * (d + 1), 16 * n * d * (d + 1) - 8 * d * d),
    ),
    "recurrence (LSTM), whole layer": (
        recurrence(whole=True),
        "16 n d^2",
        lambda n, d, k, r: (16 * n * d * d, 32 * n * d * d - 8 * d * d),
    ),
    "recurrence (GRU), whole layer": (
        recurrence(whole=True, cell="gru"),
        "12 n d^2",
        lambda n, d, k, r: (12 * n * d * d, 24 * n * d * d - 6 * d * d),
    ),
    "convolution, whole layer": (
        convolution,
        "4 k n d^2",
        lambda n, d, k, r: (4 * k * n * d * d, 8 * k * n * d * d),
    ),
}


@contextmanager
def taken_apart() -> Iterator[None]:
    """Fused attention and oneDNN's recurrences as the single products that torch's counter and autograd's graph show."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # to set one flag of oneDNN, torch sets them all, and warns of one for another vendor's GPUs
        with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
            yield


def flops(make: Callable[[Size], Call], size: Size) -> tuple[int, int]:
    """Operations of the forward and of the backward pass."""
    with taken_apart(), FlopCounterMode(display=False) as counter:
        out = make(size).forward()
        ahead = counter.get_total_flops()
        out.backward(torch.ones_like(out))
    return ahead, counter.get_total_flops() - ahead


def longest_chain(make: Callable[[Size], Call], size: Size) -> int:
    """How many operations of the forward pass follow one another at the most, each needing the one before."""
    with taken_apart():
        root = make(size).forward().grad_fn
    depth: dict[Any, int] = {None: 0}
    waiting = [root]
    while waiting:
        node = waiting[-1]
        before = [following for following, _ in node.next_functions]
        unknown = [other for other in before if other not in depth]
        waiting.extend(unknown)
        if not unknown:
            depth[node] = 1 + max((depth[other] for other in before), default=0)
            waiting.pop()
    return depth[root]


def layers_until(connected: Callable[[int], bool], at_most: int) -> int:
    """The fewest layers at which `connected` holds, as at every number above. Raises ValueError above `at_most`."""
    low, high = 0, 1
    while not connected(high):
        if high >= at_most:
            raise ValueError(f"{at_most} layers do not connect them")
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if connected(middle) else (middle, high)
    return high


def stack_path(mix: Callable[[int], Callable[[Tensor], Tensor]], length: int) -> int:
    """The fewest layers after which the last output depends on the first input; `mix` makes the layer of an index."""

    def connected(layers: int) -> bool:
        def stack(x_BTD: Tensor) -> Tensor:
            for index in range(layers):
                x_BTD = x_BTD + mix(index)(x_BTD)
            return x_BTD

        return bool(reach(stack, length, 4, outputs=[length - 1])[0, 0])

    return layers_until(connected, length)


def recurrent_path(length: int) -> int:
    """How many steps of a recurrence lie on the way from the first input to the last output: all whose cutting leaves nothing of it."""
    torch.manual_seed(0)
    layer = Recurrence(4).double()
    x_1TD = torch.randn(1, length, 4, dtype=torch.float64, requires_grad=True)

    def depends(cut: int | None) -> bool:
        state, out = None, x_1TD
        for place in range(length):
            if place == cut and state is not None:
                state = [tuple(part.detach() for part in state[0])]
            out, state = layer(x_1TD[:, place : place + 1], before=state)
        return bool((torch.autograd.grad(out.sum(), x_1TD)[0][0, 0] != 0).any())

    assert depends(None)
    return 1 + sum(not depends(cut) for cut in range(1, length))


def dilated(layer: nn.Module, step: int) -> Callable[[Tensor], Tensor]:
    """A layer over every `step`-th position, for each of the positions that this leaves: a dilated convolution."""

    def mix(x_BTD: Tensor) -> Tensor:
        out_BTD = torch.zeros_like(x_BTD)
        for phase in range(step):
            out_BTD[:, phase::step] = layer(x_BTD[:, phase::step])
        return out_BTD

    return mix


def path_lengths(length: int) -> dict[str, tuple[int, int]]:
    """(counted, by the closed formula) for every kind of layer."""
    torch.manual_seed(0)
    size = Size(length, 4)
    full = MultiHead(4, 2, backend="eager").double()
    window = MultiHead(4, 2, window=WINDOW, backend="eager").double()
    kernel = GatedConvolution(4, KERNEL, causal=True).double()
    return {
        "self-attention": (stack_path(lambda index: lambda x: full(x, size.scope(False)), length), 1),
        "windowed self-attention": (
            stack_path(lambda index: lambda x: window(x, size.scope(True)), length),
            _up(length - 1, WINDOW - 1),
        ),
        "recurrence": (recurrent_path(length), length),
        "convolution": (stack_path(lambda index: kernel, length), _up(length - 1, KERNEL - 1)),
        "convolution, dilated": (
            stack_path(lambda index: dilated(kernel, min(length, KERNEL**index)), length),
            _log(length),
        ),
    }


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _log(length: int) -> int:
    """The smallest m with kernel ** m >= length, in integers."""
    layers = 0
    while KERNEL**layers < length:
        layers += 1
    return layers


def flops_rows() -> list[list[str]]:
    """Every formula against torch's counter on a grid of sizes. Raises AssertionError where one number differs."""
    sizes = [
        Size(n, d, k=k, r=r) for n, d, k, r in ((32, 64, 3, 16), (64, 64, 5, 16), (32, 128, 3, 32), (96, 192, 7, 32))
    ]
    rows = []
    for name, (make, words, formula) in FLOPS.items():
        for size in sizes:
            counted, expected = flops(make, size), formula(size.n, size.d, size.k, size.r)
            assert counted == expected, f"{name} at {size}: {counted} counted, {expected} by the formula"
        rows.append([name, words, f"equal at {len(sizes)} sizes, forward and backward"])
    return rows


def chain_rows() -> list[list[str]]:
    """The longest chain at each length. Raises AssertionError where it grows and should not, or the other way round."""
    kinds = {
        "self-attention": (attention_layer(Math()), False),
        "windowed self-attention": (attention_layer(Blocks(), windowed=True), False),
        "recurrence (LSTM)": (recurrence(whole=True), True),
        "convolution": (convolution, False),
    }
    rows = []
    for name, (make, grows) in kinds.items():
        chains = [longest_chain(make, Size(n, 64)) for n in LENGTHS]
        steps = [(b - a) / (m - n) for a, b, n, m in zip(chains, chains[1:], LENGTHS, LENGTHS[1:], strict=False)]
        assert len(set(steps)) == 1, f"{name}: the chain does not grow evenly: {chains}"
        assert (steps[0] > 0) == grows, f"{name}: {chains}"
        rows.append([name, *map(str, chains), f"{steps[0]:g}", "O(n)" if grows else "O(1)"])
    return rows


def path_rows() -> list[list[str]]:
    """The paths at each length. Raises AssertionError where one is not what its formula says."""
    found = [path_lengths(length) for length in PATHS]
    for length, paths in zip(PATHS, found, strict=True):
        for name, (counted, expected) in paths.items():
            assert counted == expected, f"{name} at n={length}: {counted} counted, {expected} by the formula"
    words = {
        "self-attention": "1",
        "windowed self-attention": f"(n-1)/(r-1), r={WINDOW}",
        "recurrence": "n",
        "convolution": f"(n-1)/(k-1), k={KERNEL}",
        "convolution, dilated": f"log_k n, k={KERNEL}, rounded up",
    }
    return [[name, *(str(paths[name][0]) for paths in found), words[name]] for name in words]


def crossing_rows() -> list[list[str]]:
    """The length at which both layers cost the same operations, counted. Raises AssertionError where they do not."""
    rows = []
    for cell, ratio in (("lstm", 2), ("gru", 1)):
        for d in (32, 64):
            size = Size(ratio * d, d)
            attention, other = (
                flops(make, size)[0] for make in (attention_layer(Math()), recurrence(whole=True, cell=cell))
            )
            assert attention == other, f"{cell} at {size}: {attention} and {other}"
        rows.append([cell.upper(), "n = d" if ratio == 1 else f"n = {ratio} d", "equal at d = 32 and 64"])
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def tables() -> str:
    """All that is counted, as Markdown."""
    blocks = [
        ("Operations of the forward pass", ["layer", "formula", "torch's counter"], flops_rows()),
        (
            "Where a layer of self-attention costs what a recurrent one costs",
            ["cell", "crossing", "counted"],
            crossing_rows(),
        ),
        (
            "Longest chain of dependent operations in a layer",
            ["layer", *(f"n = {n}" for n in LENGTHS), "a position", "article"],
            chain_rows(),
        ),
        (
            "Layers (of a recurrence: steps) from the first input to the last output",
            ["layer", *(f"n = {n}" for n in PATHS), "formula"],
            path_rows(),
        ),
    ]
    return "\n\n".join(f"### {title}\n\n{markdown(head, rows)}" for title, head, rows in blocks)


def main() -> None:
    """Prints the tables."""
    print(tables())


if __name__ == "__main__":
    main()
