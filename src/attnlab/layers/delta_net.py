"""Mixers whose state is corrected: a token replaces what stands under its key by the delta rule.

Shapes: B batch, T length, D model width, H heads, K key width, V value width, Y = H (2 K + V).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.linear_attention import DecayingState, StateFields, Terms
from attnlab.layers.pointwise import Sides, wide
from attnlab.layers.scope import Scope
from attnlab.ranges import NonNegativeInt, PositiveInt, check_ranges


@check_ranges
class DeltaNet(DecayingState):
    """DeltaNet (Yang et al. 2024, arXiv 2406.06484, sections 2.2 and 3.4): queries and keys of norm 1 behind a SiLU,
    beta = sigmoid(W x) for each head, an RMS norm of each head's output. negative_eigenvalues: twice that beta, so that
    the state can turn round (Grazzi et al. 2024, arXiv 2411.12537). fields: see StateMixer.
    """

    has_unit_keys = True
    sides: ClassVar[Mapping[str, Sides]] = {**DecayingState.sides, "beta": "heads"}

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        negative_eigenvalues: bool = False,
        convolution: NonNegativeInt | None = 4,
        **fields: Unpack[StateFields],
    ) -> None:
        super().__init__(d_model, num_heads, convolution=convolution, **fields)
        self.negative_eigenvalues = negative_eigenvalues
        self.beta = nn.Linear(d_model, num_heads, bias=False)
        self.norm = nn.RMSNorm(self.d_value, eps=1e-5)

    def terms(self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope) -> Terms:
        if self.convolution is None:  # which ends in one itself
            q_BHTK, k_BHTK, v_BHTV = map(F.silu, (q_BHTK, k_BHTK, v_BHTV))
        beta_BHT1 = (2 if self.negative_eigenvalues else 1) * wide(self._heads(self.beta(x_BTD))).sigmoid()
        return Terms(_unit(q_BHTK), _unit(k_BHTK), v_BHTV, self.log_decay(x_BTD), beta_BHT1)

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """Of the state at each token, (B or 1, H or 1, T, 1)."""
        return wide(x_BTD[:1, :, 0]).new_zeros(1, 1, x_BTD.shape[1], 1)

    def finished(self, x_BTD: Tensor, out_BTHV: Tensor) -> Tensor:
        normed_BTI: Tensor = self.norm(out_BTHV).flatten(2)
        return normed_BTI


@check_ranges
class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464, section 3; in Qwen3-Next): DeltaNet whose state also decays,
    by exp(-exp(A) softplus(W x + b)) for each head, and whose output a SiLU gates. exp(A) starts uniform up to 16,
    softplus(b) log-uniform from 0.001 to 0.1 (Mamba-2, Dao & Gu 2024, arXiv 2405.21060). fields: see DeltaNet.
    """

    sides: ClassVar[Mapping[str, Sides]] = {**DeltaNet.sides, "step": "heads", "gate": "both"}

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        negative_eigenvalues: bool = False,
        convolution: NonNegativeInt | None = 4,
        **fields: Unpack[StateFields],
    ) -> None:
        super().__init__(d_model, num_heads, negative_eigenvalues, convolution, **fields)
        self.step = nn.Linear(d_model, num_heads, bias=False)
        self.gate = nn.Linear(d_model, num_heads * self.d_value, bias=fields.get("bias", False))
        # From 0.01 on, so that the logarithm is finite, as in Qwen3-Next.
        self.log_rate_H = nn.Parameter(torch.empty(num_heads).uniform_(0.01, 16).log())
        step_H = torch.empty(num_heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.step_bias_H = nn.Parameter(step_H.expm1().log())  # softplus of which is the step

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        step_BTH = F.softplus(wide(self.step(x_BTD)) + wide(self.step_bias_H))
        return -(wide(self.log_rate_H).exp() * step_BTH).transpose(1, 2)[..., None]

    def finished(self, x_BTD: Tensor, out_BTHV: Tensor) -> Tensor:
        return super().finished(x_BTD, out_BTHV) * F.silu(self.gate(x_BTD))


def _unit(x_BHTK: Tensor) -> Tensor:
    """Of norm 1; of zeros, zeros."""
    x_BHTK = wide(x_BHTK)
    return x_BHTK * (x_BHTK.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()
