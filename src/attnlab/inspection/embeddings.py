"""Texts as vectors, by the states of a trained encoder. Legend: N texts, T length, D model width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attnlab.data import Tokenizer
from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.models.base import Encoder

BATCH = 32


def encode(tokenizer: Tokenizer, texts: Sequence[str], longest: int | None) -> tuple[list[np.ndarray], list[int]]:
    """The token rows of texts with the marks that an encoder sees, and which of them were cut."""
    vocabulary = Vocabulary(tokenizer)
    marks = vocabulary.special_tokens.text
    room = None if longest is None else longest - sum(map(len, marks))
    encoded = [vocabulary.encode_text(text) for text in texts]
    cut = [] if room is None else [place for place, row in enumerate(encoded) if len(row) > room]
    return [add_special_tokens(marks, row[:room]) for row in encoded], cut


@torch.inference_mode()
def embeddings(encoder: Encoder, rows: Sequence[np.ndarray], pooling: str = "mean") -> Tensor:
    """
    A vector of length 1 a text (N, D), from its states: their mean over all tokens, marks included, or the first one's.

    The mean is the published pooling of sentence-transformers (Reimers & Gurevych 2019, arXiv 1908.10084, section 3).
    """
    found = []
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        tokens_NT = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        is_token_NT = torch.zeros(tokens_NT.shape, dtype=torch.bool)
        for place, row in enumerate(part):
            tokens_NT[place, : len(row)], is_token_NT[place, : len(row)] = torch.from_numpy(row), True
        states_NTD = encoder.encode(tokens_NT, is_token_NT)
        real_NT1 = is_token_NT[:, :, None].to(states_NTD.dtype)
        pooled_ND = states_NTD[:, 0] if pooling == "first" else (states_NTD * real_NT1).sum(1) / real_NT1.sum(1)
        found.append(torch.nn.functional.normalize(pooled_ND, dim=1))
    return torch.cat(found)
