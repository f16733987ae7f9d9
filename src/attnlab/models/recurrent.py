"""Recurrent models of one text, and of translation with and without attention.

Legend: B batch, T length (of a target), S source length, D model width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from attnlab.layers.alignment import AdditiveAttention, ProductAttention, Score, weigh
from attnlab.layers.cache import DecodingState
from attnlab.layers.init import Init, Xavier
from attnlab.layers.pointwise import Dropout
from attnlab.layers.recurrence import Cell, Recurrence, State, Step, half_lstm_on_cpu
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, Tables
from attnlab.parts import Choices
from attnlab.ranges import PositiveInt, Rate, check_ranges


@check_ranges
class RecurrentLanguageModel(LanguageModel):
    """A recurrent model of the next token (Mikolov et al. 2010; with dropout outside of the recurrence, Zaremba et al.
    2014, arXiv 1409.2329).

    cell: see Recurrence. tied: the output is the embedding's transpose. scale_embedding: times sqrt(d_model), without
    which what a small embedding says drowns in the first layer. dropout: on the embeddings, between layers and before
    the output. Raises ValueError for sizes below 1, a rate outside of 0 to 1, and a cell that there is not.
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
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(vocabulary_size, d_model, tied, scale_embedding=scale_embedding)
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout)
        self.dropout = Dropout(dropout)
        self.draw(init)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """A CPU has no LSTM in fp16."""
        yield from super().incompatible(choices)
        yield from half_lstm_on_cpu(choices)

    def new_cache(self, capacity: int) -> RecurrentCache:
        """An empty cache, which takes any number of tokens."""
        return RecurrentCache()

    def forward(
        self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, cache: RecurrentCache | None = None
    ) -> Tensor:
        x_BTD = self.dropout(self.tables.embed(tokens_BT))
        before = None if cache is None else cache.states
        x_BTD, states = self.recurrence(x_BTD, is_token_BT, before, whole_state=cache is not None)
        if cache is not None:
            cache.states = states
        return self.tables.logits(self.dropout(x_BTD))


class RecurrentCache(DecodingState):
    """Where a recurrence stands after the tokens so far."""

    def __init__(self) -> None:
        self.states: list[State] | None = None


@check_ranges
class RecurrentEncoder(Encoder):
    """Two recurrences a layer, one from each end (Schuster & Paliwal 1997; Graves & Schmidhuber 2005), half of the
    width each.

    cell: see Recurrence. scale_embedding: times sqrt(d_model). dropout: on the embeddings, between layers and on the
    states. Raises ValueError for sizes below 1, an odd d_model, a rate outside of 0 to 1, and a cell that there is not.
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
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(vocabulary_size, d_model, scale_embedding=scale_embedding)  # no output is asked of it
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout, bidirectional=True)
        self.dropout = Dropout(dropout)
        self.draw(init)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """A CPU has no LSTM in fp16."""
        yield from super().incompatible(choices)
        yield from half_lstm_on_cpu(choices)

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states, of both directions side by side. Segments are not looked at: they stand one after the other."""
        x_BTD = self.dropout(self.tables.embed(tokens_BT))
        states_BTD, _ = self.recurrence(x_BTD, is_token_BT, whole_state=False)
        encoded_BTD: Tensor = self.dropout(states_BTD)
        return encoded_BTD


