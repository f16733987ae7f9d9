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

from attnlab.layers.attention import Attention, DotProductAttention
from attnlab.layers.init import Init, Weight
from attnlab.layers.linear_attention import DecayingState, LinearAttention, StateMixer
from attnlab.layers.pointwise import Ends, Output, Sides
from attnlab.layers.positions import RelativeBias
from attnlab.layers.recurrent_mixers import RecurrentMixer
from attnlab.layers.residuals import Parallel, PreNorm
from attnlab.layers.stack import Layer
from attnlab.parts import Choices
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, check_ranges

KNOWN = ("model=gpt", "bert", "encoder_decoder", "t5", "vit")


@dataclass(frozen=True)
class Growth:
    """How far a parameter has grown from the base, for an optimizer's rule.

    width: d_model over the base's. fan_in, fan_out: of the parameter's own sides; None for a side that does not grow (a
    vocabulary, a single number), and of a vector only `fan_out`. multiplied: what goes in is divided by the fan-in's
    growth outside of the weight, as of the model's output. depth: layers over the base's, 1 outside of layers.
    alpha: the power of the depth by which what a layer adds is divided. writes: that division is in this weight.
    """

    width: float = 1.0
    fan_in: float | None = None
    fan_out: float | None = None
    multiplied: bool = False
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

    Of mixers with a state, products of queries and keys are scaled as scores are; where both have norm 1 (delta rule)
    by base_d_head^-1/2, and linear attention divides by a sum over d_head itself. What goes to one number a head is an
    output, with deviation and rate over the growth of its fan-in (table 3), as are a router's scores of experts and
    what hyper-connections read. Matrices of recurrent cells and latent states are hidden; the products of
    differential attention's vectors are divided by the growth of a head.
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
        if isinstance(model, type) and getattr(model, "sides", None) is None:
            got = f"model={choices.name('model')}"
            yield f"init: {named} is known for {', '.join(KNOWN)}, got {got}; choose another init"
        if choices.get("attention.scale") is not None:
            yield f"attention.scale: {named} sets the scale of scores itself; set init.base_d_head, or leave it out"
        if choices.get("model.scale_logits") is True:
            yield f"model.scale_logits: {named} scales the output itself; set init.output_multiplier"

    def std(self, weight: Weight) -> float:
        growth = self.growths.get(weight.name) or self.growths[weight.name.rpartition(".")[0]]  # of all gates of a cell
        if self.zero_query and weight.name.endswith(".query.weight"):
            return 0.0
        at_base = self.initial_std / math.sqrt(weight.depth / growth.depth if weight.writes else 1)
        std = at_base * _deviation(growth)
        return std * growth.depth**-growth.alpha if growth.writes else std

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int | None = None) -> None:
        """Draws the weights, sets what the model multiplies by, and leaves the `Growth` of each parameter there."""
        d_model = getattr(model, "d_model", None)
        if not isinstance(model, Output) or d_model is None or getattr(model, "sides", None) is None:
            raise ValueError(f"{type(self).__name__} is known for {', '.join(KNOWN)}, got {type(model).__name__}")
        width: float = d_model / self.base_width
        for module in model.modules():
            if isinstance(module, DotProductAttention | DecayingState):
                module.scale = self.scale(module, width)
            if isinstance(module, DotProductAttention):
                module.head_growth = self.head_growth(module, width)
            if self.zero_query and isinstance(module, LinearAttention) and module.feature_map == "relu":
                raise ValueError(
                    "zero_query must be false where attention.feature_map=relu, which learns nothing from 0"
                )
        model.output_scale = self.output_multiplier / width
        if isinstance(model, Ends) and model.embedding_scale != 1.0:
            model.embedding_scale = math.sqrt(self.base_width)
        self.growths = {name: self.growth(model, name, p, width) for name, p in model.named_parameters()}
        cast(Any, model).growths = self.growths
        super().__call__(model, seed)

    def scale(self, mixer: DotProductAttention | DecayingState, width: float) -> float:
        """What the products of queries and keys are multiplied by."""
        d_query = mixer.d_query if isinstance(mixer, DotProductAttention) else mixer.d_head
        if mixer.scale != d_query**-0.5:
            raise ValueError(f"attention.scale must be null, for the init sets it, got {mixer.scale:g}")
        base = d_query / self.head_growth(mixer, width)
        is_bounded = isinstance(mixer, DecayingState) and mixer.has_unit_keys
        return float(base**-0.5) if is_bounded else math.sqrt(base) / d_query

    def head_growth(self, mixer: DotProductAttention | StateMixer, width: float) -> float:
        """How far a head has grown: as the width does, or over base_d_head."""
        if self.base_d_head is None:
            return width
        if isinstance(mixer, Attention):
            return mixer.d_value / self.base_d_head  # differential attention halves queries and keys alone
        still = mixer.d_query - mixer.d_head if isinstance(mixer, DotProductAttention) else 0  # what does not rotate
        return (still or mixer.d_head) / self.base_d_head

    def growth(self, model: nn.Module, name: str, parameter: Tensor, width: float) -> Growth:
        """How far a parameter has grown. Raises ValueError where that is not known."""
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path)
        none, vector = Growth(width), Growth(width, fan_out=width)
        holder, sides = _declared(model, path, name)
        if sides is not None:
            return self._of_sides(holder, sides, parameter, width)
        if parameter.ndim >= 2:
            if isinstance(owner, nn.Embedding):
                return none if _is_table(model, owner) else vector
            if isinstance(owner, nn.Linear) and owner is getattr(model, "head", None):
                return Growth(width, fan_in=width, multiplied=True)
            raise ValueError(
                f"{type(self).__name__} knows no rule for {name} {tuple(parameter.shape)}; choose other parts, or init"
            )
        above = model.get_submodule(path.rpartition(".")[0]) if path else model
        if isinstance(above, Attention) and owner in (above.query_norm, above.key_norm):
            return vector if above.norms_full_width else self._of_sides(above, "head", parameter, width)
        if isinstance(above, StateMixer) and owner is getattr(above, "norm", None):
            return self._of_sides(above, "head", parameter, width)
        return vector if owner is not model and parameter.numel() == getattr(model, "d_model", None) else none

    def _of_sides(self, holder: nn.Module, sides: Sides, parameter: Tensor, width: float) -> Growth:
        head, heads = None, None
        if isinstance(holder, DotProductAttention | StateMixer):
            head = self.head_growth(holder, width)
            heads = width / head if self.base_d_head is not None else None
        fan_in = {"both": width, "in": width, "heads": width, "across_heads": heads}.get(sides)
        fan_out = {"both": width, "out": width, "heads": heads, "head": head, "across_heads": heads}.get(sides)
        return Growth(width, fan_in if parameter.ndim > 1 else None, fan_out)


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
                if isinstance(mixer := module[int(name[len(path) + 1 :].split(".")[0])].attention, RecurrentMixer):
                    raise ValueError(f"attention must have an output projection, got {type(mixer).__name__}")
                writes = name.split(".")[-2] in ("output", "down")
                return replace(growth, depth=len(module) / self.base_layers, alpha=self.alpha, writes=writes)
        return growth


