"""A decoder-only language model on the seams. Legend: B batch, T length, D model width, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import KeyValueCache
from attnlab.layers.feed_forward import GELU, FeedForward
from attnlab.layers.init import GPT2Init, Init, draw_seed
from attnlab.layers.parts import complete
from attnlab.layers.positions import PositionEncoding, Sinusoidal
from attnlab.layers.residuals import PreNorm, Residual
from attnlab.layers.stack import Stack
from attnlab.models.language_model import LanguageModel
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class GPT(LanguageModel):
    """A causal Transformer language model (Radford et al. 2019); tokens (B, T) to the next tokens' logits (B, T, V).

    d_ff: None: 4 d_model. bias: of the linear layers. tied: the output is the embedding's transpose (Press & Wolf 2017,
    arXiv 1608.05859).
    scale_embedding: times sqrt(d_model) (Vaswani et al. 2017, section 3.4), so that sinusoids do not swamp small
    embeddings. embedding_norm: a norm on the embedded input (BLOOM, Scao et al. 2022, arXiv 2211.05100, section 3.2.2).
    position, residual, attention, feed_forward, init: parts (classes or partials), completed with the widths.
    Raises ValueError for sizes below 1 and where a part refuses a width.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        d_model: PositiveInt = 128,
        num_heads: PositiveInt = 4,
        num_layers: PositiveInt = 4,
        d_ff: PositiveInt | None = None,
        dropout: Rate = 0.0,
        bias: bool = False,
        tied: bool = True,
        scale_embedding: bool = False,
        embedding_norm: bool = False,
        position: Callable[..., PositionEncoding] = Sinusoidal,
        residual: Callable[..., Residual] = PreNorm,
        attention: Callable[..., Attention] = MultiHead,
        feed_forward: Callable[..., FeedForward] = GELU,
        init: Callable[..., Init] = GPT2Init,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.max_length, self.d_model = vocabulary_size, max_length, d_model
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.stack = Stack(
            d_model, num_heads, num_layers, causal=True, max_length=max_length, d_ff=d_ff, dropout=dropout, bias=bias,
            embedding_norm=embedding_norm, position=position, residual=residual, attention=attention, feed_forward=feed_forward,
        )  # fmt: skip
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)
        complete(init)(self, seed)

    @property
    def longest(self) -> int | None:
        """How many positions the encoding can serve; None: any number."""
        return self.stack.position.longest

    def new_cache(self, capacity: int) -> KeyValueCache:
        """An empty cache for decoding up to `capacity` tokens."""
        return KeyValueCache(len(self.stack.layers), capacity)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits, in the model's type. Positions default to 0.. (after what is cached, padding not counted);
        is_token_BT is False at padding.

        Raises ValueError past the last position that the encoding can serve.
        """
        x_BTD = self.embedding(tokens_BT)
        if self.embedding_scale != 1.0:
            x_BTD = x_BTD * self.embedding_scale
        x_BTD = self.stack(x_BTD, positions_BT, is_token_BT, cache)
        return F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight)
