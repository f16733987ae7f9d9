"""What decoding keeps of earlier passes: a state whose rows can be chosen, and the keys and values of a stream.

Shapes: B batch, T target (query) length, S source (key) length, C capacity, D model width, G key/value heads, K head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Append = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # a layer's new keys and values to all that it has


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
    """Preallocated keys and values of every layer, with the positions of what is cached. A forward pass calls `extend`
    once, then each layer what `layer` gives it. Made for decoding without gradients.
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
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers  # keys and values (B, G, C, K)

    def layer(self, index: int) -> Append:
        """Takes the keys and values of the tokens that the cache was last extended by; gives all, (B, G, S, K) each."""
        return partial(self._append, index)

    def _append(self, index: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        assert k_BGTK.shape[2] == self.length - self.start, "extend the cache once a forward, by that forward's tokens"
        buffers = self._layers[index]
        if buffers is None:
            batch, heads, _, width = k_BGTK.shape
            keys_BGCK = k_BGTK.new_empty(batch, heads, self.capacity, width)
            buffers = self._layers[index] = (keys_BGCK, torch.empty_like(keys_BGCK))
        for buffer_BGCK, new_BGTK in zip(buffers, (k_BGTK, v_BGTK), strict=True):
            buffer_BGCK[:, :, self.start : self.length] = new_BGTK
        return buffers[0][:, :, : self.length], buffers[1][:, :, : self.length]

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
        for index, buffers in enumerate(self._layers):
            if buffers is not None and moved_R is not None:
                for buffer_BGCK in buffers:
                    filled_BGSK = buffer_BGCK[:, :, : self.length]
                    filled_BGSK[moved_R] = filled_BGSK[rows[moved_R]]
            elif buffers is not None:
                self._layers[index] = (self._kept(buffers[0], rows), self._kept(buffers[1], rows))
        for name in ("_positions_BS", "is_token_BS"):
            value = getattr(self, name)
            if value is not None and value.shape[0] > 1:
                setattr(self, name, value[rows])

    def _batch_size(self) -> int:
        return next((len(buffers[0]) for buffers in self._layers if buffers is not None), 0)

    def _moved(self, rows: Tensor) -> Tensor | None:
        """Which rows change in a batch that stays as large; None where it does not, or a GPU would have to wait."""
        if rows.dtype == torch.bool or rows.device.type != "cpu" or len(rows) != self._batch_size():
            return None
        return (rows != torch.arange(len(rows))).nonzero()[:, 0]

    def _kept(self, buffer_BGCK: Tensor, rows: Tensor) -> Tensor:
        # Only what is filled is copied: a search reorders its beams at every step.
        filled_BGSK = buffer_BGCK[:, :, : self.length][rows]
        chosen_BGCK = buffer_BGCK.new_empty(len(filled_BGSK), *buffer_BGCK.shape[1:])
        chosen_BGCK[:, :, : self.length] = filled_BGSK
        return chosen_BGCK


def _join(first_BS: Tensor, second_BT: Tensor) -> Tensor:
    rows = max(first_BS.shape[0], second_BT.shape[0])
    return torch.cat([first_BS.expand(rows, -1), second_BT.expand(rows, -1)], dim=1)
