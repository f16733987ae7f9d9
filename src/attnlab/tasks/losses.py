"""The cross-entropy of many tokens over a large vocabulary. Legend: N tokens, V vocabulary."""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a target that does not count
ROWS = 128  # taken at once, so that what is made of their logits stays in the processor's cache


def cross_entropy_sums(
    logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0, ignore: int = IGNORED
) -> tuple[Tensor, Tensor]:
    """
    The summed cross-entropy in nats, with label smoothing (Szegedy et al. 2016, section 7) and without, over the targets that are not `ignore`.

    Smoothing takes that share of the target's probability and spreads it evenly over the whole vocabulary, the target too. Only the
    first sum has a gradient. Computed in fp32 whatever the type of the logits, a few rows at a time.
    """
    smoothed, nats = _CrossEntropySums.apply(logits_NV, targets_N, smoothing, ignore)
    return smoothed, nats


class _CrossEntropySums(torch.autograd.Function):
    """The gradient is known as soon as the loss is, and takes the place of what autograd would keep."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float, ignore: int) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if wanted else None
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
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        # The factor, one over the number of tokens, keeps its fp32: rounded, it would scale all gradients of a bf16 step alike.
        return gradient_NV.mul_(gradients[0]), None, None, None
