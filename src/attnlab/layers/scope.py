"""Who sees whom in one forward pass, within a sequence, whole or cut into blocks; True means "may attend".

Shapes: B batch, T target (query) length, S source (key) length, D model width, H heads, G key/value heads, K head
width, N blocks, M keys that a block sees, X any width.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnlab.layers.cache import KeyValueCache

if TYPE_CHECKING:
    from attnlab.layers.positions import Bias, ContextBias, Places, PositionEncoding, Rotation

T = TypeVar("T")
# Where blocks are faster on a CPU than a mask (experiments/speed): from this length on, with at least so many queries
# in a block, where the blocks that a query sees are at most half of the sequence.
LEAST_LENGTH, SMALLEST_BLOCK = 512, 32
# Of a long sequence so many queries go at once, from this length on where causal, from twice of it on where not.
ROWS, LEAST_CAUSAL = 256, 1024


def build_mask(
    query_positions_BT: Tensor,
    key_positions_BS: Tensor,
    causal: bool,
    window: int | None = None,
    is_token_BS: Tensor | None = None,
    prefix_B1: Tensor | None = None,
) -> Tensor:
    """The one mask builder: a bool tensor (B or 1, 1, T, S) from absolute positions; (B or 1, 1, 1, S) where all
    queries see the same.

    causal: no key after its query. window: the query itself and the window-1 keys before it, on both sides where not
    causal. is_token_BS: False hides a key (padding). prefix_B1: how many first positions every query sees although they
    come after it (Raffel et al. 2020, section 3.2.1).
    """
    if is_token_BS is not None and not causal and window is None:
        return is_token_BS[:, None, None, :]
    distance_BTS = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    allowed_BTS = distance_BTS >= 0 if causal else torch.ones_like(distance_BTS, dtype=torch.bool)
    if prefix_B1 is not None:
        allowed_BTS = allowed_BTS | (key_positions_BS < prefix_B1)[:, None, :]
    if window is not None:
        allowed_BTS = allowed_BTS & (distance_BTS.abs() < window)
    if is_token_BS is not None:
        allowed_BTS = allowed_BTS & is_token_BS[:, None, :]
    return allowed_BTS[:, None]


class Mask:
    """Who of a scope may attend to whom within a window, in the forms that kernels take; each is made on demand, once
    for all layers. is_causal: the causal flag of torch's scaled_dot_product_attention says it all, mask and bias.
    by_query: mask or bias are of T x S elements. No dataclass, which fully sharded training would copy field by field.
    """

    def __init__(self, scope: Scope, window: int | None = None) -> None:
        self.scope, self.window = scope, window
        self._made: dict[object, object] = {}
        num_queries, num_keys = scope.query_positions_BT.shape[1], scope.key_positions_BS.shape[1]
        self._inside = self.window is None or (scope.contiguous and self.window >= num_keys)  # the window hides nothing
        alone = not scope.causal or (scope.contiguous and num_queries == 1)
        self._alike = self._inside and alone  # all queries see the same
        plain = scope.contiguous and scope.prefix_B1 is None and scope.bias is None
        self.is_causal = scope.causal and plain and self._inside and num_queries == num_keys
        self.by_query = scope.bias is not None or not (self.is_causal or self._alike)

    @property
    def most_keys(self) -> int:
        """How many keys a query can see at most, whatever is before or after it."""
        num_keys = self.scope.key_positions_BS.shape[1]
        if self.window is None:
            return num_keys
        return min(num_keys, 2 * self.window - 1 if self.scope.sees_after else self.window)

    @property
    def allowed_BHTS(self) -> Tensor | None:
        """True where a query may attend to a key: (B or 1, 1, T or 1, S); None when everyone sees everyone."""
        who, window = self.scope, self.window
        if self._alike and who.is_token_BS is None:
            return None
        positions, tokens = (who.query_positions_BT, who.key_positions_BS), who.is_token_BS
        return self.once("allowed", lambda: build_mask(*positions, who.causal, window, tokens, who.prefix_B1))

    @property
    def bias_BHTS(self) -> Tensor | None:
        """On the scores, (B or 1, H, T, S)."""
        positions, bias = (self.scope.query_positions_BT, self.scope.key_positions_BS), self.scope.bias
        return None if bias is None else self.once("bias", lambda: bias(*positions))

    @property
    def fully_masked_BHT1(self) -> Tensor | None:
        """True for queries that have nothing to attend to, (B or 1, 1, T or 1, 1); None when there can be none. In
        self-attention a query sees at least itself unless it is padding.
        """
        allowed_BHTS = self.allowed_BHTS if self.scope.is_token_BS is not None else None
        if allowed_BHTS is None:
            return None
        return self.once("fully_masked", lambda: ~allowed_BHTS.any(dim=-1, keepdim=True))

    @property
    def attendable_BHTS(self) -> Tensor | None:
        """`allowed`, but a fully masked query sees all keys: no softmax over nothing; `zero_fully_masked` follows."""
        allowed_BHTS, fully_masked_BHT1 = self.allowed_BHTS, self.fully_masked_BHT1
        if allowed_BHTS is None or fully_masked_BHT1 is None:
            return allowed_BHTS
        return self.once("attendable", lambda: allowed_BHTS | fully_masked_BHT1)

    def additive(self, dtype: torch.dtype) -> Tensor | None:
        """The bias, with -inf where `attendable` is False, (B or 1, H or 1, T or 1, S); None: there is neither."""
        attendable_BHTS, bias_BHTS = self.attendable_BHTS, self.bias_BHTS
        if attendable_BHTS is None:
            return None if bias_BHTS is None else self.once(dtype, lambda: bias_BHTS.to(dtype))

        def make() -> Tensor:
            added_BHTS = torch.zeros_like(attendable_BHTS, dtype=dtype) if bias_BHTS is None else bias_BHTS.to(dtype)
            return added_BHTS.masked_fill(~attendable_BHTS, float("-inf"))

        return self.once(dtype, make)

    @property
    def blocks(self) -> Blocks | None:
        """How the sequence is cut where the window is narrow; None: it is not."""
        window = self.window
        return None if window is None or self._inside else self.once("cut", lambda: self.scope.blocks(window))

    def in_blocks(self, batch: int) -> Mask:
        """The same for `blocks` of so many rows: of (B N, 1, size, M)."""
        blocks = self.blocks
        assert blocks is not None
        return self.once(("blocks", batch), lambda: self.scope.in_blocks(blocks, batch).mask(self.window))

    def part(self, queries: slice, keys: slice) -> Mask:
        """The same for some queries and keys, new at each call."""
        return self.scope.part(queries, keys).mask(self.window)

    def zero_fully_masked(self, x_BHTX: Tensor) -> Tensor:
        """Zeroes the rows of queries that have nothing to attend to, which `attendable` let see all keys."""
        fully_masked_BHT1 = self.fully_masked_BHT1
        return x_BHTX if fully_masked_BHT1 is None else x_BHTX.masked_fill(fully_masked_BHT1, 0.0)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key and shared by all later ones."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])


@dataclass
class Scope:
    """Who sees whom in one forward pass: gives the ready mask of a window, the same one to all layers.

    contiguous: keys stand at positions that count on, queries at the last T of them, and nothing is padding; then a
    flag or nothing at all replaces the mask. rotation: of queries and of keys, or None. places: where position
    encodings take positions to stand; masks do not. context_bias: of positions that depend on the content, or None;
    what is a part of a scope has none. shared: what layers leave for later ones, as the values of the first. The
    others: see `build_mask`.
    """

    query_positions_BT: Tensor
    key_positions_BS: Tensor
    causal: bool
    is_token_BS: Tensor | None = None
    contiguous: bool = False
    bias: Bias | None = None
    rotation: Rotation | None = None
    prefix_B1: Tensor | None = None
    context_bias: ContextBias | None = None
    places: Places | None = None
    shared: dict[object, Tensor] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[int | None, int], Mask] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None = None, num_keys: int | None = None) -> Mask:
        """The mask of a sliding window (None: of all keys), for the last num_keys (None: all)."""
        last = self.key_positions_BS.shape[1] if num_keys is None else num_keys
        if (window, last) not in self._masks:
            # Not of this scope itself: in a circle large masks would stay until Python looks for circles.
            self._masks[window, last] = Mask(self._of_last_keys(last), window)
        return self._masks[window, last]

    def _of_last_keys(self, number: int) -> Scope:
        first = self.key_positions_BS.shape[1] - number
        if not first:
            return self.fresh()
        is_token_BS = None if self.is_token_BS is None else self.is_token_BS[:, first:]
        return replace(self, key_positions_BS=self.key_positions_BS[:, first:], is_token_BS=is_token_BS, _masks={})

    def fresh(self) -> Scope:
        """The same scope, which makes its masks anew."""
        return replace(self, _masks={})

    def under(self, position: PositionEncoding) -> Scope:
        """The same with what another position encoding does."""
        bias, rotation = position.bias_if_any, position.rotation(self.places_BT)
        if bias is not None and self.places is not None:
            bias = self.places.biased(bias)
        by_content = position.context_bias_if_any
        return replace(self, bias=bias, context_bias=by_content, rotation=rotation, _masks={})

    @property
    def places_BT(self) -> Tensor:
        """Where position encodings take the queries to stand."""
        return self.query_positions_BT if self.places is None else self.places(self.query_positions_BT)

    @property
    def is_token_BT(self) -> Tensor | None:
        """False at queries that are padding, in self-attention; None: none is."""
        return None if self.is_token_BS is None else self.is_token_BS[:, -self.query_positions_BT.shape[1] :]

    def part(self, queries: slice, keys: slice) -> Scope:
        """The same for some queries and keys; nothing rotates there."""
        is_token_BS = None if self.is_token_BS is None else self.is_token_BS[:, keys]
        places = self.query_positions_BT[:, queries], self.key_positions_BS[:, keys]
        return Scope(*places, self.causal, is_token_BS, bias=self.bias, prefix_B1=self.prefix_B1)

    def rows(self, window: int | None) -> list[tuple[slice, slice]]:
        """Queries that follow one another, and the keys outside of which they see none."""
        num_queries, num_keys = self.query_positions_BT.shape[1], self.key_positions_BS.shape[1]
        in_order, found = self._in_order(), []
        for start in range(0, num_queries, ROWS):
            stop, first, last = min(start + ROWS, num_queries), 0, num_keys
            if in_order and window is not None:
                first, last = max(0, start - window + 1), min(stop + window - 1, num_keys)
            if in_order and not self.sees_after:
                last = stop
            found.append((slice(start, stop), slice(first, last)))
        return found

    def blocks(self, window: int) -> Blocks | None:
        """How the sequence is cut for a window; None where it cannot be, or that would not pay."""
        blocks = Blocks.of(window, self.sees_after, self.query_positions_BT)
        return None if blocks is None or not self._in_order() else blocks

    def in_blocks(self, blocks: Blocks, batch: int) -> Scope:
        """The same for blocks of so many rows."""
        positions_BGTX = self.query_positions_BT[:, None, :, None].expand(batch, -1, -1, -1)
        is_token_BS = self.query_positions_BT.new_ones(1, 1).bool() if self.is_token_BS is None else self.is_token_BS
        is_token_BGTX = is_token_BS[:, None, :, None].expand(positions_BGTX.shape)
        queries_BT, keys_BS, is_token_BS = (
            x_BGTX[:, 0, :, 0]
            for x_BGTX in (blocks.queries(positions_BGTX), blocks.keys(positions_BGTX), blocks.keys(is_token_BGTX))
        )
        count, bias = len(queries_BT) // batch, self.bias
        prefix_B1 = None if self.prefix_B1 is None else self.prefix_B1.expand(batch, 1).repeat_interleave(count, 0)
        if bias is not None and len(self.query_positions_BT) == 1:
            bias = partial(_repeated, bias, count)
        return Scope(queries_BT, keys_BS, self.causal, is_token_BS, bias=bias, prefix_B1=prefix_B1)

    @property
    def sees_after(self) -> bool:
        """Whether a query may see keys that come after it."""
        return not self.causal or self.prefix_B1 is not None

    def _in_order(self) -> bool:
        """Whether the queries are the keys, at places that count on as their positions do."""
        are_keys = self.query_positions_BT is self.key_positions_BS
        return are_keys and (self.contiguous or is_unbroken(self.query_positions_BT, self.is_token_BS))


def _repeated(bias: Bias, count: int, query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor | None:
    """A bias of positions that come again after `count` rows."""
    bias_BHTS = bias(query_positions_BT[:count], key_positions_BS[:count])
    return None if bias_BHTS is None else bias_BHTS.repeat(len(query_positions_BT) // count, 1, 1, 1)


@dataclass(frozen=True)
class Blocks:
    """N blocks of `size` queries, each of which sees the keys of its own block, of the one before and, where it may see
    what comes after, of the one after: M = 2 or 3 times `size`.

    size is at least the window, so that nothing that a token may attend to is left out; what is padding itself, and
    attends to anything, counts for nothing.
    """

    size: int
    sees_after: bool

    @classmethod
    def of(cls, window: int, sees_after: bool, positions_BT: Tensor) -> Blocks | None:
        """The blocks for a window; None where they would not pay."""
        blocks = cls(max(window, SMALLEST_BLOCK), sees_after)
        pays = positions_BT.device.type == "cpu" and positions_BT.shape[1] >= max(LEAST_LENGTH, 2 * blocks.num_keys)
        return blocks if pays else None

    @property
    def num_keys(self) -> int:
        """M."""
        return (3 if self.sees_after else 2) * self.size

    def queries(self, x_BGTX: Tensor) -> Tensor:
        """(B, G, T, X) as (B N, G, size, X), filled up with zeros."""
        x_BGNTX: Tensor = pad(x_BGTX, (0, 0, 0, -x_BGTX.shape[2] % self.size)).unflatten(2, (-1, self.size))
        return x_BGNTX.transpose(1, 2).flatten(0, 1)

    def keys(self, x_BGSX: Tensor) -> Tensor:
        """(B, G, S, X) as (B N, G, M, X), filled up on both sides."""
        x_BGSX = pad(x_BGSX, (0, 0, self.size, self._after(x_BGSX.shape[2])))
        x_BGNXM = x_BGSX.unfold(2, self.num_keys, self.size)
        return x_BGNXM.permute(0, 2, 1, 4, 3).flatten(0, 1)

    def joined(self, x_BHTX: Tensor, batch: int, length: int) -> Tensor:
        """Blocks of queries (B N, H, size, X) as (B, H, T, X)."""
        x_BNHTX: Tensor = x_BHTX.unflatten(0, (batch, -1))
        return x_BNHTX.transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _after(self, length: int) -> int:
        return -length % self.size + (self.size if self.sees_after else 0)


def is_unbroken(positions_BT: Tensor, is_token_BT: Tensor | None) -> bool:
    """Whether the real tokens of each row stand side by side at positions that count on."""
    steps_BT = positions_BT.diff(dim=1)
    if is_token_BT is None:
        return bool((steps_BT == 1).all())
    here_BT, before_BT = is_token_BT[:, 1:], is_token_BT[:, :-1]
    runs_B = is_token_BT[:, 0].int() + (here_BT & ~before_BT).sum(dim=1)
    return bool((runs_B <= 1).all() and ((steps_BT == 1) | ~(here_BT & before_BT)).all())


def build_scope(
    x_BTD: Tensor,
    position: PositionEncoding,
    causal: bool,
    positions_BT: Tensor | None = None,
    is_token_BT: Tensor | None = None,
    cache: KeyValueCache | None = None,
    prefix_B1: Tensor | None = None,
    places: Places | None = None,
) -> Scope:
    """The Scope of a self-attending stack; called once a forward, before its layers. Extends the cache by its tokens.
    Without `positions_BT`, positions count on from what is cached, and padding (is_token_BT False) is not counted.
    Raises ValueError past the cache's capacity or past the last position that the encoding can serve.
    """
    counted, contiguous = positions_BT is None, positions_BT is None and is_token_BT is None
    if positions_BT is None:
        positions_BT = _next_positions(x_BTD, is_token_BT, cache)
    key_positions_BS, is_token_BS = positions_BT, is_token_BT
    if cache is not None:
        cache.extend(positions_BT, is_token_BT, counted)
        key_positions_BS, is_token_BS, contiguous = cache.positions_BS, cache.is_token_BS, cache.contiguous
    if position.longest is not None:
        # Reading a value stalls a GPU, so the usual cases are decided by the shape alone: none counts past the length.
        length = key_positions_BS.shape[1]
        step = 1 if places is None else places.step
        last = length - 1 if contiguous or (counted and length * step <= position.longest) else int(positions_BT.max())
        position.check(last * step)
    scope = Scope(positions_BT, key_positions_BS, causal, is_token_BS, contiguous, prefix_B1=prefix_B1, places=places)
    return scope.under(position)


def _next_positions(x_BTD: Tensor, is_token_BT: Tensor | None, cache: KeyValueCache | None) -> Tensor:
    if is_token_BT is None and (cache is None or cache.contiguous):
        start = 0 if cache is None else cache.length
        return torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)[None]
    if is_token_BT is None:
        is_token_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    counted_BT = is_token_BT.long().cumsum(dim=1)
    if cache is not None and cache.length > 0:
        counted_BT = counted_BT + cache.num_tokens_B1
    return (counted_BT - 1).clamp(min=0)
