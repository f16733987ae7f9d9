"""Times attention's backends on a CPU against each other, forward and backward, over lengths, heads, masks and dropout; and a sliding window as a mask against one in blocks.

python experiments/speed/backends.py [--tokens 2048] [--rounds 3] [--threads 1]

Legend: B batch, T length, H heads, K head width.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.layers import Backend, Fused, InBlocks, Math, PositionEncoding, Scope, Scores, build_scope
from attnlab.layers import scope as rule

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
SHAPES = ((4, 16), (4, 64), (12, 64))  # heads, width of each
WINDOWS, LONG = (8, 32, 64, 128, 256), (256, 512, 1024, 2048)
LEAST_SECONDS = 0.05  # of a timing, in as many calls as that takes


@dataclass
class Layer:
    """A layer's attention, forward and backward, its mask made anew each time. mask: causal, all, or padding (a quarter of the rows have half of the length)."""

    batch: int
    length: int
    heads: int
    width: int
    mask: str = "causal"
    dropout: float = 0.0
    window: int | None = None

    def __post_init__(self) -> None:
        self.qkv = [self._heads() for _ in range(3)]

    def _heads(self) -> Tensor:
        """(B, H, T, K) as a layer has it: a view of (B, T, H K)."""
        x_BTI = torch.randn(self.batch, self.length, self.heads * self.width)
        return x_BTI.view(self.batch, self.length, self.heads, self.width).transpose(1, 2).requires_grad_()

    def scope(self) -> Scope:
        """Who sees whom."""
        is_token_BT = torch.ones(self.batch, self.length, dtype=torch.bool)
        is_token_BT[: self.batch // 4 + 1, self.length // 2 :] = False
        padding = is_token_BT if self.mask == "padding" else None
        x_BTD = torch.zeros(self.batch, self.length, 1)
        return build_scope(x_BTD, PositionEncoding(), self.mask == "causal", is_token_BT=padding)

    def step(self, backend: Backend) -> None:
        """Forward and backward."""
        out_BHTK = backend(*self.qkv, self.scope().mask(self.window), Scores(dropout=self.dropout))
        torch.autograd.grad(out_BHTK.sum(), self.qkv)

    def compared(self, first: Backend, second: Backend, rounds: int) -> str:
        """Median processor milliseconds of both, in turn, and their ratio."""
        a, b = in_turn(lambda: self.step(first), lambda: self.step(second), rounds)
        return f"{1e3 * a:8.2f} {1e3 * b:7.2f} {a / b:5.2f}"


def in_turn(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median processor seconds a call of both, in turn."""
    both, calls = (first, second), []
    for one in both:
        one()
        begun = time.process_time()
        one()
        calls.append(max(1, int(LEAST_SECONDS / max(1e-6, time.process_time() - begun))))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for times, one, count in zip(taken, both, calls, strict=True):
            begun = time.process_time()
            for _ in range(count):
                one()
            times.append((time.process_time() - begun) / count)
    return statistics.median(taken[0]), statistics.median(taken[1])


def compare_backends(tokens: int, rounds: int) -> None:
    """Prints math and fused over lengths."""
    print("ms of math and of fused, and math / fused")
    print(f"{'heads':>6} {'mask':>8} {'dropout':>7} " + " ".join(f"{f'T={length}':>22}" for length in LENGTHS))
    for heads, width in SHAPES:
        for mask, dropout in (("causal", 0.0), ("all", 0.0), ("padding", 0.0), ("causal", 0.1)):
            layers = (Layer(max(1, tokens // length), length, heads, width, mask, dropout) for length in LENGTHS)
            found = " ".join(layer.compared(Math(), Fused(), rounds) for layer in layers)
            print(f"{f'{heads}x{width}':>6} {mask:>8} {dropout:>7} {found}", flush=True)


def compare_windows(tokens: int, rounds: int) -> None:
    """Prints a window in blocks and as a mask over lengths, wherever it can be cut into blocks."""
    rule.LEAST_LENGTH = 1
    print("ms of a window in blocks and as a mask, and blocks / mask; 4 heads of 32; -: not cut into blocks")
    print(f"{'window':>6} {'mask':>8} {'dropout':>7} " + " ".join(f"{f'T={length}':>22}" for length in LONG))
    for mask, dropout in (("causal", 0.0), ("causal", 0.1), ("all", 0.0), ("all", 0.1)):
        backend: Backend = Math() if dropout else Fused()
        for window in WINDOWS:
            found = []
            for length in LONG:
                layer = Layer(max(1, tokens // length), length, 4, 32, mask, dropout, window)
                is_cut = layer.scope().mask(window).blocks is not None
                found.append(layer.compared(InBlocks(backend), backend, rounds) if is_cut else f"{'-':>22}")
            print(f"{window:>6} {mask:>8} {dropout:>7} " + " ".join(found), flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    compare_windows(arguments.tokens, arguments.rounds)
    compare_backends(arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
