"""A bidirectional encoder that predicts masked tokens, on the seams.

Legend: B batch, T length, D model width, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.layers.init import Normal002
from attnlab.layers.positions import Learned
from attnlab.layers.stack import PostNorm, Stack, norm_of
from attnlab.models.base import Encoder, Transformer, TransformerFields
from attnlab.parts import build_part
from attnlab.ranges import NonNegativeInt, PositiveInt, check_ranges


@check_ranges
class Bert(Transformer, Encoder):
    """BERT (Devlin et al. 2019, arXiv 1810.04805); tokens (B, T) to logits (B, T, V), or (N, V) of chosen positions
    alone.

    num_segments: texts that an input may hold, told apart by an embedding; 0: none is added. pooler: a dense layer and
    tanh on the first token's state. next_sentence: a second output, on the pooler, says whether two segments follow
    each other (section 3.1, task 2). fields: see TransformerFields; embedding_norm as in the authors' code. The output
    is a dense layer, GELU and a norm of the residual's kind, then the embedding's transpose (where `tied`) and a bias,
    as there. Raises ValueError for sizes below 1 and where a part refuses a width.
    """

    defaults: ClassVar[TransformerFields] = {
        **Transformer.defaults,
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4,
        "dropout": 0.1,
        "bias": True,
        "embedding_norm": True,
        "position": Learned,
        "residual": PostNorm,
        "init": Normal002,
    }

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        max_length: PositiveInt,
        num_segments: NonNegativeInt = 0,
        pooler: bool = False,
        next_sentence: bool = False,
        **fields: Unpack[TransformerFields],
    ) -> None:
        fields = self.described(fields)
        super().__init__(vocabulary_size, fields)
        d_model = self.d_model
        self.segments = nn.Embedding(num_segments, d_model) if num_segments else None
        self.stack = Stack(fields, causal=False, max_length=max_length)
        self.transform = nn.Linear(d_model, d_model)
        self.transform_norm = build_part(norm_of(fields["residual"]), d_model=d_model)
        self.head = self.new_head(fields)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.pooler = nn.Linear(d_model, d_model) if pooler or next_sentence else None
        self.next_sentence = nn.Linear(d_model, 2) if next_sentence else None
        self.longest = self.stack.position.longest
        self.draw(fields["init"])

    def encode(self, tokens_BT: Tensor, is_token_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tensor:
        """The states (B, T, D). Raises ValueError past the last position that the encoding can serve."""
        x_BTD = self.embed(tokens_BT)
        if self.segments is not None:
            segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            x_BTD = x_BTD + self.segments(segments_BT)
        states_BTD: Tensor = self.stack(x_BTD, is_token_BT=is_token_BT)
        return states_BTD

    def forward(
        self,
        tokens_BT: Tensor,
        is_token_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        select_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); with `select_BT`, of the positions where it is True alone, row by row (N, V)."""
        return self.predict(self.encode(tokens_BT, is_token_BT, segments_BT), select_BT)

    def predict(self, states_BTD: Tensor, select_BT: Tensor | None = None) -> Tensor:
        """The output layer on states, as `forward` gives it."""
        states = states_BTD if select_BT is None else states_BTD[select_BT]
        return self.logits(self.transform_norm(F.gelu(self.transform(states))), self.head_bias)

    def follows(self, states_BTD: Tensor) -> Tensor:
        """Logits (B, 2) of whether the second segment does not or does follow the first."""
        assert self.next_sentence is not None, "next_sentence=true builds this output"
        logits_B2: Tensor = self.next_sentence(self.pool(states_BTD))
        return logits_B2

    def pool(self, states_BTD: Tensor) -> Tensor:
        """The first token's state behind a dense layer and tanh, (B, D)."""
        assert self.pooler is not None, "pooler=true builds this layer"
        return torch.tanh(self.pooler(states_BTD[:, 0]))
