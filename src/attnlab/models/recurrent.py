"""Recurrent models of one text, and of translation with and without attention.

Legend: B batch, T length (of a target), S source length, D model width, V vocabulary.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.baselines import AdditiveAttention, Cell, ProductAttention, Recurrence, Score, State, Step, weigh
from attnlab.layers.cache import DecodingState
from attnlab.layers.init import Init, Xavier
from attnlab.layers.pointwise import Dropout
from attnlab.models.base import Encoder, LanguageModel, Seq2Seq, Tables, TextModel
from attnlab.parts import Choices
from attnlab.ranges import PositiveInt, Rate, check_ranges


class RecurrentFields(TypedDict, total=False):
    """What describes a recurrent model. cell: see Recurrence. dropout: on the embeddings, between layers, on the states
    that an attention reads, and at the end. scale_embedding: times sqrt(d_model), without which what a small embedding
    says drowns in the first layer.
    """

    d_model: PositiveInt
    num_layers: PositiveInt
    cell: Cell
    dropout: Rate
    scale_embedding: bool
    init: Callable[..., Init]


class RecurrentModel(TextModel):
    """What recurrent models share."""

    defaults: ClassVar[RecurrentFields] = {
        "d_model": 256,
        "num_layers": 2,
        "cell": "lstm",
        "dropout": 0.1,
        "scale_embedding": True,
        "init": Xavier,
    }

    def __init__(
        self,
        vocabulary_size: int,
        fields: RecurrentFields,
        tie_embeddings: bool = True,
        share_embeddings: bool = True,
        source_vocabulary_size: int | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.d_model = vocabulary_size, fields["d_model"]
        shared = (tie_embeddings, share_embeddings, source_vocabulary_size)
        self.tables = Tables(vocabulary_size, self.d_model, *shared, fields["scale_embedding"])
        self.dropout = Dropout(fields["dropout"])

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        device = choices.get("trainer.device", "auto")
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        on_cpu = device == "cpu" or (device == "auto" and not has_gpu)
        if str(choices.get("trainer.precision")) == "16" and choices.get("model.cell") == "lstm" and on_cpu:
            yield "trainer.precision: a CPU has no LSTM in fp16; choose model.cell=gru, or trainer.precision=32 or bf16"


@dataclass(eq=False)
class RecurrentCache(DecodingState):
    """Where a recurrence stands after the tokens so far."""

    states: list[State] | None = None


@check_ranges
class RecurrentLanguageModel(RecurrentModel, LanguageModel):
    """A recurrent model of the next token (Mikolov et al. 2010; with dropout outside of the recurrence, Zaremba et al.
    2014, arXiv 1409.2329). tie_embeddings: the output is the embedding's transpose.
    """

    def __init__(
        self, vocabulary_size: PositiveInt, tie_embeddings: bool = True, **fields: Unpack[RecurrentFields]
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields, tie_embeddings)
        self.recurrence = Recurrence(self.d_model, fields["num_layers"], fields["cell"], fields["dropout"])
        self.draw(fields["init"])

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


@check_ranges
class RecurrentEncoder(RecurrentModel, Encoder):
    """Two recurrences a layer, one from each end (Schuster & Paliwal 1997; Graves & Schmidhuber 2005), half of the
    width each. Raises ValueError for an odd d_model.
    """

    def __init__(self, vocabulary_size: PositiveInt, **fields: Unpack[RecurrentFields]) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields)  # no output is asked of its tables
        self.recurrence = Recurrence(
            self.d_model, fields["num_layers"], fields["cell"], fields["dropout"], bidirectional=True
        )
        self.draw(fields["init"])

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states, of both directions side by side. Segments are not looked at: they stand one after the other."""
        x_BTD = self.dropout(self.tables.embed(tokens_BT))
        states_BTD, _ = self.recurrence(x_BTD, is_token_BT, whole_state=False)
        encoded_BTD: Tensor = self.dropout(states_BTD)
        return encoded_BTD


