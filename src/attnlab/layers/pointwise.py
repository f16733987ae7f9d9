"""Layers that act on every position alone: dropout, embedding and output, norms, and feed-forward layers.

Legend: B batch, T length, D model width, F hidden width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.parts import Choices, Part, unsharded
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges

if TYPE_CHECKING:
    from attnlab.layers.scope import Scope

RESOLUTION = 1 << 16


@check_ranges
class Dropout(nn.Module):
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate) (Srivastava et al. 2014). On a
    CPU torch draws a 64-bit number an element, which takes longer than the matrix products of a small model. Here four
    elements share one, 16 bits each, so the rate is rounded to 1/65536 (and the scale with it).
    """

    def __init__(self, rate: Probability) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate if self.training else 0.0)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with elements zeroed at this rate and the others scaled up; x itself at rate 0."""
    if rate == 0:
        return x
    if x.device.type != "cpu" or rate == 1:
        return F.dropout(x, rate)
    dropped = min(round(rate * RESOLUTION), RESOLUTION - 1)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - RESOLUTION // 2
    return x * kept.to(x.dtype).mul_(RESOLUTION / (RESOLUTION - dropped))


def maybe_dropout(rate: float) -> nn.Module:
    """Dropout, or at rate 0 nothing at all."""
    return Dropout(rate) if rate else nn.Identity()


def wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, operations on the device of a tensor keep the precision of what they are given."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


# Which sides of a weight are as wide as the model: of `heads` the input, and the output has a number a head; of `head`
# the output, which is as wide as one head; `across_heads`: both have a number a head.
Sides = Literal["both", "in", "out", "neither", "heads", "head", "across_heads"]


class Output:
    """A model whose init may scale what goes into its output, a linear layer `head`."""

    head: nn.Linear | None
    output_scale: float = 1.0  # of what goes into the output
    growths: Mapping[str, object]  # what an init says of parameters by name (attnlab.layers.Growth), where it does


class Ends(Output):
    """The two ends of a model of text, an embedding and an output, whatever module holds them. head: None: the output
    is the embedding's transpose.
    """

    embedding: nn.Embedding
    embedding_scale: float
    logit_soft_cap: float | None = None  # logits become c tanh(logit / c)

    def embed(self, tokens_BT: Tensor, table: nn.Embedding | None = None) -> Tensor:
        """(B, T, D), of another table where one is given."""
        x_BTD: Tensor = (self.embedding if table is None else table)(tokens_BT)
        return x_BTD if self.embedding_scale == 1.0 else x_BTD * self.embedding_scale

    def logits(self, x_BTD: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """(B, T, V)."""
        x_BTD = x_BTD if self.output_scale == 1.0 else x_BTD * self.output_scale
        logits_BTV = F.linear(x_BTD, self.embedding.weight if self.head is None else self.head.weight, bias_V)
        cap = self.logit_soft_cap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)


class Norm(Part, nn.Module):
    """A norm over the model width, made with `d_model`; (B, T, D) in and out."""

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor: ...


@check_ranges
class LayerNorm(nn.LayerNorm, Norm):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450): (x - mean) / std over D, a gain and a bias."""

    def __init__(self, d_model: PositiveInt, eps: PositiveFloat = 1e-5, bias: bool = True) -> None:
        super().__init__(d_model, eps=eps, bias=bias)


@check_ranges
class RMSNorm(nn.RMSNorm, Norm):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467): x / rms(x) over D, then a gain.

    zero_centered: the gain is 1 plus a weight that starts at zero, so that weight decay draws it to 1 (Gemma).
    """

    def __init__(self, d_model: PositiveInt, eps: PositiveFloat = 1e-6, zero_centered: bool = False) -> None:
        super().__init__(d_model, eps=eps)
        self.zero_centered = zero_centered
        if zero_centered:
            nn.init.zeros_(self.weight)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.zero_centered:
            return super().forward(x_BTD)
        normed_BTD = F.rms_norm(wide(x_BTD), self.normalized_shape, 1 + wide(self.weight), self.eps)
        return normed_BTD.to(x_BTD.dtype)


@check_ranges
class DynamicTanh(Norm):
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622): gain * tanh(alpha x) + bias, alpha a learned scalar."""

    def __init__(self, d_model: PositiveInt, alpha: PositiveFloat = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from unsharded(choices, "norm")

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.weight, torch.tanh(self.alpha * x_BTD))


