"""How a task is trained: optimizers as functions of a model, averages of its weights, and both with a schedule in use.
Weight decay reaches tensors of rank two and more only, and a tied weight is counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.models.base import Model
from attnlab.parts import Choices, Part, build_part, unsharded
from attnlab.ranges import Interval, Le, NonNegativeFloat, PositiveFloat, PositiveInt, Rate, check_ranges
from attnlab.training.schedules import Constant, Schedule
from attnlab.training.sharding import placed_as
from attnlab.training.update_rules import (
    CautiousAdamW,
    Groups,
    Muon,
    MuonWithAdamW,
    at_rates,
    hidden_matrices,
    kind_of_tensor,
)
from attnlab.training.widths import NO_RULE, Rule, adam_rule, by_width, muon_rule, no_rule

Betas = tuple[Rate, Rate]


def decay_groups(
    model: nn.Module, weight_decay: float, skip: Sequence[Tensor] = (), rule: Rule = NO_RULE, **base: float
) -> Groups:
    """Two parameter groups without those in `skip`: tensors of rank >= 2, which decay, and the rest, which do not. Of a
    model whose init goes with its width (muP), one for each rate that `rule` gives; base: what it multiplies, lr and
    eps as far as the optimizer has them. Raises ValueError where the optimizer has no rule."""
    skipped = {id(parameter) for parameter in skip}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]
    decaying, rest = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = ((decaying, weight_decay), (rest, 0.0))
    found = [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
    return by_width(model, found, rule, base)


def _adam(
    kind: type[torch.optim.Adam], model: nn.Module, groups: Groups, lr: float, betas: Betas, eps: float
) -> Optimizer:
    can_fuse = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    return kind(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=can_fuse)


@check_ranges
def adamw(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    groups = decay_groups(model, weight_decay, rule=adam_rule, lr=lr, eps=eps)
    return _adam(torch.optim.AdamW, model, groups, lr, betas, eps)


@check_ranges
def adam(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-9,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2015), betas and eps of Vaswani et al. 2017, section 5.3; weight decay is L2 (in the
    gradient)."""
    rule = no_rule("its weight decay, in the gradient, has none; choose adamw") if weight_decay else adam_rule
    return _adam(torch.optim.Adam, model, decay_groups(model, weight_decay, rule=rule, lr=lr, eps=eps), lr, betas, eps)


@check_ranges
def adafactor(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-2,
    beta2_decay: Annotated[float, Le(0)] = -0.8,
    clip: PositiveFloat = 1.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adafactor with relative steps (Shazeer & Stern 2018, algorithms 4, 5); `clip` bounds an update's RMS."""
    rule = no_rule("adafactor's steps are relative to a parameter's own size, which goes with the width itself")
    groups = decay_groups(model, weight_decay, rule=rule)
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip)


@check_ranges
def lion(
    model: nn.Module, lr: PositiveFloat = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: NonNegativeFloat = 0.1
) -> Optimizer:
    """Lion, the sign of an interpolated momentum (Chen et al. 2023); its rate is 3 to 10 times below AdamW's."""
    from lion_pytorch import Lion

    groups = decay_groups(model, weight_decay, rule=adam_rule, lr=lr)
    optimizer: Optimizer = Lion(groups, lr=lr, betas=(betas[0], betas[1]))
    return optimizer


