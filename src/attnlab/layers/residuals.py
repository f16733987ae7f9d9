"""The residual stream: how sublayers and their norms join it.

Legend: B batch, T length, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from attnlab.layers.pointwise import LayerNorm, Norm, maybe_dropout
from attnlab.parts import Choices, Part, build_part, unsharded, value_of
from attnlab.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Probability, Rate, check_ranges

Sublayer = Callable[[Tensor], Tensor]
Stream = Any  # what passes from layer to layer: (B, T, D), or what a residual makes of it in `enter`


class ResidualFields(TypedDict, total=False):
    """The fields of every residual; see Residual."""

    norm: Callable[..., Norm]
    dropout: Probability
    stochastic_depth: Rate
    num_sublayers: PositiveInt
    num_layers: PositiveInt
    layer_index: NonNegativeInt


class StochasticDepth(nn.Module):
    """Leaves out a sublayer's output, (B, T, D), in rows of the batch that are drawn in training (Huang et al. 2016,
    arXiv 1603.09382, who draw once for a whole batch). What stays is divided by its probability, where the paper
    multiplies by it in evaluation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training:
            return x_BTD
        kept_B = torch.rand(len(x_BTD), device=x_BTD.device) >= self.rate
        return x_BTD * (kept_B / (1 - self.rate)).to(x_BTD.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def dropping(dropout: float, stochastic_depth: float, layer_index: int, num_layers: int) -> nn.Module:
    """What a sublayer's output passes before it joins the stream: dropout, then stochastic depth at its layer's rate,
    which grows linearly up to that of the last layer (Huang et al. 2016, section 3).
    """
    rate = stochastic_depth * (layer_index + 1) / num_layers
    return nn.Sequential(maybe_dropout(dropout), StochasticDepth(rate)) if rate else maybe_dropout(dropout)


@check_ranges
class Residual(Part, nn.Module):
    """Joins the sublayers of one layer to the stream, (B, T, D) -> (B, T, D); a choice overrides `join`. Dropout acts
    on each sublayer's output before it is added (Vaswani et al. 2017, section 5.4). stochastic_depth: how often, in the
    last layer, rows of a batch go without a sublayer (see StochasticDepth). layer_index: from 0.
    """

    final_norm: ClassVar[bool] = False  # whether a stack of these layers ends in a norm of its own
    init_gain: float = 1.0  # of the layer's value, output and feed-forward weights, in their initialisation

    def __init__(
        self,
        d_model: PositiveInt,
        norm: Callable[..., Norm] = LayerNorm,
        dropout: Probability = 0.0,
        stochastic_depth: Rate = 0.0,
        num_sublayers: PositiveInt = 2,
        num_layers: PositiveInt = 1,
        layer_index: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(build_part(norm, d_model=d_model) for _ in range(num_sublayers))
        self.dropout = dropping(dropout, stochastic_depth, layer_index, num_layers)
        self.num_layers, self.layer_index = num_layers, layer_index

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.join is Residual.join and cls.forward is Residual.forward:
            raise TypeError(f"{cls.__name__} has to give join, or forward for all sublayers at once")

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """The stream after sublayer number `index`."""
        raise NotImplementedError

    def forward(self, stream: Stream, *sublayers: Sublayer) -> Stream:
        for index, sublayer in enumerate(sublayers):
            stream = self.join(stream, index, sublayer)
        return stream

    def enter(self, x_BTD: Tensor) -> Stream:
        """What the layers of a stack pass on, of its input; asked of the first layer, the same for all of them."""
        return x_BTD

    def leave(self, stream: Stream) -> Tensor:
        """The output (B, T, D) of the last layer, before the final norm."""
        out_BTD: Tensor = stream
        return out_BTD

    def kind_of_stream(self) -> Hashable:
        """What tells its streams from those of other residuals; all layers of a stack pass on one kind."""
        return type(self).enter


class PostNorm(Residual):
    """norm(x + f(x)) (Vaswani et al. 2017, section 3.1)."""

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = self.norms[index](x_BTD + self.dropout(sublayer(x_BTD)))
        return joined_BTD


class PreNorm(Residual):
    """x + f(norm(x)), and a norm after the last layer (Xiong et al. 2020, arXiv 2002.04745)."""

    final_norm = True

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.dropout(sublayer(self.norms[index](x_BTD)))
        return joined_BTD


class OutputNorm(Residual):
    """x + norm(f(x)), and a norm after the last layer: OLMo 2's reordered norm (OLMo team 2024, arXiv 2501.00656,
    section 3.2; Swin v2, Liu et al. 2021, arXiv 2111.09883).
    """

    final_norm = True

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.dropout(self.norms[index](sublayer(x_BTD)))
        return joined_BTD


@check_ranges
class LayerScale(Residual):
    """x + s f(norm(x)), s learned for each channel of each sublayer from `init` on, and a norm after the last layer
    (Touvron et al. 2021, arXiv 2103.17239, section 2; there 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond).
    """

    final_norm = True

    def __init__(self, d_model: PositiveInt, init: PositiveFloat = 0.1, **fields: Unpack[ResidualFields]) -> None:
        super().__init__(d_model, **fields)
        self.scales = nn.ParameterList(torch.full((d_model,), float(init)) for _ in self.norms)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.dropout(self.scales[index] * sublayer(self.norms[index](x_BTD)))
        return joined_BTD


class LayerNormScaling(Residual):
    """x + f(norm(x) / sqrt(l)) in layer l = 1, 2, ..., and a norm after the last layer, so that the stream's variance
    does not grow with the depth (Sun et al. 2025, arXiv 2502.05795).
    """

    final_norm = True

    @property
    def scale(self) -> float:
        """1 / sqrt(l)."""
        return float((self.layer_index + 1) ** -0.5)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.dropout(sublayer(self.scale * self.norms[index](x_BTD)))
        return joined_BTD


@check_ranges
class Sandwich(Residual):
    """x + norm(f(norm(x))), and a norm after the last layer (CogView, Ding et al. 2021, arXiv 2105.13290; Peri-LN, Kim
    et al. 2025, arXiv 2502.02732, without its optional norm of the embedding).
    """

    final_norm = True

    def __init__(self, d_model: PositiveInt, **fields: Unpack[ResidualFields]) -> None:
        super().__init__(d_model, **fields)
        norm = fields.get("norm", LayerNorm)
        self.output_norms = nn.ModuleList(build_part(norm, d_model=d_model) for _ in self.norms)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        normed_BTD = self.output_norms[index](sublayer(self.norms[index](x_BTD)))
        joined_BTD: Tensor = x_BTD + self.dropout(normed_BTD)
        return joined_BTD


@check_ranges
class DeepNorm(Residual):
    """norm(alpha x + f(x)), the sublayers' first weights scaled by beta (Wang et al. 2022, arXiv 2203.00555, figure 2).
    N layers of s sublayers have alpha = (s N)^(1/4) and beta = (4 s N)^(-1/4), s = 3 for a decoder that also attends to
    an encoder; the encoder of N layers beside such a decoder of M has 0.81 (N^4 M)^(1/16) and 0.87 (N^4 M)^(-1/16).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        num_decoder_layers: PositiveInt | None = None,
        alpha: PositiveFloat | None = None,
        beta: PositiveFloat | None = None,
        **fields: Unpack[ResidualFields],
    ) -> None:
        super().__init__(d_model, **fields)
        depth = len(self.norms) * self.num_layers
        own_alpha, own_beta = depth**0.25, (4 * depth) ** -0.25
        if num_decoder_layers is not None:
            both = (self.num_layers**4 * num_decoder_layers) ** (1 / 16)
            own_alpha, own_beta = 0.81 * both, 0.87 / both
        self.alpha = own_alpha if alpha is None else alpha
        self.init_gain = own_beta if beta is None else beta

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        sum_BTD = torch.add(self.dropout(sublayer(x_BTD)), x_BTD, alpha=self.alpha)
        joined_BTD: Tensor = self.norms[index](sum_BTD)
        return joined_BTD


@check_ranges
class ReZero(Residual):
    """x + alpha f(x) without any norm, one alpha a layer from 0 on (Bachlechner et al. 2020, arXiv
    2003.04887, sec. 4).
    """

    def __init__(
        self,
        dropout: Probability = 0.0,
        stochastic_depth: Rate = 0.0,
        num_layers: PositiveInt = 1,
        layer_index: NonNegativeInt = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.dropout = dropping(dropout, stochastic_depth, layer_index, num_layers)

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if "norm" in choices.given:
            chosen = f"residual={choices.name('residual')} has no norm, so norm={choices.name('norm')}"
            yield f"norm: {chosen} would have no effect; leave it out"
        yield from unsharded(choices, "residual")

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.alpha * self.dropout(sublayer(x_BTD))
        return joined_BTD


@check_ranges
class Parallel(Residual):
    """x + attention(norm(x)) + feed_forward(norm(x)), and a norm after the last layer (GPT-J 2021; PaLM, Chowdhery et
    al. 2022, arXiv 2204.02311, sec. 2). shared_norm: False: a norm for each (GPT-NeoX, Black et al. 2022, arXiv
    2204.06745).
    """

    final_norm = True

    def __init__(self, d_model: PositiveInt, shared_norm: bool = True, **fields: Unpack[ResidualFields]) -> None:
        super().__init__(d_model, **fields)
        self.norms, self.shared_norm = self.norms[:1] if shared_norm else self.norms, shared_norm

    def forward(self, x_BTD: Tensor, *sublayers: Sublayer) -> Tensor:
        normed = [norm(x_BTD) for norm in self.norms]
        out_BTD = x_BTD
        for index, sublayer in enumerate(sublayers):
            out_BTD = out_BTD + self.dropout(sublayer(normed[0 if self.shared_norm else index]))
        return out_BTD


def norm_of(residual: Callable[..., Residual]) -> Callable[..., Norm]:
    norm: Callable[..., Norm] = value_of(residual, "norm", LayerNorm)
    return norm
