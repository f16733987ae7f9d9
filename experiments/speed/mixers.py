"""How much faster mixers with a state train by chunks than token by token, and how far apart the two are.

python experiments/speed/mixers.py [LENGTH]: a line a mixer, best of two, forward and backward on random input.
Legend: B batch, T length, D model width.
"""

import sys
import time

import torch

from attnlab.layers import (
    DeltaNet,
    GatedDeltaNet,
    GatedLinear,
    LinearAttention,
    PositionEncoding,
    Retention,
    StateMixer,
    build_scope,
)
from attnlab.layers.linear_recurrence import Form, chunked, recurrent

D_MODEL, NUM_HEADS, BATCH = 128, 4, 1


def train(mixer: StateMixer, form: Form, x_BTD: torch.Tensor, repeats: int = 2) -> tuple[float, torch.Tensor]:
    """The least seconds of a forward and a backward pass, and the output."""
    mixer.form, seconds = form, []
    for _ in range(repeats):
        mixer.zero_grad()
        start = time.perf_counter()
        out_BTD = mixer(x_BTD, build_scope(x_BTD, PositionEncoding(), causal=True))
        out_BTD.square().sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds), out_BTD.detach()


def main() -> None:
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    torch.manual_seed(0)
    x_BTD = torch.randn(BATCH, length, D_MODEL)
    print(f"{length} tokens, d_model {D_MODEL}, {NUM_HEADS} heads, {torch.get_num_threads()} threads")
    for kind in (LinearAttention, Retention, GatedLinear, DeltaNet, GatedDeltaNet):
        mixer = kind(D_MODEL, NUM_HEADS)
        slow, expected_BTD = train(mixer, recurrent, x_BTD)
        fast, found_BTD = train(mixer, chunked, x_BTD)
        off = (found_BTD - expected_BTD).abs().max() / expected_BTD.abs().max()
        print(
            f"{kind.__name__:16} {slow:7.3f} s token by token, {fast:7.3f} s in chunks: {slow / fast:5.1f} x, off {off:.0e}"
        )


if __name__ == "__main__":
    main()
