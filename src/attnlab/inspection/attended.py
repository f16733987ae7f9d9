"""What a trained model attends to in a text, a pair of texts or an image that is given to it.

Legend: N tokens, T target length, S source length, H heads; of images C channels, Y and X rows and columns of pixels.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.data.special_tokens import NUM_SPECIAL_TOKENS, SpecialTokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.generation.beam import BeamSearch, decode
from attnlab.inspection.attention_maps import (
    CROSS,
    DECODER,
    ENCODER,
    SELF,
    Axis,
    LayerMap,
    attention_names,
    joined,
    layer_maps,
    output_axis,
    patch_axis,
    rollout_of,
    text_axis,
    with_rollouts,
)
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq
from attnlab.models.heads import EncoderHead
from attnlab.models.vit import ViT

MOST_WEIGHTS = 1 << 27  # of one example: half a GiB


@dataclass(frozen=True)
class Attended:
    """
    An example with its maps, rollouts among them, and the tokens along both sides (queries, keys) by kind.

    targets_T: the token that each query of the decoder, or of a causal model, predicts, -1 where nothing is known.
    pixels_YXC: of an image, uint8. text: what the keys' characters belong to.
    """

    title: str
    maps: list[LayerMap]
    axes: dict[str, tuple[Axis, Axis]]
    text: str = ""
    tokens: tuple[Tensor, ...] = ()
    targets_T: Tensor | None = None
    pixels_YXC: np.ndarray | None = None

    def of_kind(self, kind: str) -> list[LayerMap]:
        """The maps of a kind, lowest layer first."""
        return [one for one in self.maps if one.kind == kind]

    @property
    def kinds(self) -> list[str]:
        """The kinds that there are."""
        return list(dict.fromkeys(one.kind for one in self.maps))


@dataclass(frozen=True)
class Reader:
    """
    A model of text with its tokenizers; gives what it attends to.

    source_tokenizer: None: sources and targets have one. search: how a target that is not given is found.
    """

    model: nn.Module
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None = None
    search: BeamSearch | None = None

    def read(self, text: str, target: str | None = None) -> Attended:
        """
        The maps of a text; of a sequence-to-sequence model those of a text and its target, by default what the model
        gives for it.

        Raises ValueError for a text without tokens, one that is too long, a target where the model takes none, and a
        model without attention.
        """
        model = self.model
        if isinstance(model, Seq2Seq):
            return self._pair(model, text, target)
        if target is not None:
            raise ValueError(f"{type(model).__name__} reads one text; a target belongs to a sequence-to-sequence model")
        if isinstance(model, LanguageModel):
            return self._causal(model, text)
        encoder = model.encoder if isinstance(model, EncoderHead) else model
        if isinstance(encoder, Encoder):
            return self._encoded(encoder, text)
        raise ValueError(f"{type(model).__name__} reads no text")

    def _causal(self, model: LanguageModel, text: str) -> Attended:
        marks = self.tokenizer.special_tokens or SpecialTokens()
        axis = text_axis(text, *self.tokenizer.locate(text), marks, marks.text[0])
        self._check("text", text, axis, model.longest)
        tokens_1T = _row(axis)
        maps = _maps(model, len(axis), len(axis), lambda: model(tokens_1T))
        targets_T = torch.cat([tokens_1T[0, 1:], torch.tensor([-1])])
        return Attended(text, with_rollouts(maps), _same(SELF, axis), text, (tokens_1T,), targets_T)

    def _encoded(self, encoder: Encoder, text: str) -> Attended:
        vocabulary = _vocabulary(self.tokenizer, encoder.vocabulary_size)
        axis = text_axis(text, *vocabulary.locate(text), vocabulary.special_tokens, *vocabulary.special_tokens.text)
        self._check("text", text, axis, encoder.longest)
        tokens_1T = _row(axis)
        maps = _maps(encoder, len(axis), len(axis), lambda: encoder.encode(tokens_1T))
        return Attended(text, with_rollouts(maps), _same(SELF, axis), text, (tokens_1T,))

    def _pair(self, model: Seq2Seq, text: str, target: str | None) -> Attended:
        vocabulary = _vocabulary(self.tokenizer, model.vocabulary_size)
        own = _vocabulary(self.tokenizer.of_source, model.vocabulary_size)
        from_source = own if self.source_tokenizer is None else Vocabulary(self.source_tokenizer)
        text = text.strip()
        sources = text_axis(
            text, *from_source.locate(text), from_source.special_tokens, *from_source.special_tokens.source
        )
        self._check("text", text, sources, model.longest)
        source_1S = _row(sources)
        before = (vocabulary.target_start, *vocabulary.special_tokens.target[0])
        if target is None:
            translated = self._translated(model, vocabulary, source_1S)
            found = vocabulary.decode(translated).strip()
            # What precedes every target is among the model's own tokens already.
            targets = output_axis(vocabulary, translated, before[:1])
        else:
            found = target.strip()
            targets = text_axis(found, *vocabulary.locate(found), vocabulary.special_tokens, before)
        self._check("target", found, targets, model.longest)
        target_1T = _row(targets)
        maps = _maps(model, len(targets), len(sources), lambda: model(source_1S, target_1T))
        both = joined(sources, targets)
        axes = {
            **_same(ENCODER, sources),
            **_same(DECODER, targets),
            CROSS: (targets, sources),
            **_same(SELF, both),
        }
        targets_T = torch.cat([target_1T[0, 1:], torch.tensor([vocabulary.end])])
        title = f"{text} \u2192 {found}" + ("" if target is not None else " (the model's own)")
        return Attended(title, with_rollouts(maps), axes, text, (source_1S, target_1T), targets_T)

    def _translated(self, model: Seq2Seq, vocabulary: Vocabulary, source_1S: Tensor) -> list[int]:
        search = self.search or BeamSearch(beams=4)
        marks = vocabulary.special_tokens
        start, end = vocabulary.target_start, vocabulary.end
        return decode(model, source_1S, None, search, start, end, marks.suppressed)[0][0].tokens

    def _check(self, what: str, text: str, axis: Axis, longest: int | None) -> None:
        if axis.is_mark_N.all() and what == "text":
            raise ValueError(f"the text {text!r} has no token in this run's tokenizer; give one that is not empty")
        if longest is not None and len(axis) > longest:
            raise ValueError(
                f"the {what} takes {len(axis):,} positions, marks included, and the model's table has {longest:,}; "
                f"shorten it by {len(axis) - longest:,} tokens: {text[:60]!r}"
            )


def read_image(model: ViT, pixels_CYX: np.ndarray, mean_C: np.ndarray, deviation_C: np.ndarray, title: str) -> Attended:
    """The maps of an image (bytes), normalised by each channel's moments. Raises ValueError for another size."""
    scaled_CYX = (pixels_CYX / 255 - mean_C[:, None, None]) / deviation_C[:, None, None]
    images_1CYX = torch.from_numpy(scaled_CYX).float()[None]
    length = model.num_before + model.grid[0] * model.grid[1]
    maps = _maps(model, length, length, lambda: model(images_1CYX))
    axis = patch_axis(model.grid, model.num_before, model.pooling == "class")
    pixels_YXC = np.ascontiguousarray(np.broadcast_to(pixels_CYX, (3, *pixels_CYX.shape[1:])).transpose(1, 2, 0))
    return Attended(title, with_rollouts(maps), _same(SELF, axis), pixels_YXC=pixels_YXC, tokens=(images_1CYX,))


