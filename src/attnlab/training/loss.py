"""Losses that are exact per token, however a step's tokens are split over micro-batches and ranks.

Legend: N tokens, V vocabulary, R rows of logits that are taken at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from attnlab.training.early_stopping import Diverged

ROWS = 128  # taken at once, so that what is made of their logits stays in the processor's cache
# What a loss is divided by before the backward pass where the number of a step's tokens is not known yet: fp16
# gradients stay in range, and a power of two is taken out again exactly.
UNKNOWN_TOKENS = 1024.0

Number = float | Tensor


class LossSums(NamedTuple):
    """A batch's summed loss in nats, with gradient, its target tokens (an int saves a wait), and auxiliary sums over
    them, whose means are reported (train/<name>, val/<name>); every batch has the same ones."""

    loss: Tensor
    tokens: int | Tensor
    auxiliary: Mapping[str, Tensor] = {}


def cross_entropy_sums(
    logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy in nats, with label smoothing (Szegedy et al. 2016, section 7) and without.

    Targets that are `ignore` do not count. Smoothing spreads that share of a target's probability evenly over the whole
    vocabulary, the target too. Only the first sum has a gradient. Computed in fp32 whatever the type of the logits.
    """
    smoothed, nats = _CrossEntropySums.apply(  # type: ignore[no-untyped-call]
        logits_NV, targets_N, smoothing, ignore
    )
    return smoothed, nats


class _CrossEntropySums(torch.autograd.Function):
    """The gradient is known as soon as the loss is, and takes the place of what autograd would keep."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float, ignore: int) -> tuple[Tensor, Tensor]:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        smoothed = logits_NV.new_zeros((), dtype=torch.float64)
        nats = smoothed.clone()
        for start in range(0, len(targets_N), ROWS):
            rows = slice(start, start + ROWS)
            log_p_RV, counted_R = logits_NV[rows].log_softmax(dim=1, dtype=torch.float32), targets_N[rows] != ignore
            target_R1 = targets_N[rows].where(counted_R, 0)[:, None]
            nats_R = -log_p_RV.gather(1, target_R1)[:, 0].where(counted_R, 0.0)
            nats += nats_R.sum()
            smoothed += (1 - smoothing) * nats_R.sum()
            if smoothing:
                smoothed -= smoothing * log_p_RV.mean(dim=1).where(counted_R, 0.0).sum()
            if gradient_NV is not None:
                gradient_RV = log_p_RV.exp_().sub_(smoothing / log_p_RV.shape[1])
                gradient_RV.scatter_add_(1, target_R1, torch.full_like(nats_R, smoothing - 1)[:, None])
                if not counted_R.all():
                    gradient_RV.mul_(counted_R[:, None])
                gradient_NV[rows] = gradient_RV
        ctx.gradient_NV = gradient_NV
        nats_of_all = nats.float()
        ctx.mark_non_differentiable(nats_of_all)
        return smoothed.float(), nats_of_all

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        assert ctx.gradient_NV is not None, "this loss can be differentiated once"
        gradient_NV: Tensor = ctx.gradient_NV
        ctx.gradient_NV = None
        # The factor, one over the number of tokens, keeps its fp32: rounded, it would scale a bf16 step's gradients.
        return gradient_NV.mul_(gradients[0]), None, None, None


def whole_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of many tensors as if they were one; of sharded ones over all ranks."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class LossAccumulator:
    """The sums of loss and tokens of the present optimizer step, since the last line logged, and of the whole training.

    `nats`: the loss of the last micro-batch, without smoothing. `scale`: what the step's accumulated gradient times
    makes that of the mean over its tokens, before it is clipped. A plain object, not a module, which would be slow to
    write to.
    """

    def __init__(self) -> None:
        self.tokens: Number = 0
        self.window: dict[str, Number] = {"loss": 0.0, "tokens": 0}
        self.gradient_norm: Number = math.nan
        self.scale: Number = 1.0
        self.nats = torch.zeros(())
        self._step: list[LossSums] = []
        self._divisor: float = 1.0

    def accumulate(self, sums: LossSums, alone: bool) -> Tensor:
        """Takes in a micro-batch and returns the loss to differentiate; `alone` where it is all of its step."""
        auxiliary = {name: value.detach() for name, value in sums.auxiliary.items()}
        self._step.append(LossSums(sums.loss.detach(), sums.tokens, auxiliary))
        self.nats = auxiliary.get("nats", sums.loss.detach())
        self._divisor = max(1, sums.tokens) if alone and isinstance(sums.tokens, int) else UNKNOWN_TOKENS
        return sums.loss / self._divisor

    def finish_step(self, step: int, wait: bool, reduce: Callable[[Tensor], Tensor] | None) -> Number:
        """Adds the step to the sums and returns its tokens over all ranks (`reduce` sums over them).

        Where the loss is at hand (on a CPU, or when `wait`) it is checked: raises Diverged, on every rank alike.
        """
        parts, self._step = self._step, []
        loss: Number = parts[0].loss if len(parts) == 1 else torch.stack([part.loss for part in parts]).sum()
        tokens: Number = parts[0].tokens if len(parts) == 1 else sum(part.tokens for part in parts)
        auxiliary: dict[str, Number] = {n: sum(part.auxiliary[n] for part in parts) for n in parts[0].auxiliary}
        device = parts[0].loss.device
        if reduce is not None:
            values = [torch.as_tensor(value, device=device).double() for value in (loss, tokens, *auxiliary.values())]
            loss, tokens, *others = reduce(torch.stack(values)).unbind()
            auxiliary = dict(zip(auxiliary, others, strict=True))
        if wait or device.type == "cpu":
            loss = float(loss)
            if not math.isfinite(loss):
                raise Diverged(step)
        for name, value in {"loss": loss, "tokens": tokens, **auxiliary}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.tokens = self.tokens + tokens
        return tokens

    def scale_gradients(
        self, gradients: list[Tensor], tokens: Number, parts: int, clip: float | None, norm: bool
    ) -> None:
        """Makes gradients, averaged over `parts` micro-batches and ranks, those of the mean over `tokens`, clipped."""
        count = tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(1, tokens)
        scale = self.scale = self._divisor * parts / count
        if clip or norm:
            found = whole_norm(gradients) * scale
            self.gradient_norm = found
            if clip and found.device.type == "cpu":
                self.gradient_norm = found.item()
                scale = scale * min(1.0, clip / (self.gradient_norm + 1e-6))
            elif clip:
                scale = scale * (clip / (found + 1e-6)).clamp(max=1.0)
        if isinstance(scale, Tensor) or scale != 1.0:
            torch._foreach_mul_(gradients, scale)

    def take_means(self) -> dict[str, float]:
        """The means a token since the last call: `loss`, what is differentiated, and all that was summed beside it."""
        sums = self.window_sums()
        self.window = {"loss": 0.0, "tokens": 0}
        tokens = max(1, int(sums.pop("tokens")))
        return {name: value / tokens for name, value in sums.items()}

    def window_sums(self) -> dict[str, float]:
        """The sums since the last line logged, as plain numbers."""
        return {name: int(value) if name == "tokens" else float(value) for name, value in self.window.items()}