@check_ranges
class RecurrentSeq2Seq(Seq2Seq):
    """A recurrent encoder, and a recurrent decoder that attends to it, or that has its last state alone.

    attention: none: the encoder's last states, one of each layer, start the decoder, which sees the source no more
    (Sutskever et al. 2014, arXiv 1409.3215); luong: besides, the decoder's top state attends to the source before it
    gives an output (see LuongDecoder); bahdanau: the previous state attends to the source before the next is made (see
    BahdanauDecoder). bidirectional: the encoder reads from both ends, half of the width each; None: as in the papers,
    for bahdanau alone. score, input_feeding: of luong. share_embeddings, tied, scale_embedding: as in EncoderDecoder.
    dropout: on the embeddings, between layers, on the encoder's states that an attention reads, and before the output.
    Raises ValueError for sizes below 1, a rate outside of 0 to 1, an unknown cell, attention or score, and bahdanau
    with an encoder of one direction.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        d_model: PositiveInt = 256,
        num_layers: PositiveInt = 2,
        cell: Cell = "lstm",
        attention: Literal["none", "bahdanau", "luong"] = "luong",
        score: Score = "general",
        input_feeding: bool = False,
        bidirectional: bool | None = None,
        dropout: Rate = 0.1,
        share_embeddings: bool = True,
        tied: bool = True,
        scale_embedding: bool = True,
        init: Callable[..., Init] = Xavier,
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.tables = Tables(vocabulary_size, d_model, tied, share_embeddings, source_vocabulary_size, scale_embedding)
        both_ends = attention == "bahdanau" if bidirectional is None else bidirectional
        self.encoder = Recurrence(d_model, num_layers, cell, dropout, both_ends)
        self.decoder: RecurrentDecoder
        if attention == "none":
            self.decoder = PlainDecoder(d_model, num_layers, cell, dropout)
        elif attention == "luong":
            self.decoder = LuongDecoder(d_model, num_layers, cell, dropout, score, input_feeding)
        elif attention == "bahdanau":
            if not both_ends:
                raise ValueError(
                    "attention=bahdanau starts from the encoder's backward direction; bidirectional=false has none: "
                    "leave it null"
                )
            self.decoder = BahdanauDecoder(d_model, num_layers, cell, dropout)
        else:
            raise ValueError(f"attention={attention}: there is no such attention; accepted: none, bahdanau, luong")
        self.dropout = Dropout(dropout)
        self.draw(init)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """Fields of one attention, and fp16 on a CPU."""
        yield from super().incompatible(choices)
        yield from half_lstm_on_cpu(choices)
        for field in ("model.score", "model.input_feeding"):
            if field in choices.given and (kind := choices.get("model.attention")) != "luong":
                yield (
                    f"{field}: only Luong's attention has it, so with model.attention={kind} it would have no effect; "
                    "leave it out, or set model.attention=luong"
                )

    def forward(self, source_BS: Tensor, target_BT: Tensor, is_source_BS: Tensor | None = None) -> Tensor:
        return self._continue(target_BT, self.start(source_BS, is_source_BS))

    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> RecurrentDecoding:
        """The encoded source and the decoder's first states; takes any number of tokens."""
        x_BSD = self.dropout(self.tables.embed(source_BS, self.tables.source_embedding))
        encoded_BSD, last = self.encoder(x_BSD, is_source_BS, whole_state=self.decoder.starts_from_cells)
        return self.decoder.start(self.dropout(encoded_BSD), is_source_BS, last)

    def step(self, tokens_B: Tensor, state: RecurrentDecoding) -> Tensor:
        return self._continue(tokens_B[:, None], state)[:, 0]

    def _continue(self, target_BT: Tensor, state: RecurrentDecoding) -> Tensor:
        x_BTD = self.dropout(self.tables.embed(target_BT))
        return self.tables.logits(self.dropout(self.decoder(x_BTD, state)))


class RecurrentDecoding(DecodingState):
    """The decoder's states, and what an attention reads.

    values_BSD: the encoder's states; keys_BSA: what the score makes of them; fed_BD: the last attentional state.
    """

    def __init__(
        self,
        states: list[State],
        values_BSD: Tensor | None = None,
        keys_BSA: Tensor | None = None,
        is_source_BS: Tensor | None = None,
        fed_BD: Tensor | None = None,
    ) -> None:
        self.states, self.values_BSD, self.keys_BSA = states, values_BSD, keys_BSA
        self.is_source_BS, self.fed_BD = is_source_BS, fed_BD


class RecurrentDecoder(ABC, nn.Module):
    """One token after the other, from what `start` makes of a source. starts_from_cells: whether it wants an LSTM's c."""

    starts_from_cells = True

    @abstractmethod
    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        """What the decoder knows of a source; encoded_BSD: the encoder's states, last: its layers' last ones."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        """What the output layer reads after each of these embedded tokens, (B, T, D); moves the state on."""


@check_ranges
class PlainDecoder(RecurrentDecoder):
    """A recurrence that starts from the encoder's last states and sees nothing else (Sutskever et al. 2014)."""

    def __init__(
        self,
        d_model: PositiveInt,
        num_layers: PositiveInt,
        cell: Cell,
        dropout: Rate,
        d_input: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout, d_input=d_input)

    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        return RecurrentDecoding(last)

    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        h_BTD, state.states = self.recurrence(x_BTD, before=state.states)
        outputs_BTD: Tensor = h_BTD
        return outputs_BTD


