"""Losses and gradients that are exact per token, however a step's tokens are split over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from attnlab.training.divergence import Diverged

# What the sums of nats are divided by before the backward pass where the number of a step's tokens is not known yet: fp16 gradients stay in
# range, and a power of two is taken out again exactly.
UNKNOWN_TOKENS = 1024.0


def whole_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of many tensors as if they were one; of sharded ones over all ranks."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class TokenSums:
    """The sums of nats and tokens of the present optimizer step, of the lines logged, and of the whole training; `nats` of the last micro-batch;
    `scale` is what the step's accumulated gradient times makes that of the mean over its tokens, before it is clipped.

    A plain object, not a module: it is written to at every step, which a torch module would make slow.
    """

    def __init__(self) -> None:
        self.tokens: Any = 0
        self.window: dict[str, Any] = {"loss": 0.0, "tokens": 0}
        self.gradient_norm: Any = math.nan
        self.scale: Any = 1.0
        self.nats = torch.zeros(())
        self._step: list[tuple[Tensor, Any, dict[str, Tensor]]] = []
        self._divisor: Any = 1.0

    def add(self, nats: Tensor, tokens: int | Tensor, also: dict[str, Tensor], alone: bool) -> Tensor:
        """Takes in a micro-batch and returns the loss to differentiate; `alone` where it is all of its step.

        `also` are other sums over the same tokens; every micro-batch has the same ones.
        """
        self._step.append((nats.detach(), tokens, also))
        self.nats = also.get("nats", nats).detach()
        self._divisor = max(1, tokens) if alone and isinstance(tokens, int) else UNKNOWN_TOKENS
        return nats / self._divisor

    def close_step(self, step: int, wait: bool, reduce: Callable[[Tensor], Tensor] | None) -> Any:
        """Adds the step to the sums and returns its tokens over all ranks (`reduce` sums over them).

        Where the loss is at hand (on a CPU, or when `wait`) it is checked: raises Diverged, on every rank alike.
        """
        parts, self._step = self._step, []
        nats: Any = parts[0][0] if len(parts) == 1 else torch.stack([n for n, _, _ in parts]).sum()
        tokens: Any = parts[0][1] if len(parts) == 1 else sum(t for _, t, _ in parts)
        also: dict[str, Any] = {name: sum(part[name] for _, _, part in parts) for name in parts[0][2]}
        if reduce is not None:
            values = [torch.as_tensor(value, device=nats.device).double() for value in (nats, tokens, *also.values())]
            nats, tokens, *others = reduce(torch.stack(values)).unbind()
            also = dict(zip(also, others, strict=True))
        if wait or nats.device.type == "cpu":
            nats = nats.item()
            if not math.isfinite(nats):
                raise Diverged(step)
        for name, value in {"loss": nats, "tokens": tokens, **also}.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.tokens = self.tokens + tokens
        return tokens

    def scale_gradients(self, gradients: list[Tensor], tokens: Any, parts: int, clip: float | None, norm: bool) -> None:
        """Makes gradients, averaged over `parts` micro-batches and ranks, those of the mean over `tokens`, their norm at most `clip`."""
        scale = self.scale = (
            self._divisor * parts / (max(1, tokens) if isinstance(tokens, int) else tokens.clamp(min=1))
        )
        if clip or norm:
            self.gradient_norm = whole_norm(gradients) * scale
            if clip and self.gradient_norm.device.type == "cpu":
                self.gradient_norm = self.gradient_norm.item()
                scale = scale * min(1.0, clip / (self.gradient_norm + 1e-6))
            elif clip:
                scale = scale * (clip / (self.gradient_norm + 1e-6)).clamp(max=1.0)
        if isinstance(scale, Tensor) or scale != 1.0:
            torch._foreach_mul_(gradients, scale)

    def take_window(self) -> dict[str, float]:
        """The means a token since the last call: `loss`, what is differentiated, and all that was summed beside it."""
        sums = self.window_sums()
        self.window = {"loss": 0.0, "tokens": 0}
        tokens = max(1, int(sums.pop("tokens")))
        return {name: value / tokens for name, value in sums.items()}

    def window_sums(self) -> dict[str, float]:
        """The sums since the last line logged, as plain numbers."""
        return {name: int(value) if name == "tokens" else float(value) for name, value in self.window.items()}