@check_ranges
class RecurrentSeq2Seq(RecurrentModel, Seq2Seq):
    """A recurrent encoder, and a recurrent decoder that attends to it, or that has its last state alone.

    attention: none, luong or bahdanau: PlainDecoder, LuongDecoder, BahdanauDecoder. score, input_feeding: of luong.
    bidirectional: the encoder reads from both ends, half of the width each; None: as in the papers, for bahdanau alone.
    share_embeddings, tie_embeddings: as in EncoderDecoder. Raises ValueError for an unknown cell, attention or score,
    and for bahdanau with an encoder of one direction.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        source_vocabulary_size: PositiveInt | None = None,
        attention: Literal["none", "bahdanau", "luong"] = "luong",
        score: Score = "general",
        input_feeding: bool = False,
        bidirectional: bool | None = None,
        share_embeddings: bool = True,
        tie_embeddings: bool = True,
        **fields: Unpack[RecurrentFields],
    ) -> None:
        fields = self.described(self.defaults, fields)
        super().__init__(vocabulary_size, fields, tie_embeddings, share_embeddings, source_vocabulary_size)
        both_ends = attention == "bahdanau" if bidirectional is None else bidirectional
        layers = (self.d_model, fields["num_layers"], fields["cell"], fields["dropout"])
        self.encoder = Recurrence(*layers, both_ends)
        self.decoder: RecurrentDecoder
        if attention == "none":
            self.decoder = PlainDecoder(*layers)
        elif attention == "luong":
            self.decoder = LuongDecoder(*layers, score, input_feeding)
        elif attention == "bahdanau":
            if not both_ends:
                raise ValueError(
                    "attention=bahdanau starts from the encoder's backward direction; bidirectional=false has none: "
                    "leave it null"
                )
            self.decoder = BahdanauDecoder(*layers)
        else:
            raise ValueError(f"attention={attention}: there is no such attention; accepted: none, bahdanau, luong")
        self.draw(fields["init"])

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
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


@dataclass(eq=False)
class RecurrentDecoding(DecodingState):
    """The decoder's states, and where an attention reads the encoder's states (B, S, D), what its score
    makes of them.
    """

    states: list[State]
    values_BSD: Tensor | None = None
    keys_BSA: Tensor | None = None
    is_source_BS: Tensor | None = None
    fed_BD: Tensor | None = None  # the last attentional state

    def context(self, attention: AdditiveAttention | ProductAttention, queries_BTD: Tensor) -> Tensor:
        """What an attention finds for the states of the decoder, (B, T, D)."""
        assert self.keys_BSA is not None
        assert self.values_BSD is not None
        return weigh(attention.scores(queries_BTD, self.keys_BSA), self.values_BSD, self.is_source_BS)


class RecurrentDecoder(ABC, nn.Module):
    """One token after the other, from what `start` makes of a source. starts_from_cells: whether it wants
    an LSTM's c.
    """

    starts_from_cells = True

    @abstractmethod
    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        """What the decoder knows of a source; encoded_BSD: the encoder's states, last: its layers' last ones."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        """What the output layer reads after each of these embedded tokens, (B, T, D); moves the state on."""


class PlainDecoder(RecurrentDecoder):
    """A recurrence that starts from the encoder's last states and sees nothing else (Sutskever et al. 2014, arXiv
    1409.3215).
    """

    def __init__(self, d_model: int, num_layers: int, cell: Cell, dropout: float, d_input: int | None = None) -> None:
        super().__init__()
        self.recurrence = Recurrence(d_model, num_layers, cell, dropout, d_input=d_input)

    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        return RecurrentDecoding(last)

    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        outputs_BTD: Tensor
        outputs_BTD, state.states = self.recurrence(x_BTD, before=state.states)
        return outputs_BTD


class LuongDecoder(PlainDecoder):
    """Global attention of the top state (Luong et al. 2015, section 3.1): the output layer reads tanh(W [c; h]).
    input_feeding: it is also read beside the next token (section 3.3), so that one step has to wait for the other.
    """

    def __init__(
        self, d_model: int, num_layers: int, cell: Cell, dropout: float, score: Score, input_feeding: bool
    ) -> None:
        super().__init__(d_model, num_layers, cell, dropout, d_input=2 * d_model if input_feeding else d_model)
        self.attention = ProductAttention(d_model, d_model, score)
        self.combine = nn.Linear(2 * d_model, d_model, bias=False)
        self.input_feeding = input_feeding

    def start(self, encoded_BSD: Tensor, is_source_BS: Tensor | None, last: list[State]) -> RecurrentDecoding:
        fed_BD = torch.zeros_like(last[0][0]) if self.input_feeding else None
        return RecurrentDecoding(last, encoded_BSD, self.attention.key(encoded_BSD), is_source_BS, fed_BD)

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
        context_BTD = state.context(self.attention, h_BTD)
        attentional_BTD: Tensor = self.combine(torch.cat([context_BTD, h_BTD], dim=2)).tanh()
        return attentional_BTD


class BahdanauDecoder(RecurrentDecoder):
    """Additive attention of the previous state, whose context enters the recurrence (Bahdanau et al. 2015, arXiv
    1409.0473, section 3.1 and appendix A).

    The output layer reads the maximum of pairs of W [s; E y; c], as there. Every layer starts from tanh(W h), h the
    encoder's backward state at the first token; an LSTM's c from zero. The paper's decoder has one layer; here the
    first one attends, and those above read its states.
    """

    starts_from_cells = False

    def __init__(self, d_model: int, num_layers: int, cell: Cell, dropout: float) -> None:
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
        return RecurrentDecoding(states, encoded_BSD, self.attention.key(encoded_BSD), is_source_BS)

    def forward(self, x_BTD: Tensor, state: RecurrentDecoding) -> Tensor:
        """The read-outs; only the first layer goes step by step."""
        first, contexts, hidden = state.states[0], [], []
        for input_BG in self.first.inputs(x_BTD).unbind(dim=1):
            context_BD = state.context(self.attention, first[0][:, None])[:, 0]
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