class NoNorm(Norm):
    """The states as they are, for small models that are to be read (Nanda et al. 2023, arXiv 2301.05217, section 3)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


class FeedForwardFields(TypedDict, total=False):
    """The fields of every feed-forward."""

    bias: bool
    dropout: Probability


class PositionWise(Part, nn.Module):
    """What acts on every position alone, (B, T, D) in and out; made with d_model, d_ff and what else of a stack's dims
    it takes. is_sublayer: False: a layer has no such sublayer, nor a norm for it.
    """

    is_sublayer: ClassVar[bool] = True
    sides: ClassVar[Mapping[str, Sides]] = {}  # of its layers, by name, where it is known how they go with the width

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor: ...

    def within(self, scope: Scope) -> Callable[[Tensor], Tensor]:
        """Itself in a forward pass of this scope, for what has to know which tokens are padding."""
        return self


class NoFeedForward(PositionWise):
    """Layers of attention alone (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits)."""

    is_sublayer = False

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.zeros_like(x_BTD)


@check_ranges
class FeedForward(PositionWise):
    """down(dropout(activate(up(x)))), (B, T, D) in and out (Vaswani et al. 2017, section 3.3); a choice gives
    `activate`.
    """

    sides: ClassVar[Mapping[str, Sides]] = {"up": "both", "gate": "both", "down": "both"}

    def __init__(self, d_model: PositiveInt, d_ff: PositiveInt, bias: bool = False, dropout: Probability = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = maybe_dropout(dropout)

    @abstractmethod
    def activate(self, h_BTF: Tensor) -> Tensor: ...

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down(self.dropout(self.activate(self.up(x_BTD))))
        return out_BTD


@check_ranges
class GatedFeedForward(FeedForward):
    """down(dropout(activate(gate(x)) * up(x))) (Shazeer 2020, arXiv 2002.05202, section 2). `matched` shrinks the
    hidden width to 2/3 d_ff, so that three matrices weigh what two of the plain layer do.
    """

    def __init__(
        self, d_model: PositiveInt, d_ff: PositiveInt, matched: bool = True, **fields: Unpack[FeedForwardFields]
    ) -> None:
        d_hidden = gated_width(d_ff, matched)
        super().__init__(d_model, d_hidden, **fields)
        self.gate = nn.Linear(d_model, d_hidden, bias=fields.get("bias", False))

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down(self.dropout(self.activate(self.gate(x_BTD)) * self.up(x_BTD)))
        return out_BTD


def gated_width(d_ff: int, matched: bool) -> int:
    """The hidden width of a gated layer: 2/3 d_ff to the nearest integer where `matched`, else d_ff."""
    return max(1, round(2 * d_ff / 3)) if matched else d_ff


class ReLU(FeedForward):
    """max(0, h) (Vaswani et al. 2017, eq. 2)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        return F.relu(h_BTF)


@check_ranges
class GELU(FeedForward):
    """h Phi(h) (Hendrycks & Gimpel 2016, arXiv 1606.08415), approximate: tanh: section 2 there (GPT-2, BLOOM)."""

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        approximate: Literal["none", "tanh"] = "none",
        **fields: Unpack[FeedForwardFields],
    ) -> None:
        super().__init__(d_model, d_ff, **fields)
        self.approximate: Literal["none", "tanh"] = approximate

    def activate(self, h_BTF: Tensor) -> Tensor:
        return F.gelu(h_BTF, approximate=self.approximate)


class SiLU(FeedForward):
    """h sigmoid(h), Swish with beta = 1 (Ramachandran et al. 2017, arXiv 1710.05941; Marian's models)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        return F.silu(h_BTF)


class QuickGELU(FeedForward):
    """h sigmoid(1.702 h) (Hendrycks & Gimpel 2016, section 2; the published weights of CLIP)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        return h_BTF * torch.sigmoid(1.702 * h_BTF)


class SquaredReLU(FeedForward):
    """max(0, h)^2 (So et al. 2021, Primer, arXiv 2109.08668)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        return F.relu(h_BTF).square()


class GLU(GatedFeedForward):
    """sigmoid gate (Dauphin et al. 2017, arXiv 1612.08083)."""

    def activate(self, h_BTF: Tensor) -> Tensor:
        return h_BTF.sigmoid()


class GEGLU(GELU, GatedFeedForward):
    """GELU gate (Shazeer 2020); T5 1.1 has approximate=tanh."""


class SwiGLU(SiLU, GatedFeedForward):
    """Swish gate, beta = 1 (Shazeer 2020)."""


class ReGLU(ReLU, GatedFeedForward):
    """ReLU gate (Shazeer 2020)."""
