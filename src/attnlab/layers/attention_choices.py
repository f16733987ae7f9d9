"""Attentions that make other weights of the scores, that gate their heads, or that take keys and values from other
layers.

Shapes: B batch, T target length, S source length, D model width, H heads, G key/value heads, K width of queries and
keys, V width of values, I = H V.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.layers.attention import (
    SCORE_DEFAULTS,
    Attention,
    AttentionFields,
    DotProductAttention,
    ProjectionFields,
)
from attnlab.layers.backends import Weigh, softmax
from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import Sides, wide
from attnlab.layers.scope import Scope
from attnlab.parts import Choices
from attnlab.ranges import NonNegativeInt, PositiveInt, check_ranges, must_be


class SoftmaxPlusOne(Attention):
    """exp(s) / (1 + sum exp(s)): a head may attend to nothing (Miller 2023, "Attention is off by one")."""

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        return partial(_softmax_with_sink, sink_H=x_BTD.new_zeros(self.num_heads))


@check_ranges
class SinkLogit(Attention):
    """A learned logit of each head in the denominator of its softmax, which attends to nothing (gpt-oss, OpenAI 2025,
    arXiv 2508.10925; after the sink of Xiao et al. 2024, arXiv 2309.17453). Starts as SoftmaxPlusOne.
    """

    def __init__(self, d_model: PositiveInt, num_heads: PositiveInt, **fields: Unpack[AttentionFields]) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.sink_H = nn.Parameter(torch.zeros(num_heads))

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        return partial(_softmax_with_sink, sink_H=self.sink_H)


def _softmax_with_sink(scores_BHTS: Tensor, additive_BHTS: Tensor | None, sink_H: Tensor) -> Tensor:
    logits_BHTS = scores_BHTS if additive_BHTS is None else scores_BHTS + additive_BHTS
    sink_BHT1 = sink_H.to(logits_BHTS.dtype)[:, None, None].expand(*logits_BHTS.shape[:3], 1)
    return torch.cat([logits_BHTS, sink_BHT1], dim=-1).softmax(dim=-1)[..., :-1]


@check_ranges
class SigmoidAttention(Attention):
    """sigmoid(s - ln n) in the place of the softmax, n the longest sequence (Ramapuram et al. 2024, arXiv 2409.04431).

    sequence_length: n; None: the model's max_length. Raises ValueError where there is neither.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        sequence_length: PositiveInt | None = None,
        max_length: PositiveInt | None = None,
        **fields: Unpack[AttentionFields],
    ) -> None:
        super().__init__(d_model, num_heads, **fields)
        length = sequence_length or max_length
        if length is None:
            wanted = "a number of positions where there is no max_length"
            raise ValueError(must_be("sequence_length", wanted, sequence_length))
        self.shift = -math.log(length)

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        return self._weigh

    def _weigh(self, scores_BHTS: Tensor, additive_BHTS: Tensor | None) -> Tensor:
        shifted_BHTS = scores_BHTS + self.shift
        return (shifted_BHTS if additive_BHTS is None else shifted_BHTS + additive_BHTS).sigmoid()


@check_ranges
class ForgettingAttention(Attention):
    """Scores fall by the logarithms of forget gates between key and query: s + sum of ln f over the tokens after the
    key up to the query, f = sigmoid(w x + b) of each head (FoX, Lin et al. 2025, arXiv 2503.02130, section 3).
    """

    sees_both_sides = reads_memory = False
    sides: ClassVar[Mapping[str, Sides]] = {**Attention.sides, "forget": "heads"}

    def __init__(self, d_model: PositiveInt, num_heads: PositiveInt, **fields: Unpack[AttentionFields]) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.forget = nn.Linear(d_model, num_heads)  # with a bias, whatever the projections have

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        gates_BTH: Tensor = self.forget(x_BTD)
        logs_BTH = F.logsigmoid(wide(gates_BTH))
        if scope.is_token_BT is not None:
            logs_BTH = logs_BTH.masked_fill(~scope.is_token_BT[:, :, None], 0.0)
        sums_BHS = logs_BTH.transpose(1, 2).cumsum(dim=-1)
        if cache is not None:
            if cache.state is not None:
                sums_BHS = torch.cat([cache.state, cache.state[:, :, -1:] + sums_BHS], dim=-1)
            cache.state = sums_BHS
        return partial(self._weigh, sums_BHS=sums_BHS)

    @staticmethod
    def _weigh(scores_BHTS: Tensor, additive_BHTS: Tensor | None, sums_BHS: Tensor) -> Tensor:
        sums_BHT = sums_BHS[:, :, -scores_BHTS.shape[2] :]
        sums_BHS = sums_BHS[:, :, -scores_BHTS.shape[3] :]
        return softmax(scores_BHTS + (sums_BHT[:, :, :, None] - sums_BHS[:, :, None, :]), additive_BHTS)


