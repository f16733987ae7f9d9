"""What every language model offers to tasks and to decoding. Legend: B batch, T length, V vocabulary."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class LanguageModel(nn.Module):
    """A model of the next token. longest: how many positions it can serve; None: any number."""

    vocabulary_size: int
    d_model: int

    @property
    def longest(self) -> int | None:
        """How many positions it can serve; None: any number."""
        return None

    @abstractmethod
    def new_cache(self, capacity: int) -> Any:
        """An empty cache for decoding up to `capacity` tokens; it has `select(rows)`."""
        raise NotImplementedError(f"{type(self).__name__} gives no cache")

    @abstractmethod
    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token after each; is_token_BT is False at padding."""
        raise NotImplementedError(f"{type(self).__name__} gives no forward")
