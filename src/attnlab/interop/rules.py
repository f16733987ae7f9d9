"""How tensors of one library become those of another: declarative rules, each readable both ways.

Legend: H heads, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnlab.interop.settings import Settings


@dataclass(frozen=True)
class Form:
    """What a tensor there is of one or several tensors here: `split` there to here, `join` back; each undoes the other bit for bit."""

    name: str
    split: Callable[[Tensor, Settings], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor], Settings], Tensor]


def _three_of_each_head(tensor: Tensor, settings: Settings) -> Sequence[Tensor]:
    parts = tensor.unflatten(0, (settings["num_heads"], 3, -1))  # (H, 3, K, ...)
    return [part.flatten(0, 1) for part in parts.unbind(1)]


def _by_head(tensors: Sequence[Tensor], settings: Settings) -> Tensor:
    return torch.stack([tensor.unflatten(0, (settings["num_heads"], -1)) for tensor in tensors], dim=1).flatten(0, 2)


def _pixels(tensors: Sequence[Tensor], settings: Settings) -> Tensor:
    side = settings["patch_size"]
    return tensors[0].unflatten(1, (settings["channels"], side, side))


COPY = Form("copy", lambda tensor, _: [tensor], lambda tensors, _: tensors[0])
TRANSPOSED = Form("transposed", lambda tensor, _: [tensor.t()], lambda tensors, _: tensors[0].t())
THIRDS = Form("thirds", lambda tensor, _: tensor.chunk(3, dim=0), lambda tensors, _: torch.cat(list(tensors)))
THIRDS_TRANSPOSED = Form(
    "transposed, in thirds",
    lambda tensor, _: tensor.t().chunk(3, dim=0),
    lambda tensors, _: torch.cat(list(tensors)).t(),
)
THIRDS_OF_HEADS = Form("thirds of each head", _three_of_each_head, _by_head)
IN_ONE = Form("one axis less", lambda tensor, _: [tensor[0]], lambda tensors, _: tensors[0][None])
PIXELS = Form("pixels of a patch in one axis", lambda tensor, _: [tensor.flatten(1)], _pixels)


@dataclass(frozen=True)
class Rule:
    """
    One tensor there and what it is here.

    `{i}` in the names counts the layers of the stack whose depth the setting `layers` gives. has, lacks: the rule is one of models that
    have, or lack, a setting of this name.
    """

    theirs: str
    ours: tuple[str, ...]
    form: Form = COPY
    layers: str = "num_layers"
    has: str = ""
    lacks: str = ""

    def holds(self, settings: Settings) -> bool:
        """Whether models of these settings have the tensor."""
        return (not self.has or self.has in settings) and (not self.lacks or self.lacks not in settings)

    def each(self, settings: Settings) -> Iterator[Rule]:
        """The rule of every layer; itself where it is of none."""
        if "{i}" not in self.theirs:
            yield self
            return
        for i in range(settings[self.layers]):
            ours = tuple(name.replace("{i}", str(i)) for name in self.ours)
            yield replace(self, theirs=self.theirs.replace("{i}", str(i)), ours=ours)


def weight(theirs: str, ours: str, form: Form = COPY, layers: str = "num_layers") -> list[Rule]:
    """The rule of one tensor."""
    return [Rule(theirs, (ours,), form, layers)]


def both(theirs: str, ours: str, form: Form = COPY, layers: str = "num_layers") -> list[Rule]:
    """The rules of a weight and a bias; `form` is the weight's."""
    return [
        Rule(f"{theirs}.weight", (f"{ours}.weight",), form, layers),
        Rule(f"{theirs}.bias", (f"{ours}.bias",), COPY, layers),
    ]


def fused(theirs: str, ours: str, of_weight: Form, of_bias: Form) -> list[Rule]:
    """The rules of queries, keys and values that are one tensor there."""
    names = [f"{ours}.{name}" for name in ("query", "key", "value")]
    return [
        Rule(f"{theirs}.weight", tuple(f"{name}.weight" for name in names), of_weight),
        Rule(f"{theirs}.bias", tuple(f"{name}.bias" for name in names), of_bias),
    ]


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """The tensors here of those there, as far as they are given."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        if rule.theirs in theirs:
            parts = rule.form.split(theirs[rule.theirs], settings)
            made |= {name: part.contiguous() for name, part in zip(rule.ours, parts, strict=True)}
    return made


def to_theirs(rules: Iterable[Rule], ours: Mapping[str, Any], settings: Settings) -> dict[str, Tensor]:
    """The tensors there of those here, as far as all their parts are given."""
    return {
        rule.theirs: rule.form.join([ours[name] for name in rule.ours], settings).contiguous()
        for rule in rules
        if all(name in ours for name in rule.ours)
    }
