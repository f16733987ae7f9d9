"""What a decoder attends to beside its own stream.

Shapes: B batch, T target length, S source length, D model width, G key/value heads, K head width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from attnlab.layers.cache import DecodingState
from attnlab.layers.scope import Scope


class Projection(Protocol):
    """An attention, as far as a memory needs it."""

    @abstractmethod
    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def __call__(self, x_BTD: Tensor, scope: Scope, *, memory: Memory) -> Tensor: ...

    @abstractmethod
    def __hash__(self) -> int: ...


class Memory(DecodingState):
    """What a decoder attends to beside its own stream: an encoder's states (B, S, D), and which are real (None: all).
    keep: each attention's keys and values are made once and kept, for decoding without gradients.
    """

    def __init__(self, states_BSD: Tensor, is_token_BS: Tensor | None = None, keep: bool = False) -> None:
        self.states_BSD, self.is_token_BS, self.keep = states_BSD, is_token_BS, keep
        self._kept: dict[Projection, tuple[Tensor, Tensor]] = {}
        self._scopes: dict[int, Scope] = {}
        self._shared: dict[object, Tensor] = {}

    def keys_and_values(self, attention: Projection) -> tuple[Tensor, Tensor]:
        """What `attention` makes of the states."""
        if not self.keep:
            return attention.keys_and_values(self.states_BSD)
        if attention not in self._kept:
            # Heads before lengths in memory as in shape: every step would copy them to that order.
            k_BGSK, v_BGSK = attention.keys_and_values(self.states_BSD)
            self._kept[attention] = (k_BGSK.contiguous(), v_BGSK.contiguous())
        return self._kept[attention]

    def attend(self, attention: Projection, x_BTD: Tensor) -> Tensor:
        """What `attention` makes of a stream. Rows in equal groups, one for each of the memory's (the beams of a
        sentence), attend side by side as if they were one row: no position acts here.
        """
        grouped_BTD = x_BTD.reshape(len(self.states_BSD), -1, x_BTD.shape[2])
        return attention(grouped_BTD, self._scope(grouped_BTD), memory=self).view(x_BTD.shape)

    def _scope(self, x_BTD: Tensor) -> Scope:
        """Every query sees every real state; positions mean nothing between two sequences, so none act here."""
        length = x_BTD.shape[1]
        if length not in self._scopes:
            queries_1T = torch.zeros(1, length, dtype=torch.long, device=x_BTD.device)
            keys_1S = torch.zeros(1, self.states_BSD.shape[1], dtype=torch.long, device=x_BTD.device)
            scope = Scope(queries_1T, keys_1S, causal=False, is_token_BS=self.is_token_BS, shared=self._shared)
            self._scopes[length] = scope
        return self._scopes[length]

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        if sources is not None and len(sources) == len(self.states_BSD):
            return  # all stay, and their order never changes
        kept = rows if sources is None else sources
        super().select(kept)
        self._kept = {attention: (k[kept], v[kept]) for attention, (k, v) in self._kept.items()}
        self._scopes = {}

    def fresh(self) -> Memory:
        """The same memory, which makes its masks anew."""
        same = Memory(self.states_BSD, self.is_token_BS)
        same._shared = self._shared
        return same