def _are_layers(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(isinstance(layer, Layer) for layer in module)


def _is_table(model: nn.Module, embedding: nn.Embedding) -> bool:
    """Whether this is of a bias on the scores, which has one number a head."""
    return any(isinstance(module, RelativeBias) and module.table is embedding for module in model.modules())


def _deviation(growth: Growth) -> float:
    """What the deviation of a weight whose sides have grown so far is multiplied by (Yang et al. 2023, arXiv
    2310.17813, section 3): of a hidden one fan_in^-1/2, of an output that no multiplier divides fan_in^-1.
    """
    return math.sqrt(growth.fan_out or 1.0) / growth.fan_in if growth.fan_in and not growth.multiplied else 1.0


def _declared(model: nn.Module, *paths: str) -> tuple[nn.Module, Sides | None]:
    """What a part says of the sides of its own layer, or weight, at the first of these paths of which one says it, and
    the part; None where none does."""
    for path in paths:
        words = path.split(".")
        for cut in range(len(words) - 1, -1, -1):
            holder = model.get_submodule(".".join(words[:cut]))
            sides: Mapping[str, Sides] = getattr(holder, "sides", None) or {}
            if found := sides.get(".".join(words[cut:])):
                return holder, found
    return model, None


def growths_of(model: nn.Module) -> Mapping[int, Growth]:
    """By the identity of each parameter, what its model's init has said of it; empty where it said nothing."""
    return {
        id(module.get_parameter(name)): growth
        for module in model.modules()
        for name, growth in getattr(module, "growths", {}).items()
    }
