"""The Transformer of Vaswani et al. 2017 on the seams. Legend: B batch, S source length, T target length, D model width, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import KeyValueCache
from attnlab.layers.feed_forward import FeedForward, ReLU
from attnlab.layers.init import Init, Xavier, draw_seed
from attnlab.layers.memory import Memory
from attnlab.layers.parts import accepts, complete
from attnlab.layers.positions import PositionEncoding, Sinusoidal
from attnlab.layers.residuals import PostNorm, Residual
from attnlab.layers.stack import Stack
from attnlab.models.seq2seq import Seq2Seq
from attnlab.models.tables import check_one_vocabulary
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class EncoderDecoder(Seq2Seq):
    """
    An encoder and a decoder that attends to it (Vaswani et al. 2017, section 3).

    num_decoder_layers: None: as many as the encoder has. d_ff: None: 4 d_model. bias: of the linear layers.
    share_embeddings: one table for source and target, which then have one vocabulary. tied: the output is the target
    embedding's transpose. scale_embedding: times sqrt(d_model). embedding_norm: a norm on the embedded input of either stack, of the
    residual's kind (BART). scale_logits: what goes into the output is divided by sqrt(d_model) (T5's first version). output_bias: the
    output has a bias (Marian). position, residual, attention, feed_forward, init: parts,
    completed with the widths; encoder and decoder have a position encoding each, and none acts in the cross-attention.
    Raises ValueError for sizes below 1, a shared table of two vocabularies, and where a part refuses a width.
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
        bias: bool = False,
        share_embeddings: bool = True,
        tied: bool = True,
        scale_embedding: bool = True,
        embedding_norm: bool = False,
        scale_logits: bool = False,
        output_bias: bool = False,
        position: Callable[..., PositionEncoding] = Sinusoidal,
        residual: Callable[..., Residual] = PostNorm,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = ReLU,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        super().__init__()
        source_size = vocabulary_size if source_vocabulary_size is None else source_vocabulary_size
        decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        check_one_vocabulary(share_embeddings, source_size, vocabulary_size)
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.source_embedding = None if share_embeddings else nn.Embedding(source_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if scale_embedding else 1.0
        # DeepNorm's encoder depends on the depth of the decoder beside it.
        beside = (
            partial(residual, num_decoder_layers=decoder_layers)
            if accepts(residual, "num_decoder_layers")
            else residual
        )
        build = partial(
            Stack, d_model, num_heads, max_length=max_length, d_ff=d_ff, dropout=dropout, bias=bias,
            embedding_norm=embedding_norm, position=position, attention=attention, feed_forward=feed_forward,
        )  # fmt: skip
        self.encoder = build(num_layers=num_layers, causal=False, residual=beside)
        self.decoder = build(num_layers=decoder_layers, causal=True, residual=residual, cross_attention=True)
        self.logit_scale = d_model**-0.5 if scale_logits else 1.0
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size)) if output_bias else None
        self.longest = self.decoder.position.longest
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
        memory = Memory(self.encode(source_BS, is_source_BS), is_source_BS)
        return self._logits(self.decoder(self._embed(self.embedding, target_BT), memory=memory))

    def encode(self, source_BS: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        """The encoder's states, (B, S, D)."""
        table = self.embedding if self.source_embedding is None else self.source_embedding
        states_BSD: Tensor = self.encoder(self._embed(table, source_BS), is_token_BT=is_source_BS)
        return states_BSD

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> Decoding:
        """The encoded source and an empty cache."""
        memory = Memory(self.encode(source_BS, is_source_BS), is_source_BS, keep=True)
        return Decoding(memory, KeyValueCache(len(self.decoder.layers), capacity))

    def step(self, tokens_B: Tensor, state: Decoding) -> Tensor:
        """Appends a token to each row and gives the logits (B, V) of the next. Raises ValueError past the capacity."""
        x_B1D = self._embed(self.embedding, tokens_B[:, None])
        return self._logits(self.decoder(x_B1D, cache=state.cache, memory=state.memory)[:, 0])

    def _embed(self, table: nn.Embedding, tokens_BT: Tensor) -> Tensor:
        x_BTD: Tensor = table(tokens_BT)
        return x_BTD if self.embedding_scale == 1.0 else x_BTD * self.embedding_scale

    def _logits(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD if self.logit_scale == 1.0 else x_BTD * self.logit_scale
        return F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight, self.head_bias)


class Decoding:
    """A batch in the middle of decoding: the encoded source, and keys and values of the target so far."""

    def __init__(self, memory: Memory, cache: KeyValueCache) -> None:
        self.memory, self.cache = memory, cache

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.memory.select(rows)
        self.cache.select(rows)
