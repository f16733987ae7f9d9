"""Optimizers as functions of a model, and how one is used. Weight decay reaches tensors of rank two and more only, and
a tied weight is counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.parts import Choices, build_part, unsharded
from attnlab.ranges import Interval, Le, NonNegativeFloat, PositiveFloat, Rate, check_ranges
from attnlab.training.averaging import Averaging
from attnlab.training.schedules import Constant, Schedule

Betas = tuple[Rate, Rate]


def decay_groups(model: nn.Module, weight_decay: float, skip: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """Two parameter groups without those in `skip`: tensors of rank >= 2, which decay, and the rest, which do not."""
    skipped = {id(parameter) for parameter in skip}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adam(kind: Any, model: nn.Module, groups: Any, lr: float, betas: Betas, eps: float) -> Optimizer:
    can_fuse = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    optimizer: Optimizer = kind(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=can_fuse)
    return optimizer


@check_ranges
def adamw(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: Betas = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return _adam(torch.optim.AdamW, model, decay_groups(model, weight_decay), lr, betas, eps)


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
    return _adam(torch.optim.Adam, model, decay_groups(model, weight_decay), lr, betas, eps)


@check_ranges
def adafactor(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-2,
    beta2_decay: Annotated[float, Le(0)] = -0.8,
    clip: PositiveFloat = 1.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adafactor with relative steps (Shazeer & Stern 2018, algorithms 4, 5); `clip` bounds an update's RMS."""
    return torch.optim.Adafactor(decay_groups(model, weight_decay), lr=lr, beta2_decay=beta2_decay, d=clip)


@check_ranges
def lion(
    model: nn.Module,
    lr: PositiveFloat = 1e-4,
    betas: Betas = (0.9, 0.99),
    weight_decay: NonNegativeFloat = 0.1,
) -> Optimizer:
    """Lion, the sign of an interpolated momentum (Chen et al. 2023); its rate is 3 to 10 times below AdamW's."""
    from lion_pytorch import Lion

    optimizer: Optimizer = Lion(decay_groups(model, weight_decay), lr=lr, betas=(betas[0], betas[1]))
    return optimizer


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

    groups, betas = decay_groups(model, weight_decay), (betas[0], betas[1])
    optimizer: Optimizer = AdamWScheduleFree(groups, lr=lr, betas=betas, eps=eps)
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
) -> Optimizer:
    """Muon (Jordan et al. 2024) for the hidden matrices and AdamW for the rest, at one rate: Muon's update is scaled to
    AdamW's root mean square (Liu et al. 2025, section 2.2). Raises ValueError where the model has no hidden matrix."""
    matrices = hidden_matrices(model)
    if not matrices:
        wanted = "nn.Linear weights inside a stack of layers (an nn.ModuleList)"
        raise ValueError(f"muon needs hidden matrices: {wanted}; the model has none")
    steps: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
    inner = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", **steps)
    rest = decay_groups(model, weight_decay, skip=matrices)
    return MuonWithAdamW(inner, _adam(torch.optim.AdamW, model, rest, lr, betas, eps) if rest else None)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The nn.Linear weights inside the model's stacks of layers (its nn.ModuleLists) that are tied to no embedding."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    found = {id(m.weight): m.weight for stack in stacks for m in stack.modules() if isinstance(m, nn.Linear)}
    return [weight for key, weight in found.items() if weight.requires_grad and key not in embedded]


class MuonWithAdamW(Optimizer):
    """Two optimizers as one: their parameter groups and state are this one's, so all see a single one."""

    def __init__(self, matrices: Optimizer, rest: Optimizer | None) -> None:
        self.parts = [matrices] if rest is None else [matrices, rest]
        self.sizes = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.param_groups, part.state = self.param_groups[start : start + size], self.state
            start += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


@dataclass
class Optimization:
    """How a task is trained: an optimizer (a function of the model), a schedule (a part that is completed with
    total_steps, lr and d_model), and `averaging`, which makes weights to evaluate out of those that are trained."""

    optimizer: Callable[[nn.Module], Optimizer] = adamw
    schedule: Callable[..., Schedule] = Constant
    averaging: Averaging = field(default_factory=Averaging)

    def start(self, model: nn.Module, total_steps: int) -> Optimizer:
        """The optimizer of a training; its rates are set by `rates`, so that resuming restores nothing."""
        optimizer = self.optimizer(model)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        d_model = getattr(model, "d_model", None)
        dims = {} if d_model is None else {"d_model": d_model}
        self._multiple = build_part(self.schedule, total_steps=total_steps, lr=self._rates[0], **dims)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    def rates(self, step: int) -> list[float]:
        """The learning rate of each group of parameters at a step, counted from 0."""
        multiple = self._multiple(step)
        return [rate * multiple for rate in self._rates]

    @contextlib.contextmanager
    def weights_to_evaluate(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[bool]:
        """Inside, the model has the weights to evaluate; gives whether they differ from those that are trained."""
        with contextlib.ExitStack() as stack:
            differ = [stack.enter_context(evaluation_weights(optimizer)) for optimizer in optimizers]
            yield stack.enter_context(self.averaging.applied(model)) or any(differ)

    def leave_weights_to_evaluate(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Leaves the weights to evaluate in the model, once it is trained."""
        for optimizer in optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        self.averaging.put_into(model)


@contextlib.contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[bool]:
    """Inside, the parameters are those that the optimizer evaluates (schedule-free's average); afterwards those to
    train again, bit for bit. Gives whether they differ."""
    groups = [group for group in optimizer.param_groups if group.get("train_mode")]
    if not groups:
        yield False
        return
    trained = [(p, p.detach().clone()) for group in groups for p in group["params"]]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield True
    finally:
        for group in groups:
            group["train_mode"] = True
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)


def _refuses_schedules(choices: Choices) -> Iterator[str]:
    if not choices.is_a("schedule", Constant):
        yield "optimizer: schedule_free replaces the decay of the learning rate; use it with schedule=constant"
    if choices.parts.get("averaging") is not Averaging:
        yield (
            "averaging: schedule_free averages the weights itself, and what is averaged twice is the average of neither; "
            "leave averaging out"
        )


# What these functions cannot be combined with, as the classes of other parts say it.
schedule_free.incompatible = _refuses_schedules  # type: ignore[attr-defined]
adafactor.incompatible = partial(  # type: ignore[attr-defined]
    unsharded, group="optimizer", why="cannot work on shards (torch's Adafactor)"
)
