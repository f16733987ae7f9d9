"""Attention, within a sequence or from one to another.

Shapes: B batch, T target length, S source length, D model width, H heads, G key/value heads, K width of queries and
keys, V width of values, I = H V, J = G V.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.backends import Backend, Scores, Weigh, check_backend, choose_backend
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import RMSNorm, Sides
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.scope import Scope
from attnlab.parts import Choices
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges, must_be

QKNorm = bool | Literal["full_width"]


class ScoreFields(TypedDict, total=False):
    """The fields of every attention; see DotProductAttention."""

    dropout: Probability
    window: PositiveInt | None
    soft_cap: PositiveFloat | None
    scale: PositiveFloat | None
    backend: str


SCORE_DEFAULTS: ScoreFields = {"dropout": 0.0, "window": None, "soft_cap": None, "scale": None, "backend": "auto"}


class ProjectionFields(ScoreFields, total=False):
    """The fields of every attention whose heads have projections of their own; see Attention."""

    num_key_value_heads: PositiveInt | None
    d_head: PositiveInt | None
    bias: bool
    qk_norm: QKNorm
    qk_norm_eps: PositiveFloat
    qk_norm_zero_centered: bool


class AttentionFields(ProjectionFields, total=False):
    """The fields of Attention itself."""

    output_gate: bool


class DotProductAttention(Mixer):
    """Attention by scaled dot products (Vaswani et al. 2017, section 3.2.1), whatever its queries, keys and values are
    made of (`projected`), its weights (`weigher`), and what follows (`finished`); x (B, T, D) to (B, T, D).

    d_head: the width of what is rotated of queries and keys. d_query, d_value: the widths K and V. dropout: on the
    weights. window: a query sees itself and the window-1 keys before it, on both sides where not causal (Beltagy et al.
    2020). soft_cap: scores become c tanh(score / c) before bias and mask (Gemma 2, arXiv 2408.00118). scale: of the
    scores; None: d_query^-0.5. backend: auto, fused, math, eager or flex; the attribute may be set to a Backend object.
    Raises ValueError for what a backend cannot serve.
    """

    takes_rotation = takes_bias = sees_both_sides = reads_memory = True
    output: nn.Linear
    head_growth: float = 1.0  # how far a head has grown, where an init that goes with the width says so

    def __init__(
        self,
        num_heads: PositiveInt,
        d_head: PositiveInt,
        d_query: PositiveInt,
        d_value: PositiveInt,
        dropout: Probability = 0.0,
        window: PositiveInt | None = None,
        soft_cap: PositiveFloat | None = None,
        scale: PositiveFloat | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_backend(backend, soft_cap, dropout, self.weighs())
        self.num_heads, self.d_head, self.d_query, self.d_value = num_heads, d_head, d_query, d_value
        self.scale = d_query**-0.5 if scale is None else scale
        self.dropout, self.window, self.soft_cap = dropout, window, soft_cap
        self.backend: str | Backend = backend

    @classmethod
    def weighs(cls) -> bool:
        """Whether its weights are no softmax of the scores, and only backends that make all scores serve it."""
        return cls.weigher is not DotProductAttention.weigher

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        backend = choices.get("attention.backend")
        if backend == "fused" and choices.get("attention.soft_cap") is not None:
            yield "attention.backend: fused has no soft cap; choose attention.backend=auto, math, eager or flex"
        position, named = choices.parts.get("position"), f"attention={choices.name('attention')}"
        of_content = (
            getattr(position, "context_bias", PositionEncoding.context_bias) is not PositionEncoding.context_bias
        )
        if backend in ("fused", "flex") and (cls.weighs() or of_content):
            cause = named if cls.weighs() else f"position={choices.name('position')}"
            yield (
                f"attention.backend: {backend} makes weights by a softmax alone, and {cause} needs all scores; choose "
                "attention.backend=auto, math or eager"
            )

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Attends within `scope`; with a cache, also to the keys and values of earlier forwards, and adds this one's.
        With a memory, keys and values are made of its states instead of x, and `scope` is the memory's.
        """
        out_BTI = self.finished(self.attended(x_BTD, scope, cache, memory), x_BTD)
        projected_BTD: Tensor = self.output(out_BTI)
        return projected_BTD

    def attended(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None) -> Tensor:
        """What the heads attend to, (B, H, T, V)."""
        return self.attend(*self.projected(x_BTD, scope, cache, memory), x_BTD, scope, cache)

    def attend(
        self,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSV: Tensor,
        x_BTD: Tensor,
        scope: Scope,
        cache: LayerCache | None,
    ) -> Tensor:
        """What queries see of the scope's keys, or the last ones of them, (B, H, T, V)."""
        dropout = self.dropout if self.training else 0.0
        weigh = self.weigher(x_BTD, scope, cache)
        scores = Scores(self.scale, self.soft_cap, dropout, weigh, scope.context_bias)
        mask = scope.mask(self.window, k_BGSK.shape[2])
        of_scores = (self.soft_cap, x_BTD.device.type, dropout)
        backend = choose_backend(self.backend, *of_scores, mask, x_BTD.shape[1], scores.explicit)
        return backend(q_BHTK, k_BGSK, v_BGSV, mask, scores)

    @property
    def window_of_cache(self) -> int | None:
        """How many of the last keys and values a cache has to keep, None: all."""
        return self.window

    @abstractmethod
    def projected(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), rotated, and keys and values (B, G, S, K or V) of all that they may attend to, earlier
        forwards included: all of the scope's keys, or the last ones of them.
        """

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh | None:
        """How weights are made of scores; None: by a softmax."""
        return None

    def finished(self, out_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        """What the output projection is given, (B, T, I), of what the heads attended to."""
        return out_BHTV.transpose(1, 2).flatten(2)


@check_ranges
class Attention(DotProductAttention):
    """Attention with learned projections of every head (Vaswani et al. 2017, sec. 3.2.2).

    num_key_value_heads: keys and values shared by groups of heads (Ainslie et al. 2023); None: the class's own number.
    d_head: None: d_model / num_heads. bias: of the projections. qk_norm: RMS norm on each head's queries and keys
    before rotation (Dehghani et al. 2023; Qwen3), with full_width on those of all heads together (OLMo 2, arXiv
    2501.00656, section 3.2); qk_norm_eps, qk_norm_zero_centered: see RMSNorm. output_gate: sigmoid gate from x on the
    heads' output (Qiu et al. 2025, arXiv 2505.06708). scale: None: d_head^-0.5 (T5 has 1). The others: see
    DotProductAttention. Raises ValueError for sizes that do not divide and fields that cannot be served.
    """

    default_key_value_heads: ClassVar[int | None] = None  # None: as many as heads
    fixed_key_value_heads: ClassVar[bool] = False
    maps_per_head: ClassVar[int] = 1  # which share the width of its queries and keys
    sides: ClassVar[Mapping[str, Sides]] = dict.fromkeys(("query", "key", "value", "output", "gate"), "both")

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        num_key_value_heads: PositiveInt | None = None,
        d_head: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = False,
        qk_norm: QKNorm = False,
        qk_norm_eps: PositiveFloat = 1e-6,
        qk_norm_zero_centered: bool = False,
        output_gate: bool = False,
        window: PositiveInt | None = None,
        soft_cap: PositiveFloat | None = None,
        scale: PositiveFloat | None = None,
        backend: str = "auto",
    ) -> None:
        d_value = head_width(d_model, num_heads, d_head)
        width = d_value // self.maps_per_head
        super().__init__(num_heads, width, width, d_value, dropout, window, soft_cap, scale, backend)
        self.num_key_value_heads = self.key_value_heads(num_heads, num_key_value_heads)
        inner, shared = num_heads * d_value, self.num_key_value_heads * d_value
        self.query = nn.Linear(d_model, inner, bias=bias)
        self.key = nn.Linear(d_model, shared, bias=bias)
        self.value = nn.Linear(d_model, shared, bias=bias)
        self.output = nn.Linear(inner, d_model, bias=bias)
        self.gate = nn.Linear(d_model, inner, bias=bias) if output_gate else None
        if qk_norm not in (False, True, "full_width"):
            raise ValueError(must_be("qk_norm", "true, false or full_width", qk_norm))
        self.norms_full_width = qk_norm == "full_width"
        widths = (inner, shared) if self.norms_full_width else (width, width)
        norms = (RMSNorm(size, qk_norm_eps, qk_norm_zero_centered) if qk_norm else None for size in widths)
        self.query_norm, self.key_norm = norms

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if not choices.get("attention.d_head"):
            yield from uneven_heads(choices)
        if choices.get("attention.qk_norm_zero_centered") and not choices.get("attention.qk_norm"):
            yield "attention.qk_norm_zero_centered: it is of attention.qk_norm, and there is none; set that, too"

    def projected(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if memory is None:
            q_BTI, *kv_BTJ = self.joined(x_BTD, scope, cache)
            k_BGSK, v_BGSV = self._key_and_value_heads(*kv_BTJ)
        else:
            q_BTI, (k_BGSK, v_BGSV) = self.query(x_BTD), memory.keys_and_values(self)
        q_BHTK, v_BGSV = self.query_heads(q_BTI), self.mixed_values(v_BGSV, scope)
        if scope.rotation is not None:
            q_BHTK, k_BGSK = scope.rotation.queries(q_BHTK), scope.rotation.keys(k_BGSK)
        if cache is not None:
            k_BGSK, v_BGSV = cache.append(k_BGSK, v_BGSV, window=self.window_of_cache)
        return q_BHTK, k_BGSK, v_BGSV

    def mixed_values(self, v_BGTV: Tensor, scope: Scope) -> Tensor:
        """The values of these tokens with what other layers left for them."""
        return v_BGTV

    def finished(self, out_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        out_BTI = super().finished(out_BHTV, x_BTD)
        return out_BTI if self.gate is None else out_BTI * self.gate(x_BTD).sigmoid()

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, not rotated yet, and values, (B, G, S, K) and (B, G, S, V)."""
        return self._key_and_value_heads(self.key(x_BSD), self.value(x_BSD))

    def query_heads(self, q_BTI: Tensor) -> Tensor:
        """Projected queries as (B, H, T, K), normed where they are to be."""
        return self._heads(q_BTI, self.num_heads, self.query_norm)

    def _key_and_value_heads(self, k_BSJ: Tensor, v_BSJ: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.num_key_value_heads
        return self._heads(k_BSJ, shared, self.key_norm), split_heads(v_BSJ, shared)

    def _heads(self, x_BTI: Tensor, num_heads: int, norm: nn.Module | None) -> Tensor:
        if norm is not None and self.norms_full_width:
            return split_heads(norm(x_BTI), num_heads, self.maps_per_head)
        x_BHTK = split_heads(x_BTI, num_heads, self.maps_per_head)
        return x_BHTK if norm is None else norm(x_BHTK)

    def joined(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Sequence[Tensor]:
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


def split_heads(x_BTI: Tensor, num_heads: int, maps: int = 1) -> Tensor:
    """(B, T, H K) as (B, H, T, K); of several maps a head, the first of all heads, then the second."""
    if maps == 1:
        heads_BHTK: Tensor = x_BTI.unflatten(2, (num_heads, -1)).transpose(1, 2)
        return heads_BHTK
    maps_BTHMK: Tensor = x_BTI.unflatten(2, (num_heads, maps, -1))
    return maps_BTHMK.permute(0, 3, 2, 1, 4).flatten(1, 2)


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


def uneven_heads(choices: Choices) -> Iterator[str]:
    """Why heads that share the model's width cannot have equal parts of it."""
    d_model, num_heads = choices.get("model.d_model"), choices.get("model.num_heads")
    if d_model and num_heads and d_model % num_heads:
        wanted = f"one of {divisors(d_model)}, which divide model.d_model={d_model}"
        yield must_be("model.num_heads", wanted, num_heads)


def divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
