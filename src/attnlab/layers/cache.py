"""What decoding keeps of earlier passes: a state whose rows can be chosen, and what the layers of a stream keep.

Shapes: B batch, T target (query) length, S source (key) length, C capacity, D model width, G key/value heads, K head
width, X any width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DecodingState:
    """A batch in the middle of decoding: tensors (B, ...), states, collections of them, and plain values."""

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        """Keeps these rows of the batch, in this order: finished ones go, beams move. rows: indices or a bool mask.
        sources: indices, in their order, of the sources that stay, each of an equal number of rows that follow one
        another; what is of a source alone may then be kept once for all of its rows.
        """
        for name, value in vars(self).items():
            setattr(self, name, _rows(value, rows, sources))


def _rows(value: object, rows: Tensor, sources: Tensor | None) -> object:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_rows(item, rows, sources) for item in value)
    if isinstance(value, DecodingState):
        value.select(rows, sources)
    return value


class KeyValueCache(DecodingState):
    """Preallocated keys and values of every layer, or the state of what mixes positions without them, and the positions
    of what is cached. A forward pass calls `extend` once, then each layer uses what `layer` gives it. Made for decoding
    without gradients.
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
        self._kept: list[list[Tensor]] = [[] for _ in range(num_layers)]  # (B, G, C, X) each
        self._states: list[object] = [None] * num_layers

    def layer(self, index: int) -> LayerCache:
        """What one layer keeps."""
        return LayerCache(self, index)

    def append(self, index: int, *new_BGTX: Tensor) -> list[Tensor]:
        """Keeps tensors (B, G, T, X) of the tokens that the cache was last extended by, in a layer; all that it has of
        each, (B, G, S, X).
        """
        assert new_BGTX[0].shape[2] == self.length - self.start, "extend the cache once a forward, by its tokens"
        if not self._kept[index]:
            self._kept[index] = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in new_BGTX]
        for buffer_BGCX, added_BGTX in zip(self._kept[index], new_BGTX, strict=True):
            buffer_BGCX[:, :, self.start : self.length] = added_BGTX
        return [buffer_BGCX[:, :, : self.length] for buffer_BGCX in self._kept[index]]

    def extend(self, positions_BT: Tensor, is_token_BT: Tensor | None = None, contiguous: bool = False) -> None:
        """Makes room for the tokens of one forward. contiguous: they go on from 0..length-1 without padding. Raises
        ValueError past the capacity.
        """
        start, end = self.length, self.length + positions_BT.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were to be cached")
        if is_token_BT is not None or self.is_token_BS is not None:
            all_real_1T = torch.ones_like(positions_BT[:1], dtype=torch.bool)
            cached_BS = all_real_1T.new_ones(1, start) if self.is_token_BS is None else self.is_token_BS
            self.is_token_BS = _join(cached_BS, all_real_1T if is_token_BT is None else is_token_BT)
        self._positions_BS = positions_BT if self._positions_BS is None else _join(self._positions_BS, positions_BT)
        self.start, self.length = start, end
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

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        moved_R = self._moved(rows)
        for index, buffers in enumerate(self._kept):
            if moved_R is None:
                self._kept[index] = [self._chosen(buffer_BGCX, rows) for buffer_BGCX in buffers]
                continue
            for buffer_BGCX in buffers:
                filled_BGSX = buffer_BGCX[:, :, : self.length]
                filled_BGSX[moved_R] = filled_BGSX[rows[moved_R]]
        self._states = [_rows(state, rows, sources) for state in self._states]
        for name in ("_positions_BS", "is_token_BS"):
            value = getattr(self, name)
            if value is not None and value.shape[0] > 1:
                setattr(self, name, value[rows])

    def _batch_size(self) -> int:
        return next((len(buffers[0]) for buffers in self._kept if buffers), 0)

    def _moved(self, rows: Tensor) -> Tensor | None:
        """Which rows change in a batch that stays as large; None where it does not, or a GPU would have to wait."""
        if rows.dtype == torch.bool or rows.device.type != "cpu" or len(rows) != self._batch_size():
            return None
        return (rows != torch.arange(len(rows))).nonzero()[:, 0]

    def _chosen(self, buffer_BGCX: Tensor, rows: Tensor) -> Tensor:
        # Only what is filled is copied: a search reorders its beams at every step.
        filled_BGSX = buffer_BGCX[:, :, : self.length][rows]
        chosen_BGCX = buffer_BGCX.new_empty(len(filled_BGSX), *buffer_BGCX.shape[1:])
        chosen_BGCX[:, :, : self.length] = filled_BGSX
        return chosen_BGCX


class LayerCache:
    """One layer's part of a cache: keys and values, which grow, or a state, which is replaced."""

    def __init__(self, cache: KeyValueCache, index: int) -> None:
        self._cache, self._index = cache, index

    def append(self, *new_BGTX: Tensor) -> list[Tensor]:
        """Adds this forward's tensors (B, G, T, X), as keys and values; all that is kept of each, (B, G, S, X)."""
        return self._cache.append(self._index, *new_BGTX)

    @property
    def state(self) -> Any:
        """What the layer left at the last forward: a tensor (B, ...) or a tuple of them; None before the first."""
        return self._cache._states[self._index]

    @state.setter
    def state(self, new: object) -> None:
        self._cache._states[self._index] = new


def _join(first_BS: Tensor, second_BT: Tensor) -> Tensor:
    rows = max(first_BS.shape[0], second_BT.shape[0])
    return torch.cat([first_BS.expand(rows, -1), second_BT.expand(rows, -1)], dim=1)
