"""Layers on a residual stream, and stacks of these.

Legend: B batch, T target length, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnlab.layers.attention import MultiHead
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.mixer import Mixer
from attnlab.layers.pointwise import GELU, PositionWise, maybe_dropout
from attnlab.layers.positions import Places, PositionEncoding
from attnlab.layers.residuals import PreNorm, Residual, Stream, Sublayer, norm_of
from attnlab.layers.scope import Scope, build_scope
from attnlab.parts import build_part, parameters_of, unwrapped
from attnlab.ranges import PositiveInt, Rate, check_ranges

Described = TypeVar("Described", bound="StackFields")


class Layer(nn.Module):
    """What mixes positions (`attention`) and feed-forward, joined to the stream by a residual. cross_attention: stands
    between the two and attends to a memory (Vaswani et al. 2017, section 3.1). entry: of the stack's pattern, by name.
    """

    def __init__(
        self,
        attention: Mixer,
        feed_forward: PositionWise,
        residual: Residual,
        cross_attention: Mixer | None = None,
        entry: str = "",
    ) -> None:
        super().__init__()
        self.entry = entry
        self.attention, self.cross_attention = attention, cross_attention
        self.feed_forward, self.residual = feed_forward, residual

    def forward(
        self, stream: Stream, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Stream:
        sublayers: list[Sublayer] = [lambda h_BTD: self.attention(h_BTD, scope, cache)]
        cross = self.cross_attention
        if cross is not None:
            assert memory is not None, "a layer with cross-attention needs a memory"
            sublayers.append(lambda h_BTD: memory.attend(cross, h_BTD))
        if self.feed_forward.is_sublayer:
            sublayers.append(self.feed_forward.within(scope))
        return self.residual(stream, *sublayers)


class LayerFields(TypedDict, total=False):
    """What differs in the layers of one entry of a pattern, as in StackFields; None: as the stack has it."""

    d_ff: PositiveInt | None
    position: Callable[..., PositionEncoding] | None
    residual: Callable[..., Residual] | None
    attention: Callable[..., Mixer] | None
    feed_forward: Callable[..., PositionWise] | None


class StackFields(TypedDict, total=False):
    """The description of a stack, which a model on these layers takes field by field and passes on whole.

    d_ff: None: 4 d_model. dropout: also on the embedded input (Vaswani et al. 2017, section 5.4). bias: of the linear
    layers. embedding_norm: a norm on the embedded input with its positions, of the residual's kind (BERT; BLOOM, Scao
    et al. 2022, arXiv 2211.05100, section 3.2.2). pattern: names of entries of `layers`, repeated over the depth; each
    layer differs by what its entry says; None: all layers are alike. random_positions: in training the position
    encoding is told positions drawn in order from so many, others in each forward pass (Ruoss et al. 2023, arXiv
    2305.16843); position_step: and in evaluation plain ones times this (where the paper draws, too). The others are
    parts (classes or partials), built with the dims.
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
    attention: Callable[..., Mixer]
    feed_forward: Callable[..., PositionWise]
    pattern: Sequence[str] | None
    layers: Mapping[str, LayerFields | None]
    random_positions: PositiveInt | None
    position_step: PositiveInt


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
    attention: Callable[..., Mixer] | None
    feed_forward: Callable[..., PositionWise] | None
    pattern: Sequence[str] | None
    layers: Mapping[str, LayerFields | None] | None
    random_positions: PositiveInt | None
    position_step: PositiveInt | None


def tower_fields(fields: Described, own: TowerFields | None) -> Described:
    """The fields of a model with what differs in one of its stacks. Raises TypeError for a field that there is not."""
    differing = {name: value for name, value in (own or {}).items() if value is not None}
    if unknown := sorted(differing.keys() - TowerFields.__annotations__.keys()):
        raise TypeError(f"a tower has no field {unknown[0]!r}; accepted: {', '.join(TowerFields.__annotations__)}")
    return cast(Described, {**fields, **differing})


