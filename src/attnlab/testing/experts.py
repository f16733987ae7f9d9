"""What the contract has to know of mixtures of experts: that few tokens do not reach all experts, and that a token
whose gates are nearly alike may go to another one where rounding differs."""

from __future__ import annotations

from torch import Tensor, nn

from attnlab.layers import MixtureOfExperts
from attnlab.layers.added import Added
from attnlab.layers.experts import Routing


def of_some_tokens(model: nn.Module) -> set[str]:
    """The names of the parameters that a token meets only where it chooses them."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
    return {f"{name}.experts.{own}" for name, module in found.items() for own, _ in module.experts.named_parameters()}


def choose_as(added: Added, model: nn.Module, other: nn.Module) -> None:
    """Has the mixtures of `other` choose as those of `model` did when `added` was collected, in its next two passes."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
    for name in names.values():
        mixture = other.get_submodule(name)
        assert isinstance(mixture, MixtureOfExperts)
        made = [each for each in added.additions if isinstance(each, Routing) and names[each.part] == name]
        chosen = iter([each.chosen_BTE.flatten(0, -2) for each in made] * 2)

        def scores(gates_NE: Tensor, chosen: object = chosen) -> Tensor:
            return next(chosen)  # type: ignore[call-overload,no-any-return]

        vars(mixture.balance)["scores"] = scores
