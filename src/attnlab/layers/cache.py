"""What decoding keeps of earlier passes: a state whose rows can be chosen, and what the layers of a stream keep.

Shapes: B batch, T target (query) length, S source (key) length, C capacity, D model width, G key/value heads, K head
width, X any width.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Preallocated keys and values of every layer, of one with a window only the last ones, or the state of what mixes
    positions without them, and the positions of what is cached. A forward pass calls `extend` once, then each layer
    uses what `layer` gives it. Made for decoding without gradients.
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
        self._one_after_another = True  # real tokens of a row, at positions that count on
        self._kept = [_Kept() for _ in range(num_layers)]
        self._states: list[object] = [None] * num_layers

    def layer(self, index: int) -> LayerCache:
        """What one layer keeps."""
        return LayerCache(self, index)

    def append(self, index: int, *new_BGTX: Tensor, window: int | None = None) -> list[Tensor]:
        """Keeps tensors (B, G, T, X) of the tokens that the cache was last extended by, in a layer; all that it has of
        each that they may attend to, (B, G, S, X). window: what they, and later ones, attend to at most.
        """
        assert new_BGTX[0].shape[2] == self.length - self.start, "extend the cache once a forward, by its tokens"
        if window is not None and self._one_after_another:
            return self._kept[index].append(new_BGTX, self.capacity, window - 1)
        return self._kept[index].append(new_BGTX, self.capacity, None)

    def extend(self, positions_BT: Tensor, is_token_BT: Tensor | None = None, counted: bool = False) -> None:
        """Makes room for the tokens of one forward. counted: their positions count on from those that are cached,
        padding not counted. Raises ValueError past the capacity, and for positions before those that are cached where
        layers have dropped keys.
        """
        start, end = self.length, self.length + positions_BT.shape[1]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were to be cached")
        if not counted:
            self._check_going_on(positions_BT)
        if is_token_BT is not None:
            # Padding between them would let a window reach back over more than its own number of slots.
            padded_after_BT = is_token_BT[:, :-1] & ~is_token_BT[:, 1:]
            starts_padded = start > 0 and not bool(is_token_BT[:, 0].all())
            self._one_after_another &= not (starts_padded or bool(padded_after_BT.any()))
        self._one_after_another &= counted
        if is_token_BT is not None or self.is_token_BS is not None:
            all_real_1T = torch.ones_like(positions_BT[:1], dtype=torch.bool)
            cached_BS = all_real_1T.new_ones(1, start) if self.is_token_BS is None else self.is_token_BS
            self.is_token_BS = _join(cached_BS, all_real_1T if is_token_BT is None else is_token_BT)
        self._positions_BS = positions_BT if self._positions_BS is None else _join(self._positions_BS, positions_BT)
        self.start, self.length = start, end
        self.contiguous = self.contiguous and counted and is_token_BT is None

    def _check_going_on(self, positions_BT: Tensor) -> None:
        dropped = any(kept.dropped for kept in self._kept)
        if dropped and bool((positions_BT <= self.positions_BS.amax(dim=1, keepdim=True)).any()):
            raise ValueError(
                f"position {int(positions_BT.min())} is not after those that are cached, and layers with a window keep "
                "only their last keys; accepted: positions that go on"
            )

    @property
    def num_bytes(self) -> int:
        """What the keys and values of all layers take."""
        return sum(buffer_BGCX.nbytes for kept in self._kept for buffer_BGCX in kept.buffers)

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
        for kept in self._kept:
            kept.select(rows, moved_R)
        self._states = [_rows(state, rows, sources) for state in self._states]
        for name in ("_positions_BS", "is_token_BS"):
            value = getattr(self, name)
            if value is not None and value.shape[0] > 1:
                setattr(self, name, value[rows])

    def _moved(self, rows: Tensor) -> Tensor | None:
        """Which rows change in a batch that stays as large; None where it does not, or a GPU would have to wait."""
        batch_size = next((len(kept.buffers[0]) for kept in self._kept if kept.buffers), 0)
        if rows.dtype == torch.bool or rows.device.type != "cpu" or len(rows) != batch_size:
            return None
        return (rows != torch.arange(len(rows))).nonzero()[:, 0]


class _Kept:
    """The tensors that one layer keeps, (B, G, C, X) each, of which the first `held` slots are filled, with those of
    the last tokens. dropped: whether those of earlier ones are gone.
    """

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.held = 0
        self.dropped = False

    def append(self, new_BGTX: Sequence[Tensor], capacity: int, reach: int | None) -> list[Tensor]:
        """The new ones and at most `reach` before them (None: all), of each; later ones ask for no more before them."""
        before = self.held if reach is None else min(reach, self.held)
        first, end = self.held - before, self.held + new_BGTX[0].shape[2]
        if self.buffers and end <= self.buffers[0].shape[2]:
            for buffer_BGCX, added_BGTX in zip(self.buffers, new_BGTX, strict=True):
                buffer_BGCX[:, :, self.held : end] = added_BGTX
            self.held = end
            return [buffer_BGCX[:, :, first:end] for buffer_BGCX in self.buffers]
        joined = list(new_BGTX)
        if before:
            pairs = zip(self.buffers, new_BGTX, strict=True)
            joined = [torch.cat([buffer[:, :, first : self.held], new], dim=2) for buffer, new in pairs]
        self._refill(joined, capacity, reach)
        return joined

    def _refill(self, joined_BGSX: list[Tensor], capacity: int, reach: int | None) -> None:
        """Starts again with the last of these, and with room for so many more that few steps move any."""
        length, size = joined_BGSX[0].shape[2], capacity
        self.held = length if reach is None else min(length, reach)
        if reach is not None:
            size = min(capacity, reach + reach // 4 + 8)
            self.dropped = self.dropped or self.held < length
        if not self.buffers or self.buffers[0].shape[2] != size:
            self.buffers = [x_BGSX.new_empty(*x_BGSX.shape[:2], size, x_BGSX.shape[3]) for x_BGSX in joined_BGSX]
        for buffer_BGCX, x_BGSX in zip(self.buffers, joined_BGSX, strict=True):
            buffer_BGCX[:, :, : self.held] = x_BGSX[:, :, length - self.held :]

    def select(self, rows: Tensor, moved_R: Tensor | None) -> None:
        """As DecodingState's; moved_R: the rows that change in a batch that stays as large, None: it does not."""
        if moved_R is None:
            self.buffers = [self._chosen(buffer_BGCX, rows) for buffer_BGCX in self.buffers]
            return
        for buffer_BGCX in self.buffers:
            filled_BGSX = buffer_BGCX[:, :, : self.held]
            filled_BGSX[moved_R] = filled_BGSX[rows[moved_R]]

    def _chosen(self, buffer_BGCX: Tensor, rows: Tensor) -> Tensor:
        # Only what is filled is copied: a search reorders its beams at every step.
        filled_BGSX = buffer_BGCX[:, :, : self.held][rows]
        chosen_BGCX = buffer_BGCX.new_empty(len(filled_BGSX), *buffer_BGCX.shape[1:])
        chosen_BGCX[:, :, : self.held] = filled_BGSX
        return chosen_BGCX


class LayerCache:
    """One layer's part of a cache: keys and values, which grow, or a state, which is replaced."""

    def __init__(self, cache: KeyValueCache, index: int) -> None:
        self._cache, self._index = cache, index

    def append(self, *new_BGTX: Tensor, window: int | None = None) -> list[Tensor]:
        """Adds this forward's tensors (B, G, T, X), as keys and values; all that is kept of each, (B, G, S, X), with a
        window only the last of them.
        """
        return self._cache.append(self._index, *new_BGTX, window=window)

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
