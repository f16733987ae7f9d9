"""Losses that are exact per token, however a step's tokens are split over micro-batches and ranks; and how a training
that cannot succeed is known by them: it has diverged (and where), or stays on a plateau. `callbacks` ends it.

Legend: N tokens, V vocabulary, R rows of logits that are taken at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import nll_loss, pad

ROWS = 128  # taken at once on a CPU, so that what is made of their logits stays in the processor's cache
AT_ONCE = 2**28  # logits taken at once on a GPU: 1 GiB in fp32
# What a loss is divided by before the backward pass where the number of a step's tokens is not known yet: fp16
# gradients stay in range, and a power of two is taken out again exactly.
UNKNOWN_TOKENS = 1024.0

OBJECTIVE = "objective"  # the sum of what is differentiated, beside the auxiliary sums

Number = float | Tensor
NOTHING = "nothing on a second pass"
MARGIN = 0.01  # nats: what a model that knows the frequencies alone can be below their entropy by chance
BLOCKS = 20  # in which a loss is averaged until a plateau is judged


class Diverged(FloatingPointError):
    """A training diverged at optimizer step `step` (counted from 1), for a `reason`; `layer` was not finite first."""

    def __init__(self, step: int, reason: str = "the loss was not finite", layer: str | None = None) -> None:
        super().__init__(step, reason, layer)
        self.step, self.reason, self.layer = step, reason, layer

    def __str__(self) -> str:
        where = f"; not finite first: {self.layer}" if self.layer else ""
        return f"{self.reason} at step {self.step}{where}"


class LossSums(NamedTuple):
    """A batch's summed loss in nats, with gradient, its target tokens (an int saves a wait), and auxiliary sums over
    them, whose means are reported (train/<name>, val/<name>); every batch has the same ones."""

    loss: Tensor
    tokens: int | Tensor
    auxiliary: Mapping[str, Tensor] = {}

    @property
    def objective(self) -> Tensor:
        """What a training differentiates."""
        return self.loss


class TrainingSums(NamedTuple):
    """The same with what a training adds. added: what it differentiates beside the loss, with gradient; auxiliary has
    its terms by name, too. counts: what parts of the model are told once the step is over."""

    loss: Tensor
    tokens: int | Tensor
    auxiliary: Mapping[str, Tensor] = {}
    added: Tensor | None = None
    counts: Mapping[nn.Module, Tensor] = {}

    @property
    def objective(self) -> Tensor:
        """What a training differentiates."""
        return self.loss if self.added is None else self.loss + self.added


def z_loss_sum(logits_NV: Tensor, targets_N: Tensor, ignore: int = -100) -> Tensor:
    """The sum of log(Z)^2 over the targets that count, Z the sum of the exponentials of a token's logits (PaLM,
    Chowdhery et al. 2022, arXiv 2204.02311, section 5). Computed in fp32."""
    log_z_N = logits_NV.float().logsumexp(dim=1)
    return log_z_N.square().where(targets_N != ignore, 0.0).sum()


def cross_entropy_sums(
    logits_NV: Tensor, targets_N: Tensor, smoothing: float = 0.0, ignore: int = -100
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy in nats, with label smoothing (Szegedy et al. 2016, section 7) and without.

    Targets that are `ignore` do not count. Smoothing spreads that share of a target's probability evenly over the whole
    vocabulary, the target too. Only the first sum has a gradient. Computed in fp32 whatever the type of the logits.
    """
    if logits_NV.device.type != "cpu" and logits_NV.numel() <= AT_ONCE:
        return _in_one_pass(logits_NV, targets_N, smoothing, ignore)
    smoothed, plain = _CrossEntropySums.apply(logits_NV, targets_N, smoothing, ignore)  # type: ignore[no-untyped-call]
    return smoothed, plain


def _in_one_pass(logits_NV: Tensor, targets_N: Tensor, smoothing: float, ignore: int) -> tuple[Tensor, Tensor]:
    log_p_NV = logits_NV.log_softmax(dim=1, dtype=torch.float32)
    plain = nll_loss(log_p_NV, targets_N, reduction="sum", ignore_index=ignore)
    if not smoothing:
        return plain, plain.detach()
    everywhere = log_p_NV.mean(dim=1).masked_fill(targets_N == ignore, 0.0).sum()
    return (1 - smoothing) * plain - smoothing * everywhere, plain.detach()


