"""Weights to evaluate as an average of those that training went through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.parts import Choices, Part
from attnlab.ranges import PositiveInt, Rate, check_ranges
from attnlab.training.sharding import placed_as


class Averaging(Part):
    """No average, and the base class of the choices: the weights to evaluate are those that are trained."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after an optimizer step, counted from 0."""
        return

    def before_validation(self, model: nn.Module, step: int) -> None:
        """Takes in the weights at a validation, after `step` optimizer steps."""
        return

    def weights(self) -> list[Tensor] | None:
        """The averaged weights in the order of the model's parameters; None where there are none."""
        return None

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[bool]:
        """Inside, the model has the averaged weights; gives whether there are any."""
        if (averaged := self.weights()) is None:
            yield False
            return
        trained = [parameter.detach().clone() for parameter in model.parameters()]
        _put(averaged, model)
        try:
            yield True
        finally:
            _put(trained, model)

    def put_into(self, model: nn.Module) -> None:
        """Leaves the averaged weights, where there are any, in the model."""
        if (averaged := self.weights()) is not None:
            _put(averaged, model)

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        assert not state, "what averages nothing has nothing to go on with"


@check_ranges
class EMA(Averaging):
    """An exponential moving average: average = decay average + (1 - decay) weights, after every step (Polyak & Juditsky
    1992). warm_up: the decay is at most (1 + step) / (10 + step), so that the first weights do not linger (as in
    TensorFlow's ExponentialMovingAverage)."""

    def __init__(self, decay: Rate = 0.999, warm_up: bool = True) -> None:
        self.decay, self.warm_up = decay, warm_up
        self._average: list[Tensor] | None = None

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        weights = [parameter.detach() for parameter in model.parameters()]
        if self._average is None:
            self._average = [weight.clone() for weight in weights]
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
        torch._foreach_lerp_(_on(self._average, weights), weights, 1 - decay)

    def weights(self) -> list[Tensor] | None:
        return self._average

    def state_dict(self) -> dict[str, Any]:
        return {} if self._average is None else {"average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average = [tensor.clone() for tensor in state["average"]] if "average" in state else None


@check_ranges
class LastCheckpoints(Averaging):
    """The mean of the weights at the last `count` validations (Vaswani et al. 2017, section 6.1)."""

    def __init__(self, count: PositiveInt = 5) -> None:
        self.count = count
        self._kept: list[tuple[int, list[Tensor]]] = []

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """There have to be validations."""
        yield from super().incompatible(choices)
        every, steps = choices.get("trainer.validate_every") or 0, choices.get("trainer.max_steps") or 0
        if not 0 < every <= steps:
            yield (
                f"averaging: {choices.name('averaging')} averages the weights at validations, and there are none "
                f"(trainer.validate_every={every}, trainer.max_steps={steps}); set trainer.validate_every"
            )

    def before_validation(self, model: nn.Module, step: int) -> None:
        weights = [parameter.detach() for parameter in model.parameters()]
        for _, tensors in self._kept:
            _on(tensors, weights)
        if not self._kept or self._kept[-1][0] != step:
            self._kept.append((step, [weight.clone() for weight in weights]))
        del self._kept[: -self.count]

    def weights(self) -> list[Tensor] | None:
        kept = [tensors for _, tensors in self._kept]
        # By the distances from the first, so that a weight that never moved keeps its bits.
        return [a[0] + torch.stack([b - a[0] for b in a]).mean(dim=0) for a in zip(*kept, strict=True)] or None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [step for step, _ in self._kept], "kept": [tensors for _, tensors in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = [(int(step), list(tensors)) for step, tensors in zip(state["steps"], state["kept"], strict=True)]


def _on(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The tensors, moved in place of the list to where others are: a checkpoint is read whole, and on the CPU."""
    tensors[:] = [placed_as(tensor, other) for tensor, other in zip(tensors, like, strict=True)]
    return tensors


@torch.no_grad()
def _put(weights: list[Tensor], model: nn.Module) -> None:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(placed_as(weight, parameter))
