"""Layers of the baselines: recurrent ones, gated convolutions, and the attention of their decoders to a source.

Legend: B batch, T (target) length, S source length, D width of the states, I of the input, C of a context, A of a
score, G of all gates, P inputs before the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attnlab.layers.pointwise import Dropout
from attnlab.ranges import PositiveInt, Probability, check_ranges, must_be

Cell = Literal["lstm", "gru"]
State = tuple[Tensor, ...]  # of one layer: h, and c of an LSTM, (B, D) each
Score = Literal["general", "dot"]
HALF = math.sqrt(0.5)  # of the sum of two streams of one variance: keeps it
_watchers: list[Callable[[Tensor, Tensor | None], None]] = []  # told of the weights of every call of `weigh`


@check_ranges
class Recurrence(nn.Module):
    """Layers of LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) or GRU (Cho et al. 2014,
    in the form of cuDNN: the reset gate acts after the product); (B, T, I) -> (B, T, D).

    bidirectional: a second recurrence from the end, half of the width each. dropout: between layers (Zaremba et al.
    2014, arXiv 1409.2329). d_input: None: d_model. Raises ValueError for an unknown cell, and an odd d_model where
    bidirectional.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_layers: PositiveInt = 1,
        cell: Cell = "lstm",
        dropout: Probability = 0.0,
        bidirectional: bool = False,
        d_input: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        check_cell(cell)
        if bidirectional and d_model % 2:
            raise ValueError(f"d_model={d_model} does not divide into two directions; accepted: even numbers")
        kind: type[nn.LSTM | nn.GRU] = nn.LSTM if cell == "lstm" else nn.GRU
        width = d_model // 2 if bidirectional else d_model
        inputs = [d_input or d_model, *[d_model] * (num_layers - 1)]
        self.ahead = nn.ModuleList(kind(d_in, width, batch_first=True) for d_in in inputs)
        self.back = nn.ModuleList(kind(d_in, width, batch_first=True) for d_in in inputs if bidirectional)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTI: Tensor,
        is_token_BT: Tensor | None = None,
        before: list[State] | None = None,
        whole_state: bool = True,
    ) -> tuple[Tensor, list[State]]:
        """The top layer's outputs (B, T, D) and every layer's state after the last real token, both directions side by
        side. is_token_BT: False at padding, wherever it stands: it is passed over, and its outputs mean nothing.
        before: the states to go on from (of one direction). whole_state: False leaves c out where that is faster.
        """
        if is_token_BT is None:
            return self._layers(x_BTI, None, before, whole_state)
        # Real tokens first, in their order: what comes after them reaches nothing.
        order_BT = (~is_token_BT).byte().argsort(dim=1, stable=True)
        outputs_BTD, states = self._layers(_at(x_BTI, order_BT), is_token_BT.sum(dim=1), before, whole_state)
        return _at(outputs_BTD, order_BT.argsort(dim=1)), states

    def _layers(
        self, x_BTI: Tensor, lengths_B: Tensor | None, before: list[State] | None, whole_state: bool
    ) -> tuple[Tensor, list[State]]:
        states = []
        for index, ahead in enumerate(self.ahead):
            x_BTI = x_BTI if index == 0 else self.dropout(x_BTI)
            outputs, state = _run(ahead, x_BTI, lengths_B, None if before is None else before[index], whole_state)
            if self.back:
                reversed_BT = _reversed(x_BTI, lengths_B)
                other, other_state = _run(self.back[index], _at(x_BTI, reversed_BT), lengths_B, None, whole_state)
                outputs = torch.cat([outputs, _at(other, reversed_BT)], dim=2)
                state = tuple(torch.cat(pair, dim=1) for pair in zip(state, other_state, strict=True))
            x_BTI = outputs
            states.append(state)
        return x_BTI, states


@check_ranges
class Step(nn.Module):
    """One step of an LSTM or GRU that reads a context beside its input: torch's LSTMCell and GRUCell on both side by
    side. The input's share of the gates is computed for all steps at once, by `inputs`.
    """

    def __init__(self, d_input: PositiveInt, d_context: int, d_model: PositiveInt, cell: Cell = "lstm") -> None:
        super().__init__()
        check_cell(cell)
        kind: type[nn.LSTMCell | nn.GRUCell] = nn.LSTMCell if cell == "lstm" else nn.GRUCell
        self.cell = kind(d_input + d_context, d_model)
        self.d_input = d_input

    def inputs(self, x_BTI: Tensor) -> Tensor:
        """The share (B, T, G) of the inputs in the gates."""
        return F.linear(x_BTI, self.cell.weight_ih[:, : self.d_input], self.cell.bias_ih)

    def forward(self, input_BG: Tensor, context_BC: Tensor, state: State) -> State:
        """The state after one step."""
        cell, h_BD = self.cell, state[0]
        input_BG = input_BG + F.linear(context_BC, cell.weight_ih[:, self.d_input :])
        hidden_BG = F.linear(h_BD, cell.weight_hh, cell.bias_hh)
        if isinstance(cell, nn.LSTMCell):
            i, f, g, o = (input_BG + hidden_BG).chunk(4, dim=1)
            c_BD = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c_BD.tanh(), c_BD
        (r, z, n), (hidden_r, hidden_z, hidden_n) = input_BG.chunk(3, dim=1), hidden_BG.chunk(3, dim=1)
        update_BD = (z + hidden_z).sigmoid()
        new_BD = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
        return (new_BD + update_BD * (h_BD - new_BD),)


