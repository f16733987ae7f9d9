"""Windows of a long row of tokens, for training (random order, resumable) and for evaluation (every length scores the same tokens).

Letters of shapes: N tokens, B windows of a batch, T window length.
"""

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch

from attnlab.data.cache import DataError

ENDLESS = (
    1 << 40
)  # batches; a length at all keeps Lightning from fetching ahead, which would put the saved order one batch off


class Windows:
    """Cuts rows of `length` input tokens and their next tokens out of tokens_N, a whole batch in one indexing."""

    def __init__(self, tokens_N: np.ndarray, length: int) -> None:
        if length < 1:
            raise DataError(f"a window length of {length} tokens cannot be used; accepted: 1 or more")
        if len(tokens_N) < length + 1:
            raise DataError(
                f"{len(tokens_N):,} tokens are too few for one window of {length:,} tokens and the token "
                f"after it, {length + 1:,} in all; use a longer text, a larger share of it (data.split) or a shorter context (data.context)"
            )
        self.length = length
        self.rows = np.lib.stride_tricks.sliding_window_view(tokens_N, length + 1)

    def batch(self, starts_B: np.ndarray) -> dict[str, torch.Tensor]:
        """{"tokens": (B, T), "targets": (B, T)} in int64, windows that begin at `starts_B`."""
        rows_BT = self.rows[starts_B].astype(np.int64)
        tokens_BT, targets_BT = np.ascontiguousarray(rows_BT[:, :-1]), np.ascontiguousarray(rows_BT[:, 1:])
        return {"tokens": torch.from_numpy(tokens_BT), "targets": torch.from_numpy(targets_BT)}


class WindowBatches:
    """The endless training order: every epoch covers the text once with windows that do not overlap, from a random offset, shuffled.

    Batch i is a function of the arguments and i alone. A batch may begin in one epoch and end in the next, so all are full; the
    windows of batch i are the same whether one rank has 2 B rows, two ranks have B, or one rank takes two batches of B.
    """

    def __init__(
        self,
        tokens_N: np.ndarray,
        context: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"data.batch_size={batch_size} cannot be used; accepted: 1 or more")
        assert 0 <= rank < world_size, (rank, world_size)
        self.windows = Windows(tokens_N, context)
        self.num_tokens, self.context, self.seed = len(tokens_N), context, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        # One window fewer than fit, so that each epoch has the same number whatever its offset below `context`.
        self.windows_per_epoch = max(1, (self.num_tokens - context) // context)
        self.windows_seen = 0
        self._epoch: tuple[int, np.ndarray] = (-1, np.array([]))

    def starts(self, index: int) -> np.ndarray:
        """Where the windows (B,) of this rank's batch `index` begin."""
        first = (index * self.world_size + self.rank) * self.batch_size
        return self._starts_from(first)

    def _starts_from(self, first: int) -> np.ndarray:
        parts, missing = [], self.batch_size
        while missing:
            epoch, place = divmod(first, self.windows_per_epoch)
            parts.append(self._epoch_starts(epoch)[place : place + missing])
            first, missing = first + len(parts[-1]), missing - len(parts[-1])
        return np.concatenate(parts)

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
            slack = self.num_tokens - 1 - self.windows_per_epoch * self.context
            offset = random.integers(min(slack, self.context - 1) + 1)
            self._epoch = (epoch, offset + self.context * random.permutation(self.windows_per_epoch))
        return self._epoch[1]

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        return self.windows.batch(self.next_starts()[1])

    def next_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the next batch's windows among all that ranks ever see, and where they begin, (B,) each; moves on."""
        first = self.windows_seen + self.rank * self.batch_size
        self.windows_seen += self.batch_size * self.world_size
        return first + np.arange(self.batch_size), self._starts_from(first)

    def state_dict(self) -> dict[str, int]:
        """The place in the order: windows seen by all ranks together, so that it holds for another number of ranks too."""
        return {"windows_seen": self.windows_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a place that `state_dict` gave."""
        self.windows_seen = int(state["windows_seen"])


class EvaluationWindows:
    """Batches that score each of the same target tokens once, whatever the window length and the stride.

    The targets follow a lead-in of `longest` tokens (fewer where the text is short) and are as many as fit into the text and into
    `max_tokens`, a multiple of `longest` and at least that. A window scores its last `stride` targets: stride = length (the default)
    makes windows that do not overlap; a smaller one slides, so that each target has at least length - stride tokens before it.
    Batches are {"tokens": (B, T), "targets": (B, T), "scored": (B, T) bool}. Raises DataError where the text is too short.
    """

    def __init__(
        self,
        tokens_N: np.ndarray,
        length: int,
        longest: int | None = None,
        stride: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = 32,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest, stride = longest or length, stride or length
        if not 1 <= stride <= length <= longest:
            raise DataError(
                f"stride {stride}, length {length}, longest {longest} cannot be used; accepted: 1 <= stride <= length <= longest"
            )
        Windows(tokens_N, longest)  # too short for the longest means too short for all: their figures are compared
        self.windows = Windows(tokens_N, length)
        lead = min(longest, len(tokens_N) - 1 - longest)
        available = len(tokens_N) - 1 - lead
        wanted = available if max_tokens is None else max(longest, min(max_tokens, available))
        self.num_targets = wanted // longest * longest
        self.first_target = lead + 1  # where the scored targets begin in tokens_N
        self.batch_size = batch_size
        # Window i scores the targets from lower[i] up to but not including upper[i]; target j is the token after input j.
        lower = np.arange(lead, lead + self.num_targets, stride)[rank::world_size]
        upper = np.minimum(lower + stride, lead + self.num_targets)
        self.lower, self.upper, self.start = lower, upper, np.maximum(upper - length, 0)

    def __len__(self) -> int:
        return -(-len(self.start) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for i in range(0, len(self.start), self.batch_size):
            now = slice(i, i + self.batch_size)
            place_BT = self.start[now, None] + np.arange(self.windows.length)
            scored_BT = (place_BT >= self.lower[now, None]) & (place_BT < self.upper[now, None])
            yield {**self.windows.batch(self.start[now]), "scored": torch.from_numpy(scored_BT)}
