"""The Transformer of Vaswani et al. 2017 on the seams, and T5 (Raffel et al. 2020, arXiv 1910.10683).

Legend: B batch, S source length, T target length, U = S + T, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.cache import DecodingState, KeyValueCache
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import GEGLU, ReLU, RMSNorm
from attnlab.layers.positions import RelativeBias, Sinusoidal
from attnlab.layers.residuals import PostNorm, PreNorm
from attnlab.layers.stack import Layer, Stack
from attnlab.models.base import Seq2Seq, source_table
from attnlab.models.transformer import Transformer, TransformerFields
from attnlab.parts import accepts
from attnlab.ranges import PositiveInt, check_ranges


@check_ranges
class EncoderDecoder(Transformer, Seq2Seq):
    """An encoder and a decoder that attends to it (Vaswani et al. 2017, section 3).

    max_length: positions of a table. num_decoder_layers: None: as many as the encoder has. share_embeddings: one table
    for source and target, which then have one vocabulary. share_layers: encoder and decoder have one set of layers, to
    which the decoder adds its cross-attention (Raffel et al. 2020, section 3.2.2, "Enc-dec, shared"). scale_logits:
    what goes into the output is divided by sqrt(d_model) (T5's first version). output_bias: the output has a bias
    (Marian). fields: see TransformerFields; no position acts in the cross-attention. Raises ValueError for a shared
    table of two vocabularies, shared layers of two depths, and where a part refuses a width.
    """

    sees_both_sides = has_memory = True
    defaults: ClassVar[TransformerFields] = {
        **Transformer.defaults,
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 6,
        "dropout": 0.1,
        "scale_embedding": True,
        "position": Sinusoidal,
        "residual": PostNorm,
        "feed_forward": ReLU,
    }

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        num_decoder_layers: PositiveInt | None = None,
        share_embeddings: bool = True,
        share_layers: bool = False,
        scale_logits: bool = False,
        output_bias: bool = False,
        **fields: Unpack[TransformerFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        num_layers, residual = fields["num_layers"], fields["residual"]
        decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        if share_layers and num_decoder_layers not in (None, num_layers):
            raise ValueError(
                f"share_layers=true needs one depth: num_layers={num_layers}, num_decoder_layers={num_decoder_layers}; "
                "accepted: null"
            )
        super().__init__(vocabulary_size, fields)
        self.source_embedding = source_table(vocabulary_size, source_vocabulary_size, share_embeddings, self.d_model)
        # DeepNorm's encoder depends on the depth of the decoder beside it.
        if accepts(residual, "num_decoder_layers"):
            residual = partial(residual, num_decoder_layers=decoder_layers)
        encoder: TransformerFields = {**fields, "residual": residual}
        self.encoder = Stack(encoder, causal=False, max_length=max_length)
        decoder: TransformerFields = {**fields, "num_layers": decoder_layers}
        self.decoder = Stack(decoder, causal=True, max_length=max_length, cross_attention=True)
        self.logit_scale = self.d_model**-0.5 if scale_logits else 1.0
        self.head = self.new_head(fields)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size)) if output_bias else None
        self.longest = self.decoder.position.longest
        self.draw(fields["init"])
        if share_layers:
            share(self.encoder, self.decoder)

    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        memory = Memory(self.encode(source_BS, is_source_BS), is_source_BS)
        return self._output(self.decoder(self.embed(target_BT), memory=memory))

    def encode(self, source_BS: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        """The encoder's states, (B, S, D)."""
        x_BSD = self.embed(source_BS, self.source_embedding)
        states_BSD: Tensor = self.encoder(x_BSD, is_token_BT=is_source_BS)
        return states_BSD

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> Decoding:
        memory = Memory(self.encode(source_BS, is_source_BS), is_source_BS, keep=True)
        return Decoding(memory, KeyValueCache(len(self.decoder.layers), capacity))

    def step(self, tokens_B: Tensor, state: Decoding) -> Tensor:
        x_B1D = self.decoder(self.embed(tokens_B[:, None]), cache=state.cache, memory=state.memory)
        return self._output(x_B1D[:, 0])

    def _output(self, x_BTD: Tensor) -> Tensor:
        return self.logits(x_BTD if self.logit_scale == 1.0 else x_BTD * self.logit_scale, self.head_bias)


@dataclass(eq=False)
class Decoding(DecodingState):
    """The encoded source, and keys and values of the target so far."""

    memory: Memory
    cache: KeyValueCache


def share(encoder: Stack, decoder: Stack) -> None:
    """Gives the decoder the encoder's self-attention, feed-forward and their norms, but for cross-attention."""
    for source, target in zip(encoder.layers, decoder.layers, strict=True):
        assert isinstance(source, Layer)
        assert isinstance(target, Layer)
        target.attention, target.feed_forward = source.attention, source.feed_forward
        for name, child in source.residual.named_children():
            theirs = getattr(target.residual, name)
            if isinstance(child, nn.ModuleList) and len(theirs) == len(child) + 1:
                theirs[0], theirs[-1] = child[0], child[-1]  # between them stands the norm of the cross-attention
    decoder.norm = encoder.norm


class T5(EncoderDecoder):
    """The encoder-decoder with T5's parts: a relative bias that all layers of a stack share, RMS norms, no biases.

    The defaults are those of version 1.1 (a GEGLU of 2/3 the width, an untied output); version 1.0 has
    feed_forward=ReLU and tie_embeddings=True. T5 draws embeddings with deviation 1 and divides a tied output by
    sqrt(d_model) (scale_embedding=False, scale_logits=True), which is the same function as the default here, embeddings
    with deviation 1 / sqrt(d_model) scaled at the input. T5 leaves the scale of scores to the initialisation.
    """

    defaults: ClassVar[TransformerFields] = {
        **EncoderDecoder.defaults,
        "tie_embeddings": False,
        "position": RelativeBias,
        "residual": partial(PreNorm, norm=RMSNorm),
        "feed_forward": GEGLU,
    }


@check_ranges
class T5LanguageModel(Transformer, Seq2Seq):
    """One stack that reads the source and goes on with the target: T5's decoder-only models (section 3.2.1 and table
    2).

    prefix: the source is seen from both sides, by itself and by the target ("Prefix LM"); else every token sees only
    what stands before it ("Language model"). Positions count on from the source to the target, each at most max_length
    long where they are a table. fields: as of T5. Raises ValueError for two vocabularies; else as EncoderDecoder.
    """

    sees_both_sides = True  # a prefix of its text
    defaults: ClassVar[TransformerFields] = T5.defaults

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        prefix: bool = True,
        **fields: Unpack[TransformerFields],
    ) -> None:
        if source_vocabulary_size not in (None, vocabulary_size):
            raise ValueError(
                f"one stack reads source and target and needs one vocabulary; the source has {source_vocabulary_size} "
                f"tokens and the target {vocabulary_size}: make it joint"
            )
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)
        self.prefix = prefix
        # A stack that sees a prefix has an encoding for both directions.
        self.stack = Stack(fields, causal=not prefix, max_length=2 * max_length)
        self.head = self.new_head(fields)
        self.longest = None if self.stack.position.longest is None else max_length
        self.draw(fields["init"])

    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        length = self._check(source_BS)
        is_token_BU = None
        if is_source_BS is not None:
            is_token_BU = torch.cat([is_source_BS, torch.ones_like(target_BT, dtype=torch.bool)], dim=1)
        x_BUD = self.embed(torch.cat([source_BS, target_BT], dim=1))
        x_BUD = self.stack(x_BUD, is_token_BT=is_token_BU, prefix_B1=self._prefix(source_BS, is_source_BS))
        return self.logits(x_BUD[:, length:])

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> KeyValueCache:
        """The source, read into a cache with room for the target."""
        cache = KeyValueCache(len(self.stack.layers), self._check(source_BS) + capacity)
        prefix_B1 = self._prefix(source_BS, is_source_BS)
        self.stack(self.embed(source_BS), is_token_BT=is_source_BS, cache=cache, prefix_B1=prefix_B1)
        return cache

    def step(self, tokens_B: Tensor, state: KeyValueCache) -> Tensor:
        return self.logits(self.stack(self.embed(tokens_B[:, None]), cache=state)[:, 0])

    def _prefix(self, source_BS: Tensor, is_source_BS: Tensor | None) -> Tensor | None:
        if not self.prefix:
            return None
        if is_source_BS is not None:
            return is_source_BS.sum(dim=1, keepdim=True)
        return torch.full((1, 1), source_BS.shape[1], device=source_BS.device)

    def _check(self, source_BS: Tensor) -> int:
        length = source_BS.shape[1]
        if self.longest is not None and length > self.longest:
            raise ValueError(f"a source of {length} tokens; the model's position encoding has {self.longest} for it")
        return length
