"""What every encoder of text offers to the tasks of understanding. Legend: B batch, T length, D model width."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module):
    """A model of what each token means among all others. longest: how many positions it can serve; None: any number."""

    vocabulary_size: int
    d_model: int
    longest: int | None = None

    @abstractmethod
    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D); is_token_BT is False at padding (None: nowhere), segments_BT tells two texts apart."""
        raise NotImplementedError(f"{type(self).__name__} gives no encode")