def check_cell(cell: str) -> None:
    if cell not in ("lstm", "gru"):
        raise ValueError(f"cell={cell}: there is no such recurrent cell; accepted: lstm, gru")


def _run(
    layer: nn.Module, x_BTI: Tensor, lengths_B: Tensor | None, before: State | None, whole_state: bool
) -> tuple[Tensor, State]:
    """One direction of one layer; real tokens stand first. In fp32 where the processor has no LSTM in bf16."""
    is_lstm = isinstance(layer, nn.LSTM)
    if is_lstm and not x_BTI.is_cuda and torch.is_autocast_enabled("cpu") and not _has_bf16_lstm():
        with torch.autocast("cpu", enabled=False):
            return _run(layer, x_BTI.float(), lengths_B, before, whole_state)
    given = None if before is None else tuple(part_BD[None].to(x_BTI.dtype) for part_BD in before)
    start = given if is_lstm or given is None else given[0]
    if lengths_B is None:
        outputs_BTD, last = layer(x_BTI, start)
        return outputs_BTD, tuple(part_1BD[0] for part_1BD in (last if is_lstm else (last,)))
    some_B = lengths_B.clamp(min=1)
    if is_lstm and whole_state:
        # The outputs tell h after the last real token, but not c. Packing does, and costs up to twice the time.
        packed = pack_padded_sequence(x_BTI, some_B.cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, last = layer(packed, start)
        outputs_BTD, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=x_BTI.shape[1])
        state: State = tuple(part_1BD[0] for part_1BD in last)
    else:
        outputs_BTD, _ = layer(x_BTI, start)
        state = (_at(outputs_BTD, some_B[:, None] - 1)[:, 0],)
    # A row of padding alone stays where it was.
    unread = [torch.zeros_like(part) for part in state] if before is None else before
    is_read_B1 = lengths_B[:, None] > 0
    return outputs_BTD, tuple(part.where(is_read_B1, old) for part, old in zip(state, unread, strict=False))


@cache
def _has_bf16_lstm() -> bool:
    """Whether oneDNN has an LSTM in bf16 on this processor, which only trying tells."""
    with torch.autocast("cpu", torch.bfloat16), torch.random.fork_rng(devices=[]):
        try:
            nn.LSTM(8, 8)(torch.zeros(1, 1, 8))
        except RuntimeError:
            return False
    return True