class _CrossEntropySums(torch.autograd.Function):
    """The gradient is known as soon as the loss is, and takes the place of what autograd would keep."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, smoothing: float, ignore: int) -> tuple[Tensor, Tensor]:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        smoothed = logits_NV.new_zeros((), dtype=torch.float64)
        plain = smoothed.clone()
        on_cpu = logits_NV.device.type == "cpu"
        size = ROWS if on_cpu else max(1, AT_ONCE // logits_NV.shape[1])
        for start in range(0, len(targets_N), size):
            rows = slice(start, start + size)
            log_p_RV, counted_R = logits_NV[rows].log_softmax(dim=1, dtype=torch.float32), targets_N[rows] != ignore
            target_R1 = targets_N[rows].where(counted_R, 0)[:, None]
            nats_R = -log_p_RV.gather(1, target_R1)[:, 0].where(counted_R, 0.0)
            plain += nats_R.sum()
            smoothed += (1 - smoothing) * nats_R.sum()
            if smoothing:
                smoothed -= smoothing * log_p_RV.mean(dim=1).where(counted_R, 0.0).sum()
            if gradient_NV is not None:
                gradient_RV = log_p_RV.exp_().sub_(smoothing / log_p_RV.shape[1])
                gradient_RV.scatter_add_(1, target_R1, torch.full_like(nats_R, smoothing - 1)[:, None])
                if not on_cpu or not counted_R.all():  # a GPU multiplies sooner than the host has looked
                    gradient_RV.mul_(counted_R[:, None])
                gradient_NV[rows] = gradient_RV
        ctx.gradient_NV = gradient_NV
        plain_sum = plain.float()
        ctx.mark_non_differentiable(plain_sum)
        return smoothed.float(), plain_sum

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

    last: the sums of the last micro-batch. scale: what the step's accumulated gradient times makes that of the mean
    over its tokens, before it is clipped. A plain object, not a module, which would be slow to write to.
    """

    def __init__(self) -> None:
        self.tokens: Number = 0
        self.window: dict[str, Number] = {OBJECTIVE: 0.0, "tokens": 0}
        self.gradient_norm: Number = math.nan
        self.scale: Number = 1.0
        self.last: LossSums | None = None
        self._step: list[LossSums] = []
        self._divisor: float = 1.0

    def accumulate(self, sums: LossSums | TrainingSums, alone: bool) -> Tensor:
        """Takes in a micro-batch and returns the loss to differentiate; `alone` where it is all of its step."""
        auxiliary = {name: value.detach() for name, value in sums.auxiliary.items()}
        self.last = LossSums(sums.loss.detach(), sums.tokens, auxiliary)
        self._step.append(self.last)
        self._divisor = max(1, sums.tokens) if alone and isinstance(sums.tokens, int) else UNKNOWN_TOKENS
        return sums.objective / self._divisor

    def finish_step(self, step: int, wait: bool, reduce: Callable[[Tensor], Tensor] | None) -> Number:
        """Adds the step to the sums and returns its tokens over all ranks (`reduce` sums over them).

        Where the loss is at hand (on a CPU, or when `wait`) it is checked: raises Diverged, on every rank alike.
        """
        parts, self._step = self._step, []
        device, alone = parts[0].loss.device, len(parts) == 1
        sums: dict[str, Number] = {
            OBJECTIVE: parts[0].loss if alone else torch.stack([part.loss for part in parts]).sum(),
            "tokens": parts[0].tokens if alone else sum(part.tokens for part in parts),
            **{name: sum(part.auxiliary[name] for part in parts) for name in parts[0].auxiliary},
        }
        if reduce is not None:
            values = [torch.as_tensor(value, device=device).double() for value in sums.values()]
            sums = dict(zip(sums, reduce(torch.stack(values)).unbind(), strict=True))
        if wait or device.type == "cpu":
            sums[OBJECTIVE] = loss = float(sums[OBJECTIVE])
            if not math.isfinite(loss):
                raise Diverged(step)
        for name, value in sums.items():
            self.window[name] = self.window.get(name, 0.0) + value
        self.tokens = self.tokens + sums["tokens"]
        return sums["tokens"]

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
        """The means a token since the last call: of the OBJECTIVE, and of all that was summed beside it."""
        sums = self.window_sums()
        self.window = {OBJECTIVE: 0.0, "tokens": 0}
        tokens = max(1, int(sums.pop("tokens")))
        return {name: value / tokens for name, value in sums.items()}

    def window_sums(self) -> dict[str, float]:
        """The sums since the last line logged, as plain numbers."""
        return {name: int(value) if name == "tokens" else float(value) for name, value in self.window.items()}


