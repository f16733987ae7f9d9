"""Recurrent models of one text. Legend: B batch, T length, D model width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attnlab.layers.dropout import Dropout
from attnlab.layers.init import Init, Xavier, draw_seed
from attnlab.layers.parts import complete
from attnlab.layers.recurrence import Cell, Recurrence, State, rows_of
from attnlab.models.encoder import Encoder
from attnlab.models.language_model import LanguageModel
from attnlab.models.tables import Tables
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class RecurrentLanguageModel(LanguageModel):
    """
    A recurrent model of the next token (Mikolov et al. 2010; with dropout outside of the recurrence, Zaremba et al. 2014, arXiv 1409.2329).

    cell: see Recurrence. tied: the output is the embedding's transpose. scale_embedding: times sqrt(d_model), without which what a small
    embedding says drowns in the first layer. dropout: on the embeddings, between layers and before the output.
    Raises ValueError for sizes below 1, a rate outside of 0 to 1, and a cell that there is not.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt = 256,
        num_layers: PositiveInt = 2,
        cell: Cell = "lstm",
        dropout: Rate = 0.1,
        tied: bool = True,
        scale_embedding: bool = True,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(vocabulary_size, d_model, tied, scale_embedding=scale_embedding)
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout)
        self.dropout = Dropout(dropout)
        complete(init)(self, seed)

    def new_cache(self, capacity: int) -> RecurrentCache:
        """An empty cache, which takes any number of tokens."""
        return RecurrentCache()

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Logits, in the model's type; is_token_BT is False at padding. Positions are not looked at: a recurrence counts none."""
        x_BTD = self.dropout(self.tables.embed(tokens_BT))
        before = None if cache is None else cache.states
        x_BTD, states = self.recurrence(x_BTD, is_token_BT, before, whole_state=cache is not None)
        if cache is not None:
            cache.states = states
        return self.tables.logits(self.dropout(x_BTD))


class RecurrentCache:
    """Where a recurrence stands after the tokens so far."""

    def __init__(self) -> None:
        self.states: list[State] | None = None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.states = None if self.states is None else rows_of(self.states, rows)


@check_ranges
class RecurrentEncoder(Encoder):
    """
    Two recurrences a layer, one from each end (Schuster & Paliwal 1997; Graves & Schmidhuber 2005), half of the width each.

    cell: see Recurrence. scale_embedding: times sqrt(d_model). dropout: on the embeddings, between layers and on the states. Raises ValueError for sizes below 1, an odd
    d_model, a rate outside of 0 to 1, and a cell that there is not.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt = 256,
        num_layers: PositiveInt = 2,
        cell: Cell = "lstm",
        dropout: Rate = 0.1,
        scale_embedding: bool = True,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        super().__init__()
        seed = draw_seed()  # before any part draws, so that models that differ in one part share the others' weights
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(
            vocabulary_size, d_model, scale_embedding=scale_embedding
        )  # of which the output is not asked
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout, bidirectional=True)
        self.dropout = Dropout(dropout)
        complete(init)(self, seed)

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D), of both directions side by side. Segments are not looked at: their texts stand one after the other."""
        x_BTD = self.dropout(self.tables.embed(tokens_BT))
        states_BTD, _ = self.recurrence(x_BTD, is_token_BT, whole_state=False)
        encoded_BTD: Tensor = self.dropout(states_BTD)
        return encoded_BTD
