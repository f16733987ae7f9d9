"""What the heads of a model attend to on one batch, and a small picture of it.

Shapes: B batch, T target length, S source length, H heads; of pictures W columns and as many rows as they need.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnlab.layers.attention import Attention
from attnlab.layers.backends import Explicit
from attnlab.training.media import Picture

SIDE, GAP = 64, 2  # pixels of a head's map, and between two


def attention_maps(model: nn.Module, forward: Callable[[], object]) -> dict[str, Tensor]:
    """
    The attention weights (H, T, S) of the batch's first example, by the name of each attention in the model that `forward` runs.

    Nothing stays changed. A model without attention of this kind gives none.
    """
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    backends = {name: module.backend for name, module in attentions.items()}
    keeping = {name: Explicit(keep_weights=True) for name in attentions}
    try:
        for name, module in attentions.items():
            module.backend = keeping[name]
        with torch.compiler.set_stance("force_eager"):
            forward()
    finally:
        for name, module in attentions.items():
            module.backend = backends[name]
    kept = {name: backend.weights_BHTS for name, backend in keeping.items()}
    return {name: weights_BHTS[0].float().cpu() for name, weights_BHTS in kept.items() if weights_BHTS is not None}


def picture(maps: dict[str, Tensor]) -> Picture:
    """One row an attention, one square a head: dark where a query (downwards) attends to a key (to the right), black at the map's maximum."""
    num_heads = max(len(weights_HTS) for weights_HTS in maps.values())
    pixels = np.full((len(maps) * (SIDE + GAP) - GAP, num_heads * (SIDE + GAP) - GAP), 255, dtype=np.uint8)
    for row, weights_HTS in enumerate(maps.values()):
        for column, weights_TS in enumerate(weights_HTS):
            top, left = row * (SIDE + GAP), column * (SIDE + GAP)
            pixels[top : top + SIDE, left : left + SIDE] = _square(weights_TS)
    return Picture(pixels, f"rows: {', '.join(maps)}; columns: heads")


def _square(weights_TS: Tensor) -> np.ndarray:
    levels_TS = 255 - (255 * weights_TS / weights_TS.max().clamp(min=1e-12)).round()
    image = Image.fromarray(levels_TS.numpy().astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))
