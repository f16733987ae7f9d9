"""Times attention's backends on a CPU against each other, forward and backward, over lengths, heads, masks and dropout; a sliding window as a mask against one in
blocks; and queries in rows against all scores at once, with the memory of both.

python experiments/speed/backends.py [--only backends windows rows] [--tokens 2048] [--rounds 3] [--threads 1]

Legend: B batch, T length, H heads, K head width.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from memory import most_bytes
from torch import Tensor

from attnlab.layers import (
    ALiBi,
    Backend,
    Fused,
    InBlocks,
    InRows,
    Math,
    PositionEncoding,
    RelativeBias,
    Scope,
    Scores,
    build_scope,
)
from attnlab.layers import scope as rule

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
SHAPES = ((4, 16), (4, 64), (12, 64))  # heads, width of each
WINDOWS, LONG = (8, 32, 64, 128, 256), (256, 512, 1024, 2048)
IN_ROWS, SHARING = (256, 512, 1024, 2048, 4096), 2  # layers that share a mask
LEAST_SECONDS = 0.05  # of a timing, in as many calls as that takes


@dataclass
class Layer:
    """Layers' attention, forward and backward, their mask made anew each time. mask: causal, all, or padding (a quarter of the rows have half of the length), also of causal."""

    batch: int
    length: int
    heads: int
    width: int
    mask: str = "causal"
    dropout: float = 0.0
    window: int | None = None
    position: str = "none"
    layers: int = 1

    def __post_init__(self) -> None:
        self.qkv = [self._heads() for _ in range(3)]
        self.causal = "causal" in self.mask
        made = {"none": PositionEncoding, "alibi": lambda: ALiBi(self.heads)}
        made["relative_bias"] = lambda: RelativeBias(self.heads, self.causal)
        self.encoding = made[self.position]()

    def _heads(self) -> Tensor:
        """(B, H, T, K) as a layer has it: a view of (B, T, H K)."""
        x_BTI = torch.randn(self.batch, self.length, self.heads * self.width)
        return x_BTI.view(self.batch, self.length, self.heads, self.width).transpose(1, 2).requires_grad_()

    def scope(self) -> Scope:
        """Who sees whom."""
        is_token_BT = torch.ones(self.batch, self.length, dtype=torch.bool)
        is_token_BT[: self.batch // 4 + 1, self.length // 2 :] = False
        padding = is_token_BT if "padding" in self.mask else None
        x_BTD = torch.zeros(self.batch, self.length, 1)
        return build_scope(x_BTD, self.encoding, self.causal, is_token_BT=padding)

    def step(self, backend: Backend) -> None:
        """Forward and backward."""
        mask, scores = self.scope().mask(self.window), Scores(dropout=self.dropout)
        outs = [backend(*self.qkv, mask, scores) for _ in range(self.layers)]
        torch.autograd.grad(sum(out_BHTK.sum() for out_BHTK in outs), [*self.qkv, *self.encoding.parameters()])

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


def compare_rows(tokens: int, rounds: int) -> None:
    """Prints queries in rows and all at once over lengths: processor time, and the most memory of a step."""
    print(f"queries in rows and all at once, ms, rows / all, MB and MB; {SHARING} layers of 4 heads of 64")
    print(f"{'position':>13} {'mask':>15} {'dropout':>7} " + " ".join(f"{f'T={length}':>35}" for length in IN_ROWS))
    kinds = [(name, mask, 0.0) for name in ("alibi", "relative_bias") for mask in ("causal", "all")]
    for position, mask, dropout in (*kinds, ("none", "causal, padding", 0.0), ("none", "causal", 0.1)):
        backend: Backend = Math() if dropout else Fused()
        found = []
        for length in IN_ROWS:
            size = (max(1, tokens // length), length, 4, 64)
            layer = Layer(*size, mask, dropout, position=position, layers=SHARING)
            both = (InRows(backend), backend)
            found.append(
                layer.compared(*both, rounds)
                + "".join(f"{most_bytes(partial(layer.step, one)) / 1e6:6.0f}" for one in both)
            )
        print(f"{position:>13} {mask:>15} {dropout:>7} " + " ".join(found), flush=True)
    for mask in ("causal", "padding"):
        alone = [Layer(1, length, 4, 64, mask, layers=SHARING) for length in IN_ROWS]
        peaks = [most_bytes(partial(layer.step, Fused())) / 1e6 for layer in alone]
        print(f"no position, {mask}, all at once, MB of one sequence: " + " ".join(f"{peak:.0f}" for peak in peaks))


COMPARISONS = {"windows": compare_windows, "backends": compare_backends, "rows": compare_rows}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for name in arguments.only:
        COMPARISONS[name](arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
