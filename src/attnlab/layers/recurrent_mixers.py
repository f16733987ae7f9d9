"""Recurrent networks in the place of attention, in the same residual blocks.

Shapes: B batch, T length, D model width, P inputs before the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from attnlab.layers.baselines import Cell, Recurrence
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import Sides
from attnlab.layers.scope import Scope
from attnlab.layers.short_convolution import maybe_convolution
from attnlab.ranges import NonNegativeInt, PositiveInt, check_ranges


@check_ranges
class RecurrentMixer(Mixer):
    """A base: one layer of a recurrent network over the tokens, whose states are the output; x (B, T, D) to (B, T, D).
    convolution: of how many tokens the input is summed first, channel by channel, before a SiLU; None or 0: none.
    """

    cell: ClassVar[Cell]
    sides: ClassVar[Mapping[str, Sides]] = {"recurrence.ahead.0": "both", "convolution": "out"}

    def __init__(self, d_model: PositiveInt, convolution: NonNegativeInt | None = None) -> None:
        super().__init__()
        self.d_head = d_model
        self.recurrence = Recurrence(d_model, cell=self.cell)
        self.convolution = maybe_convolution(d_model, convolution)

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        assert memory is None, f"{type(self).__name__} cannot attend to a memory"
        state, before_BPD = (None, None) if cache is None or cache.state is None else cache.state
        if self.convolution is not None:
            x_BTD, before_BPD = self.convolution(x_BTD, scope.is_token_BT, before_BPD)
            x_BTD = F.silu(x_BTD)
        before = None if state is None else [state]
        out_BTD, states = self.recurrence(x_BTD, scope.is_token_BT, before, whole_state=cache is not None)
        if cache is not None:
            cache.state = states[0], before_BPD
        mixed_BTD: Tensor = out_BTD
        return mixed_BTD


class LSTM(RecurrentMixer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    cell = "lstm"


class GRU(RecurrentMixer):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, in the form of cuDNN)."""

    cell = "gru"
