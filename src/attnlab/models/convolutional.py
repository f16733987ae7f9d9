"""Convolutional models of one text. Legend: B batch, T length, D model width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnlab.layers.dropout import Dropout
from attnlab.layers.gated_convolution import ConvolutionStack
from attnlab.layers.init import FanIn, Init, draw_seed
from attnlab.layers.parts import complete
from attnlab.layers.positions import Learned
from attnlab.models.encoder import Encoder
from attnlab.models.language_model import LanguageModel
from attnlab.models.tables import Tables
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class ConvolutionalLanguageModel(LanguageModel):
    """
    Gated convolutions over the tokens before (Dauphin et al. 2017, arXiv 1612.08083), on the residual stream of Gehring et al. 2017,
    without the weight normalisation of both.

    A token sees num_layers (kernel_size - 1) tokens before it. tied: the output is the embedding's transpose. dropout: on the input of
    every convolution and of the output. Raises ValueError for sizes below 1 and a rate outside of 0 to 1.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt = 128,
        num_layers: PositiveInt = 6,
        kernel_size: PositiveInt = 4,
        dropout: Rate = 0.1,
        tied: bool = True,
        init: Callable[..., Init] = FanIn,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(vocabulary_size, d_model, tied)
        self.stack = ConvolutionStack(d_model, num_layers, kernel_size, causal=True, dropout=dropout)
        self.dropout = Dropout(dropout)
        complete(init)(self, seed)

    def new_cache(self, capacity: int) -> ConvolutionCache:
        """An empty cache, which takes any number of tokens."""
        return ConvolutionCache()

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: ConvolutionCache | None = None,
    ) -> Tensor:
        """Logits, in the model's type; is_token_BT is False at padding, which stands before the first token or after the last. Positions are
        not looked at: a convolution sees the order."""
        x_BTD = self.stack(self.tables.embed(tokens_BT), is_token_BT, None if cache is None else cache.inputs)
        return self.tables.logits(self.dropout(x_BTD))


class ConvolutionCache:
    """The last inputs of every layer, which the next tokens' windows reach back to."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.inputs[:] = [inputs_BPD[rows] for inputs_BPD in self.inputs]


@check_ranges
class PositionedEmbedding(nn.Module):
    """Dropout on token embeddings with a learned position each (Gehring et al. 2017, section 3.1). The table of tokens is given at each call."""

    def __init__(self, d_model: PositiveInt, max_length: PositiveInt, dropout: Rate) -> None:
        super().__init__()
        self.position, self.dropout = Learned(d_model, max_length), Dropout(dropout)

    def forward(self, x_BTD: Tensor, start: int = 0) -> Tensor:
        """The first of the tokens stands at position `start`. Raises ValueError past the table."""
        self.position.check(start + x_BTD.shape[1] - 1)
        places_1T = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
        embedded_BTD: Tensor = self.dropout(self.position.embed(x_BTD, places_1T))
        return embedded_BTD


@check_ranges
class ConvolutionalEncoder(Encoder):
    """
    Gated convolutions over windows around each token: the encoder of Gehring et al. 2017 (arXiv 1705.03122, section 3), without its weight
    normalisation and the linear layers between two widths.

    A state sees num_layers (kernel_size - 1) / 2 tokens on either side. max_length: positions that the table has. dropout: on the embeddings,
    on the input of every convolution and on the states. Raises ValueError for sizes below 1, an even kernel, and a rate outside of 0 to 1.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt = 256,
        d_model: PositiveInt = 128,
        num_layers: PositiveInt = 8,
        kernel_size: PositiveInt = 3,
        dropout: Rate = 0.1,
        init: Callable[..., Init] = FanIn,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model, self.longest = vocabulary_size, d_model, max_length
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.placed = PositionedEmbedding(d_model, max_length, dropout)
        self.stack = ConvolutionStack(d_model, num_layers, kernel_size, causal=False, dropout=dropout)
        self.dropout = Dropout(dropout)
        complete(init)(self, seed)

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D); padding stands on the right. Segments are not looked at. Raises ValueError past the table of positions."""
        states_BTD = self.stack(self.placed(self.embedding(tokens_BT)), is_token_BT)
        encoded_BTD: Tensor = self.dropout(states_BTD)
        return encoded_BTD
