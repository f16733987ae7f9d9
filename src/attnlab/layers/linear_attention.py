"""What mixes positions by a state of one matrix a head: linear attention, retention, gated linear attention and the
delta rule. A text of any length is decoded in the memory of that state.

Shapes: B batch, T length, S source length, D model width, H heads, K key width, V value width, X 1 or K, P inputs
before the first token, Y = H (2 K + V).
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.attention import head_width, split_heads, uneven_heads
from attnlab.layers.cache import LayerCache
from attnlab.layers.linear_recurrence import Form, chunked, recurrent
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import Sides, wide, without_autocast
from attnlab.layers.scope import Scope
from attnlab.layers.short_convolution import maybe_convolution, only_causal
from attnlab.parts import Choices
from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges, must_be

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu}


class StateFields(TypedDict, total=False):
    """The fields of every mixer with a state; see StateMixer."""

    d_head: PositiveInt | None
    d_value: PositiveInt | None
    bias: bool


class Terms(NamedTuple):
    """What a token does to the state of a head, as `linear_recurrence` has it. log_decay: of (B or 1, H or 1, T, X)."""

    q_BHTK: Tensor
    k_BHTK: Tensor
    v_BHTV: Tensor
    log_decay_BHTX: Tensor
    beta_BHT1: Tensor | None = None


@check_ranges
class StateMixer(Mixer):
    """A base: learned projections, a state of K by V a head, and what a choice makes of them in `mixed` and of what is
    read in `finished`; x (B, T, D) to (B, T, D). The state is kept in fp32 at least.

    d_head: width of a head's queries and keys; None: the class's own share of d_model / num_heads. d_value: of its
    values; None: d_model / num_heads. convolution: of how many tokens queries, keys and values are summed, channel by
    channel, before a SiLU (So et al. 2021; Yang et al. 2024, arXiv 2406.06484, section 3.4); None or 0: none. bias: of
    the projections. form: how the recurrence is computed; None: token by token for one token, else in chunks.
    """

    key_share: ClassVar[float] = 1.0
    sides: ClassVar[Mapping[str, Sides]] = {
        **dict.fromkeys(("query", "key", "value", "output"), "both"),
        "convolution": "out",
    }
    form: Form | None = None

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        d_head: PositiveInt | None = None,
        d_value: PositiveInt | None = None,
        convolution: NonNegativeInt | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.d_value = head_width(d_model, num_heads, d_value)
        self.d_head = d_head or max(1, int(self.key_share * head_width(d_model, num_heads)))
        self.scale = self.d_head**-0.5
        keys, values = num_heads * self.d_head, num_heads * self.d_value
        self.query = nn.Linear(d_model, keys, bias=bias)
        self.key = nn.Linear(d_model, keys, bias=bias)
        self.value = nn.Linear(d_model, values, bias=bias)
        self.output = nn.Linear(values, d_model, bias=bias)
        self.convolution = maybe_convolution(2 * keys + values, convolution)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from uneven_heads(choices)

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Goes on from the state that a cache has, and leaves there the state after the last token."""
        assert memory is None, f"{type(self).__name__} cannot attend to a memory"
        state, before_BPY = (None, None) if cache is None or cache.state is None else cache.state
        qkv_BTY = torch.cat([self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)], dim=2)
        if self.convolution is not None:
            qkv_BTY, before_BPY = self.convolution(qkv_BTY, scope.is_token_BT, before_BPY)
            qkv_BTY = F.silu(qkv_BTY)
        keys, values = self.num_heads * self.d_head, self.num_heads * self.d_value
        q_BHTK, k_BHTK, v_BHTV = map(self._heads, qkv_BTY.split([keys, keys, values], dim=2))
        out_BHTV, state = self.mixed(x_BTD, q_BHTK, k_BHTK, v_BHTV, scope, state)
        if cache is not None:
            cache.state = state, before_BPY
        projected_BTD: Tensor = self.output(self.finished(x_BTD, out_BHTV.to(self.output.weight.dtype).transpose(1, 2)))
        return projected_BTD

    def _heads(self, x_BTI: Tensor) -> Tensor:
        return split_heads(x_BTI, self.num_heads)

    @abstractmethod
    def mixed(
        self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope, state: Any
    ) -> tuple[Tensor, object]:
        """What is read, (B, H, T, V), and the state behind the last token; state: that before the first, None: none."""

    def scan(self, terms: Terms, is_token_BT: Tensor | None, state_BHKV: Tensor | None) -> tuple[Tensor, Tensor]:
        """The recurrence from a state on (None: zeros), in which padding neither decays the state nor writes to it."""
        q_BHTK, k_BHTK, v_BHTV, log_decay_BHTX = (wide(x) for x in terms[:4])
        beta_BHT1 = None if terms.beta_BHT1 is None else wide(terms.beta_BHT1)
        if is_token_BT is not None:
            padding_B1T1 = ~is_token_BT[:, None, :, None]
            k_BHTK, log_decay_BHTX = (x.masked_fill(padding_B1T1, 0.0) for x in (k_BHTK, log_decay_BHTX))
        if state_BHKV is None:
            state_BHKV = k_BHTK.new_zeros(*k_BHTK.shape[:2], k_BHTK.shape[3], v_BHTV.shape[3])
        form = self.form or (recurrent if q_BHTK.shape[2] == 1 else chunked)
        with without_autocast(q_BHTK):
            return form(q_BHTK, k_BHTK, v_BHTV, log_decay_BHTX, beta_BHT1, state_BHKV)

    def finished(self, x_BTD: Tensor, out_BTHV: Tensor) -> Tensor:
        """What goes to the output projection, (B, T, H V)."""
        return out_BTHV.flatten(2)