def _reversed(x_BTI: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Where each position stands when the real tokens, which come first, are read backwards, (B, T)."""
    positions_1T = torch.arange(x_BTI.shape[1], device=x_BTI.device)[None]
    if lengths_B is None:
        return positions_1T.flip(1).expand(len(x_BTI), -1)
    from_end_BT = lengths_B[:, None] - 1 - positions_1T
    return from_end_BT.where(from_end_BT >= 0, positions_1T)


def _at(x_BTI: Tensor, positions_BT: Tensor) -> Tensor:
    return x_BTI.gather(1, positions_BT[:, :, None].expand(-1, -1, x_BTI.shape[2]))


@check_ranges
class GatedConvolution(nn.Module):
    """A convolution over time to twice the width, half of which gates the other (Dauphin et al. 2017, arXiv 1612.08083,
    eq. 1); (B, T, D) in and out. Computed as one matrix product of windows laid side by side.

    causal: the window ends at its token, else it lies around it. dropout: on the input. Raises ValueError for an even
    kernel, which has no middle, around a token.
    """

    def __init__(
        self, d_model: PositiveInt, kernel_size: PositiveInt, causal: bool, dropout: Probability = 0.0
    ) -> None:
        super().__init__()
        if not causal and kernel_size % 2 == 0:
            raise ValueError(must_be("kernel_size", "odd where it lies around its token", kernel_size))
        self.kernel_size, self.causal = kernel_size, causal
        self.windows = nn.Linear(kernel_size * d_model, 2 * d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """The gated sums; what stands at padding reaches nothing, as if zeros stood there."""
        around = self.kernel_size - 1
        before = around if self.causal else around // 2
        return self._convolve(F.pad(self._clean(x_BTD, is_token_BT), (0, 0, before, around - before)))

    def go_on(
        self, x_BTD: Tensor, before_BPD: Tensor | None, is_token_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A causal convolution after the inputs `before_BPD` (None: zeros), and what comes before the next ones."""
        assert self.causal, "a window around its token waits for what follows"
        x_BTD = self._clean(x_BTD, is_token_BT)
        if before_BPD is None:
            before_BPD = x_BTD.new_zeros(len(x_BTD), self.kernel_size - 1, x_BTD.shape[2])
        padded_BTD = torch.cat([before_BPD, x_BTD], dim=1)
        return self._convolve(padded_BTD), padded_BTD[:, x_BTD.shape[1] :]

    def _clean(self, x_BTD: Tensor, is_token_BT: Tensor | None) -> Tensor:
        """The input after dropout, zero at padding."""
        x_BTD = self.dropout(x_BTD)
        return x_BTD if is_token_BT is None else x_BTD.masked_fill(~is_token_BT[:, :, None], 0.0)

    def _convolve(self, padded_BTD: Tensor) -> Tensor:
        length = padded_BTD.shape[1] - self.kernel_size + 1
        shifted = [padded_BTD[:, place : place + length] for place in range(self.kernel_size)]
        return F.glu(self.windows(torch.cat(shifted, dim=2)), dim=2)


@check_ranges
class ConvolutionStack(nn.Module):
    """Gated convolutions on a residual stream that keeps its variance: (x + f(x)) sqrt(1/2) (Gehring et al. 2017, arXiv
    1705.03122, section 3.5); (B, T, D) in and out.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_layers: PositiveInt,
        kernel_size: PositiveInt,
        causal: bool,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedConvolution(d_model, kernel_size, causal, dropout) for _ in range(num_layers))

    def forward(
        self,
        x_BTD: Tensor,
        is_token_BT: Tensor | None = None,
        before: list[Tensor] | None = None,
        between: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """is_token_BT: False at padding, on the right, or on the left of the first token. before: each layer's last
        inputs (an empty list: none yet), which are moved on; the tokens follow those of the call before. between: acts
        on what the layer of an index gives.
        """
        kept = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, GatedConvolution)
            if before is None:
                convolved_BTD = layer(x_BTD, is_token_BT)
            else:
                convolved_BTD, inputs_BPD = layer.go_on(x_BTD, before[index] if before else None, is_token_BT)
                kept.append(inputs_BPD)
            x_BTD = (x_BTD + (convolved_BTD if between is None else between(index, convolved_BTD))) * HALF
        if before is not None:
            before[:] = kept
        return x_BTD


class AdditiveAttention(nn.Module):
    """v . tanh(W s + U h), s and h states of decoder and source (Bahdanau et al. 2015, arXiv 1409.0473, app. A.1.2)."""

    def __init__(self, d_query: int, d_source: int, d_score: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_query, d_score, bias=False)
        self.key = nn.Linear(d_source, d_score, bias=False)  # applied to a source once: (B, S, A)
        self.score = nn.Linear(d_score, 1, bias=False)

    def scores(self, queries_BTD: Tensor, keys_BSA: Tensor) -> Tensor:
        """(B, T, S)."""
        sums_BTSA = self.query(queries_BTD)[:, :, None] + keys_BSA[:, None]
        scores_BTS: Tensor = self.score(sums_BTSA.tanh())[..., 0]
        return scores_BTS


class ProductAttention(nn.Module):
    """s . W h ("general") or s . h ("dot"), s and h states of decoder and source (Luong et al. 2015, arXiv
    1508.04025).
    """

    def __init__(self, d_query: int, d_source: int, score: Score = "general") -> None:
        super().__init__()
        if score not in ("general", "dot"):
            raise ValueError(f"score={score}: there is no such score; accepted: general, dot")
        self.key = nn.Linear(d_source, d_query, bias=False) if score == "general" else nn.Identity()

    def scores(self, queries_BTD: Tensor, keys_BSD: Tensor) -> Tensor:
        """(B, T, S)."""
        return queries_BTD @ keys_BSD.transpose(1, 2)


def weigh(scores_BTS: Tensor, values_BSD: Tensor, is_source_BS: Tensor | None) -> Tensor:
    """The values' mean (B, T, D), weighted by the scores' softmax over real tokens; zeros where a source has none."""
    if is_source_BS is None:
        weights_BTS = scores_BTS.softmax(dim=2)
    else:
        padding_B1S = ~is_source_BS[:, None]
        weights_BTS = scores_BTS.masked_fill(padding_B1S, torch.finfo(scores_BTS.dtype).min).softmax(dim=2)
        weights_BTS = weights_BTS.masked_fill(padding_B1S, 0.0)
    for tell in _watchers:
        tell(weights_BTS, is_source_BS)
    return torch.bmm(weights_BTS.to(values_BSD.dtype), values_BSD)


@contextmanager
def watched(tell: Callable[[Tensor, Tensor | None], None]) -> Iterator[None]:
    """Inside, `tell` is called with the weights (B, T, S) of every `weigh`, and with is_source_BS."""
    _watchers.append(tell)
    try:
        yield
    finally:
        _watchers.remove(tell)