@check_ranges
def cautious_adamw(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """AdamW that leaves out what disagrees with the gradient's sign (Liang et al. 2024, arXiv 2411.16085)."""
    groups = decay_groups(model, weight_decay, rule=adam_rule, lr=lr, eps=eps)
    return CautiousAdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


@check_ranges
def schedule_free(
    model: nn.Module,
    lr: NonNegativeFloat = 2.5e-3,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024): wants a constant schedule; evaluated on its own average."""
    from schedulefree import AdamWScheduleFree

    groups = decay_groups(model, weight_decay, rule=adam_rule, lr=lr, eps=eps)
    optimizer: Optimizer = AdamWScheduleFree(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)
    return optimizer


@check_ranges
def muon(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    ns_steps: Annotated[int, Interval(ge=1, lt=100)] = 5,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
    adamw_lr: NonNegativeFloat | None = None,
    embedding_lr: NonNegativeFloat | None = None,
    head_lr: NonNegativeFloat | None = None,
) -> Optimizer:
    """Muon (Jordan et al. 2024) for the hidden matrices and AdamW for the rest. At one rate unless others are given:
    Muon's update is scaled to AdamW's root mean square (Liu et al. 2025, section 2.2). Under muP that update, whose
    spectral norm grows as the root of the width, has a rate that falls as it (Yang et al. 2023, arXiv 2310.17813,
    condition 1).

    adamw_lr: of all that AdamW trains; embedding_lr, head_lr: of the embeddings, and of the other matrices outside of
    the layers. Raises ValueError where the model has no hidden matrix.
    """
    matrices = hidden_matrices(model)
    if not matrices:
        wanted = "nn.Linear weights inside a stack of layers (an nn.ModuleList)"
        raise ValueError(f"muon needs hidden matrices: {wanted}; the model has none")
    of_matrices = by_width(model, [{"params": matrices, "weight_decay": weight_decay}], muon_rule, {"lr": lr})
    inner = Muon(of_matrices, lr, weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps)
    rate, own = lr if adamw_lr is None else adamw_lr, {"embedding": embedding_lr, "head": head_lr}
    rates = {kind: rate if given is None else given for kind, given in own.items()}
    kinds = kind_of_tensor(model)
    rest = decay_groups(model, weight_decay, skip=matrices, rule=adam_rule, lr=1.0, eps=eps)
    rest = at_rates(rest, lambda p: rates.get(kinds[id(p)], rate))
    return MuonWithAdamW(inner, _adam(torch.optim.AdamW, model, rest, rate, betas, eps) if rest else None)


# --- averages of the weights


class AveragingState(TypedDict, total=False):
    """What an average needs to go on: its tensors in the order of the model's parameters."""

    average: list[Tensor]
    steps: list[int]
    kept: list[list[Tensor]]


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

    def state_dict(self) -> AveragingState:
        """What has to be kept to go on."""
        return {}

    def load_state_dict(self, state: AveragingState) -> None:
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

    def state_dict(self) -> AveragingState:
        return {} if self._average is None else {"average": self._average}

    def load_state_dict(self, state: AveragingState) -> None:
        self._average = [tensor.clone() for tensor in state["average"]] if "average" in state else None


@check_ranges
class LastCheckpoints(Averaging):
    """The mean of the weights at the last `count` validations (Vaswani et al. 2017, section 6.1)."""

    def __init__(self, count: PositiveInt = 5) -> None:
        self.count = count
        self._kept: dict[int, list[Tensor]] = {}  # by step

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        """There have to be validations."""
        yield from super().incompatible(choices)
        every, steps = choices.get("trainer.val_check_interval") or 0, choices.get("trainer.max_steps") or 0
        if not 0 < every <= (steps or every):
            yield (
                f"averaging: {choices.name('averaging')} averages the weights at validations, and there are none "
                f"(trainer.val_check_interval={every}, trainer.max_steps={steps}); set trainer.val_check_interval"
            )

    def before_validation(self, model: nn.Module, step: int) -> None:
        weights = [parameter.detach() for parameter in model.parameters()]
        for tensors in self._kept.values():
            _on(tensors, weights)
        if step not in self._kept:
            self._kept[step] = [weight.clone() for weight in weights]
        self._kept = {step: self._kept[step] for step in list(self._kept)[-self.count :]}

    def weights(self) -> list[Tensor] | None:
        # By the distances from the first, so that a weight that never moved keeps its bits.
        of_each = zip(*self._kept.values(), strict=True)
        return [a[0] + torch.stack([b - a[0] for b in a]).mean(dim=0) for a in of_each] or None

    def state_dict(self) -> AveragingState:
        return {"steps": list(self._kept), "kept": list(self._kept.values())}

    def load_state_dict(self, state: AveragingState) -> None:
        self._kept = {step: list(kept) for step, kept in zip(state["steps"], state["kept"], strict=True)}


def _on(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The tensors, moved in place of the list to where others are: a checkpoint is read whole, and on the CPU."""
    tensors[:] = [placed_as(tensor, other) for tensor, other in zip(tensors, like, strict=True)]
    return tensors


@torch.no_grad()
def _put(weights: list[Tensor], parameters: Sequence[Tensor]) -> None:
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(placed_as(weight, parameter))


# --- in use


@dataclass
class Optimization:
    """How a task is trained: an optimizer (a function of the model), a schedule (a part that is completed with
    total_steps, lr and d_model), and `averaging`, which makes weights to evaluate out of those that are trained."""

    optimizer: Callable[[nn.Module], Optimizer] = adamw
    schedule: Callable[..., Schedule] = Constant
    averaging: Averaging = field(default_factory=Averaging)

    def start(self, model: nn.Module, total_steps: int) -> Optimizer:
        """The optimizer of a training; its rates are set by `set_rates`, so that resuming restores nothing."""
        optimizer = self.optimizer(model)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._rate = optimizer.defaults.get("lr", self._rates[0])
        d_model = getattr(model, "d_model", None)
        dims = {} if d_model is None else {"d_model": d_model}
        self._multiple = build_part(self.schedule, total_steps=total_steps, lr=self._rate, **dims)
        self._total_steps = total_steps
        self.set_rates(optimizer, 0)
        if hasattr(optimizer, "train"):
            optimizer.train()
        if isinstance(model, Model):
            optimizer.register_step_post_hook(lambda *_: model.after_step())
        return optimizer

    def set_rates(self, optimizer: Optimizer, step: int) -> None:
        """Gives the groups of parameters the rates of a step of the training, also for who looks before it begins."""
        if step < self._total_steps:
            for group, rate in zip(optimizer.param_groups, self.rates(step), strict=True):
                group["lr"] = rate

    def rate(self, step: int) -> float:
        """The optimizer's own learning rate at a step, which groups of parameters may have multiples of."""
        return float(self._rate * self._multiple(step))

    def rates(self, step: int) -> list[float]:
        """The learning rate of each group of parameters at a step, counted from 0."""
        multiple = self._multiple(step)
        return [rate * multiple for rate in self._rates]

    @contextlib.contextmanager
    def weights_to_evaluate(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[bool]:
        """Inside, the model has the weights to evaluate; gives whether they differ from those that are trained."""
        with contextlib.ExitStack() as stack:
            differ = [stack.enter_context(evaluation_weights(optimizer)) for optimizer in optimizers]
            if (averaged := self.averaging.weights()) is not None:
                parameters = list(model.parameters())
                stack.callback(_put, [parameter.detach().clone() for parameter in parameters], parameters)
                _put(averaged, parameters)
            yield averaged is not None or any(differ)

    def leave_weights_to_evaluate(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Leaves the weights to evaluate in the model, once it is trained."""
        for optimizer in optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        if (averaged := self.averaging.weights()) is not None:
            _put(averaged, list(model.parameters()))


@contextlib.contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[bool]:
    """Inside, the parameters are those that the optimizer evaluates (schedule-free's average); afterwards those to
    train again, bit for bit. Gives whether they differ."""
    groups = [group for group in optimizer.param_groups if group.get("train_mode")]
    if not groups:
        yield False
        return
    parameters = [parameter for group in groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield True
    finally:
        for group in groups:
            group["train_mode"] = True
        _put(trained, parameters)


def _refuses_schedules(choices: Choices) -> Iterator[str]:
    if not choices.is_a("schedule", Constant):
        yield "optimizer: schedule_free replaces the decay of the learning rate; use it with schedule=constant"
    if choices.parts.get("averaging") is not Averaging:
        yield (
            "averaging: schedule_free averages the weights itself, and what is averaged twice is the average of "
            "neither; leave averaging out"
        )


# What these functions cannot be combined with, as the classes of other parts say it.
schedule_free.incompatible = _refuses_schedules  # type: ignore[attr-defined]
adafactor.incompatible = partial(  # type: ignore[attr-defined]
    unsharded, group="optimizer", why="cannot work on shards (torch's Adafactor)"
)
cautious_adamw.incompatible = partial(  # type: ignore[attr-defined]
    unsharded, group="optimizer", why="scales an update by a count that is of a whole tensor"
)
