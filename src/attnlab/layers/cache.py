"""What is kept between the forward passes of decoding: keys and values of earlier tokens, and any other state.

Shapes: B batch, T new tokens, S all cached tokens, C capacity, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DecodingState:
    """A batch in the middle of decoding: tensors (B, ...), states, tuples and lists of them, and plain values."""

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order: finished ones go, beams move. rows: indices or a bool mask."""
        for name, value in vars(self).items():
            setattr(self, name, _rows(value, rows))


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_rows(item, rows) for item in value)
    if hasattr(value, "select"):
        value.select(rows)
    return value


class LayerCache:
    """One layer's keys and values."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self.keys_BGCK: Tensor | None = None
        self.values_BGCK: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of the tokens the cache was last extended by; returns all, (B, G, S, K) each."""
        start, length = self._cache.start, self._cache.length
        assert k_BGTK.shape[2] == length - start, "extend the cache once a forward, by the tokens of that forward"
        if self.keys_BGCK is None or self.values_BGCK is None:
            batch, heads, _, width = k_BGTK.shape
            self.keys_BGCK = k_BGTK.new_empty(batch, heads, self._cache.capacity, width)
            self.values_BGCK = torch.empty_like(self.keys_BGCK)
        self.keys_BGCK[:, :, start:length] = k_BGTK
        self.values_BGCK[:, :, start:length] = v_BGTK
        return self.keys_BGCK[:, :, :length], self.values_BGCK[:, :, :length]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order."""
        if self.keys_BGCK is not None and self.values_BGCK is not None:
            self.keys_BGCK, self.values_BGCK = self._rows(self.keys_BGCK, rows), self._rows(self.values_BGCK, rows)

    def _rows(self, buffer_BGCK: Tensor, rows: Tensor) -> Tensor:
        # Only what is filled is copied: a search reorders its beams at every step.
        length = self._cache.length
        filled_BGSK = buffer_BGCK[:, :, :length][rows]
        chosen_BGCK = buffer_BGCK.new_empty(len(filled_BGSK), *buffer_BGCK.shape[1:])
        chosen_BGCK[:, :, :length] = filled_BGSK
        return chosen_BGCK


class KeyValueCache:
    """Preallocated keys and values of every layer, with the positions of what is cached.

    A forward pass calls `extend` once, then each layer `layer(i).append`. Made for decoding without gradients.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} holds no token; accepted: 1 or more")
        self.capacity = capacity
        self.start = 0  # where the tokens of the current forward begin
        self.length = 0
        self.contiguous = True
        self.is_token_BS: Tensor | None = None
        self._positions_BS: Tensor | None = None
        self._layers = [LayerCache(self) for _ in range(num_layers)]

    def layer(self, index: int) -> LayerCache:
        """The part of one layer."""
        return self._layers[index]

    def extend(self, positions_BT: Tensor, is_token_BT: Tensor | None = None, contiguous: bool = False) -> None:
        """Makes room for the tokens of one forward. contiguous: they go on from 0..length-1 without padding.

        Raises ValueError past the capacity.
        """
        self.start, end = self.length, self.length + positions_BT.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were to be cached")
        if is_token_BT is not None or self.is_token_BS is not None:
            all_real_1T = torch.ones_like(positions_BT[:1], dtype=torch.bool)
            cached_BS = all_real_1T.new_ones(1, self.start) if self.is_token_BS is None else self.is_token_BS
            self.is_token_BS = _join(cached_BS, all_real_1T if is_token_BT is None else is_token_BT)
        self._positions_BS = positions_BT if self._positions_BS is None else _join(self._positions_BS, positions_BT)
        self.length = end
        self.contiguous = self.contiguous and contiguous

    @property
    def positions_BS(self) -> Tensor:
        """Positions of all that is cached, (B or 1, S)."""
        assert self._positions_BS is not None, "nothing is cached yet"
        return self._positions_BS

    @property
    def num_tokens_B1(self) -> Tensor:
        """How many real tokens each row holds, (B or 1, 1)."""
        if self.is_token_BS is not None:
            return self.is_token_BS.sum(dim=1, keepdim=True)
        return torch.full((1, 1), self.length, device=self.positions_BS.device)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order: finished ones go, beams move. rows: indices or a bool mask."""
        for layer in self._layers:
            layer.select(rows)
        if self._positions_BS is not None and self._positions_BS.shape[0] > 1:
            self._positions_BS = self._positions_BS[rows]
        if self.is_token_BS is not None and self.is_token_BS.shape[0] > 1:
            self.is_token_BS = self.is_token_BS[rows]


def _join(first_BS: Tensor, second_BT: Tensor) -> Tensor:
    rows = max(first_BS.shape[0], second_BT.shape[0])
    return torch.cat([first_BS.expand(rows, -1), second_BT.expand(rows, -1)], dim=1)
