"""Norms over the model width. Legend: B batch, T length, D model width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlab.ranges import PositiveFloat, PositiveInt, check_ranges


@check_ranges
class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450): (x - mean) / std over D, a gain and a bias."""

    def __init__(self, d_model: PositiveInt, eps: PositiveFloat = 1e-5, bias: bool = True) -> None:
        super().__init__(d_model, eps=eps, bias=bias)


@check_ranges
class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467): x / rms(x) over D, then a gain."""

    def __init__(self, d_model: PositiveInt, eps: PositiveFloat = 1e-6) -> None:
        super().__init__(d_model, eps=eps)


@check_ranges
class DynamicTanh(nn.Module):
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622): gain * tanh(alpha x) + bias, alpha a learned scalar."""

    def __init__(self, d_model: PositiveInt, alpha: PositiveFloat = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.weight, torch.tanh(self.alpha * x_BTD))
