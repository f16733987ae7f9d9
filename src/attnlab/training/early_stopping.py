"""What ends a training before its last step: it has diverged (and where: the first layer with values that are not
finite), stays on a plateau, fp16's loss scale collapses, or a search gives it up. Legend: N target tokens."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from attnlab.training.run_directory import open_to_read

# As fairseq's --min-loss-scale: 30 halvings of torch's first scale without a step between that counts.
MIN_LOSS_SCALE = 1e-4
PLATEAU_STEPS = 500  # the least that a model is given to learn more than frequencies
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

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                look(f"the output of {name} ({type(module).__name__})", tensor)
                if tensor.requires_grad:
                    into = partial(look, f"the gradient into {name}")
                    tensor.register_hook(into)  # type: ignore[no-untyped-call]

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
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


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


class Plateau:
    """Whether a training ever learns more than how often each target occurs.

    It has, as soon as the mean loss of a block of steps is below the entropy of the targets' frequencies, by 0.01 nats,
    as the block's own targets estimate that entropy: their mean -log of the share that each has among all targets so
    far. A model that has learnt frequencies alone stays there, however the targets of a block happen to fall. It has
    not, where no block was below when `judged_at` steps are over.
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
        """Judges after a step (counted from 1): the reason to end, or None. `any_rank`: whether any rank says so."""
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
            f"the loss was on a plateau: it was never below the entropy of its targets' frequencies, near {entropy:.4f}"
            f" nats (at best {self.nearest:+.4f} from it; trainer.plateau_share=null does without this check),"
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


class Watched(Protocol):
    """A task, as far as a plateau of its loss is seen."""

    sums: Any

    @abstractmethod
    def targets(self, batch: Any) -> Tensor | None:
        """The tokens (N,) that a batch is to give; None where they are no tokens."""


class DivergenceCheck(pl.Callback):
    """Ends a training that has diverged without a loss that is not finite, by a plateau or the collapse of the loss
    scale.

    plateau_share: of the steps, and at least 500 of them, after which the loss must once have been below the entropy of
    the frequencies of its targets (see Plateau); None: no check. Tasks without target tokens are not checked.
    """

    def __init__(self, plateau_share: float | None = None, max_steps: int = 0) -> None:
        judged_at = 0 if plateau_share is None else max(PLATEAU_STEPS, math.ceil(plateau_share * max_steps))
        self.plateau = Plateau(judged_at) if 0 < judged_at <= max_steps else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Looks at a batch, and at its step when that is over. Raises Diverged."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.plateau is not None and not self.plateau.is_left:
            self._watch(self.plateau, trainer, pl_module, batch, is_step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        is_logged = is_step and pl_module.is_logged(trainer.global_step)
        if scaler is not None and is_logged and (scale := scaler.get_scale()) < MIN_LOSS_SCALE:
            where = pl_module.first_not_finite([batch])
            raise Diverged(trainer.global_step, f"the loss scale of fp16 fell to {scale:.1e}", where)

    def state_dict(self) -> dict[str, Any]:
        """What was seen of a plateau."""
        return {} if self.plateau is None else self.plateau.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        if self.plateau is not None:
            self.plateau.load_state_dict(state_dict)

    def _watch(self, plateau: Plateau, trainer: pl.Trainer, task: Watched, batch: Any, is_step: bool) -> None:
        targets_N = task.targets(batch)
        if targets_N is None:
            self.plateau = None
            return
        plateau.add(task.sums.nats, targets_N)
        if is_step and (reason := plateau.close(trainer.global_step, partial(any_rank, trainer))):
            raise Diverged(trainer.global_step, reason)


class Pruned(Exception):
    """A trial of a search was given up at a validation."""

    def __init__(self, step: int, metric: str, value: float) -> None:
        super().__init__(step, metric, value)
        self.step, self.metric, self.value = step, metric, value

    def __str__(self) -> str:
        return f"pruned at step {self.step}: {self.metric} was {self.value:.4f}, worse than other trials at this step"


class Pruning(pl.Callback):
    """Raises Pruned where `pruner` (one of Optuna's) gives a trial up, compared with those of its search that have
    finished.

    better: which values of `metric` are, lower or higher. metrics: the run's own metrics.jsonl. peers: gives those of
    the trials that have finished. Every rank stops, by the first one's word.
    """

    def __init__(
        self, pruner: Any, metric: str, better: str, metrics: Path, peers: Callable[[], Iterable[Path]]
    ) -> None:
        self.pruner, self.metric, self.better, self.metrics, self.peers = pruner, metric, better, metrics, peers

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks the pruner, but not at the end of the training."""
        if trainer.state.fn != "fit" or trainer.global_step >= trainer.max_steps:
            return
        value = trainer.strategy.broadcast(self._given_up() if trainer.is_global_zero else None)
        if value is not None:
            raise Pruned(trainer.global_step, self.metric, value)

    def _given_up(self) -> float | None:
        """The last value of a run that is given up."""
        import optuna
        from optuna.trial import TrialState, create_trial

        own = validations(self.metrics, self.metric)
        if not own:
            return None
        # Of trials that are made up from files.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="minimize" if self.better == "lower" else "maximize")
        for path in self.peers():
            if values := validations(path, self.metric):
                study.add_trial(create_trial(value=values[max(values)], intermediate_values=values))
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=own)
        return own[max(own)] if self.pruner.prune(study, trial) else None


def validations(metrics: Path, metric: str) -> dict[int, float]:
    """The finite values of a metric in a run's metrics.jsonl, by step; of a step trained twice the later one."""
    found: dict[int, float] = {}
    try:
        with open_to_read(metrics) as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return found
    for line in lines:
        if line.endswith(b"\n"):  # the last one of a killed run may be cut
            read = json.loads(line)
            value = read["values"].get(metric)
            if value is not None and math.isfinite(value):
                found[int(read["step"])] = float(value)
    return found
