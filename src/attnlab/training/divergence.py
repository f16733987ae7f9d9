"""When a training has diverged, and where: the first layer with values that are not finite; a plateau; the collapse of fp16's loss scale.

Letters of shapes: N target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

MIN_LOSS_SCALE = (
    1e-4  # as fairseq's --min-loss-scale: 30 halvings of torch's first scale without a step between that counts
)
PLATEAU_STEPS = 500  # the least that a model is given to learn more than frequencies
NOTHING = "nothing on a second pass"
MARGIN = 0.01  # nats: what a model that knows the frequencies alone can be below their entropy by chance
BLOCKS = 20  # in which a loss is averaged until a plateau is judged


class Diverged(FloatingPointError):
    """A training diverged at optimizer step `step` (counted from 1), for a `reason`; `layer`: what was not finite first, where known."""

    def __init__(self, step: int, reason: str = "the loss was not finite", layer: str | None = None) -> None:
        super().__init__(step, reason, layer)
        self.step, self.reason, self.layer = step, reason, layer

    def __str__(self) -> str:
        where = f"; not finite first: {self.layer}" if self.layer else ""
        return f"{self.reason} at step {self.step}{where}"


def first_not_finite(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> str:
    """
    What in a model is not finite first: a weight, else a layer's output in computing one of these losses, else the loss, else a gradient.

    Runs each loss forward and backward once more. No weight and no gradient of a weight is changed.
    """
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            return f"the weights {name}"
    # A compiled model would run past the hooks.
    with torch.compiler.set_stance("force_eager"), torch.enable_grad():
        for loss in losses:
            found = _first_in(model, loss)
            if found:
                return found
    return NOTHING


def _first_in(model: nn.Module, compute_loss: Callable[[], Tensor]) -> str | None:
    found: list[str] = []

    def look(what: str, value: Tensor) -> None:
        if not found and not value.detach().isfinite().all():
            found.append(what)

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                look(f"the output of {name} ({type(module).__name__})", tensor)
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: look(f"the gradient into {name}", gradient))

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        loss = compute_loss()
        look("the loss itself, of outputs that are finite", loss)
        if not found:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    look(f"the gradient of {name}", gradient)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


class Plateau:
    """
    Whether a training ever learns more than how often each target occurs.

    It has, as soon as the mean loss of a block of steps is below the entropy of the targets' frequencies, by 0.01 nats, as the block's
    own targets estimate that entropy: their mean -log of the share that each has among all targets so far. A model that has learnt
    frequencies alone stays there, however the targets of a block happen to fall. It has not, where no block was below when `judged_at`
    steps are over.
    """

    def __init__(self, judged_at: int) -> None:
        self.judged_at, self.block = judged_at, max(1, judged_at // BLOCKS)
        self.is_left = False
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.counts_of_block = self.counts
        self.nats = 0.0
        self.nearest = math.inf
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, nats: Tensor, targets_N: Tensor) -> None:
        """Takes in a batch: its summed loss and its targets, which are looked at when its block is over."""
        self._waiting.append((nats, targets_N))

    def close(self, step: int, any_rank: Callable[[bool], bool]) -> str | None:
        """Judges after a step (counted from 1): the reason to end, or None. `any_rank` says whether something holds on any rank."""
        if step % self.block and step != self.judged_at:
            return None
        self._count()
        of_block, self.counts_of_block = self.counts_of_block, self.counts_of_block[:0]
        self.counts = _sum(self.counts, of_block)
        tokens, (nats, self.nats) = max(1, int(of_block.sum())), (self.nats, 0.0)
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        entropy = -float(torch.special.xlogy(of_block, shares[: len(of_block)]).sum()) / tokens
        self.nearest = min(self.nearest, nats / tokens - entropy)
        if any_rank(self.nearest < -MARGIN):
            self.is_left, self.counts = True, self.counts[:0]
            return None
        if step < self.judged_at:
            return None
        return (
            f"the loss was on a plateau: it was never below the entropy of its targets' frequencies, near {entropy:.4f} nats (at best "
            f"{self.nearest:+.4f} from it; trainer.plateau_share=null does without this check),"
        )

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on."""
        self._count()
        names = ("is_left", "counts", "counts_of_block", "nats", "nearest")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        # One after the other, so that a state that is saved within a block changes no bit of the sum.
        for nats in torch.stack([nats.double() for nats, _ in waiting]).tolist():
            self.nats += nats
        targets = torch.cat([targets_N.flatten() for _, targets_N in waiting]).cpu()
        self.counts_of_block = _sum(self.counts_of_block, torch.bincount(targets))


def _sum(counts: Tensor, others: Tensor) -> Tensor:
    longest = max(len(counts), len(others))
    one, other = (nn.functional.pad(each, (0, longest - len(each))) for each in (counts, others))
    return one + other


def any_rank(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something holds on any rank; all of them have to ask."""
    return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)


class DivergenceCheck(pl.Callback):
    """
    Ends a training that has diverged without a loss that is not finite: Diverged, by a plateau or by the collapse of the loss scale.

    plateau_share: of the steps, and at least 500 of them, after which the loss must once have been below the entropy of the
    frequencies of its targets (see Plateau); None: no check. Tasks without target tokens are not checked.
    """

    def __init__(self, plateau_share: float | None = None, max_steps: int = 0) -> None:
        judged_at = 0 if plateau_share is None else max(PLATEAU_STEPS, math.ceil(plateau_share * max_steps))
        self.plateau = Plateau(judged_at) if 0 < judged_at <= max_steps else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at a batch, and at its step when that is over."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        task: Any = pl_module
        if self.plateau is not None and not self.plateau.is_left:
            self._watch(trainer, task, batch, is_step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if is_step and scaler is not None and trainer.global_step % task.log_every == 0:
            scale = scaler.get_scale()
            if scale < MIN_LOSS_SCALE:
                raise Diverged(
                    trainer.global_step, f"the loss scale of fp16 fell to {scale:.1e}", task.first_not_finite([batch])
                )

    def state_dict(self) -> dict[str, Any]:
        """What was seen of a plateau."""
        return {} if self.plateau is None else self.plateau.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        if self.plateau is not None:
            self.plateau.load_state_dict(state_dict)

    def _watch(self, trainer: pl.Trainer, task: Any, batch: Any, is_step: bool) -> None:
        assert self.plateau is not None
        targets_N = task.targets(batch)
        if targets_N is None:
            self.plateau = None
            return
        self.plateau.add(task.sums.nats, targets_N)
        if is_step:
            reason = self.plateau.close(trainer.global_step, partial(any_rank, trainer))
            if reason:
                raise Diverged(trainer.global_step, reason)