@torch.inference_mode()
def _maps(model: nn.Module, queries: int, keys: int, forward: Callable[[], object]) -> list[LayerMap]:
    weights = sum(len(names) * attention.num_heads for attention, names in attention_names(model).items())
    most = max(queries, keys) ** 2 * weights
    if most > MOST_WEIGHTS:
        raise ValueError(
            f"{max(queries, keys):,} tokens give up to {most:,} attention weights in {weights} heads; accepted: "
            f"{MOST_WEIGHTS:,}, which are {int((MOST_WEIGHTS / weights) ** 0.5):,} tokens; shorten the text"
        )
    was_training = model.training
    model.eval()
    try:
        maps = layer_maps(model, forward)
    finally:
        model.train(was_training)
    if not maps:
        raise ValueError(f"{type(model).__name__} has no attention to show{_why(model)}")
    return [LayerMap(m.name, m.kind, m.layer, m.weights_HTS.clone(), m.allowed_TS.clone()) for m in maps]


def _why(model: nn.Module) -> str:
    name = type(model).__name__
    if name == "RecurrentSeq2Seq":
        what = "its decoder starts from the encoder's last states and sees nothing else of the source"
        return f": with model.attention=none {what}"
    if name.startswith("Recurrent"):
        return ": a recurrence sees what came before through its state alone"
    if name.startswith("Convolutional"):
        return ": a convolution weighs its window by fixed weights"
    return ""


def _row(axis: Axis) -> Tensor:
    return torch.from_numpy(axis.numbers_N)[None]


def _same(kind: str, axis: Axis) -> dict[str, tuple[Axis, Axis]]:
    return {kind: (axis, axis), rollout_of(kind): (axis, axis)}


def _vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model of this size, sentinels being what is left over. Raises ValueError: it is smaller."""
    if tokenizer.special_tokens is not None:
        return Vocabulary(tokenizer)
    sentinels = size - NUM_SPECIAL_TOKENS - tokenizer.vocabulary_size
    if sentinels < 0:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary_size + NUM_SPECIAL_TOKENS:,} tokens with its marks, the model {size:,}; "
            "the run's tokenizer.json is not the one that it was trained with"
        )
    return Vocabulary(tokenizer, sentinels)
