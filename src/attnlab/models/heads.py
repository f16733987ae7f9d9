"""Outputs of tasks on an encoder's states. Legend: B batch, T length, D model width, C classes, N chosen positions."""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.pointwise import Dropout
from attnlab.models.base import Encoder
from attnlab.ranges import PositiveInt, Rate, check_ranges


class HeadFields(TypedDict, total=False):
    """dropout: on what goes into the output. token_dropout: the share of input tokens that the token `mask` takes the
    place of in training, against overfitting.
    """

    dropout: Rate
    token_dropout: Rate
    mask: int


@check_ranges
class EncoderHead(nn.Module):
    """A linear output on an encoder's states, its weights drawn from torch's generator; a subclass says on which
    states.
    """

    def __init__(
        self, encoder: Encoder, num_outputs: PositiveInt, dropout: Rate = 0.1, token_dropout: Rate = 0.0, mask: int = 0
    ) -> None:
        super().__init__()
        self.encoder, self.mask = encoder, mask
        self.vocabulary_size, self.d_model = encoder.vocabulary_size, encoder.d_model
        self.dropout, self.token_dropout = Dropout(dropout), token_dropout
        self.output = nn.Linear(encoder.d_model, num_outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None, segments_BT: Tensor | None = None) -> Tensor:
        """The encoder's states (B, T, D), in training of a text with hidden tokens."""
        if self.training and self.token_dropout:
            hidden_BT = torch.rand(tokens_BT.shape, device=tokens_BT.device) < self.token_dropout
            tokens_BT = tokens_BT.masked_fill(hidden_BT, self.mask)
        return self.encoder.encode(tokens_BT, is_token_BT, segments_BT)


@check_ranges
class SequenceClassifier(EncoderHead):
    """One class a text; tokens (B, T) to logits (B, C), from the first token's state or real tokens' mean."""

    def __init__(
        self,
        encoder: Encoder,
        num_classes: PositiveInt,
        pooling: Literal["first", "mean"] = "mean",
        **fields: Unpack[HeadFields],
    ) -> None:
        super().__init__(encoder, num_classes, **fields)
        self.pooling = pooling

    def forward(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """Logits (B, C); is_token_BT is False at padding."""
        states_BTD = self.encode(tokens_BT, is_token_BT)
        logits_BC: Tensor = self.output(self.dropout(pool(states_BTD, is_token_BT, self.pooling)))
        return logits_BC


def pool(states_BTD: Tensor, is_token_BT: Tensor | None, pooling: str) -> Tensor:
    """The first token's state, or real tokens' mean, (B, D)."""
    if pooling == "first":
        return states_BTD[:, 0]
    if is_token_BT is None:
        return states_BTD.mean(dim=1)
    real_BT1 = is_token_BT[:, :, None].to(states_BTD.dtype)
    return (states_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1)


class TokenClassifier(EncoderHead):
    """One class a token (Devlin et al. 2019, section 5.3); tokens (B, T) to logits (N, C) of chosen positions."""

    def forward(self, tokens_BT: Tensor, places_N: Tensor, is_token_BT: Tensor | None = None) -> Tensor:
        """Logits (N, C) at these of the B T places, counted row by row; is_token_BT is False at padding."""
        chosen_ND = self.encode(tokens_BT, is_token_BT).flatten(0, 1).index_select(0, places_N)
        logits_NC: Tensor = self.output(self.dropout(chosen_ND))
        return logits_NC


@check_ranges
class SpanFinder(EncoderHead):
    """Where an answer starts and ends (Devlin et al. 2019, section 4.2); tokens to two logits a position (B, T)."""

    def __init__(self, encoder: Encoder, **fields: Unpack[HeadFields]) -> None:
        super().__init__(encoder, 2, **fields)

    def forward(
        self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T) of the start and of the end; segments_BT tells question and text apart."""
        logits_BT2 = self.output(self.dropout(self.encode(tokens_BT, is_token_BT, segments_BT)))
        start_BT, end_BT = logits_BT2.unbind(dim=2)
        return start_BT, end_BT