@check_ranges
class DifferentialAttention(Attention):
    """The difference of two softmaxes, of the halves of each head's queries and keys: (softmax(q1 k1) - l softmax(q2
    k2)) v, an RMS norm of each head's output, times 1 - l0 (Ye et al. 2024, arXiv 2410.05258, section 2.1).

    l = exp(a1 b1) - exp(a2 b2) + l0 of four vectors that a layer's heads share, l0 = 0.8 - 0.6 exp(-0.3 layer_index).
    num_heads: of pairs of softmaxes: half as many as of an attention whose heads are as wide as each one's. Raises
    ValueError where a head's width is odd.
    """

    maps_per_head = 2
    sides: ClassVar[Mapping[str, Sides]] = {
        **Attention.sides,
        **dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "head_norm"), "head"),
    }

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        layer_index: NonNegativeInt = 0,
        **fields: Unpack[AttentionFields],
    ) -> None:
        super().__init__(d_model, num_heads, **fields)
        if self.d_value % 2:
            raise ValueError(must_be("d_head", "even, for two halves", self.d_value))
        self.initial_lambda = 0.8 - 0.6 * math.exp(-0.3 * layer_index)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(self.d_head) * 0.1) for _ in range(4)
        )
        self.head_norm = nn.RMSNorm(self.d_value, eps=1e-5)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        d_model, num_heads = choices.get("model.d_model") or 0, choices.get("model.num_heads") or 1
        width = choices.get("attention.d_head") or d_model // num_heads
        if width % 2:
            yield (
                f"attention: {choices.name('attention')} halves the width of each head, which is odd ({width}); change "
                "model.d_model, model.num_heads or attention.d_head"
            )

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        return self._weigh

    def _weigh(self, scores_BXTS: Tensor, additive_BHTS: Tensor | None) -> Tensor:
        scores_B2HTS: Tensor = scores_BXTS.unflatten(1, (2, self.num_heads))
        first_BHTS, second_BHTS = (softmax(half_BHTS, additive_BHTS) for half_BHTS in scores_B2HTS.unbind(dim=1))
        exponents = (
            (self.lambda_q1.float() * self.lambda_k1.float()).sum() / self.head_growth,
            (self.lambda_q2.float() * self.lambda_k2.float()).sum() / self.head_growth,
        )
        return first_BHTS - (exponents[0].exp() - exponents[1].exp() + self.initial_lambda) * second_BHTS

    def finished(self, out_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        return super().finished((1 - self.initial_lambda) * self.head_norm(out_BHTV), x_BTD)


@check_ranges
class TalkingHeads(Attention):
    """Heads mix their scores before the softmax, and their weights after it (Shazeer et al. 2020, arXiv 2003.02436).
    A position's bias comes after the first mixing, as in the authors' code. Both start as no mixing.
    """

    sides: ClassVar[Mapping[str, Sides]] = {
        **Attention.sides,
        **dict.fromkeys(("mix_scores_HH", "mix_weights_HH"), "across_heads"),
    }

    def __init__(self, d_model: PositiveInt, num_heads: PositiveInt, **fields: Unpack[AttentionFields]) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.mix_scores_HH, self.mix_weights_HH = (nn.Parameter(torch.eye(num_heads)) for _ in range(2))

    def weigher(self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None) -> Weigh:
        return self._weigh

    def _weigh(self, scores_BHTS: Tensor, additive_BHTS: Tensor | None) -> Tensor:
        return _mixed(softmax(_mixed(scores_BHTS, self.mix_scores_HH), additive_BHTS), self.mix_weights_HH)


def _mixed(x_BHTS: Tensor, mix_HH: Tensor) -> Tensor:
    return torch.einsum("bhts,hi->bits", x_BHTS, mix_HH.to(x_BHTS.dtype)).to(x_BHTS.dtype)


@check_ranges
class HeadGate(Attention):
    """A sigmoid gate from x on each head's whole output (Qiu et al. 2025, arXiv 2505.06708, headwise); on
    each of its elements: the field output_gate of the other attentions.
    """

    sides: ClassVar[Mapping[str, Sides]] = {**Attention.sides, "gate": "heads"}
    defaults: ClassVar[ProjectionFields] = {
        **SCORE_DEFAULTS,
        "num_key_value_heads": None,
        "d_head": None,
        "bias": False,
        "qk_norm": False,
        "qk_norm_eps": 1e-6,
        "qk_norm_zero_centered": False,
    }

    def __init__(self, d_model: PositiveInt, num_heads: PositiveInt, **fields: Unpack[ProjectionFields]) -> None:
        if unknown := sorted(fields.keys() - ProjectionFields.__annotations__.keys()):
            raise TypeError(f"HeadGate has no field {unknown[0]!r}; accepted: {', '.join(self.defaults)}")
        super().__init__(d_model, num_heads, **fields)
        self.gate = nn.Linear(d_model, num_heads, bias=fields.get("bias", False))

    def finished(self, out_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        assert self.gate is not None
        gates_BHT1 = self.gate(x_BTD).sigmoid().transpose(1, 2)[..., None]
        return DotProductAttention.finished(self, out_BHTV * gates_BHT1, x_BTD)


class FromOtherLayers(Attention):
    """Base of attentions that take something of what an earlier layer of the same class left in `Scope.shared`."""

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        entries: Mapping[str, Mapping[str, object] | None] = choices.get("model.layers") or {}
        for entry in dict.fromkeys(choices.get("model.pattern") or []):
            own = (entries.get(entry) or {}).get("attention")
            shared = choices.get("model.attention")
            if isinstance(own, Mapping) and isinstance(shared, Mapping) and _unlike(own, shared):
                yield (
                    f"attention: {choices.name('attention')} takes keys or values from other layers, and those of "
                    f"model.layers.{entry} have another attention; layers may differ in attention.window alone"
                )

    def left(self, scope: Scope, name: str) -> Tensor:
        """What an earlier layer left. Raises ValueError where none did."""
        found = scope.shared.get((FromOtherLayers, name))
        if found is None:
            raise ValueError(
                f"no earlier layer left the {name}: all layers of a stack have to be {type(self).__name__}"
            )
        return found

    def leave(self, scope: Scope, name: str, what: Tensor) -> None:
        scope.shared[FromOtherLayers, name] = what


def _unlike(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return {**one, "window": None, "backend": None} != {**other, "window": None, "backend": None}


@check_ranges
class ValueResidual(FromOtherLayers):
    """The values of each layer after the first are a V1 + b V, V1 the first layer's, a and b learned from 1/2
    (ResFormer, Zhou et al. 2024, arXiv 2410.17897, learnable).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        layer_index: NonNegativeInt = 0,
        **fields: Unpack[AttentionFields],
    ) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.value_weights = nn.Parameter(torch.full((2,), 0.5)) if layer_index else None

    def mixed_values(self, v_BGTV: Tensor, scope: Scope) -> Tensor:
        if self.value_weights is None:
            self.leave(scope, "values", v_BGTV)
            return v_BGTV
        first, own = self.value_weights
        mixed_BGTV: Tensor = first * self.left(scope, "values") + own * v_BGTV
        return mixed_BGTV


@check_ranges
class SharedKeyValues(FromOtherLayers):
    """Layers in groups of `sharing`: the first makes keys and values, the others attend to the same ones and have no
    projections of them (cross-layer attention, Brandon et al. 2024, arXiv 2405.12981, section 2.2): the cache holds
    those of the first alone.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_heads: PositiveInt,
        layer_index: NonNegativeInt = 0,
        sharing: PositiveInt = 2,
        **fields: Unpack[AttentionFields],
    ) -> None:
        super().__init__(d_model, num_heads, **fields)
        self.first = layer_index - layer_index % sharing  # of its group
        self.has_own = layer_index == self.first
        if not self.has_own:
            del self.key, self.value
            self.key_norm = None

    @property
    def window_of_cache(self) -> None:
        """All: other layers of the group may have another window."""
        return

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        for entry in dict.fromkeys(choices.get("model.pattern") or []):
            if choices.get(f"model.layers.{entry}.position") is not None:
                yield (
                    f"attention: {choices.name('attention')} takes keys from other layers as positions rotated them, "
                    f"and model.layers.{entry}.position differs; choose one position for all layers"
                )

    def projected(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.has_own:
            q_BHTK, k_BGSK, v_BGSV = super().projected(x_BTD, scope, cache, memory)
            self.leave(scope, f"keys of layer {self.first}", k_BGSK)
            self.leave(scope, f"values of layer {self.first}", v_BGSV)
            return q_BHTK, k_BGSK, v_BGSV
        q_BHTK = self.query_heads(self.query(x_BTD))
        if scope.rotation is not None:
            q_BHTK = scope.rotation.queries(q_BHTK)
        k_BGSK, v_BGSV = (self.left(scope, f"{what} of layer {self.first}") for what in ("keys", "values"))
        return q_BHTK, k_BGSK, v_BGSV
