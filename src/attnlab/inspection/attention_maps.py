"""What the heads of a model attend to on one batch, layer by layer and rolled out, with the tokens along both sides.

Shapes: B batch, T target (query) length, S source (key) length, H heads, N tokens; of pictures W columns and as many
rows as they need.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnlab.data.special_tokens import PURPOSES, SpecialTokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.layers.attention import DotProductAttention
from attnlab.layers.backends import Backend, Eager, Scores
from attnlab.layers.baselines import watched
from attnlab.layers.scope import Mask
from attnlab.models.base import Seq2Seq
from attnlab.models.convolutional import ConvolutionalSeq2Seq
from attnlab.training.tracking import Picture

SIDE, GAP = 64, 2  # pixels of a head's map, and between two
SELF, ENCODER, DECODER, CROSS = "self", "encoder self", "decoder self", "cross"
OF_IMAGE, OF_TEXT, POOLING = "image self", "text self", "image pooling"  # of a model with a tower for each
SHOWN = str.maketrans({" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5"})  # blank, line end and tabulator, made visible


class Head(NamedTuple):
    """One head of a model; layer and head count from 0."""

    kind: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}.{self.head}"


@dataclass(frozen=True)
class LayerMap:
    """The attention weights (H, T, S) of one layer on one example, in fp32, and who may attend to whom, (T, S)."""

    name: str  # of the attention in the model
    kind: str  # one of those above
    layer: int  # its place among those of its kind, from 0
    weights_HTS: Tensor
    allowed_TS: Tensor


def layer_maps(model: nn.Module, forward: Callable[[], object], row: int = 0) -> list[LayerMap]:
    """What every attention of the model gives on row `row` of the batch that `forward` runs through it once, in the
    order of computation.

    Weights are those of the formula, before dropout, whatever backend serves the model; an attention that two stacks
    share gives a map in each. The alignment of a recurrent or convolutional decoder is a cross-attention of one head.
    Nothing stays changed, also after an error. A model without attention gives none.
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
    if re.search(r"\bpool\.attention$", name):
        return POOLING
    return {"image": OF_IMAGE, "text": OF_TEXT}.get(name.split(".")[0], SELF)


def attention_names(model: nn.Module) -> dict[DotProductAttention, list[str]]:
    """Every attention with all its names in the model, in the order in which a forward pass calls it by them."""
    names: dict[DotProductAttention, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DotProductAttention):
            names.setdefault(module, []).append(name)
    return names


@contextmanager
def _recording(model: nn.Module, row: int, calls: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
    """Inside, every attention of the model appends its name, weights and mask of a row of the batch to `calls`."""
    attentions = attention_names(model)
    backends = {module: module.backend for module in attentions}
    alignments: list[tuple[Tensor, Tensor]] = []

    def telling(names: Iterator[str]) -> Backend:
        eager = Eager(keep_weights=True)

        def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask, scores: Scores) -> Tensor:
            out_BHTK = eager(q_BHTK, k_BGSK, v_BGSK, mask, scores)
            assert eager.weights_BHTS is not None
            weights_HTS, allowed_BHTS = eager.weights_BHTS[row], mask.allowed_BHTS
            allowed_TS = torch.ones_like(weights_HTS[0], dtype=torch.bool)
            if allowed_BHTS is not None:
                allowed_TS = allowed_BHTS[min(row, len(allowed_BHTS) - 1), 0].expand_as(weights_HTS[0])
            calls.append((next(names), weights_HTS, allowed_TS))
            eager.weights_BHTS = None
            return out_BHTK

        return attend

    def tell_of_alignment(weights_BTS: Tensor, is_source_BS: Tensor | None) -> None:
        weights_TS = weights_BTS[row].detach()
        allowed_TS = torch.ones_like(weights_TS, dtype=torch.bool)
        alignments.append((weights_TS, allowed_TS if is_source_BS is None else allowed_TS & is_source_BS[row]))

    try:
        for module, names in attentions.items():
            module.backend = telling(cycle(names))
        with watched(tell_of_alignment) if isinstance(model, Seq2Seq) else nullcontext():
            yield
        calls.extend(_aligned(model, alignments))
    finally:
        for module, backend in backends.items():
            module.backend = backend


def _aligned(model: nn.Module, told: list[tuple[Tensor, Tensor]]) -> list[tuple[str, Tensor, Tensor]]:
    """Alignments as maps of one head: a convolutional decoder has one a layer, a recurrent one goes step by step."""
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
    """One row an attention, one square a head: dark where a query (downwards) attends to a key (to the right)."""
    num_heads = max(len(weights_HTS) for weights_HTS in maps.values())
    pixels = np.full((len(maps) * (SIDE + GAP) - GAP, num_heads * (SIDE + GAP) - GAP), 255, dtype=np.uint8)
    for row, weights_HTS in enumerate(maps.values()):
        for column, weights_TS in enumerate(weights_HTS):
            top, left = row * (SIDE + GAP), column * (SIDE + GAP)
            shares_TS = weights_TS.clamp(min=0) / weights_TS.max().clamp(
                min=1e-12
            )  # a difference of maps may be below 0
            levels_TS = 255 - (255 * shares_TS).round()
            image = Image.fromarray(levels_TS.numpy().astype(np.uint8))
            square = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            pixels[top : top + SIDE, left : left + SIDE] = np.asarray(square)
    return Picture(pixels, f"rows: {', '.join(maps)}; columns: heads")


