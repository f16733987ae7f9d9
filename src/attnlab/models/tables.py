"""The tables at both ends of a model of text. Legend: B batch, T length, D model width, V vocabulary."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.ranges import PositiveInt, check_ranges


@check_ranges
class Tables(nn.Module):
    """
    The embedding and the output, and of two texts the source's embedding.

    source_vocabulary_size: None: there is no source, or it has the target's vocabulary. share_embeddings: one table for source and
    target; a language model has but one. tied: the output is the embedding's transpose. scale_embedding: embeddings times sqrt(d_model)
    (Vaswani et al. 2017, section 3.4). Raises ValueError for sizes below 1 and for a shared table of two vocabularies.
    """

    def __init__(
        self,
        vocabulary_size: PositiveInt,
        d_model: PositiveInt,
        tied: bool = True,
        share_embeddings: bool = True,
        source_vocabulary_size: PositiveInt | None = None,
        scale_embedding: bool = False,
    ) -> None:
        super().__init__()
        source_size = vocabulary_size if source_vocabulary_size is None else source_vocabulary_size
        check_one_vocabulary(share_embeddings, source_size, vocabulary_size)
        self.scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.embedding = nn.Embedding(vocabulary_size, d_model)
        self.source_embedding = None if share_embeddings else nn.Embedding(source_size, d_model)
        self.head = None if tied else nn.Linear(d_model, vocabulary_size, bias=False)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, D)."""
        return self._scaled(self.embedding, tokens_BT)

    def embed_source(self, tokens_BS: Tensor) -> Tensor:
        """(B, S, D)."""
        return self._scaled(self.embedding if self.source_embedding is None else self.source_embedding, tokens_BS)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """(B, T, V)."""
        return F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight)

    def _scaled(self, table: nn.Embedding, tokens_BT: Tensor) -> Tensor:
        x_BTD: Tensor = table(tokens_BT)
        return x_BTD if self.scale == 1.0 else x_BTD * self.scale


def check_one_vocabulary(share_embeddings: bool, source_size: int, vocabulary_size: int) -> None:
    """Raises ValueError where one table is to serve two vocabularies."""
    if share_embeddings and source_size != vocabulary_size:
        raise ValueError(
            f"share_embeddings=true needs one vocabulary; the source has {source_size} tokens and the target "
            f"{vocabulary_size}: make it joint, or set share_embeddings=false"
        )
