"""Whisper: speech to text, an encoder of log-mel features and a decoder that attends to it, on the seams.

Legend: B batch, M mel bins, F frames of features, S states (F / 2, rounded up), C channels, T target length, D model
width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Unpack, cast

import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.attention import MultiHead
from attnlab.layers.cache import KeyValueCache
from attnlab.layers.init import FanIn, Init
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import GELU, Ends
from attnlab.layers.positions import Learned, Sinusoidal
from attnlab.layers.residuals import PreNorm
from attnlab.layers.stack import Stack, TowerFields, tower_fields
from attnlab.models.base import Seq2Seq
from attnlab.models.encoder_decoder import Decoding
from attnlab.models.transformer import Transformer, TransformerFields
from attnlab.parts import accepts
from attnlab.ranges import PositiveInt, check_ranges


class WhisperFields(TowerFields, total=False):
    """What describes both stacks, None: as published; the others as in TransformerFields."""

    tie_embeddings: bool
    scale_embedding: bool
    init: Callable[..., Init]


@check_ranges
class Whisper(Ends, Seq2Seq):
    """Whisper (Radford et al. 2022, arXiv 2212.04356): features (B, M, F) and tokens (B, T) to logits (B, T, V).

    num_frames: of a window, which tables of positions in the encoder serve; the published models have 30 s of 100.
    max_length: tokens of a target. encoder, decoder: what differs in one of the two stacks. position: of both; None:
    fixed sinusoids in the encoder and a learned table in the decoder (section 2.2). fields: see StackFields and
    TransformerFields. Raises ValueError for stacks of two widths, and where a part refuses a width.
    """

    sees_both_sides = has_memory = True
    towers: ClassVar[Mapping[str, Sequence[str]]] = {"encoder": ("num_frames",), "decoder": ("max_length",)}
    # What each stack has where nothing else is said.
    of_towers: ClassVar[Mapping[str, TowerFields]] = {
        "encoder": {"position": partial(Sinusoidal, interleaved=False, inclusive=True)},
        "decoder": {"position": Learned},
    }
    defaults: ClassVar[WhisperFields] = {
        "d_model": 384,
        "num_heads": 6,
        "num_layers": 4,
        "d_ff": None,
        "dropout": 0.0,
        "bias": True,
        "embedding_norm": False,
        "position": None,
        "residual": PreNorm,
        "attention": MultiHead,
        "feed_forward": GELU,
        "pattern": None,
        "layers": {},
        "random_positions": None,
        "position_step": 1,
        "tie_embeddings": True,
        "scale_embedding": False,
        "init": FanIn,
    }

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        num_mels: PositiveInt = 80,
        num_frames: PositiveInt = 3000,
        max_length: PositiveInt = 448,
        encoder: TowerFields | None = None,
        decoder: TowerFields | None = None,
        **fields: Unpack[WhisperFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        of_encoder, of_decoder = (
            self._fields_of("encoder", fields, encoder),
            self._fields_of("decoder", fields, decoder),
        )
        if of_encoder["d_model"] != of_decoder["d_model"]:
            raise ValueError(
                f"encoder.d_model={of_encoder['d_model']} and decoder.d_model={of_decoder['d_model']}: the decoder "
                "attends to the encoder's states; accepted: one width for both"
            )
        super().__init__()
        d_model = of_decoder["d_model"]
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.num_mels, self.num_frames, self.max_length = num_mels, num_frames, max_length
        # DeepNorm's encoder depends on the depth of the decoder beside it.
        if accepts(of_encoder["residual"], "num_decoder_layers"):
            residual = partial(of_encoder["residual"], num_decoder_layers=of_decoder["num_layers"])
            of_encoder = {**of_encoder, "residual": residual}
        self.stem = Stem(num_mels, d_model)
        self.encoder = Stack(of_encoder, causal=False, max_length=(num_frames + 1) // 2)
        self.decoder = Stack(of_decoder, causal=True, max_length=max_length, cross_attention=True)
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if of_decoder["scale_embedding"] else 1.0
        self.head = None if of_decoder["tie_embeddings"] else nn.Linear(d_model, vocabulary_size, bias=False)
        self.longest = self.decoder.position.longest
        self.draw(of_decoder["init"])

    def forward(self, source_BMF: Tensor, target_BT: Tensor, is_source_BF: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `target_BT`. is_source_BF: False at frames that are padding on
        the right; None, as published: a window is padded with silence, which the model hears.
        """
        memory = self._memory(source_BMF, is_source_BF)
        return self.logits(self.decoder(self.embed(target_BT), memory=memory))

    def encode(self, source_BMF: Tensor, is_source_BF: Tensor | None = None) -> Tensor:
        """The encoder's states, (B, S, D). Raises ValueError for features of other bins than the model's, and of more
        frames than its positions can serve.
        """
        if source_BMF.ndim != 3 or source_BMF.shape[1] != self.num_mels:
            raise ValueError(
                f"features of the shape {tuple(source_BMF.shape)} do not fit; accepted: (batch, {self.num_mels} mel "
                "bins, frames)"
            )
        states_BSD: Tensor = self.encoder(self.stem(source_BMF, is_source_BF), is_token_BT=halved(is_source_BF))
        return states_BSD

    def start(self, source_BMF: Tensor, is_source_BF: Tensor | None = None, capacity: int = 256) -> Decoding:
        memory = self._memory(source_BMF, is_source_BF, keep=True)
        return Decoding(memory, KeyValueCache(len(self.decoder.layers), capacity))

    def step(self, tokens_B: Tensor, state: Decoding) -> Tensor:
        x_B1D = self.decoder(self.embed(tokens_B[:, None]), cache=state.cache, memory=state.memory)
        return self.logits(x_B1D[:, 0])

    def _fields_of(self, tower: str, fields: WhisperFields, own: TowerFields | None) -> TransformerFields:
        """The fields of a stack: the model's own, over what it has by default, under what differs in it."""
        given = {name: value for name, value in fields.items() if value is not None}
        return tower_fields(cast(TransformerFields, {**Transformer.defaults, **self.of_towers[tower], **given}), own)

    def _memory(self, source_BMF: Tensor, is_source_BF: Tensor | None, keep: bool = False) -> Memory:
        return Memory(self.encode(source_BMF, is_source_BF), halved(is_source_BF), keep)


