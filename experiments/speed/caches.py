"""What decoding after many tokens costs: layers with a window that keep only its keys, against the same ones that keep all, and latent attention that
attends to the latent states, against keys and values made of them.

python experiments/speed/caches.py [CACHED]: one thread; medians of the processor's time over rounds in turn, one token at a time, a batch of one and of eight.
Legend: B batch, T length, D model width.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial

import torch
from torch import Tensor

from attnlab.layers import DotProductAttention, KeyValueCache, LatentAttention, MultiHead, Rotary, build_scope

D_MODEL, NUM_HEADS, NUM_LAYERS, WINDOW, ROUNDS, STEPS = 512, 8, 2, 128, 4, 4


class KeepsAll(MultiHead):
    """A window whose cache keeps all keys."""

    @property
    def window_of_cache(self) -> None:
        return


class MakesKeys(LatentAttention):
    """Latent attention that makes keys and values of all latent states at every step."""

    def _absorbs(self, num_queries: int, num_keys: int) -> bool:
        return False


class Decoder:
    """Layers with `cached` tokens behind them."""

    def __init__(self, layers: list[DotProductAttention], cached: int, x_BTD: Tensor) -> None:
        self.layers, self.position, self.x_BTD = layers, Rotary(layers[0].d_head), x_BTD
        self.cache, self.seconds = KeyValueCache(len(layers), x_BTD.shape[1]), [0.0]
        self.step(cached)

    def step(self, tokens: int) -> Tensor:
        h_BTD = self.x_BTD[:, self.cache.length : self.cache.length + tokens]
        scope = build_scope(h_BTD, self.position, True, cache=self.cache)
        for index, layer in enumerate(self.layers):
            h_BTD = h_BTD + layer(h_BTD, scope, self.cache.layer(index))
        return h_BTD

    def timed(self) -> Tensor:
        """A few tokens, one after another; the last one's output."""
        start = time.process_time()
        outputs = [self.step(1) for _ in range(STEPS)]
        self.seconds.append((time.process_time() - start) / STEPS)
        return outputs[-1]


@torch.no_grad()
def compared(new: partial, old: partial, cached: int, batch_size: int) -> str:
    x_BTD = torch.randn(batch_size, cached + STEPS * ROUNDS, D_MODEL)
    layers = [new() for _ in range(NUM_LAYERS)], [old() for _ in range(NUM_LAYERS)]
    for one, other in zip(*layers, strict=True):
        other.load_state_dict(one.state_dict())
    decoders = [Decoder(each, cached, x_BTD) for each in layers]
    apart = 0.0
    for _ in range(ROUNDS):
        found, expected = (decoder.timed() for decoder in decoders)
        apart = max(apart, float((found - expected).abs().max() / expected.abs().max()))
    fast, slow = (decoder.seconds[2:] for decoder in decoders)
    ratio = statistics.median(s / f for s, f in zip(slow, fast, strict=True))
    sizes = [decoder.cache.num_bytes / 2**20 for decoder in decoders]
    milliseconds = [1000 * statistics.median(seconds) for seconds in (fast, slow)]
    return (
        f"{milliseconds[0]:7.2f} ms a token, {milliseconds[1]:7.2f} otherwise: {ratio:5.2f} x; {sizes[0]:6.2f} MB of cache, "
        f"{sizes[1]:6.2f} otherwise; {apart:.0e} apart"
    )


def main() -> None:
    cached = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(
        f"{cached} tokens cached, {NUM_LAYERS} layers, d_model {D_MODEL}, {NUM_HEADS} heads, {torch.get_num_threads()} threads"
    )
    sizes = {"d_model": D_MODEL, "num_heads": NUM_HEADS}
    for batch_size in (1, 8):
        windowed = [partial(kind, **sizes, window=WINDOW) for kind in (MultiHead, KeepsAll)]
        latent = [partial(kind, **sizes) for kind in (LatentAttention, MakesKeys)]
        print(f"window of {WINDOW}, batch of {batch_size}: {compared(*windowed, cached, batch_size)}")
        print(f"latent, batch of {batch_size}:        {compared(*latent, cached, batch_size)}")


if __name__ == "__main__":
    main()