def layers_of(fields: StackFields) -> list[tuple[str, StackFields]]:
    """For each layer of a stack the name of its entry in the pattern, empty without one, and its own fields. Raises
    ValueError for a pattern that is longer than the stack is deep, and for an entry that nobody defines.
    """
    num_layers, pattern = fields["num_layers"], list(fields["pattern"] or [])
    entries: Mapping[str, LayerFields | None] = fields["layers"] if pattern else {}
    for reason in wrong_pattern(pattern, entries, num_layers):
        raise ValueError(reason)
    if not pattern:
        return [("", fields)] * num_layers
    own = {
        name: cast(StackFields, {**fields, **{key: value for key, value in (entry or {}).items() if value is not None}})
        for name, entry in entries.items()
    }
    return [(name, own[name]) for name in (pattern[index % len(pattern)] for index in range(num_layers))]


def wrong_pattern(pattern: Sequence[str], entries: Mapping[str, object], num_layers: int) -> Iterator[str]:
    """Why a pattern cannot be, one line a reason, each about the field that it starts with."""
    if len(pattern) > num_layers:
        yield (
            f"pattern: {len(pattern)} entries ({', '.join(pattern)}) are more than num_layers={num_layers}; the last "
            "ones would never be used: shorten the pattern, or take more layers"
        )
    if unknown := [name for name in dict.fromkeys(pattern) if name not in entries]:
        defined = f"defined: {', '.join(entries)}" if entries else "none is defined"
        how = f"as in layers.{unknown[0]}.position=rotary, or layers.{unknown[0]}={{}} for layers as the model has them"
        yield f"pattern: {unknown[0]} is no entry of layers ({defined}); define it, {how}"
    for name, entry in entries.items():
        if name in pattern and isinstance(entry, Mapping) and (extra := entry.keys() - LayerFields.__annotations__):
            accepted = ", ".join(LayerFields.__annotations__)
            yield f"layers.{name}: a layer has no field {sorted(extra)[0]!r} of its own; accepted: {accepted}"