def any_rank(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something holds on any rank; all of them have to ask."""
    return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)


def first_not_finite(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> str:
    """What in a model is not finite first: a weight, else a layer's output in computing one of these losses, else the
    loss, else a gradient. Runs each loss forward and backward once more, and changes no weight and no gradient of
    one."""
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            return f"the weights {name}"
    # A compiled model would run past the hooks.
    with torch.compiler.set_stance("force_eager"), torch.enable_grad():
        return next((found for loss in losses if (found := _first_in(model, loss))), NOTHING)


def _first_in(model: nn.Module, compute_loss: Callable[[], Tensor]) -> str | None:
    found: list[str] = []

    def look(what: str, value: Tensor) -> None:
        if not found and not value.detach().isfinite().all():
            found.append(what)

    def after(name: str, module: nn.Module, inputs: object, output: object) -> None:
        for tensor in _tensors(output):
            look(f"the output of {name} ({type(module).__name__})", tensor)
            if tensor.requires_grad:
                tensor.register_hook(partial(look, f"the gradient into {name}"))

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(after, name)) for name, module in named]
    try:
        loss = compute_loss()
        look("the loss itself, of outputs that are finite", loss)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if not found else {}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if trained else ()
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                look(f"the gradient of {name}", gradient)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


class Plateau:
    """Whether a training ever learns more than how often each target occurs.

    It has, as soon as the mean loss of a block of steps is below the entropy of the targets' frequencies, by 0.01 nats,
    as the block's own targets estimate that entropy: their mean -log of the share that each has among all targets so
    far. A model that has learnt frequencies alone stays there, however the targets of a block happen to fall. It has
    not, where no block was below when `judged_at` steps are over.
    """

    def __init__(self, judged_at: int) -> None:
        self.judged_at, self.block = judged_at, max(1, judged_at // BLOCKS)
        self.is_left, self.loss, self.nearest = False, 0.0, math.inf
        self.left_at: int | None = None  # the step
        self.counts = self.counts_of_block = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, targets_N: Tensor) -> None:
        """Takes in a batch: its summed loss and its targets, which are looked at when its block is over."""
        self._waiting.append((loss, targets_N))

    def close(self, step: int, any_rank: Callable[[bool], bool]) -> str | None:
        """Judges after a step (counted from 1): the reason to end, or None. `any_rank`: whether any rank says so."""
        if step % self.block and step != self.judged_at:
            return None
        self._count()
        of_block, self.counts_of_block = self.counts_of_block, self.counts_of_block[:0]
        self.counts = _sum(self.counts, of_block)
        tokens, (loss, self.loss) = max(1, int(of_block.sum())), (self.loss, 0.0)
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        entropy = -float(torch.special.xlogy(of_block, shares[: len(of_block)]).sum()) / tokens
        self.nearest = min(self.nearest, loss / tokens - entropy)
        if any_rank(self.nearest < -MARGIN):
            self.is_left, self.left_at, self.counts = True, step, self.counts[:0]
            return None
        if step < self.judged_at:
            return None
        return (
            f"the loss was on a plateau: it was never below the entropy of its targets' frequencies, near {entropy:.4f}"
            f" nats (at best {self.nearest:+.4f} from it; trainer.plateau_share=null does without this check),"
        )

    def state_dict(self) -> dict[str, object]:
        self._count()
        kept = ("is_left", "left_at", "counts", "counts_of_block", "loss", "nearest")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state: dict[str, object]) -> None:
        vars(self).update(state)

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        # One after the other, so that a state that is saved within a block changes no bit of the sum.
        for loss in torch.stack([loss.double() for loss, _ in waiting]).tolist():
            self.loss += loss
        targets = torch.cat([targets_N.flatten() for _, targets_N in waiting]).cpu()
        self.counts_of_block = _sum(self.counts_of_block, torch.bincount(targets))


def _sum(counts: Tensor, others: Tensor) -> Tensor:
    longest = max(len(counts), len(others))
    return pad(counts, (0, longest - len(counts))) + pad(others, (0, longest - len(others)))
