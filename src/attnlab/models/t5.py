"""T5 (Raffel et al. 2020, arXiv 1910.10683) and the architectures that its table 2 compares.

Legend: B batch, S source length, T target length, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import KeyValueCache
from attnlab.layers.feed_forward import GEGLU, FeedForward
from attnlab.layers.init import Init, Xavier, draw_seed
from attnlab.layers.norms import RMSNorm
from attnlab.layers.parts import complete
from attnlab.layers.positions import PositionEncoding, RelativeBias
from attnlab.layers.residuals import PreNorm, Residual
from attnlab.layers.stack import Layer, Stack
from attnlab.models.encoder_decoder import EncoderDecoder
from attnlab.models.seq2seq import Seq2Seq
from attnlab.ranges import PositiveInt, Rate, check_ranges

RMS_PRE_NORM = partial(PreNorm, norm=RMSNorm)


@check_ranges
class T5(EncoderDecoder):
    """
    The encoder-decoder with T5's parts: a relative bias that all layers of a stack share, RMS norms, no biases.

    The defaults are those of version 1.1 (a GEGLU of 2/3 the width, an untied output); version 1.0 has
    feed_forward=ReLU and tied=True. T5 draws embeddings with deviation 1 and divides a tied output by sqrt(d_model) (scale_embedding=False,
    scale_logits=True); the same function is had from embeddings with deviation 1 / sqrt(d_model) that are scaled at the input, the
    default here. Scores are divided by sqrt(d_head), which T5 leaves to the initialisation (attention.scale=1).
    share_layers: encoder and decoder have one set of layers, to which the decoder adds its cross-attention (section
    3.2.2, "Enc-dec, shared"). Raises ValueError where they differ in depth; else as EncoderDecoder.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        d_model: PositiveInt = 512,
        num_heads: PositiveInt = 8,
        num_layers: PositiveInt = 6,
        num_decoder_layers: PositiveInt | None = None,
        d_ff: PositiveInt | None = None,
        dropout: Rate = 0.1,
        share_layers: bool = False,
        share_embeddings: bool = True,
        tied: bool = False,
        scale_embedding: bool = True,
        scale_logits: bool = False,
        position: Callable[..., PositionEncoding] = RelativeBias,
        residual: Callable[..., Residual] = RMS_PRE_NORM,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GEGLU,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        if share_layers and num_decoder_layers not in (None, num_layers):
            raise ValueError(
                f"share_layers=true needs one depth: num_layers={num_layers}, num_decoder_layers={num_decoder_layers}; "
                "accepted: null"
            )
        super().__init__(
            vocabulary_size, source_vocabulary_size, max_length, d_model, num_heads, num_layers, num_decoder_layers,
            d_ff, dropout, bias=False, share_embeddings=share_embeddings, tied=tied,
            scale_embedding=scale_embedding, scale_logits=scale_logits, position=position, residual=residual, attention=attention, feed_forward=feed_forward, init=init,
        )  # fmt: skip
        if share_layers:
            share(self.encoder, self.decoder)


def share(encoder: Stack, decoder: Stack) -> None:
    """Gives the decoder the encoder's self-attention, feed-forward and their norms; its cross-attention stays its own."""
    for source, target in zip(_layers(encoder), _layers(decoder), strict=True):
        target.attention, target.feed_forward = source.attention, source.feed_forward
        for name, child in source.residual.named_children():
            theirs = getattr(target.residual, name)
            if isinstance(child, nn.ModuleList) and len(theirs) == len(child) + 1:
                theirs[0], theirs[-1] = child[0], child[-1]  # between them stands the norm of the cross-attention
    decoder.norm = encoder.norm


def _layers(stack: Stack) -> list[Layer]:
    return [layer for layer in stack.layers if isinstance(layer, Layer)]


@check_ranges
class T5LanguageModel(Seq2Seq):
    """
    One stack that reads the source and goes on with the target: the decoder-only models of T5 (section 3.2.1).

    prefix: the source is seen from both sides, by itself and by the target ("Prefix LM"); else every token sees only what
    stands before it ("Language model"). Positions count on from the source to the target, each at most max_length long
    where they are a table. The loss is the target's alone. Raises ValueError for two vocabularies; else as EncoderDecoder.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        d_model: PositiveInt = 512,
        num_heads: PositiveInt = 8,
        num_layers: PositiveInt = 6,
        d_ff: PositiveInt | None = None,
        dropout: Rate = 0.1,
        prefix: bool = True,
        tied: bool = False,
        position: Callable[..., PositionEncoding] = RelativeBias,
        residual: Callable[..., Residual] = RMS_PRE_NORM,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GEGLU,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        super().__init__()
        if source_vocabulary_size not in (None, vocabulary_size):
            raise ValueError(
                f"one stack reads source and target and needs one vocabulary; the source has {source_vocabulary_size} "
                f"tokens and the target {vocabulary_size}: make it joint"
            )
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model, self.prefix = vocabulary_size, d_model, prefix
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        # A stack that sees a prefix has an encoding for both directions.
        self.stack = Stack(
            d_model, num_heads, num_layers, causal=not prefix, max_length=2 * max_length, d_ff=d_ff, dropout=dropout,
            position=position, residual=residual, attention=attention, feed_forward=feed_forward,
        )  # fmt: skip
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)
        self.longest = None if self.stack.position.longest is None else max_length
        complete(init)(self, seed)

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        is_source_BS: Tensor | None = None,
        is_target_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `target_BT`, in the model's type.

        Padding on the right of a target needs no mask: no real token looks that far.
        """
        length = self._check(source_BS)
        is_token_BU = None  # U = S + T
        if is_source_BS is not None:
            is_token_BU = torch.cat([is_source_BS, torch.ones_like(target_BT, dtype=torch.bool)], dim=1)
        x_BUD = self._embed(torch.cat([source_BS, target_BT], dim=1))
        x_BUD = self.stack(x_BUD, is_token_BT=is_token_BU, prefix_B1=self._prefix(source_BS, is_source_BS))
        return self._logits(x_BUD[:, length:])

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> Stream:
        """The source, read into a cache with room for the target."""
        cache = KeyValueCache(len(self.stack.layers), self._check(source_BS) + capacity)
        prefix_B1 = self._prefix(source_BS, is_source_BS)
        self.stack(self._embed(source_BS), is_token_BT=is_source_BS, cache=cache, prefix_B1=prefix_B1)
        return Stream(cache)

    def step(self, tokens_B: Tensor, state: Stream) -> Tensor:
        """Appends a token to each row and gives the logits (B, V) of the next. Raises ValueError past the capacity."""
        return self._logits(self.stack(self._embed(tokens_B[:, None]), cache=state.cache)[:, 0])

    def _prefix(self, source_BS: Tensor, is_source_BS: Tensor | None) -> Tensor | None:
        if not self.prefix:
            return None
        if is_source_BS is not None:
            return is_source_BS.sum(dim=1, keepdim=True)
        return torch.full((1, 1), source_BS.shape[1], device=source_BS.device)

    def _check(self, source_BS: Tensor) -> int:
        """The source's length. Raises ValueError where it would take positions that the target is to have."""
        length = source_BS.shape[1]
        if self.longest is not None and length > self.longest:
            raise ValueError(f"a source of {length} tokens; the model's position encoding has {self.longest} for it")
        return length

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return self.embedding(tokens_BT) * math.sqrt(self.d_model)

    def _logits(self, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight)


class Stream:
    """A batch in the middle of decoding: keys and values of the source and of the target so far."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.cache.select(rows)
