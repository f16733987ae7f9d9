"""What a decoder's layers attend to beside their own stream: an encoder's output.

Shapes: B batch, T target length, S source length, D model width, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnlab.layers.scope import Scope

if TYPE_CHECKING:
    from attnlab.layers.attention import Attention


class Memory:
    """An encoder's states (B, S, D) and which of them are real (None: all).

    keep: each attention's keys and values are made once and kept, for decoding without gradients.
    """

    def __init__(self, states_BSD: Tensor, is_token_BS: Tensor | None = None, keep: bool = False) -> None:
        self.states_BSD, self.is_token_BS, self.keep = states_BSD, is_token_BS, keep
        self._kept: dict[Attention, tuple[Tensor, Tensor]] = {}
        self._scopes: dict[int, Scope] = {}

    def keys_and_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """What `attention` makes of the states."""
        if not self.keep:
            return attention.keys_and_values(self.states_BSD)
        if attention not in self._kept:
            self._kept[attention] = attention.keys_and_values(self.states_BSD)
        return self._kept[attention]

    def scope(self, x_BTD: Tensor) -> Scope:
        """Every query sees every real state; positions mean nothing between two sequences, so none act here."""
        length = x_BTD.shape[1]
        if length not in self._scopes:
            queries_1T = torch.zeros(1, length, dtype=torch.long, device=x_BTD.device)
            keys_1S = torch.zeros(1, self.states_BSD.shape[1], dtype=torch.long, device=x_BTD.device)
            self._scopes[length] = Scope(queries_1T, keys_1S, causal=False, is_token_BS=self.is_token_BS)
        return self._scopes[length]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order. rows: indices or a bool mask."""
        self.states_BSD = self.states_BSD[rows]
        self.is_token_BS = None if self.is_token_BS is None else self.is_token_BS[rows]
        self._kept = {attention: (k[rows], v[rows]) for attention, (k, v) in self._kept.items()}
        self._scopes = {}

    def without_memo(self) -> Memory:
        """The same memory, which makes its masks anew."""
        return Memory(self.states_BSD, self.is_token_BS)
