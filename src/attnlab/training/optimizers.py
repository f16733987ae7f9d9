"""Optimizers as functions of a model: weight decay reaches tensors of rank two and more only, and a tied weight is counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.ranges import Interval, Le, NonNegativeFloat, PositiveFloat, Rate, check_ranges


def decay_groups(model: nn.Module, weight_decay: float, skip: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """Two parameter groups: tensors of rank >= 2, which decay, and gains, biases and scalars, which do not; without those in `skip`."""
    skipped = {id(parameter) for parameter in skip}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _can_fuse(model: nn.Module) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())


@check_ranges
def adamw(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: tuple[Rate, Rate] = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    groups = decay_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_can_fuse(model))


@check_ranges
def adam(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    betas: tuple[Rate, Rate] = (0.9, 0.98),
    eps: PositiveFloat = 1e-9,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2015) with the betas and eps of Vaswani et al. 2017, section 5.3; weight decay enters the gradient (L2)."""
    groups = decay_groups(model, weight_decay)
    return torch.optim.Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_can_fuse(model))


@check_ranges
def adafactor(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-2,
    beta2_decay: Annotated[float, Le(0)] = -0.8,
    clip: PositiveFloat = 1.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adafactor with relative steps (Shazeer & Stern 2018, algorithms 4 and 5); `clip` bounds the root mean square of an update."""
    return torch.optim.Adafactor(decay_groups(model, weight_decay), lr=lr, beta2_decay=beta2_decay, d=clip)


@check_ranges
def lion(
    model: nn.Module,
    lr: PositiveFloat = 1e-4,
    betas: tuple[Rate, Rate] = (0.9, 0.99),
    weight_decay: NonNegativeFloat = 0.1,
) -> Optimizer:
    """Lion, the sign of an interpolated momentum (Chen et al. 2023); its rate is 3 to 10 times below AdamW's."""
    from lion_pytorch import Lion

    return Lion(decay_groups(model, weight_decay), lr=lr, betas=(betas[0], betas[1]))


@check_ranges
def schedule_free(
    model: nn.Module,
    lr: NonNegativeFloat = 2.5e-3,
    betas: tuple[Rate, Rate] = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024): takes a constant schedule, with warm-up; evaluated on its average of the weights."""
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(decay_groups(model, weight_decay), lr=lr, betas=(betas[0], betas[1]), eps=eps)


@check_ranges
def muon(
    model: nn.Module,
    lr: NonNegativeFloat = 1e-3,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    ns_steps: Annotated[int, Interval(ge=1, lt=100)] = 5,
    betas: tuple[Rate, Rate] = (0.9, 0.98),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Muon (Jordan et al. 2024) for the hidden matrices and AdamW for the rest, at one rate: Muon's update is scaled to AdamW's root
    mean square (Liu et al. 2025, section 2.2). Raises ValueError where the model has no hidden matrix."""
    matrices = hidden_matrices(model)
    if not matrices:
        raise ValueError(
            "muon needs hidden matrices: nn.Linear weights inside a stack of layers (an nn.ModuleList); the model has none"
        )
    inner_muon = torch.optim.Muon(
        matrices,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = decay_groups(model, weight_decay, skip=matrices)
    inner_adamw = (
        torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_can_fuse(model)) if rest else None
    )
    return MuonWithAdamW(inner_muon, inner_adamw)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The nn.Linear weights inside the model's stacks of layers (its nn.ModuleLists), without those tied to an embedding."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    found = {id(m.weight): m.weight for stack in stacks for m in stack.modules() if isinstance(m, nn.Linear)}
    return [weight for key, weight in found.items() if weight.requires_grad and key not in embedded]


class MuonWithAdamW(Optimizer):
    """Two optimizers as one: their parameter groups and state are this one's, so schedules and checkpoints see a single optimizer."""

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
        """Restores both halves."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


@contextlib.contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[bool]:
    """Within it the parameters are those to evaluate (schedule-free's average); afterwards those to train again, bit for bit.

    Gives whether they differ. Costs nothing for an optimizer without an average.
    """
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
