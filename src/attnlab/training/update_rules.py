"""Update rules that torch and the libraries do not have as they are wanted here, and which tensors each is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.training.machine import cpu_has_bf16

Group = dict[str, Any]  # of parameters, with their settings, as torch's optimizers have them
Groups = list[Group]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The nn.Linear weights inside the model's stacks of layers (its nn.ModuleLists) that are tied to no embedding."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    found = {id(m.weight): m.weight for stack in stacks for m in stack.modules() if isinstance(m, nn.Linear)}
    return [weight for key, weight in found.items() if weight.requires_grad and key not in embedded]


def kind_of_tensor(model: nn.Module) -> dict[int, str]:
    """What each parameter is, by its id: a hidden `matrix`, an `embedding`, a `head` (any other of rank two and more),
    or a `vector`."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = {id(weight) for weight in hidden_matrices(model)}

    def kind(parameter: Tensor) -> str:
        if id(parameter) in matrices:
            return "matrix"
        return "embedding" if id(parameter) in embedded else "head" if parameter.ndim >= 2 else "vector"

    return {id(parameter): kind(parameter) for parameter in model.parameters()}


def at_rates(groups: Groups, rate_of: Callable[[Tensor], float]) -> Groups:
    """The same groups, each parted by the learning rates of its parameters, of which it may have a multiple."""
    found: dict[tuple[int, float], Group] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            rate = rate_of(parameter)
            part = found.setdefault((number, rate), {**group, "params": [], "lr": rate * group.get("lr", 1.0)})
            part["params"].append(parameter)
    return list(found.values())


def _computed(closure: Callable[[], float] | None) -> float | None:
    """The loss that a step is told to compute first, with gradients; None where it is told nothing."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Muon(torch.optim.Muon):
    """torch's Muon at AdamW's root mean square (Liu et al. 2025, section 2.2), with matrix products in fp32 where a
    training begins on a processor without bf16 instructions: torch's are always in bf16, which takes fifteen times as
    long there. Checkpoints say which (`in_bf16` of a group), and a training goes on as it began."""

    def __init__(self, params: Groups, lr: float, weight_decay: float, **fields: Any) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", **fields)
        for group in self.param_groups:
            group["in_bf16"] = cpu_has_bf16() or any(p.device.type != "cpu" for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _computed(closure)
        if all(group.get("in_bf16", True) for group in self.param_groups):  # older checkpoints do not say it
            super().step()  # type: ignore[no-untyped-call]
            return loss
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(mean, momentum) if group["nesterov"] else mean
        direction = newton_schulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix (any shape) whose singular values are made nearly 1, .7 to 1.2, by steps of a polynomial of degree five
    (Jordan et al. 2024), in the matrix's own precision."""
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class MuonWithAdamW(Optimizer):
    """Two optimizers as one: their parameter groups and state are this one's, so all see a single one."""

    def __init__(self, matrices: Optimizer, rest: Optimizer | None) -> None:
        self.parts = [matrices] if rest is None else [matrices, rest]
        self.sizes = [len(part.param_groups) for part in self.parts]
        # The rate that schedules multiply; every group has its own.
        of_all = {"lr": matrices.defaults["lr"]}
        super().__init__([group for part in self.parts for group in part.param_groups], of_all)
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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _computed(closure)
        for part in self.parts:
            part.step()
        return loss


class CautiousAdamW(Optimizer):
    """AdamW whose update u is left out where u g <= 0; what is left of a tensor of d numbers is scaled by d over one
    more than their count (Liang et al. 2024, arXiv 2411.16085, algorithm 2)."""

    def __init__(
        self,
        params: Groups,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _computed(closure)
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in (p for p in group["params"] if p.grad is not None):
                self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state, (beta1, beta2), lr = self.state[parameter], group["betas"], group["lr"]
        if not state:
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2 ** group["step"])).sqrt_().add_(group["eps"])
        agrees = (mean * gradient > 0).to(mean.dtype)
        scale = agrees.numel() / (agrees.sum() + 1)
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.addcdiv_(mean * agrees * scale, root, value=-lr / (1 - beta1 ** group["step"]))
