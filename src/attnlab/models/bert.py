"""A bidirectional encoder that predicts masked tokens, on the seams.

Legend: B batch, T length, D model width, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.feed_forward import GELU, FeedForward
from attnlab.layers.init import Init, Normal002, draw_seed
from attnlab.layers.parts import complete
from attnlab.layers.positions import Learned, PositionEncoding
from attnlab.layers.residuals import PostNorm, Residual, norm_part
from attnlab.layers.stack import Stack
from attnlab.models.encoder import Encoder
from attnlab.ranges import NonNegativeInt, PositiveInt, Rate, check_ranges


@check_ranges
class Bert(Encoder):
    """
    BERT (Devlin et al. 2019, arXiv 1810.04805); tokens (B, T) to logits (B, T, V), or (N, V) of chosen positions alone.

    num_segments: texts that an input may hold, told apart by an embedding; 0: none is added. pooler: a dense layer and tanh on the first
    token's state. next_sentence: a second output, on the pooler, says whether two segments follow each other (section 3.1, task 2).
    embedding_norm: a norm on the sum of the embeddings, as in the authors' code; it and the output's norm are of the residual's kind.
    scale_embedding: times sqrt(d_model) (Vaswani et al. 2017, section 3.4), so that sinusoids do not swamp small embeddings.
    The output is a dense layer, GELU and norm, then the embedding's transpose (where `tied`) and a bias, as there. d_ff, bias and the
    parts as in GPT. Raises ValueError for sizes below 1 and where a part refuses a width.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        d_model: PositiveInt = 128,
        num_heads: PositiveInt = 4,
        num_layers: PositiveInt = 4,
        d_ff: PositiveInt | None = None,
        dropout: Rate = 0.1,
        bias: bool = True,
        tied: bool = True,
        num_segments: NonNegativeInt = 0,
        pooler: bool = False,
        next_sentence: bool = False,
        embedding_norm: bool = True,
        scale_embedding: bool = False,
        position: Callable[..., PositionEncoding] = Learned,
        residual: Callable[..., Residual] = PostNorm,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GELU,
        init: Callable[..., Init] = Normal002,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.segments = nn.Embedding(num_segments, d_model) if num_segments else None
        self.stack = Stack(
            d_model, num_heads, num_layers, causal=False, max_length=max_length, d_ff=d_ff, dropout=dropout, bias=bias,
            embedding_norm=embedding_norm, position=position, residual=residual, attention=attention, feed_forward=feed_forward,
        )  # fmt: skip
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = complete(norm_part(residual), d_model=d_model)
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.pooler = nn.Linear(d_model, d_model) if pooler or next_sentence else None
        self.next_sentence = nn.Linear(d_model, 2) if next_sentence else None
        self.longest = self.stack.position.longest
        complete(init)(self, seed)

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D). Raises ValueError past the last position that the encoding can serve."""
        x_BTD = self.embedding(tokens_BT)
        x_BTD = x_BTD if self.embedding_scale == 1.0 else x_BTD * self.embedding_scale
        if self.segments is not None:
            segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            x_BTD = x_BTD + self.segments(segments_BT)
        states_BTD: Tensor = self.stack(x_BTD, is_token_BT=is_token_BT)
        return states_BTD

    def forward(
        self,
        tokens_BT: Tensor,
        is_token_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        select_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with `select_BT`, True at the positions that are wanted, of those alone, row by row (N, V)."""
        return self.predict(self.encode(tokens_BT, is_token_BT, segments_BT), select_BT)

    def predict(self, states_BTD: Tensor, select_BT: Tensor | None = None) -> Tensor:
        """The output layer on states, as `forward` gives it."""
        states = states_BTD if select_BT is None else states_BTD[select_BT]
        hidden = self.transform_norm(F.gelu(self.transform(states)))
        return F.linear(hidden, self.embedding.weight if self.head is None else self.head.weight, self.head_bias)

    def follows(self, states_BTD: Tensor) -> Tensor:
        """Logits (B, 2) of whether the second segment does not or does follow the first, from the first token's state."""
        assert self.next_sentence is not None, "next_sentence=true builds this output"
        logits_B2: Tensor = self.next_sentence(self.pool(states_BTD))
        return logits_B2

    def pool(self, states_BTD: Tensor) -> Tensor:
        """The first token's state behind a dense layer and tanh, (B, D)."""
        assert self.pooler is not None, "pooler=true builds this layer"
        return torch.tanh(self.pooler(states_BTD[:, 0]))
