"""How the rates of an optimizer go with the width and the depth of a model whose init asks for it: muP and CompleteP.

Yang et al. 2022 (arXiv 2203.03466), table 8: what grows at its input has an Adam-like rate over that growth, but for
an output that a multiplier divides, and all others the rate itself. Dey et al. 2025 (arXiv 2505.01618), table 1, for
the depth and for Adam's eps.
Weight decay is independent of a group's multiple of the rate: rate times decay is the same in all groups (there, and
as in the authors' library, microsoft/mup).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from attnlab.layers.widths import Growth, growths_of
from attnlab.training.update_rules import Group, Groups


class Multiples(NamedTuple):
    """What a parameter's rate and eps are multiplied by."""

    lr: float = 1.0
    eps: float = 1.0


Rule = Callable[[Growth], Multiples]


def adam_rule(growth: Growth) -> Multiples:
    """Of updates whose size does not depend on the gradient's: Adam, its relatives, and those by the sign."""
    lr = 1.0 if growth.multiplied else 1.0 / (growth.fan_in or 1.0)
    # A gradient falls as 1 / width, and in a layer as depth^-alpha, but where that division is in the weight itself.
    eps = 1.0 / growth.width * (1.0 if growth.writes else growth.depth**-growth.alpha)
    return Multiples(lr * _by_depth(growth), eps)


def muon_rule(growth: Growth) -> Multiples:
    """Of an orthogonal update with the root mean square of AdamW's: as wide as the root of the larger side, where the
    spectral condition wants sqrt(fan_out / fan_in).
    """
    assert not growth.multiplied, "Muon has hidden matrices"
    fan_in, fan_out = growth.fan_in or 1.0, growth.fan_out or 1.0
    lr = math.sqrt(fan_out / fan_in / max(fan_out, fan_in))
    return Multiples(lr * _by_depth(growth))


def sgd_rule(growth: Growth) -> Multiples:
    """Of updates in proportion to the gradient: what grows at one side has a rate that grows as much. Raises ValueError
    for another depth.
    """
    if growth.depth != 1.0:
        raise ValueError("optimizer: for SGD no rule is known by which its rates go with the depth; choose adamw")
    fan_in, fan_out = growth.fan_in or 1.0, growth.fan_out or 1.0
    return Multiples(fan_in if growth.multiplied else fan_out / fan_in)


def no_rule(why: str) -> Rule:
    """For an optimizer that has no rule: raises ValueError, with the reason."""

    def refuse(growth: Growth) -> Multiples:
        raise ValueError(
            f"optimizer: no rule is known by which its rates go with the width: {why}; accepted with this init: adamw, "
            "adam, lion, muon, schedule_free, and optimizer=torch with optimizer.name=SGD or a relative of Adam's"
        )

    return refuse


NO_RULE = no_rule("nobody has shown one")
# Of torch's optimizers, by name (Yang et al. 2022, appendix B.3, for Adagrad and RMSprop).
BY_NAME: Mapping[str, Rule] = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop"), adam_rule),
    "SGD": sgd_rule,
}


def by_width(model: nn.Module, groups: Sequence[Group], rule: Rule, base: Mapping[str, float]) -> Groups:
    """The groups, parted further by the multiples that the rule gives their parameters; as they are where the model's
    init says nothing of its width. Raises ValueError for a parameter that its init has not seen.
    """
    growths = growths_of(model)
    if not growths:
        return list(groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parted: Groups = []
    for group in groups:
        by_multiples: dict[Multiples, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if id(parameter) not in growths:
                raise ValueError(f"init: no rule is known for {names[id(parameter)]}, which stands outside the model")
            by_multiples.setdefault(rule(growths[id(parameter)]), []).append(parameter)
        for multiples, parameters in by_multiples.items():
            own = {name: value * getattr(multiples, name) for name, value in base.items()}
            parted.append({**group, "params": parameters, "weight_decay": group["weight_decay"] / multiples.lr, **own})
    return parted


def _by_depth(growth: Growth) -> float:
    within: float = growth.depth ** (growth.alpha - 1.0) if growth.depth != 1.0 else 1.0
    return within * growth.depth**-growth.alpha if growth.writes else within
