"""The residual stream: how sublayers and their norms join it, the layers on it, and stacks of these.

Legend: B batch, T target length, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, TypedDict, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnlab.layers.attention import Attention, MultiHead
from attnlab.layers.cache import Append, KeyValueCache
from attnlab.layers.pointwise import GELU, FeedForward, LayerNorm, Norm, maybe_dropout
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.scope import Memory, Scope, build_scope
from attnlab.parts import Choices, Part, build_part, parameters_of, unsharded, unwrapped, value_of
from attnlab.ranges import PositiveFloat, PositiveInt, Probability, Rate, check_ranges

Sublayer = Callable[[Tensor], Tensor]
Described = TypeVar("Described", bound="StackFields")


class ResidualFields(TypedDict, total=False):
    """The fields of every residual; see Residual."""

    norm: Callable[..., Norm]
    dropout: Probability
    num_sublayers: PositiveInt


@check_ranges
class Residual(Part, nn.Module):
    """Joins the sublayers of one layer to the stream, (B, T, D) -> (B, T, D); a choice overrides `join`. Dropout acts
    on each sublayer's output before it is added (Vaswani et al. 2017, section 5.4).
    """

    final_norm: ClassVar[bool] = False  # whether a stack of these layers ends in a norm of its own
    init_gain: float = 1.0  # of the layer's value, output and feed-forward weights, in their initialisation

    def __init__(
        self,
        d_model: PositiveInt,
        norm: Callable[..., Norm] = LayerNorm,
        dropout: Probability = 0.0,
        num_sublayers: PositiveInt = 2,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(build_part(norm, d_model=d_model) for _ in range(num_sublayers))
        self.dropout = maybe_dropout(dropout)

    def __init_subclass__(cls, **kwargs: object) -> None:
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
        joined_BTD: Tensor = self.norms[index](x_BTD + self.dropout(sublayer(x_BTD)))
        return joined_BTD


class PreNorm(Residual):
    """x + f(norm(x)), and a norm after the last layer (Xiong et al. 2020, arXiv 2002.04745)."""

    final_norm = True

    def join(self, x_BTD: Tensor, index: int, sublayer: Sublayer) -> Tensor:
        joined_BTD: Tensor = x_BTD + self.dropout(sublayer(self.norms[index](x_BTD)))
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
        num_layers: PositiveInt = 1,
        num_decoder_layers: PositiveInt | None = None,
        alpha: PositiveFloat | None = None,
        beta: PositiveFloat | None = None,
        **fields: Unpack[ResidualFields],
    ) -> None:
        super().__init__(d_model, **fields)
        depth = len(self.norms) * num_layers
        own_alpha, own_beta = depth**0.25, (4 * depth) ** -0.25
        if num_decoder_layers is not None:
            both = (num_layers**4 * num_decoder_layers) ** (1 / 16)
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

    def __init__(self, dropout: Probability = 0.0) -> None:
        nn.Module.__init__(self)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.dropout = maybe_dropout(dropout)

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


class Layer(nn.Module):
    """Self-attention and feed-forward, joined to the stream by a residual; (B, T, D) -> (B, T, D). cross_attention:
    stands between the two and attends to a memory (Vaswani et al. 2017, section 3.1).
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        residual: Residual,
        cross_attention: Attention | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.cross_attention = attention, cross_attention
        self.feed_forward, self.residual = feed_forward, residual

    def forward(self, x_BTD: Tensor, scope: Scope, cache: Append | None = None, memory: Memory | None = None) -> Tensor:
        sublayers: list[Sublayer] = [lambda h_BTD: self.attention(h_BTD, scope, cache), self.feed_forward]
        cross = self.cross_attention
        if cross is not None:
            assert memory is not None, "a layer with cross-attention needs a memory"
            sublayers.insert(1, lambda h_BTD: memory.attend(cross, h_BTD))
        out_BTD: Tensor = self.residual(x_BTD, *sublayers)
        return out_BTD


class StackFields(TypedDict, total=False):
    """The description of a stack, which a model on these layers takes field by field and passes on whole.

    d_ff: None: 4 d_model. dropout: also on the embedded input (Vaswani et al. 2017, section 5.4). bias: of the linear
    layers. embedding_norm: a norm on the embedded input with its positions, of the residual's kind (BERT; BLOOM, Scao
    et al. 2022, arXiv 2211.05100, section 3.2.2). The others are parts (classes or partials), built with the dims.
    """

    d_model: PositiveInt
    num_heads: PositiveInt
    num_layers: PositiveInt
    d_ff: PositiveInt | None
    dropout: Rate
    bias: bool
    embedding_norm: bool
    position: Callable[..., PositionEncoding]
    residual: Callable[..., Residual]
    attention: Callable[..., Attention]
    feed_forward: Callable[..., FeedForward]


