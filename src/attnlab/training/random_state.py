"""The states of the random generators that a training draws from, as plain tensors and primitives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def draw_apart(seed: int, rank: int) -> None:
    """Lets ranks draw numbers of their own from here on (dropout above all), which no other seed's ranks draw; the first one goes on as it is."""
    if rank:
        [own] = np.random.SeedSequence([seed % 2**32, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(own >> 1))
        np.random.seed(int(own % 2**32))
        random.seed(int(own))


def random_state() -> dict[str, Any]:
    """Those of torch, its GPUs, NumPy and Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Goes on from what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