class Stem(nn.Module):
    """Two convolutions over three frames each, the second at every other one, behind each a GELU (section 2.2):
    features (B, M, F) to (B, S, D).
    """

    def __init__(self, num_mels: int, d_model: int) -> None:
        super().__init__()
        # As linear layers on windows, so that their weights are drawn as all others are.
        self.first = nn.Linear(3 * num_mels, d_model)
        self.second = nn.Linear(3 * d_model, d_model)

    def forward(self, features_BMF: Tensor, is_frame_BF: Tensor | None = None) -> Tensor:
        x_BFC = features_BMF.transpose(1, 2)
        for layer, stride in ((self.first, 1), (self.second, 2)):
            if is_frame_BF is not None:  # padding is to the convolution what lies beyond the end
                x_BFC = x_BFC.masked_fill(~is_frame_BF[..., None], 0.0)
            x_BFC = F.gelu(layer(windows(x_BFC, stride)))
        return x_BFC


def windows(x_BFC: Tensor, stride: int) -> Tensor:
    """Each `stride`-th frame with its two neighbours, zeros beyond the ends, (B, F / stride rounded up, 3 C)."""
    return F.pad(x_BFC, (0, 0, 1, 1)).unfold(1, 3, stride).flatten(2)


def halved(is_frame_BF: Tensor | None) -> Tensor | None:
    """Which states are those of real frames, (B, S)."""
    return None if is_frame_BF is None else is_frame_BF[:, ::2]