@check_ranges
class LinearAttention(StateMixer):
    """phi(q)^T sum(phi(k) v^T) / phi(q)^T sum(phi(k)) over the tokens that a query sees, without a softmax
    (Katharopoulos et al. 2020, arXiv 2006.16236, section 3.2). feature_map: phi; elu: elu(x) + 1 (their eq. 7), relu
    (Kasai et al. 2021, arXiv 2103.13076). What is divided by is at least 1e-6. Rotary positions turn phi(q) and phi(k)
    above the bar alone (Su et al. 2021, arXiv 2104.09864, eq. 19). fields: see StateMixer.
    """

    takes_rotation = sees_both_sides = reads_memory = True

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        feature_map: str = "elu",
        convolution: NonNegativeInt | None = None,
        causal: bool = True,
        **fields: Unpack[StateFields],
    ) -> None:
        super().__init__(d_model, num_heads, convolution=convolution, **fields)
        if feature_map not in FEATURE_MAPS:
            raise ValueError(must_be("feature_map", f"one of {', '.join(FEATURE_MAPS)}", feature_map))
        if self.convolution is not None and not causal:
            raise ValueError(must_be("convolution", "null where layers see both sides", convolution))
        self.feature_map = feature_map

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        yield from only_causal(choices, choices.get("attention.convolution"))

    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        if memory is None:
            return super().forward(x_BTD, scope, cache)
        assert self.convolution is None, "a short convolution reads no memory"
        q_BHTK = self._features(self._heads(self.query(x_BTD)))
        k_BHSK, v_BHSV = memory.keys_and_values(self)
        if scope.is_token_BS is not None:
            k_BHSK = k_BHSK.masked_fill(~scope.is_token_BS[:, None, :, None], 0.0)
        with without_autocast(x_BTD):
            out_BHTV = _divided(q_BHTK @ (k_BHSK.mT @ v_BHSV), q_BHTK @ k_BHSK.sum(dim=2)[..., None])
        projected_BTD: Tensor = self.output(out_BHTV.to(x_BTD.dtype).transpose(1, 2).flatten(2))
        return projected_BTD

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Features of keys (B, H, S, K) and values (B, H, S, V), in fp32 at least."""
        return self._features(self._heads(self.key(x_BSD))), wide(self._heads(self.value(x_BSD)))

    def mixed(
        self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope, state: Any
    ) -> tuple[Tensor, object]:
        q_BHTK, k_BHTK, v_BHTV = self._features(q_BHTK), self._features(k_BHTK), wide(v_BHTV)
        if scope.is_token_BT is not None:
            k_BHTK = k_BHTK.masked_fill(~scope.is_token_BT[:, None, :, None], 0.0)
        turned_q, turned_k = q_BHTK, k_BHTK
        if scope.rotation is not None:
            turned_q, turned_k = scope.rotation.queries(q_BHTK), scope.rotation.keys(k_BHTK)
        if state is None:
            state = k_BHTK.new_zeros(*k_BHTK.shape[:2], self.d_head, self.d_value), torch.zeros_like(k_BHTK[:, :, 0])
        state_BHKV, sum_BHK = state
        seen_B1T1 = _seen_by_all(scope)
        with without_autocast(x_BTD):
            if seen_B1T1 is not None:
                state_BHKV = state_BHKV + (turned_k * seen_B1T1).mT @ v_BHTV
                sum_BHK = sum_BHK + (k_BHTK * seen_B1T1).sum(dim=2)
                turned_k, k_BHTK = turned_k * ~seen_B1T1, k_BHTK * ~seen_B1T1
            if scope.causal:
                no_decay_11T1 = q_BHTK.new_zeros(1, 1, q_BHTK.shape[2], 1)
                terms = Terms(turned_q, turned_k, v_BHTV, no_decay_11T1)
                above_BHTV, state_BHKV = self.scan(terms, None, state_BHKV)
                sums_BHTK = k_BHTK.cumsum(dim=2) + sum_BHK[:, :, None]
            else:
                above_BHTV, sums_BHTK = turned_q @ state_BHKV, sum_BHK[:, :, None].expand_as(q_BHTK)
            below_BHT1 = (q_BHTK * sums_BHTK).sum(dim=-1, keepdim=True)
        return _divided(above_BHTV, below_BHT1), (state_BHKV, sums_BHTK[:, :, -1])

    def _features(self, x_BHTK: Tensor) -> Tensor:
        return FEATURE_MAPS[self.feature_map](wide(x_BHTK))


def _seen_by_all(scope: Scope) -> Tensor | None:
    """True at tokens that every query sees, (B or 1, 1, T, 1); None where there are none."""
    if not scope.causal:
        return torch.ones_like(scope.query_positions_BT, dtype=torch.bool)[:, None, :, None]
    return None if scope.prefix_B1 is None else (scope.query_positions_BT < scope.prefix_B1)[:, None, :, None]


def _divided(above_BHTV: Tensor, below_BHT1: Tensor) -> Tensor:
    return above_BHTV / below_BHT1.clamp(min=1e-6)


class DecayingState(StateMixer):
    """A base for causal mixers that say in `terms` what each token does to the state."""

    has_unit_keys: ClassVar[bool] = False  # and queries, whose products then are at most 1 in all widths

    @abstractmethod
    def terms(self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope) -> Terms:
        """Of each token, before its query is multiplied by `scale`, K^-0.5 as in scaled dot-product attention."""

    def mixed(
        self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope, state: Any
    ) -> tuple[Tensor, object]:
        terms = self.terms(x_BTD, q_BHTK, k_BHTK, v_BHTV, scope)
        return self.scan(terms._replace(q_BHTK=terms.q_BHTK * self.scale), scope.is_token_BT, state)


@check_ranges
class Retention(DecayingState):
    """RetNet's retention (Sun et al. 2023, arXiv 2307.08621, sections 2.1 and 2.2): head h of H forgets by
    1 - 2^(-5-h) a token; a norm of each head's output, a gate by SiLU. Rotary positions turn queries and keys, as there
    (their eq. 3, without a decay of its own). The paper gives values twice the width and the feed-forward layer half.
    fields: see StateMixer.
    """

    takes_rotation = True
    sides: ClassVar[Mapping[str, Sides]] = {**StateMixer.sides, "gate": "both", "norm": "both"}

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        convolution: NonNegativeInt | None = None,
        **fields: Unpack[StateFields],
    ) -> None:
        super().__init__(d_model, num_heads, convolution=convolution, **fields)
        self.gate = nn.Linear(d_model, num_heads * self.d_value, bias=fields.get("bias", False))
        self.norm = nn.GroupNorm(num_heads, num_heads * self.d_value, eps=1e-5)

    def log_decays(self) -> list[float]:
        """Of each head."""
        return [math.log1p(-(2.0 ** (-5 - head))) for head in range(self.num_heads)]

    def terms(self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope) -> Terms:
        if scope.rotation is not None:
            q_BHTK, k_BHTK = scope.rotation.queries(q_BHTK), scope.rotation.keys(k_BHTK)
        log_decay_1H11 = torch.tensor(self.log_decays(), dtype=wide(x_BTD[:0]).dtype, device=x_BTD.device)
        return Terms(q_BHTK, k_BHTK, v_BHTV, log_decay_1H11[None, :, None, None].expand(-1, -1, x_BTD.shape[1], -1))

    def finished(self, x_BTD: Tensor, out_BTHV: Tensor) -> Tensor:
        normed_BTI = self.norm(out_BTHV.flatten(0, 1).flatten(1)).view(*out_BTHV.shape[:2], -1)
        gated_BTI: Tensor = F.silu(self.gate(x_BTD)) * normed_BTI
        return gated_BTI


@check_ranges
class GatedLinear(DecayingState):
    """Gated linear attention (GLA, Yang et al. 2023, arXiv 2312.06635, section 4.4): each channel of a key forgets by
    sigmoid(W_2 W_1 x + b)^(1 / temperature), W_1 to decay_rank; an RMS norm of each head's output, as in the authors'
    code, and a gate by SiLU. d_head is half of d_model / num_heads where it is None, so that there are as many
    parameters as in multi-head attention, but for those of the decay. fields: see StateMixer.
    """

    key_share = 0.5
    sides: ClassVar[Mapping[str, Sides]] = {**StateMixer.sides, "gate": "both", "decay.0": "in", "decay.1": "out"}

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        decay_rank: PositiveInt = 16,
        temperature: PositiveFloat = 16.0,
        convolution: NonNegativeInt | None = None,
        **fields: Unpack[StateFields],
    ) -> None:
        super().__init__(d_model, num_heads, convolution=convolution, **fields)
        self.temperature = temperature
        self.decay = nn.Sequential(
            nn.Linear(d_model, decay_rank, bias=False), nn.Linear(decay_rank, num_heads * self.d_head)
        )
        self.gate = nn.Linear(d_model, num_heads * self.d_value, bias=fields.get("bias", False))
        self.norm = nn.RMSNorm(self.d_value, eps=1e-5)

    def terms(self, x_BTD: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, scope: Scope) -> Terms:
        log_decay_BHTK = F.logsigmoid(wide(self._heads(self.decay(x_BTD)))) / self.temperature
        return Terms(q_BHTK, k_BHTK, v_BHTV, log_decay_BHTK)

    def finished(self, x_BTD: Tensor, out_BTHV: Tensor) -> Tensor:
        gated_BTI: Tensor = F.silu(self.gate(x_BTD)) * self.norm(out_BTHV).flatten(2)
        return gated_BTI