def rollout(weights: Sequence[Tensor]) -> list[Tensor]:
    """How much of each position's state after each layer comes from each input position, (T, T) a layer (Abnar &
    Zuidema 2020, arXiv 2005.00928, eq. 1). weights: the maps (H, T, T) of the layers, lowest first. A layer is taken
    for half its heads' mean and half the residual stream; values, norms and the feed-forward layers are not looked at.
    """
    so_far_TT = torch.eye(weights[0].shape[1], dtype=torch.float64)
    found = []
    for weights_HTT in weights:
        mixed_TT = (weights_HTT.double().mean(dim=0) + torch.eye(len(so_far_TT), dtype=torch.float64)) / 2
        so_far_TT = mixed_TT @ so_far_TT
        found.append(so_far_TT.float())
    return found


def with_rollouts(maps: list[LayerMap]) -> list[LayerMap]:
    """The maps, and behind them the rollout of every kind of self-attention, one head a layer."""
    found = list(maps)
    for kind in dict.fromkeys(one.kind for one in maps if one.kind.endswith("self")):
        layers = [one for one in maps if one.kind == kind]
        own_TT = reached_TT = torch.eye(layers[0].weights_HTS.shape[1], dtype=torch.bool)
        for layer, rolled_TT in zip(layers, rollout([one.weights_HTS for one in layers]), strict=True):
            reached_TT = ((layer.allowed_TS | own_TT).float() @ reached_TT.float()) > 0
            found.append(LayerMap(layer.name, rollout_of(kind), layer.layer, rolled_TT[None], reached_TT))
    return found


def rollout_of(kind: str) -> str:
    """The name of the rollout of a kind of self-attention."""
    return f"{kind.removesuffix('self')}rollout"


@dataclass(frozen=True)
class Axis:
    """Labels to show, token numbers (N,), which tokens are marks (N,), and the characters of the text that each is of,
    (N, 2); -1 for marks. Of an image, numbers are all different, and `before` tokens stand before the patches of a
    grid.
    """

    labels: list[str]
    numbers_N: np.ndarray
    is_mark_N: np.ndarray
    places_N2: np.ndarray
    grid: tuple[int, int] | None = None
    before: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def text_axis(
    text: str,
    tokens_N: np.ndarray,
    places_N2: np.ndarray,
    marks: SpecialTokens,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> Axis:
    """The tokens of a text, with the marks before and after it; places_N2: the characters that each token is of."""
    # A token of no character is the blank that some texts are read behind. Tokens that share a character, its bytes
    # being in several, are told apart by a number.
    labels, again = [], 1
    for index, (start, end) in enumerate(places_N2):
        again = again + 1 if index > 0 and start < places_N2[index - 1][1] else 1
        piece = visible(text[start:end] or " ")
        labels.append(f"{piece}\u00b7{again}" if again > 1 else piece)
    axis = Axis(
        labels, tokens_N.astype(np.int64), np.zeros(len(labels), bool), places_N2.reshape(-1, 2).astype(np.int64)
    )
    return joined(_axis_of(before, marks), axis, _axis_of(after, marks))


def output_axis(vocabulary: Vocabulary, tokens: Sequence[int], before: Sequence[int]) -> Axis:
    """Tokens that a model gave, which need not be those that their text is cut into; they have no places."""
    marks = vocabulary.special_tokens
    names = name_marks(marks)
    labels = [names.get(token) or visible(vocabulary.decode([token])) for token in tokens]
    axis = _axis_of(tokens, marks)
    return joined(_axis_of(before, marks), replace(axis, labels=labels, is_mark_N=np.zeros_like(axis.is_mark_N)))


def _axis_of(marks: Sequence[int], known: SpecialTokens) -> Axis:
    """Marks alone."""
    labels = [name_marks(known).get(int(n), f"[{n}]") for n in marks]
    nowhere_N2 = np.full((len(labels), 2), -1, dtype=np.int64)
    return Axis(labels, np.array(marks, dtype=np.int64), np.ones(len(labels), dtype=bool), nowhere_N2)


def joined(*axes: Axis) -> Axis:
    """One axis after another."""
    return Axis(
        [label for axis in axes for label in axis.labels],
        np.concatenate([axis.numbers_N for axis in axes]),
        np.concatenate([axis.is_mark_N for axis in axes]),
        np.concatenate([axis.places_N2 for axis in axes]),
    )


def patch_axis(grid: tuple[int, int], before: int, has_class: bool) -> Axis:
    """The tokens of an image: the class token and registers, then patches as row.column, from 1."""
    first = ["[class]"] * has_class + [f"[register {i + 1}]" for i in range(before - has_class)]
    patches = [f"{row + 1}.{column + 1}" for row in range(grid[0]) for column in range(grid[1])]
    count = len(first) + len(patches)
    places = np.full((count, 2), -1, dtype=np.int64)
    return Axis(first + patches, np.arange(count), np.arange(count) < before, places, grid, before)


def frame_axis(count: int, seconds: float) -> Axis:
    """The states of a recording by the seconds at which each begins; seconds: from one to the next."""
    places_N2 = np.full((count, 2), -1, dtype=np.int64)
    labels = [f"{place * seconds:.2f}" for place in range(count)]
    return Axis(labels, np.arange(count), np.zeros(count, dtype=bool), places_N2)


def visible(piece: str) -> str:
    """A piece of text as a label: blanks, line ends and what has no picture of its own are made visible."""
    shown = "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn") else c for c in piece.translate(SHOWN)
    )
    return shown or "\u2205"


def name_marks(marks: SpecialTokens) -> dict[int, str]:
    """A name for the number of each mark."""
    names = {number: f"<extra_id_{index}>" for index, number in enumerate(marks.sentinels)}
    for purpose in reversed(PURPOSES):  # where one mark has several purposes, the first one names it
        number = getattr(marks, purpose)
        if number is not None:
            names[number] = f"[{purpose.replace('_', ' ')}]"
    return names