@check_ranges
class Stack(nn.Module):
    """Layers on one stream, and a final norm where the last one's residual asks for one; (B, T, D), in and out. Layers
    of one entry of a pattern share a position encoding; without a pattern all do.

    max_length: positions of a table. grid: rows and columns of an image. cross_attention: every layer also attends to a
    memory, by the stack's own attention without a window, which would mean nothing there. Set `checkpoint_activations`
    to recompute activations in the backward pass. num_heads_ahead: layers beside the last one that a forward pass with
    `ahead` ends in, too, each for itself. Raises ValueError where a part refuses a width, or what the stack is.
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
        "pattern": None,
        "layers": {},
        "random_positions": None,
        "position_step": 1,
    }

    def __init__(
        self,
        fields: StackFields,
        causal: bool,
        max_length: PositiveInt | None = None,
        grid: tuple[int, int] | None = None,
        cross_attention: bool = False,
        num_heads_ahead: int = 0,
    ) -> None:
        super().__init__()
        fields = self.defaults | fields
        described: Mapping[str, object] = fields
        dims: dict[str, object] = {
            **{name: described[name] for name in ("d_model", "num_heads", "num_layers", "dropout", "bias")},
            **{name: size for name, size in (("max_length", max_length), ("grid", grid)) if size is not None},
            "causal": causal,
        }
        self.causal, self.d_model, self.checkpoint_activations = causal, fields["d_model"], False
        of_layers = layers_of(fields)
        cross = without_window(fields["attention"]) if cross_attention else None
        self.layers = nn.ModuleList(
            _new_layer(entry, own, {**dims, "layer_index": index}, cross)
            for index, (entry, own) in enumerate(of_layers)
        )
        last = {**dims, "layer_index": fields["num_layers"] - 1}
        heads = (_new_layer(*of_layers[-1], last, cross) for _ in range(num_heads_ahead))
        self.heads_ahead = HeadsAhead(fields["num_layers"], heads) if num_heads_ahead else None
        # After the layers: an encoding is told the head width that the attention settled on.
        self.position, self.positions = _positions(fields["position"], of_layers, self.layers, dims)
        self.random_positions, self.position_step = fields["random_positions"], fields["position_step"]
        self._check_random_positions(grid)
        residuals = [own["residual"] for _, own in of_layers]
        check_streams([cast(Layer, layer).residual for layer in self.layers])
        new_norm = partial(build_part, d_model=fields["d_model"])
        self.embedding_norm = new_norm(norm_of(residuals[0])) if fields["embedding_norm"] else nn.Identity()
        self.dropout = maybe_dropout(fields["dropout"])
        self.norm = new_norm(norm_of(residuals[-1])) if unwrapped(residuals[-1]).final_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
        prefix_B1: Tensor | None = None,
        ahead: list[Tensor] | None = None,
    ) -> Tensor:
        """Positions default to 0.. (after what is cached, padding not counted); is_token_BT is False at padding.
        prefix_B1: how many first positions all see; where it is given, what follows them is causal whatever the stack
        is. ahead: takes what each of the heads ahead ends in, (B, T, D), in the place of the last layer. Raises
        ValueError past the last position that the encoding can serve.
        """
        causal = self.causal or prefix_B1 is not None
        places = self._places(x_BTD, positions_BT)
        scope = build_scope(x_BTD, self.position, causal, positions_BT, is_token_BT, cache, prefix_B1, places)
        scopes = {name: scope.under(position) for name, position in self.encodings().items() if name}
        x_BTD = self.position.embed(x_BTD, scope.places_BT)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        stream = self.first_layer("").residual.enter(x_BTD)
        recomputes = self.checkpoint_activations and torch.is_grad_enabled() and cache is None
        layers = cast("list[Layer]", [*self.layers])
        trunk = stream
        for index, layer in enumerate(layers):
            trunk = stream
            within = scopes.get(layer.entry, scope)
            if recomputes:
                stream = checkpoint(_with_own_masks, layer, stream, within, memory, use_reentrant=False)
            else:
                stream = layer(stream, within, None if cache is None else cache.layer(index), memory)
        if ahead is not None:
            ahead += self._ends(trunk, scopes.get(layers[-1].entry, scope))
        normed_BTD: Tensor = self.norm(layers[-1].residual.leave(stream))
        return normed_BTD

    def _ends(self, stream: Stream, scope: Scope) -> Iterator[Tensor]:
        for head in cast("Iterable[Layer]", self.heads_ahead or ()):
            yield self.norm(head.residual.leave(head(stream, scope)))

    def encodings(self) -> dict[str, PositionEncoding]:
        """The stack's own position encoding, under no name, where layers use it, and those of entries of a pattern."""
        of_entries = cast("dict[str, PositionEncoding]", dict(self.positions.items()))
        is_used = any(layer.entry not in of_entries for layer in cast("Iterable[Layer]", self.layers))
        return {"": self.position, **of_entries} if is_used else of_entries

    def _places(self, x_BTD: Tensor, positions_BT: Tensor | None) -> Places | None:
        if self.random_positions is None:
            return None
        if not self.training:
            return Places(step=self.position_step)
        count = x_BTD.shape[1] if positions_BT is None else int(positions_BT.max()) + 1
        return Places.drawn(self.random_positions, count, x_BTD.device)

    def _check_random_positions(self, grid: tuple[int, int] | None) -> None:
        count = self.random_positions
        if count is None:
            if self.position_step > 1:
                raise ValueError(f"position_step={self.position_step} is of random_positions, and there are none")
            return
        if grid is not None:
            raise ValueError(f"random_positions={count} are of a text, and these layers are of images; accepted: null")
        for encoding in self.encodings().values():
            if encoding.longest is not None and encoding.longest < count:
                raise ValueError(
                    f"random_positions={count} are more than the {encoding.longest} that {type(encoding).__name__} "
                    "serves; draw from fewer, or raise max_length"
                )

    def first_layer(self, entry: str) -> Layer:
        """The first layer of an entry of the pattern; of an empty name, the first of all."""
        layers = cast("list[Layer]", list(self.layers))
        return next((layer for layer in layers if layer.entry == entry), layers[0])


