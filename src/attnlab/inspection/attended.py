"""What a trained model makes of what is given to it: its attention in a text, a pair of texts, an image or a recording,
and vectors of texts.

Legend: N tokens or texts, T target length, S source length, H heads, D model width; of images C channels, Y and X rows
and columns of pixels; of recordings M mel bins, F frames.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.data.special_tokens import NUM_SPECIAL_TOKENS, SpecialTokens, add_special_tokens
from attnlab.data.tokenizers import Tokenizer
from attnlab.data.vocabulary import Vocabulary
from attnlab.generation.beam import BeamSearch, decode
from attnlab.generation.transcription import TranscriptionOptions, transcribe_windows
from attnlab.inspection import attention_maps
from attnlab.inspection.attention_maps import (
    CROSS,
    DECODER,
    ENCODER,
    OF_IMAGE,
    OF_TEXT,
    POOLING,
    SELF,
    Axis,
    LayerMap,
    text_axis,
)
from attnlab.layers.mixer import Mixer
from attnlab.models import CLIP
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, evaluating
from attnlab.models.heads import EncoderHead, pool
from attnlab.models.vit import ViT
from attnlab.models.whisper import Whisper
from attnlab.whisper_tokens import WhisperTokens

MOST_WEIGHTS = 1 << 27  # of one example: half a GiB
BATCH = 32  # texts that are embedded at once


@dataclass(frozen=True)
class Attended:
    """An example with its maps, rollouts among them, and the tokens along both sides (queries, keys) by kind.
    targets_T: the token that each query of the decoder, or of a causal model, predicts, -1 where nothing is known.
    pixels_YXC: of an image, uint8. features_MF: of a recording. text: what the keys' characters belong to.
    """

    title: str
    maps: list[LayerMap]
    axes: dict[str, tuple[Axis, Axis]]
    text: str = ""
    tokens: tuple[Tensor, ...] = ()
    targets_T: Tensor | None = None
    pixels_YXC: np.ndarray | None = None
    features_MF: np.ndarray | None = None

    def of_kind(self, kind: str) -> list[LayerMap]:
        """The maps of a kind, lowest layer first."""
        return [one for one in self.maps if one.kind == kind]

    def layer(self, kind: str, number: int) -> LayerMap:
        """The map of a kind in the layer of this number."""
        return next(one for one in self.of_kind(kind) if one.layer == number)

    @property
    def kinds(self) -> list[str]:
        """The kinds that there are."""
        return list(dict.fromkeys(one.kind for one in self.maps))


@dataclass(frozen=True)
class Reader:
    """A model of text with its tokenizers; gives what it attends to. source_tokenizer: None: sources and targets have
    one. search: how a target that is not given is found.
    """

    model: nn.Module
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer | None = None
    search: BeamSearch | None = None

    def read(self, text: str, target: str | None = None) -> Attended:
        """The maps of a text; of a sequence-to-sequence model those of a text and its target, by default what the model
        gives for it. Raises ValueError for a text without tokens, one that is too long, a target where the model takes
        none, and a model without attention.
        """
        model = self.model
        if isinstance(model, Seq2Seq):
            return self._pair(model, text, target)
        if target is not None:
            raise ValueError(f"{type(model).__name__} reads one text; a target belongs to a sequence-to-sequence model")
        if isinstance(model, LanguageModel):
            special = self.tokenizer.special_tokens or SpecialTokens()
            axis = text_axis(text, *self.tokenizer.locate(text), special, special.text[0])
            read = _single(model, model, text, axis)
            tokens_1T = read.tokens[0]
            return replace(read, targets_T=torch.cat([tokens_1T[0, 1:], torch.tensor([-1])]))
        encoder = model.encoder if isinstance(model, EncoderHead) else model
        if isinstance(encoder, Encoder):
            vocabulary = _vocabulary(self.tokenizer, encoder.vocabulary_size)
            special = vocabulary.special_tokens
            return _single(
                encoder, encoder.encode, text, text_axis(text, *vocabulary.locate(text), special, *special.text)
            )
        if isinstance(model, CLIP):
            vocabulary = _vocabulary(self.tokenizer, model.vocabulary_size)
            special, tower = vocabulary.special_tokens, model.text
            axis = text_axis(text, *vocabulary.locate(text), special, *special.source)
            _check("text", text, axis, tower.longest)
            tokens_1T = _row(axis)
            maps = _maps(model, len(axis), len(axis), lambda: tower(tokens_1T))
            return Attended(text, maps, _same(OF_TEXT, axis), text, (tokens_1T,))
        raise ValueError(f"{type(model).__name__} reads no text")

    def _pair(self, model: Seq2Seq, text: str, target: str | None) -> Attended:
        vocabulary = _vocabulary(self.tokenizer, model.vocabulary_size)
        own = _vocabulary(self.tokenizer.of_source, model.vocabulary_size)
        from_source = own if self.source_tokenizer is None else Vocabulary(self.source_tokenizer)
        text, special = text.strip(), from_source.special_tokens
        sources = text_axis(text, *from_source.locate(text), special, *special.source)
        _check("text", text, sources, model.longest)
        source_1S = _row(sources)
        before = (vocabulary.target_start, *vocabulary.special_tokens.target[0])
        if target is None:
            search, suppressed = self.search or BeamSearch(num_beams=4), vocabulary.special_tokens.suppressed
            best = decode(model, source_1S, None, search, vocabulary.target_start, vocabulary.end, suppressed)[0][0]
            found = vocabulary.decode(best.tokens).strip()
            # What precedes every target is among the model's own tokens already.
            targets = attention_maps.output_axis(vocabulary, best.tokens, before[:1])
        else:
            found = target.strip()
            targets = text_axis(found, *vocabulary.locate(found), vocabulary.special_tokens, before)
        _check("target", found, targets, model.longest)
        target_1T = _row(targets)
        maps = _maps(model, len(targets), len(sources), lambda: model(source_1S, target_1T))
        # The second text's characters are not those of `text`.
        nowhere = replace(targets, places_N2=np.full_like(targets.places_N2, -1))
        axes = {
            **_same(ENCODER, sources),
            **_same(DECODER, targets),
            CROSS: (targets, sources),
            **_same(SELF, attention_maps.joined(sources, nowhere)),
        }
        targets_T = torch.cat([target_1T[0, 1:], torch.tensor([vocabulary.end])])
        title = f"{text} \u2192 {found}" + ("" if target is not None else " (the model's own)")
        return Attended(title, maps, axes, text, (source_1S, target_1T), targets_T)


def _single(model: LanguageModel | Encoder, forward: Callable[[Tensor], object], text: str, axis: Axis) -> Attended:
    _check("text", text, axis, model.longest)
    tokens_1T = _row(axis)
    maps = _maps(model, len(axis), len(axis), lambda: forward(tokens_1T))
    return Attended(text, maps, _same(SELF, axis), text, (tokens_1T,))


def _check(what: str, text: str, axis: Axis, longest: int | None) -> None:
    if axis.is_mark_N.all() and what == "text":
        raise ValueError(f"the text {text!r} has no token in this run's tokenizer; give one that is not empty")
    if longest is not None and len(axis) > longest:
        raise ValueError(
            f"the {what} takes {len(axis):,} positions, marks included, and the model's table has {longest:,}; "
            f"shorten it by {len(axis) - longest:,} tokens: {text[:60]!r}"
        )


def read_image(
    model: ViT | CLIP, pixels_CYX: np.ndarray, mean_C: np.ndarray, deviation_C: np.ndarray, title: str
) -> Attended:
    """The maps of an image (bytes), normalised by each channel's moments. Raises ValueError for another size."""
    scaled_CYX = (pixels_CYX / 255 - mean_C[:, None, None]) / deviation_C[:, None, None]
    images_1CYX = torch.from_numpy(scaled_CYX).float()[None]
    tower = model.image if isinstance(model, CLIP) else model
    axis = attention_maps.patch_axis(tower.grid, tower.num_before, tower.pooling == "class")
    maps = _maps(model, len(axis), len(axis), lambda: tower(images_1CYX))
    axes = _same(OF_IMAGE if isinstance(model, CLIP) else SELF, axis)
    # What pools an image is one query that is none of its patches, and sees these alone.
    patches = replace(attention_maps.patch_axis(tower.grid, 0, False), grid=None)
    axes[POOLING] = (Axis(["[probe]"], np.array([-1]), np.ones(1, dtype=bool), np.full((1, 2), -1)), patches)
    pixels_YXC = np.ascontiguousarray(np.broadcast_to(pixels_CYX, (3, *pixels_CYX.shape[1:])).transpose(1, 2, 0))
    return Attended(title, maps, axes, pixels_YXC=pixels_YXC, tokens=(images_1CYX,))