class TowerFields(TypedDict, total=False):
    """What differs in one of several stacks of a model, as in StackFields; None: as the model has it."""

    d_model: PositiveInt | None
    num_heads: PositiveInt | None
    num_layers: PositiveInt | None
    d_ff: PositiveInt | None
    dropout: Rate | None
    bias: bool | None
    embedding_norm: bool | None
    position: Callable[..., PositionEncoding] | None
    residual: Callable[..., Residual] | None
    attention: Callable[..., Attention] | None
    feed_forward: Callable[..., FeedForward] | None


def tower_fields(fields: Described, own: TowerFields | None) -> Described:
    """The fields of a model with what differs in one of its stacks. Raises TypeError for a field that there is not."""
    differing = {name: value for name, value in (own or {}).items() if value is not None}
    if unknown := sorted(differing.keys() - TowerFields.__annotations__.keys()):
        raise TypeError(f"a tower has no field {unknown[0]!r}; accepted: {', '.join(TowerFields.__annotations__)}")
    return cast(Described, {**fields, **differing})


@check_ranges
class Stack(nn.Module):
    """Layers that share one position encoding, and a final norm where the residual asks for one; (B, T, D), in and out.

    max_length: positions of a table. grid: rows and columns of an image. cross_attention: every layer also attends to a
    memory, without a window, which would mean nothing there. Set `checkpoint_activations` to recompute activations in
    the backward pass. Raises ValueError where a part refuses a width.
    """

    defaults: ClassVar[StackFields] = {
        "d_ff": None,
        "dropout": 0.0,
        "bias": False,
        "embedding_norm": False,
        "position": PositionEncoding,
        "residual": PreNorm,
        "attention": MultiHead,
        "feed_forward": GELU,
    }

    def __init__(
        self,
        fields: StackFields,
        causal: bool,
        max_length: PositiveInt | None = None,
        grid: tuple[int, int] | None = None,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        fields = self.defaults | fields
        d_model, residual, attention = fields["d_model"], fields["residual"], fields["attention"]
        described: Mapping[str, object] = fields
        dims: dict[str, object] = {
            **{name: described[name] for name in ("d_model", "num_heads", "num_layers", "dropout", "bias")},
            **{name: size for name, size in (("max_length", max_length), ("grid", grid)) if size is not None},
            "d_ff": fields["d_ff"] or 4 * d_model,
            "causal": causal,
            "num_sublayers": 3 if cross_attention else 2,
        }
        self.causal, self.checkpoint_activations = causal, False
        has_window = "window" in parameters_of(unwrapped(attention))
        cross = partial(attention, window=None) if has_window else attention
        layers = [
            Layer(
                build_part(attention, **dims),
                build_part(fields["feed_forward"], **dims),
                build_part(residual, **dims),
                build_part(cross, **dims) if cross_attention else None,
            )
            for _ in range(fields["num_layers"])
        ]
        self.layers = nn.ModuleList(layers)
        # After the layers: an encoding is told the head width that the attention settled on.
        self.position = build_part(fields["position"], **{**dims, "d_head": layers[0].attention.d_head})
        new_norm = partial(build_part, norm_of(residual), d_model=d_model)
        self.embedding_norm = new_norm() if fields["embedding_norm"] else nn.Identity()
        self.dropout = maybe_dropout(fields["dropout"])
        self.norm = new_norm() if unwrapped(residual).final_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
        prefix_B1: Tensor | None = None,
    ) -> Tensor:
        """Positions default to 0.. (after what is cached, padding not counted); is_token_BT is False at padding.
        prefix_B1: how many first positions all see; where it is given, what follows them is causal whatever the stack
        is. Raises ValueError past the last position that the encoding can serve.
        """
        causal = self.causal or prefix_B1 is not None
        scope = build_scope(x_BTD, self.position, causal, positions_BT, is_token_BT, cache=cache, prefix_B1=prefix_B1)
        x_BTD = self.position.embed(x_BTD, scope.query_positions_BT)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        if self.checkpoint_activations and torch.is_grad_enabled() and cache is None:
            for layer in self.layers:
                x_BTD = checkpoint(_with_own_masks, layer, x_BTD, scope, memory, use_reentrant=False)
        else:
            for index, layer in enumerate(self.layers):
                x_BTD = layer(x_BTD, scope, None if cache is None else cache.layer(index), memory)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD


def _with_own_masks(layer: nn.Module, x_BTD: Tensor, scope: Scope, memory: Memory | None) -> Tensor:
    # A recomputed layer must build again what it built the first time, so it cannot share another layer's masks.
    out_BTD: Tensor = layer(x_BTD, scope.fresh(), None, None if memory is None else memory.fresh())
    return out_BTD