@check_ranges
class LuongDecoder(PlainDecoder):
    """Global attention of the top state (Luong et al. 2015, section 3.1): tanh(W [c; h]) is what the output layer
    reads.

    input_feeding: it is also read beside the next token (section 3.3), so that one step has to wait for the other.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_layers: PositiveInt,
        cell: Cell,
        dropout: Rate,
        score: Score,
        input_feeding: bool,
    ) -> None:
        super().__init__(d_model, num_layers, cell, dropout, d_input=2 * d_model if input_feeding else d_model)
        self.attention = ProductAttention(d_model, d_model, score)
        self.combine = nn.Linear(2 * d_model, d_model, bias=False)
        self.input_feeding = input_feeding

    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        """Keeps the encoder's states; what is fed first is zero."""
        fed_BD = torch.zeros_like(last[0][0]) if self.input_feeding else None
        return RecurrentDecoding(last, encoded_BSD, self.attention.keys(encoded_BSD), is_source_BS, fed_BD)

    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        """The attentional states, all at once unless they are fed."""
        if not self.input_feeding:
            return self._attend(super().forward(x_BTD, state), state)
        outputs = []
        for x_BD in x_BTD.unbind(dim=1):
            assert state.fed_BD is not None
            fed_B1I = torch.cat([x_BD, state.fed_BD], dim=1)[:, None]
            state.fed_BD = self._attend(super().forward(fed_B1I, state), state)[:, 0]
            outputs.append(state.fed_BD)
        return torch.stack(outputs, dim=1)

    def _attend(self, h_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        assert state.keys_BSA is not None
        assert state.values_BSD is not None
        scores_BTS = self.attention.scores(h_BTD, state.keys_BSA)
        context_BTD = weigh(scores_BTS, state.values_BSD, state.is_source_BS)
        attentional_BTD: Tensor = self.combine(torch.cat([context_BTD, h_BTD], dim=2)).tanh()
        return attentional_BTD


@check_ranges
class BahdanauDecoder(RecurrentDecoder):
    """Additive attention of the previous state, whose context enters the recurrence (Bahdanau et al. 2015, section 3.1
    and appendix A).

    The output layer reads the maximum of pairs of W [s; E y; c], as there. Every layer starts from tanh(W h), h the
    encoder's backward state at the first token; an LSTM's c from zero. The paper's decoder has one layer; here the
    first one attends, and those above read its states.
    """

    starts_from_cells = False

    def __init__(self, d_model: PositiveInt, num_layers: PositiveInt, cell: Cell, dropout: Rate) -> None:
        super().__init__()
        self.attention = AdditiveAttention(d_model, d_model, d_model)
        self.first = Step(d_model, d_model, d_model, cell)
        self.above = Recurrence(d_model, num_layers - 1, cell, dropout) if num_layers > 1 else None
        self.begin = nn.Linear(d_model // 2, num_layers * d_model)
        self.readout = nn.Linear(3 * d_model, 2 * d_model)
        self.dropout = Dropout(dropout)
        self.num_layers, self.has_cells = num_layers, cell == "lstm"

    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        backward_BD = last[-1][0].chunk(2, dim=1)[1]
        firsts = self.begin(backward_BD).tanh().chunk(self.num_layers, dim=1)
        states: list[State] = [(h_BD, torch.zeros_like(h_BD)) if self.has_cells else (h_BD,) for h_BD in firsts]
        return RecurrentDecoding(states, encoded_BSD, self.attention.keys(encoded_BSD), is_source_BS)

    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        """The read-outs; only the first layer goes step by step."""
        assert state.keys_BSA is not None
        assert state.values_BSD is not None
        first, contexts, hidden = state.states[0], [], []
        for input_BG in self.first.inputs(x_BTD).unbind(dim=1):
            scores_B1S = self.attention.scores(first[0][:, None], state.keys_BSA)
            context_BD = weigh(scores_B1S, state.values_BSD, state.is_source_BS)[:, 0]
            first = self.first(input_BG, context_BD, first)
            contexts.append(context_BD)
            hidden.append(first[0])
        s_BTD = torch.stack(hidden, dim=1)
        above: list[State] = []
        if self.above is not None:
            s_BTD, above = self.above(self.dropout(s_BTD), before=state.states[1:])
        state.states = [first, *above]
        read_BTD = self.readout(torch.cat([s_BTD, x_BTD, torch.stack(contexts, dim=1)], dim=2))
        outputs_BTD: Tensor = read_BTD.unflatten(2, (-1, 2)).amax(dim=3)
        return outputs_BTD