def read_recording(
    model: Whisper, vocabulary: Vocabulary, tokens: WhisperTokens, features_MF: Tensor, said: str | None, title: str
) -> Attended:
    """The maps of a window of features and of what is `said` in it, by default what the model hears; its states are
    every other frame of 0.01 s. Raises ValueError for a target that is too long.
    """
    options = TranscriptionOptions("en" if tokens.multilingual else None, timestamps=False)
    before, features_1MF = tokens.prompt(options.language, timestamps=False), features_MF[None]
    if said is None:
        found = transcribe_windows(model, features_1MF, tokens, options)[0].tokens
        said = " ".join(vocabulary.decode(found).split())
        targets = attention_maps.output_axis(vocabulary, found, before)
    else:
        targets = text_axis(said, *vocabulary.locate(said), vocabulary.special_tokens, before)
    _check("target", said, targets, model.longest)
    target_1T = _row(targets)
    frames = attention_maps.frame_axis((features_MF.shape[1] + 1) // 2, 0.02)
    maps = _maps(model, len(targets), len(frames), lambda: model(features_1MF, target_1T))
    axes = {**_same(ENCODER, frames), **_same(DECODER, targets), CROSS: (targets, frames)}
    targets_T = torch.cat([target_1T[0, 1:], torch.tensor([tokens.end])])
    inputs = (features_1MF, target_1T)
    return Attended(f"{title}: {said}", maps, axes, tokens=inputs, targets_T=targets_T, features_MF=features_MF.numpy())


@torch.inference_mode()
def _maps(model: nn.Module, queries: int, keys: int, forward: Callable[[], object]) -> list[LayerMap]:
    """The maps of a forward pass and their rollouts."""
    names = attention_maps.attention_names(model)
    weights = sum(len(called) * attention.num_heads for attention, called in names.items())
    most = max(queries, keys) ** 2 * weights
    if most > MOST_WEIGHTS:
        raise ValueError(
            f"{max(queries, keys):,} tokens give up to {most:,} attention weights in {weights} heads; accepted: "
            f"{MOST_WEIGHTS:,}, which are {int((MOST_WEIGHTS / weights) ** 0.5):,} tokens; shorten the text"
        )
    with evaluating(model):
        maps = attention_maps.layer_maps(model, forward)
    if not maps:
        raise ValueError(f"{type(model).__name__} has no attention to show{_why(model)}")
    kept = [replace(m, weights_HTS=m.weights_HTS.clone(), allowed_TS=m.allowed_TS.clone()) for m in maps]
    return attention_maps.with_rollouts(kept)


def _why(model: nn.Module) -> str:
    name = type(model).__name__
    if mixers := dict.fromkeys(type(module).__name__ for module in model.modules() if isinstance(module, Mixer)):
        mix = "mixes" if len(mixers) == 1 else "mix"
        return f": {' and '.join(mixers)} {mix} positions without weights of attention"
    if name == "RecurrentSeq2Seq":
        what = "its decoder starts from the encoder's last states and sees nothing else of the source"
        return f": with model.attention=none {what}"
    if name.startswith("Recurrent"):
        return ": a recurrence sees what came before through its state alone"
    return ": a convolution weighs its window by fixed weights" if name.startswith("Convolutional") else ""


def _row(axis: Axis) -> Tensor:
    return torch.from_numpy(axis.numbers_N)[None]


def _same(kind: str, axis: Axis) -> dict[str, tuple[Axis, Axis]]:
    return {kind: (axis, axis), attention_maps.rollout_of(kind): (axis, axis)}


def _vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model of this size, sentinels being what is left over. Raises ValueError: it is smaller."""
    if tokenizer.special_tokens is not None:
        return Vocabulary(tokenizer)
    tokens = tokenizer.vocabulary_size + NUM_SPECIAL_TOKENS
    if size < tokens:
        raise ValueError(
            f"the tokenizer has {tokens:,} tokens with its marks, the model {size:,}; "
            "the run's tokenizer.json is not the one that it was trained with"
        )
    return Vocabulary(tokenizer, size - tokens)


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int | None) -> tuple[list[np.ndarray], list[int]]:
    """The token rows of texts with the special tokens that an encoder sees, and which of them were cut."""
    vocabulary = Vocabulary(tokenizer)
    special = vocabulary.special_tokens.text
    room = None if longest is None else longest - sum(map(len, special))
    encoded = [vocabulary.encode_text(text) for text in texts]
    cut = [] if room is None else [place for place, row in enumerate(encoded) if len(row) > room]
    return [add_special_tokens(special, row[:room]) for row in encoded], cut


@torch.inference_mode()
def embeddings(encoder: Encoder, rows: Sequence[np.ndarray], pooling: str = "mean") -> Tensor:
    """A vector of length 1 a text (N, D), from its states: the first one's or, as sentence-transformers, their mean
    over all tokens, special ones included (Reimers & Gurevych 2019, arXiv 1908.10084, section 3).
    """
    found = []
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        tokens_NT = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        is_token_NT = torch.zeros(tokens_NT.shape, dtype=torch.bool)
        for place, row in enumerate(part):
            tokens_NT[place, : len(row)], is_token_NT[place, : len(row)] = torch.from_numpy(row), True
        pooled_ND = pool(encoder.encode(tokens_NT, is_token_NT), is_token_NT, pooling)
        found.append(torch.nn.functional.normalize(pooled_ND, dim=1))
    return torch.cat(found)
