"""Attention of a recurrent decoder to its source.

Legend: B batch, T target length, S source length, D width of states, A of a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Score = Literal["general", "dot"]
_watchers: list[Callable[[Tensor, Tensor | None], None]] = []  # told of the weights of every call of `weigh`


class AdditiveAttention(nn.Module):
    """v . tanh(W s + U h), s and h states of decoder and source (Bahdanau et al. 2015, arXiv 1409.0473, appendix A.1.2)."""

    def __init__(self, d_query: int, d_source: int, d_score: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_query, d_score, bias=False)
        self.key = nn.Linear(d_source, d_score, bias=False)
        self.score = nn.Linear(d_score, 1, bias=False)

    def keys(self, states_BSD: Tensor) -> Tensor:
        """What is made of a source once, (B, S, A)."""
        keys_BSA: Tensor = self.key(states_BSD)
        return keys_BSA

    def scores(self, queries_BTD: Tensor, keys_BSA: Tensor) -> Tensor:
        """(B, T, S)."""
        sums_BTSA = self.query(queries_BTD)[:, :, None] + keys_BSA[:, None]
        scores_BTS: Tensor = self.score(sums_BTSA.tanh())[..., 0]
        return scores_BTS


class ProductAttention(nn.Module):
    """s . W h ("general") or s . h ("dot"), s and h states of decoder and source (Luong et al. 2015, arXiv 1508.04025)."""

    def __init__(self, d_query: int, d_source: int, score: Score = "general") -> None:
        super().__init__()
        if score not in ("general", "dot"):
            raise ValueError(f"score={score}: there is no such score; accepted: general, dot")
        self.key = nn.Linear(d_source, d_query, bias=False) if score == "general" else nn.Identity()

    def keys(self, states_BSD: Tensor) -> Tensor:
        """What is made of a source once, (B, S, D)."""
        keys_BSD: Tensor = self.key(states_BSD)
        return keys_BSD

    def scores(self, queries_BTD: Tensor, keys_BSD: Tensor) -> Tensor:
        """(B, T, S)."""
        return queries_BTD @ keys_BSD.transpose(1, 2)


def weigh(scores_BTS: Tensor, values_BSD: Tensor, is_source_BS: Tensor | None) -> Tensor:
    """The values' mean (B, T, D), weighted by the scores' softmax over real tokens; zeros where a source has none."""
    weights_BTS = alignment(scores_BTS, is_source_BS)
    for tell in _watchers:
        tell(weights_BTS, is_source_BS)
    return torch.bmm(weights_BTS.to(values_BSD.dtype), values_BSD)


def alignment(scores_BTS: Tensor, is_source_BS: Tensor | None) -> Tensor:
    """The softmax of the scores over real tokens, (B, T, S); zeros where a source has none."""
    if is_source_BS is None:
        return scores_BTS.softmax(dim=2)
    padding_B1S = ~is_source_BS[:, None]
    weights_BTS = scores_BTS.masked_fill(padding_B1S, torch.finfo(scores_BTS.dtype).min).softmax(dim=2)
    return weights_BTS.masked_fill(padding_B1S, 0.0)


@contextmanager
def watched(tell: Callable[[Tensor, Tensor | None], None]) -> Iterator[None]:
    """Inside, `tell` is called with the weights (B, T, S) of every `weigh`, and with is_source_BS."""
    _watchers.append(tell)
    try:
        yield
    finally:
        _watchers.remove(tell)