class HeadsAhead(nn.ModuleList):
    """Layers in the place of the last one of a stack of `depth` layers, side by side."""

    def __init__(self, depth: int, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.depth = depth


def _with_own_masks(layer: nn.Module, stream: Stream, scope: Scope, memory: Memory | None) -> Stream:
    # A recomputed layer must build again what it built the first time, so it cannot share another layer's masks.
    return layer(stream, scope.fresh(), None, None if memory is None else memory.fresh())


def _new_layer(
    entry: str, fields: StackFields, dims: Mapping[str, object], cross: Callable[..., Mixer] | None
) -> Layer:
    num_sublayers = 1 + (cross is not None) + unwrapped(fields["feed_forward"]).is_sublayer
    dims = {**dims, "d_ff": fields["d_ff"] or 4 * fields["d_model"], "num_sublayers": num_sublayers}
    attention = unwrapped(fields["attention"])
    if not dims["causal"] and not attention.sees_both_sides:
        raise ValueError(
            f"attention: {attention.__name__} sees only what stands before a token, and these layers see both sides; "
            "accepted: one that sees both, as MultiHead"
        )
    if cross is not None and not unwrapped(cross).reads_memory:
        raise ValueError(
            f"attention: {unwrapped(cross).__name__} cannot attend to an encoder's states; accepted for a decoder: one "
            "that can, as MultiHead; a pattern names others for some layers"
        )
    return Layer(
        build_part(fields["attention"], **dims),
        build_part(fields["feed_forward"], **dims),
        build_part(fields["residual"], **dims),
        build_part(cross, **dims) if cross else None,
        entry,
    )


def without_window(attention: Callable[..., Mixer]) -> Callable[..., Mixer]:
    """An attention to another sequence, where a window would mean nothing."""
    return partial(attention, window=None) if "window" in parameters_of(unwrapped(attention)) else attention


def _positions(
    shared: Callable[..., PositionEncoding],
    of_layers: Sequence[tuple[str, StackFields]],
    layers: nn.ModuleList,
    dims: Mapping[str, object],
) -> tuple[PositionEncoding, nn.ModuleDict]:
    """The encoding of a stack, and those of the entries of its pattern that have one of their own."""
    users: dict[str, list[Layer]] = {}
    for (name, own), layer in zip(of_layers, layers, strict=True):
        users.setdefault(name if own["position"] is not shared else "", []).append(cast(Layer, layer))
    of_entries = {name: own["position"] for name, own in of_layers if name in users and name}
    for name, position in of_entries.items():
        if reason := wrong_position(unwrapped(shared), unwrapped(position)):
            raise ValueError(f"layers.{name}.position: {reason}")
    for _, own in of_layers:
        mixer, position = unwrapped(own["attention"]), unwrapped(own["position"])
        if reason := mixer.refuses(position):
            raise ValueError(f"position: {position.__name__} {reason.format(mixer=mixer.__name__)}")

    def built(position: Callable[..., PositionEncoding], name: str) -> PositionEncoding:
        own = users.get(name) or [cast(Layer, layers[0])]
        return build_part(position, **{**dims, "d_head": own[0].attention.d_head})

    # Where no layer uses it, its table would be learned by nobody.
    is_used = "" in users or embeds(unwrapped(shared))
    return (
        built(shared, "") if is_used else PositionEncoding(),
        nn.ModuleDict({name: built(position, name) for name, position in of_entries.items()}),
    )


def embeds(position: type[PositionEncoding]) -> bool:
    """Whether an encoding is added to the embedding, which all layers share."""
    return position.embed is not PositionEncoding.embed


def wrong_position(shared: type[PositionEncoding], own: type[PositionEncoding]) -> str | None:
    """Why some layers of a stack cannot have a position encoding of their own beside that of the stack."""
    if embeds(own):
        return (
            f"{own.__name__} is added to the embedding, which all layers share; choose it for the whole model, or one "
            "that acts in each layer, as rotary"
        )
    if embeds(shared):
        return (
            f"the model's {shared.__name__} is added to the embedding, so these layers would have it beside their own; "
            "choose position=none for the model, or leave the position of these layers out"
        )
    return None


def check_streams(residuals: Sequence[Residual]) -> None:
    """Raises ValueError for residuals of one stack that pass on different streams."""
    kinds = {residual.kind_of_stream(): type(residual).__name__ for residual in residuals}
    if len(kinds) > 1:
        raise ValueError(f"residual: {' and '.join(kinds.values())} need different streams, and a stack has one")
