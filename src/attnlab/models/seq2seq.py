"""What every sequence-to-sequence model offers to tasks and to decoding. Legend: B batch, S source length, T target length, V vocabulary."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class Seq2Seq(nn.Module):
    """
    A model of a target sequence given a source.

    vocabulary_size: of the target. longest: how many positions of a source, and of a target, it can serve; None: any number.
    """

    vocabulary_size: int
    d_model: int
    longest: int | None = None

    @abstractmethod
    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        is_source_BS: Tensor | None = None,
        is_target_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `target_BT`; the masks are True at real tokens (None: all), padding on the right."""
        raise NotImplementedError(f"{type(self).__name__} gives no forward")

    @abstractmethod
    def start(self, source_BS: Tensor, is_source_BS: Tensor | None = None, capacity: int = 256) -> Any:
        """
        The state from which up to `capacity` target tokens are decoded.

        Its `select(rows)` keeps these rows of the batch in this order; rows are indices, which may stand several times, or a bool mask.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no start")

    @abstractmethod
    def step(self, tokens_B: Tensor, state: Any) -> Tensor:
        """Appends a token to each row of the state and gives the logits (B, V) of the next."""
        raise NotImplementedError(f"{type(self).__name__} gives no step")
