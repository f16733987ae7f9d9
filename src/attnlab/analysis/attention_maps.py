"""What the heads of a model attend to on one batch, and a small picture of it.

Shapes: B batch, T target (query) length, S source (key) length, H heads; of pictures W columns and as many rows as they need.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnlab.layers.alignment import watched
from attnlab.layers.attention import Attention
from attnlab.layers.backends import Explicit
from attnlab.layers.scope import Scope
from attnlab.models.convolutional_seq2seq import ConvolutionalSeq2Seq
from attnlab.models.seq2seq import Seq2Seq
from attnlab.training.media import Picture

SIDE, GAP = 64, 2  # pixels of a head's map, and between two
SELF, ENCODER, DECODER, CROSS = "self", "encoder self", "decoder self", "cross"


@dataclass(frozen=True)
class LayerMap:
    """
    The attention weights (H, T, S) of one layer on one example, in fp32, and who may attend to whom, (T, S).

    name: of the attention in the model. kind: self, encoder self, decoder self or cross. layer: its place among those of its kind, from 0.
    """

    name: str
    kind: str
    layer: int
    weights_HTS: Tensor
    allowed_TS: Tensor


def layer_maps(model: nn.Module, forward: Callable[[], object], row: int = 0) -> list[LayerMap]:
    """
    What every attention of the model gives on row `row` of the batch that `forward` runs through it once, in the order of computation.

    Weights are those of the formula, before dropout, whatever backend serves the model; an attention that two stacks share gives a map in
    each. The alignment of a recurrent or convolutional decoder is a cross-attention of one head. Nothing stays changed, also after an
    error. A model without attention gives none.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    with _recording(model, row, calls), torch.compiler.set_stance("force_eager"):
        forward()
    kinds: dict[str, list[str]] = {}
    found: dict[str, LayerMap] = {}
    for name, weights_HTS, allowed_TS in calls:
        kind = kind_of(model, name)
        names = kinds.setdefault(kind, [])
        if name not in names:
            names.append(name)
        found[name] = LayerMap(name, kind, names.index(name), weights_HTS.float().cpu(), allowed_TS.cpu())
    return list(found.values())


def attention_maps(model: nn.Module, forward: Callable[[], object]) -> dict[str, Tensor]:
    """The weights (H, T, S) of the batch's first example by the name of each attention; see `layer_maps`."""
    return {found.name: found.weights_HTS for found in layer_maps(model, forward)}


def kind_of(model: nn.Module, name: str) -> str:
    """Which kind of attention the one of this name is in a model."""
    if re.search(r"\bcross_attention$", name):
        return CROSS
    if isinstance(model, Seq2Seq):
        return {"encoder": ENCODER, "decoder": DECODER}.get(name.split(".")[0], SELF)
    return SELF


def attention_names(model: nn.Module) -> dict[Attention, list[str]]:
    """Every attention with all its names in the model, in the order in which a forward pass calls it by them."""
    names: dict[Attention, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Attention):
            names.setdefault(module, []).append(name)
    return names


class _Telling(Explicit):
    """The explicit backend, which hands on its weights and who may attend to whom."""

    def __init__(self, tell: Callable[[Tensor, Tensor | None], None]) -> None:
        super().__init__(keep_weights=True)
        self.tell = tell

    def __call__(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, scope: Scope, **fields: Any) -> Tensor:
        out_BHTK = super().__call__(q_BHTK, k_BGSK, v_BGSK, scope, **fields)
        assert self.weights_BHTS is not None
        self.tell(self.weights_BHTS, scope.allowed(fields.get("window")))
        self.weights_BHTS = None
        return out_BHTK


@contextmanager
def _recording(model: nn.Module, row: int, calls: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
    """Inside, every attention of the model appends its name, weights and mask of a row of the batch to `calls`."""
    attentions = attention_names(model)
    backends = {module: module.backend for module in attentions}
    counts = dict.fromkeys(attentions, 0)
    alignments: list[tuple[Tensor, Tensor]] = []

    def keep(module: Attention) -> Callable[[Tensor, Tensor | None], None]:
        def tell(weights_BHTS: Tensor, allowed_BHTS: Tensor | None) -> None:
            names = attentions[module]
            name = names[counts[module] % len(names)]
            counts[module] += 1
            weights_HTS = weights_BHTS[row]
            allowed_TS = torch.ones_like(weights_HTS[0], dtype=torch.bool)
            if allowed_BHTS is not None:
                allowed_TS = allowed_BHTS[min(row, len(allowed_BHTS) - 1), 0]
            calls.append((name, weights_HTS, allowed_TS))

        return tell

    def tell_of_alignment(weights_BTS: Tensor, is_source_BS: Tensor | None) -> None:
        weights_TS = weights_BTS[row].detach()
        allowed_TS = torch.ones_like(weights_TS, dtype=torch.bool)
        alignments.append((weights_TS, allowed_TS if is_source_BS is None else allowed_TS & is_source_BS[row]))

    try:
        for module in attentions:
            module.backend = _Telling(keep(module))
        with watched(tell_of_alignment):
            yield
        calls.extend(_aligned(model, alignments))
    finally:
        for module, backend in backends.items():
            module.backend = backend


def _aligned(model: nn.Module, told: list[tuple[Tensor, Tensor]]) -> list[tuple[str, Tensor, Tensor]]:
    """Alignments as maps of one head: a convolutional decoder has one in every layer, a recurrent one goes step by step."""
    if isinstance(model, ConvolutionalSeq2Seq):
        return [
            (f"decoder.layers.{index}.cross_attention", weights_TS[None], allowed_TS)
            for index, (weights_TS, allowed_TS) in enumerate(told)
        ]
    if not told:
        return []
    weights_TS, allowed_TS = (torch.cat(parts) for parts in zip(*told, strict=True))
    return [("decoder.cross_attention", weights_TS[None], allowed_TS)]


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
