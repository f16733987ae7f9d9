"""How the sublayers of a layer, and their norms, join the residual stream. Legend: B batch, T length, D model width."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attnlab.layers.dropout import Dropout
from attnlab.layers.norms import LayerNorm
from attnlab.layers.parts import complete
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges

Sublayer = Callable[[Tensor], Tensor]
Norm = Callable[..., nn.Module]


@check_ranges
class Residual(nn.Module):
    """Joins the sublayers of one layer to the stream, (B, T, D) -> (B, T, D); a choice overrides `join`.

    Dropout acts on each sublayer's output before it is added (Vaswani et al. 2017, section 5.4).
    """

    final_norm: ClassVar[bool] = False
    """Whether a stack of these layers ends in a norm of its own."""
    init_gain: float = 1.0
    """What the initialisation multiplies the value, output and feed-forward weights of the layer by."""

    def __init__(
        self, d_model: PositiveInt, norm: Norm = LayerNorm, dropout: Probability = 0.0, num_sublayers: PositiveInt = 2
    ) -> None:
        super().__init__()
        self.norms = _norms(norm, d_model, num_sublayers)
        self.dropout = _dropout(dropout)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.join is Residual.join and cls.forward is Residual.forward:
            raise TypeError(f"{cls.__name__} has to give join, or forward for all sublayers at once")

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """The stream after sublayer number `index`."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, *sublayers: Sublayer) -> Tensor:
        for index, sublayer in enumerate(sublayers):
            x_BTD = self.join(x_BTD, index, sublayer)
        return x_BTD


class PostNorm(Residual):
    """norm(x + f(x)) (Vaswani et al. 2017, section 3.1)."""

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """norm(x + f(x))."""
        return self.norms[index](x_BTD + self.dropout(sublayer(x_BTD)))


class PreNorm(Residual):
    """x + f(norm(x)), and a norm after the last layer (Xiong et al. 2020, arXiv 2002.04745)."""

    final_norm = True

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """x + f(norm(x))."""
        return x_BTD + self.dropout(sublayer(self.norms[index](x_BTD)))


@check_ranges
class Sandwich(Residual):
    """x + norm(f(norm(x))), and a norm after the last layer (Peri-LN, Kim et al. 2025, arXiv 2502.02732).

    First in CogView (Ding et al. 2021, arXiv 2105.13290). Peri-LN's optional norm of the embedding is no part of it, as
    in Gemma 2.
    """

    final_norm = True

    def __init__(
        self, d_model: PositiveInt, norm: Norm = LayerNorm, dropout: Probability = 0.0, num_sublayers: PositiveInt = 2
    ) -> None:
        super().__init__(d_model, norm, dropout, num_sublayers)
        self.output_norms = _norms(norm, d_model, num_sublayers)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """x + norm(f(norm(x)))."""
        return x_BTD + self.dropout(self.output_norms[index](sublayer(self.norms[index](x_BTD))))


@check_ranges
class DeepNorm(Residual):
    """norm(alpha x + f(x)), the sublayers' first weights scaled by beta (Wang et al. 2022, arXiv 2203.00555, figure 2).

    For a stack of N layers of s sublayers alpha = (s N)^(1/4) and beta = (4 s N)^(-1/4): the paper's (2N)^(1/4),
    (8N)^(-1/4) for an encoder or decoder alone (s = 2), and (3N)^(1/4), (12N)^(-1/4) for a decoder that also attends to
    an encoder (s = 3). The encoder of N layers beside such a decoder of M has alpha = 0.81 (N^4 M)^(1/16) and beta =
    0.87 (N^4 M)^(-1/16).
    """

    def __init__(
        self,
        d_model: PositiveInt,
        norm: Norm = LayerNorm,
        dropout: Probability = 0.0,
        num_sublayers: PositiveInt = 2,
        num_layers: PositiveInt = 1,
        num_decoder_layers: PositiveInt | None = None,
        alpha: PositiveFloat | None = None,
        beta: PositiveFloat | None = None,
    ) -> None:
        super().__init__(d_model, norm, dropout, num_sublayers)
        depth = num_sublayers * num_layers
        own_alpha, own_beta = depth**0.25, (4 * depth) ** -0.25
        if num_decoder_layers is not None:
            both = (num_layers**4 * num_decoder_layers) ** (1 / 16)
            own_alpha, own_beta = 0.81 * both, 0.87 / both
        self.alpha = own_alpha if alpha is None else alpha
        self.init_gain = own_beta if beta is None else beta

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """norm(alpha x + f(x))."""
        return self.norms[index](torch.add(self.dropout(sublayer(x_BTD)), x_BTD, alpha=self.alpha))


@check_ranges
class ReZero(Residual):
    """x + alpha f(x) without any norm (Bachlechner et al. 2020, arXiv 2003.04887, section 4).

    One alpha a layer, shared by its sublayers, starts at 0.
    """

    def __init__(self, dropout: Probability = 0.0) -> None:
        nn.Module.__init__(self)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.dropout = _dropout(dropout)

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        """x + alpha f(x)."""
        return x_BTD + self.alpha * self.dropout(sublayer(x_BTD))


@check_ranges
class Parallel(Residual):
    """x + attention(norm(x)) + feed_forward(norm(x)), and a norm after the last layer (GPT-J 2021).

    Also PaLM (Chowdhery et al. 2022, arXiv 2204.02311, section 2). `shared_norm=False` gives each sublayer its own norm
    (GPT-NeoX, Black et al. 2022, arXiv 2204.06745, section 2.1).
    """

    final_norm = True

    def __init__(
        self,
        d_model: PositiveInt,
        norm: Norm = LayerNorm,
        dropout: Probability = 0.0,
        num_sublayers: PositiveInt = 2,
        shared_norm: bool = True,
    ) -> None:
        super().__init__(d_model, norm, dropout, 1 if shared_norm else num_sublayers)
        self.shared_norm = shared_norm

    def forward(self, x_BTD: Tensor, *sublayers: Sublayer) -> Tensor:
        normed = [norm(x_BTD) for norm in self.norms]
        out_BTD = x_BTD
        for index, sublayer in enumerate(sublayers):
            out_BTD = out_BTD + self.dropout(sublayer(normed[0 if self.shared_norm else index]))
        return out_BTD


def final_norm_part(residual: Callable[..., Residual]) -> Norm | None:
    """The norm that a stack of these residuals ends in, as a part, or None."""
    cls: Any = residual.func if isinstance(residual, partial) else residual
    return norm_part(residual) if cls.final_norm else None


def norm_part(residual: Callable[..., Residual]) -> Norm:
    """The norm that these residuals have, as a part; LayerNorm where they have none."""
    parameters = inspect.signature(residual).parameters
    norm: Norm = (
        parameters["norm"].default if "norm" in parameters else LayerNorm
    )  # what a partial binds shows as the default
    return norm


def _norms(norm: Norm, d_model: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(complete(norm, d_model=d_model) for _ in range(count))


def _dropout(rate: float) -> nn.Module:
    return Dropout(rate) if rate else nn.Identity()
