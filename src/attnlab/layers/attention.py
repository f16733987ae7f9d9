"""Attention, within a sequence or from one to another: multi-head, multi-query and grouped-query, with qk-norm, output gate, sliding window and soft cap as fields.

Shapes: B batch, T target length, S source length, D model width, H heads, G key/value heads, K head width.
"""

from typing import ClassVar

from torch import Tensor, nn

from attnlab.layers.backends import Backend, check_backend, choose_backend
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.scope import Scope
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges


@check_ranges
class Attention(nn.Module):
    """Scaled dot-product attention with learned projections (Vaswani et al. 2017, sec. 3.2); x (B, T, D) to (B, T, D).

    num_key_value_heads: keys and values shared by groups of heads (Ainslie et al. 2023); None: the class's own number.
    d_head: None: d_model / num_heads. dropout: on the attention weights. bias: of the projections.
    qk_norm: RMS norm on each head's queries and keys before rotation (Dehghani et al. 2023; Qwen3).
    output_gate: sigmoid gate from x on the heads' output, element by element (Qiu et al. 2025, arXiv 2505.06708).
    window: a query sees itself and the window-1 keys before it, on both sides where not causal (Beltagy et al. 2020).
    soft_cap: scores become c tanh(score / c) before bias and mask (Gemma 2, arXiv 2408.00118).
    scale: what scores are multiplied by; None: d_head^-0.5. T5 has 1 and leaves the scale to the initialisation.
    backend: auto, fused, plain, explicit or flex; the attribute may be set to a Backend object.
    Raises ValueError for sizes that do not divide and fields that cannot be served.
    """

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

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Attends within `scope`; with a cache, also to the keys and values of earlier forwards, and adds this one's.

        With a memory, keys and values are made of its states instead of x, and `scope` is the memory's.
        """
        q_BHTK = self._heads(self.query(x_BTD), self.num_heads)
        if self.query_norm is not None:
            q_BHTK = self.query_norm(q_BHTK)
        k_BGSK, v_BGSK = self.keys_and_values(x_BTD) if memory is None else memory.keys_and_values(self)
        if scope.rotate is not None:
            q_BHTK, k_BGSK = scope.rotate(q_BHTK), scope.rotate(k_BGSK)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        dropout = self.dropout if self.training else 0.0
        length = max(q_BHTK.shape[2], k_BGSK.shape[2])
        attend = choose_backend(self.backend, self.soft_cap, x_BTD.device.type, dropout, length)
        out_BHTK = attend(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            scope,
            window=self.window,
            soft_cap=self.soft_cap,
            scale=self.scale,
            dropout=dropout,
        )
        out_BTI = out_BHTK.transpose(1, 2).flatten(2)  # I = H * K
        if self.gate is not None:
            out_BTI = out_BTI * self.gate(x_BTD).sigmoid()
        projected_BTD: Tensor = self.output(out_BTI)
        return projected_BTD

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, normed where asked and not rotated yet, and values, (B, G, S, K) each."""
        k_BGSK = self._heads(self.key(x_BSD), self.num_key_value_heads)
        v_BGSK = self._heads(self.value(x_BSD), self.num_key_value_heads)
        return k_BGSK if self.key_norm is None else self.key_norm(k_BGSK), v_BGSK

    def _heads(self, x_BTI: Tensor, num_heads: int) -> Tensor:
        return x_BTI.unflatten(2, (num_heads, self.d_head)).transpose(1, 2)

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


class MultiHead(Attention):
    """Keys and values of its own for every head (Vaswani et al. 2017)."""

    fixed_key_value_heads = True


class MultiQuery(Attention):
    """One head of keys and values for all (Shazeer 2019, arXiv 1911.02150)."""

    default_key_value_heads = 1
    fixed_key_value_heads = True


class GroupedQuery(Attention):
    """Keys and values shared by groups of heads (Ainslie et al. 2023, arXiv 2305.13245); two key/value heads unless asked."""

    default_key_value_heads = 2


@check_ranges
def head_width(d_model: PositiveInt, num_heads: PositiveInt, d_head: int | None = None) -> int:
    """The width of a head, d_model / num_heads unless given. Raises ValueError where the heads do not divide the width."""
    if d_head is None and d_model % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}; accepted: {divisors(d_model)}")
    return d_head or d_model // num_heads


def divisors(number: int) -> str:
    """The divisors of a number as a list in words, for messages."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
