"""First weights that go with the width (muP) and with the depth (CompleteP), so that a rate found on a small model
serves a large one.

What the rates of an optimizer need to know of each parameter stands in `Growth`; the rules are in
`attnlab.training.widths`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from attnlab.layers.attention import Attention
from attnlab.layers.init import Init, Weight
from attnlab.layers.pointwise import Ends, FeedForward
from attnlab.layers.positions import RelativeBias
from attnlab.layers.residuals import Parallel, PreNorm
from attnlab.layers.stack import Layer
from attnlab.parts import Choices
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges

KNOWN = ("model=gpt", "bert", "encoder_decoder", "t5")


@dataclass(frozen=True)
class Growth:
    """How far a parameter has grown from the base, for an optimizer's rule.

    width: d_model over the base's. fan_in, fan_out: of the parameter's own sides; None for a side that does not grow (a
    vocabulary, a single number), and of a vector only `fan_out`. depth: layers over the base's, 1 outside of layers.
    alpha: the power of the depth by which what a layer adds is divided. writes: that division is in this weight.
    """

    width: float = 1.0
    fan_in: float | None = None
    fan_out: float | None = None
    depth: float = 1.0
    alpha: float = 0.0
    writes: bool = False


@check_ranges
class MuP(Init):
    """The maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8): at d_model = base_width it is
    GPT-2's initialisation with deviation `std`, and r times as wide, hidden weights have std / sqrt(r), scores are
    multiplied by sqrt(base_d_head) / d_head (definition 4.1), the output by output_multiplier / r.

    All widths (d_ff, the heads' together) are taken to grow with d_model. base_d_head: None: that of as many heads at
    base_width; where the number of heads grows instead, d_head itself. zero_query: queries start at 0, so that scores,
    which random weights make as large as 1 / sqrt(d_head), are alike in all widths from the start (appendix D.2).
    Raises ValueError for a model that has a parameter for which no rule is known.
    """

    def __init__(
        self,
        base_width: PositiveInt = 64,
        base_d_head: PositiveInt | None = None,
        std: PositiveFloat = 0.02,
        output_multiplier: PositiveFloat = 1.0,
        zero_query: bool = False,
    ) -> None:
        self.base_width, self.base_d_head = base_width, base_d_head
        self.initial_std, self.output_multiplier = std, output_multiplier
        self.zero_query = zero_query
        self.growths: dict[str, Growth] = {}

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        model, named = choices.parts.get("model"), f"init={choices.name('init')}"
        if isinstance(model, type) and not issubclass(model, Ends):
            yield (
                f"init: {named} is known for Transformers of text ({', '.join(KNOWN)}), got "
                f"model={choices.name('model')}; choose another init"
            )
        if choices.get("attention.scale") is not None:
            yield f"attention.scale: {named} sets the scale of scores itself; set init.base_d_head, or leave it out"
        if choices.get("model.scale_logits") is True:
            yield f"model.scale_logits: {named} scales the output itself; set init.output_multiplier"

    def std(self, weight: Weight) -> float:
        growth = self.growths[weight.name]
        if self.zero_query and weight.name.endswith(".query.weight"):
            return 0.0
        std = self.initial_std if growth.fan_in is None or growth.fan_out is None else self._hidden(weight, growth)
        return std * growth.depth**-growth.alpha if growth.writes else std

    def _hidden(self, weight: Weight, growth: Growth) -> float:
        assert growth.fan_in is not None
        at_base = self.initial_std / math.sqrt(weight.depth / growth.depth if weight.writes else 1)
        return at_base / math.sqrt(growth.fan_in)

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int | None = None) -> None:
        """Draws the weights, sets what the model multiplies by, and leaves the `Growth` of each parameter there."""
        d_model = getattr(model, "d_model", None)
        if not isinstance(model, Ends) or d_model is None:
            raise ValueError(f"{type(self).__name__} is known for {', '.join(KNOWN)}, got {type(model).__name__}")
        width: float = d_model / self.base_width
        for module in model.modules():
            if isinstance(module, Attention):
                module.scale = self.scale(module, width)
        model.output_scale = self.output_multiplier / width
        if model.embedding_scale != 1.0:
            model.embedding_scale = math.sqrt(self.base_width)
        self.growths = {name: self.growth(model, name, p, width) for name, p in model.named_parameters()}
        cast(Any, model).growths = self.growths
        super().__call__(model, seed)

    def scale(self, attention: Attention, width: float) -> float:
        """What the scores of an attention are multiplied by."""
        if attention.scale != attention.d_head**-0.5:
            raise ValueError(f"attention.scale must be null, for the init sets it, got {attention.scale:g}")
        return math.sqrt(self.head_base(attention, width)) / attention.d_head

    def head_base(self, attention: Attention, width: float) -> float:
        return self.base_d_head or attention.d_head / width

    def growth(self, model: nn.Module, name: str, parameter: Tensor, width: float) -> Growth:
        """How far a parameter has grown. Raises ValueError where that is not known."""
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        none, vector = Growth(width), Growth(width, fan_out=width)
        if parameter.ndim >= 2:
            if isinstance(owner, nn.Embedding):
                return none if _is_table(model, owner) else vector
            if isinstance(owner, nn.Linear) and owner is getattr(model, "head", None):
                return Growth(width, fan_in=width)
            if isinstance(owner, nn.Linear) and _is_hidden(model, path, owner):
                return Growth(width, width, width)
            raise ValueError(
                f"{type(self).__name__} knows no rule for {name} {tuple(parameter.shape)}; choose other parts, or init"
            )
        if isinstance(owner, nn.Linear) and own == "bias":
            return vector if _is_hidden(model, path, owner) else none
        above = model.get_submodule(path.rpartition(".")[0]) if path else model
        if isinstance(above, Attention) and owner in (above.query_norm, above.key_norm):
            by_head = Growth(width, fan_out=above.d_head / self.head_base(above, width))
            return vector if above.norms_full_width else by_head
        return vector if owner is not model and parameter.numel() == getattr(model, "d_model", None) else none


@check_ranges
class CompleteP(MuP):
    """muP that goes with the depth, too (Dey et al. 2025, arXiv 2505.01618, table 1): m times as deep as base_layers,
    what each layer adds to the stream is divided by m^alpha, rates in layers are multiplied by m^(alpha - 1), Adam's
    eps by m^-alpha; alpha 1 is CompleteP, 0.5 depth-muP.

    The division stands in the weights that write to the stream (deviation and rate), which with Adam is the same
    function at every step (Yang et al. 2022, lemma J.1). Raises ValueError for residuals other than pre_ln, parallel.
    """

    def __init__(
        self,
        base_width: PositiveInt = 64,
        base_layers: PositiveInt = 4,
        alpha: Probability = 1.0,
        base_d_head: PositiveInt | None = None,
        std: PositiveFloat = 0.02,
        output_multiplier: PositiveFloat = 1.0,
        zero_query: bool = False,
    ) -> None:
        super().__init__(base_width, base_d_head, std, output_multiplier, zero_query)
        self.base_layers, self.alpha = base_layers, alpha

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        if "residual" in choices.parts and not choices.is_a("residual", PreNorm, Parallel):
            yield (
                f"residual: init={choices.name('init')} divides what layers add to the stream, which "
                f"residual={choices.name('residual')} norms or weighs itself; choose residual=pre_ln or parallel"
            )

    def growth(self, model: nn.Module, name: str, parameter: Tensor, width: float) -> Growth:
        growth = super().growth(model, name, parameter, width)
        for path, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and name.startswith(f"{path}.") and _are_layers(module):
                residual = module[int(name[len(path) + 1 :].split(".")[0])].residual
                if not isinstance(residual, PreNorm | Parallel):
                    raise ValueError(f"residual must be pre_ln or parallel, got {type(residual).__name__}")
                writes = name.split(".")[-2] in ("output", "down")
                return replace(growth, depth=len(module) / self.base_layers, alpha=self.alpha, writes=writes)
        return growth


def _are_layers(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(isinstance(layer, Layer) for layer in module)


def _is_table(model: nn.Module, embedding: nn.Embedding) -> bool:
    """Whether this is of a bias on the scores, which has one number a head."""
    return any(isinstance(module, RelativeBias) and module.table is embedding for module in model.modules())


def _is_hidden(model: nn.Module, path: str, linear: nn.Linear) -> bool:
    """Whether both sides of a linear layer grow with the width: of an attention, a feed-forward, or of the stream."""
    above, _, name = path.rpartition(".")
    holder = model.get_submodule(above)
    if isinstance(holder, Attention):
        return name in ("query", "key", "value", "output", "gate")
    if isinstance(holder, FeedForward):
        return name in ("up", "gate", "down")
    return holder is model and linear.in_features == linear.out_features == getattr(model, "d_model", None)


def growths_of(model: nn.Module) -> Mapping[int, Growth]:
    """By the identity of each parameter, what its model's init has said of it; empty where it said nothing."""
    return {
        id(module.get_parameter(name)): growth
        for module in model.modules()
        for name, growth in getattr(module, "growths", {}).items()
    }
