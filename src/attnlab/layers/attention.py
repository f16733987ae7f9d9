"""Attention, within a sequence or from one to another.

Shapes: B batch, T target length, S source length, D model width, H heads, G key/value heads, K head width, I = H K,
J = G K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.backends import Backend, Scores, check_backend, choose_backend
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.scope import Scope
from attnlab.parts import Choices
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges, must_be


@check_ranges
class Attention(Mixer):
    """Scaled dot-product attention with learned projections (Vaswani et al. 2017, sec. 3.2); x (B, T, D) to (B, T, D).

    num_key_value_heads: keys and values shared by groups of heads (Ainslie et al. 2023); None: the class's own number.
    d_head: None: d_model / num_heads. dropout: on the weights. bias: of the projections. qk_norm: RMS norm on each
    head's queries and keys before rotation (Dehghani et al. 2023; Qwen3). output_gate: sigmoid gate from x on the
    heads' output (Qiu et al. 2025, arXiv 2505.06708). window: a query sees itself and the window-1 keys before it, on
    both sides where not causal (Beltagy et al. 2020). soft_cap: scores become c tanh(score / c) before bias and mask
    (Gemma 2, arXiv 2408.00118). scale: of the scores; None: d_head^-0.5 (T5 has 1). backend: auto, fused, math, eager
    or flex; the attribute may be set to a Backend object. Raises ValueError for sizes that do not divide and fields
    that cannot be served.
    """

    takes_rotation = takes_bias = sees_both_sides = reads_memory = True
    default_key_value_heads: ClassVar[int | None] = None  # None: as many as heads
    fixed_key_value_heads: ClassVar[bool] = False

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        num_key_value_heads: PositiveInt | None = None,
        d_head: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = False,
        qk_norm: bool = False,
        output_gate: bool = False,
        window: PositiveInt | None = None,
        soft_cap: PositiveFloat | None = None,
        scale: PositiveFloat | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_backend(backend, soft_cap, dropout)
        self.num_heads = num_heads
        self.d_head = head_width(d_model, num_heads, d_head)
        self.num_key_value_heads = self.key_value_heads(num_heads, num_key_value_heads)
        self.dropout, self.window, self.soft_cap = dropout, window, soft_cap
        self.backend: str | Backend = backend
        self.scale = self.d_head**-0.5 if scale is None else scale
        inner, shared = num_heads * self.d_head, self.num_key_value_heads * self.d_head
        self.query = nn.Linear(d_model, inner, bias=bias)
        self.key = nn.Linear(d_model, shared, bias=bias)
        self.value = nn.Linear(d_model, shared, bias=bias)
        self.output = nn.Linear(inner, d_model, bias=bias)
        self.gate = nn.Linear(d_model, inner, bias=bias) if output_gate else None
        self.query_norm = nn.RMSNorm(self.d_head, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(self.d_head, eps=1e-6) if qk_norm else None

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        d_model, num_heads = choices.get("model.d_model"), choices.get("model.num_heads")
        if d_model and num_heads and not choices.get("attention.d_head") and d_model % num_heads:
            wanted = f"one of {divisors(d_model)}, which divide model.d_model={d_model}"
            yield must_be("model.num_heads", wanted, num_heads)
        if choices.get("attention.backend") == "fused" and choices.get("attention.soft_cap") is not None:
            yield "attention.backend: fused has no soft cap; choose attention.backend=auto, math, eager or flex"

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Attends within `scope`; with a cache, also to the keys and values of earlier forwards, and adds this one's.
        With a memory, keys and values are made of its states instead of x, and `scope` is the memory's.
        """
        if memory is None:
            q_BTI, *kv_BTJ = self._projected(x_BTD, scope, cache)
            k_BGSK, v_BGSK = self._key_and_value_heads(*kv_BTJ)
        else:
            q_BTI, (k_BGSK, v_BGSK) = self.query(x_BTD), memory.keys_and_values(self)
        q_BHTK = self._heads(q_BTI, self.num_heads)
        if self.query_norm is not None:
            q_BHTK = self.query_norm(q_BHTK)
        if scope.rotate is not None:
            q_BHTK, k_BGSK = scope.rotate(q_BHTK), scope.rotate(k_BGSK)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        scores = Scores(self.scale, self.soft_cap, self.dropout if self.training else 0.0)
        mask = scope.mask(self.window)
        of_scores = (self.soft_cap, x_BTD.device.type, scores.dropout)
        attend = choose_backend(self.backend, *of_scores, mask, x_BTD.shape[1])
        out_BTI = attend(q_BHTK, k_BGSK, v_BGSK, mask, scores).transpose(1, 2).flatten(2)
        if self.gate is not None:
            out_BTI = out_BTI * self.gate(x_BTD).sigmoid()
        projected_BTD: Tensor = self.output(out_BTI)
        return projected_BTD

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, not rotated yet, and values, (B, G, S, K) each."""
        return self._key_and_value_heads(self.key(x_BSD), self.value(x_BSD))

    def _key_and_value_heads(self, k_BSJ: Tensor, v_BSJ: Tensor) -> tuple[Tensor, Tensor]:
        k_BGSK, v_BGSK = (self._heads(x_BSJ, self.num_key_value_heads) for x_BSJ in (k_BSJ, v_BSJ))
        return k_BGSK if self.key_norm is None else self.key_norm(k_BGSK), v_BGSK

    def _projected(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Sequence[Tensor]:
        """Queries, keys and values of all heads. In training off the CPU by one matrix product, as a GPU waits longer
        for three; the weights stay apart for all who know them by name. A CPU takes as long for three as for one.
        """
        parts = (self.query, self.key, self.value)
        if not _joins(x_BTD):
            return [part(x_BTD) for part in parts]
        weights: list[Tensor] = [part.weight for part in parts]
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        projected_BTX = F.linear(x_BTD, torch.cat(weights), torch.cat(biases) if biases else None)
        return torch.split(projected_BTX, [part.out_features for part in parts], dim=-1)

    def _heads(self, x_BTI: Tensor, num_heads: int) -> Tensor:
        heads_BHTK: Tensor = x_BTI.unflatten(2, (num_heads, self.d_head)).transpose(1, 2)
        return heads_BHTK

    @classmethod
    def key_value_heads(cls, num_heads: int, asked: int | None) -> int:
        """The number of key/value heads for what was asked. Raises ValueError where it does not divide the heads."""
        default = cls.default_key_value_heads or num_heads
        shared = default if asked is None else asked
        if cls.fixed_key_value_heads and shared != default:
            raise ValueError(
                f"{cls.__name__} fixes num_key_value_heads, got {asked}; accepted: null, or choose grouped_query"
            )
        if num_heads % shared:
            raise ValueError(
                f"num_key_value_heads={shared} does not divide num_heads={num_heads}; accepted: {divisors(num_heads)}"
            )
        return shared


def _joins(x_BTD: Tensor) -> bool:
    """Whether queries, keys and values of this stream are one matrix product."""
    return x_BTD.device.type != "cpu" and torch.is_grad_enabled()


class MultiHead(Attention):
    """Keys and values of its own for every head (Vaswani et al. 2017)."""

    fixed_key_value_heads = True


class MultiQuery(Attention):
    """One head of keys and values for all (Shazeer 2019, arXiv 1911.02150)."""

    default_key_value_heads = 1
    fixed_key_value_heads = True


class GroupedQuery(Attention):
    """Keys and values shared by groups of heads (Ainslie et al. 2023, arXiv 2305.13245); two unless asked."""

    default_key_value_heads = 2


@check_ranges
def head_width(d_model: PositiveInt, num_heads: PositiveInt, d_head: int | None = None) -> int:
    if d_head is None and d_model % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}; accepted: {divisors(d_model)}")
    return d_head or d_model // num_heads


def divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
