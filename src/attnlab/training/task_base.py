"""What every training task shares: token-exact losses and gradients, the schedule, the counting of tokens and seconds, what is reported when.

No step waits for the device except where a line is logged; on a CPU every step is checked for a loss that is not finite.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.layers.parts import complete
from attnlab.ranges import PositiveInt, check_ranges
from attnlab.training.averaging import Averaging
from attnlab.training.divergence import NOTHING, Diverged, first_not_finite
from attnlab.training.media import Table
from attnlab.training.optimizers import evaluation_weights
from attnlab.training.scoring import Scoring
from attnlab.training.sharding import gathered, shard, whole
from attnlab.training.token_sums import TokenSums


@check_ranges
class TokenTask(Scoring):
    """A model, an optimizer (a function of the model) and a schedule (a part completed with total_steps, d_model and lr).

    A subclass gives `loss_sums`, and `evaluate` for the figures of a split. A step's gradient is that of the summed loss over the number of tokens, over all its micro-batches and
    ranks, so that splitting a batch changes nothing. Attributes: `tokens` trained on, `seconds` of training over all attempts, `latest`
    values reported, `best` (metric, value, step) of `monitor`, `cannot`: figures that a run cannot have, with the
    reason, `notes`: how figures were computed, and `outputs`: texts worth keeping beside them, by file name.
    `averaging` makes weights to evaluate out of those that are trained. `headline` names the figures that sum a run
    up; `data_type` and `model_type` are what the task works on. `metric_names` says which
    figures there are.
    """

    monitor: ClassVar[str] = "val/nats"
    monitor_lower: ClassVar[bool] = True
    headline: ClassVar[Sequence[str]] = ("val/nats",)
    data_type: ClassVar[type] = object
    model_type: ClassVar[type] = nn.Module

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[..., Any],
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model)
        self.make_optimizer, self.make_schedule, self.log_every = optimizer, schedule, log_every
        self.latest: dict[str, float] = {}
        self.best: dict[str, Any] | None = None
        self.sums = TokenSums()
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self.cannot: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.averaging = Averaging()
        self._validated: list[dict[str, Any]] = []
        self._batches: list[Any] = []
        self._evaluated = contextlib.ExitStack()

    @property
    def tokens(self) -> int:
        """Target tokens trained on, over all ranks and attempts."""
        return int(self.sums.tokens)

    def initialise(self) -> list[str]:
        """Called once before a training from scratch: takes in weights from elsewhere, and says in lines which."""
        return []

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The metrics of a finished run of this resolved configuration; * in one stands for what only the data know."""
        return ("*",)

    @classmethod
    def reports(cls, metric: str, config: Mapping[str, Any]) -> bool:
        """Whether a run can report a metric; of a class that computes its figures itself and names none, every one."""
        for owner in cls.__mro__:
            if "metric_names" in vars(owner):
                return any(fnmatch.fnmatchcase(metric, name) for name in cls.metric_names(config))
            if vars(owner).keys() & {"loss_sums", "validation_metrics", "validate", "evaluate"}:
                return True
        return True

    def check_split(self, data: Any, split: str) -> None:
        """Asked of every split before its first use. Raises ValueError for an example that the model cannot serve."""
        return

    def validation_metrics(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        """What is reported of a validation, from its sums by name and its number of tokens."""
        return {f"val/{name}": value / max(1, tokens) for name, value in sums.items()}

    def validate(self, data: Any) -> dict[str, float]:
        """What a validation reports, of the weights as they are."""
        return self.validation_metrics(*self.score_sums(data.val_dataloader()))

    @abstractmethod
    def evaluate(self, data: Any, split: str = "test") -> dict[str, float]:
        """The figures of a split by name; `cannot` is filled with what has none, and why."""
        raise NotImplementedError(f"{type(self).__name__} gives no evaluate")

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """Some of what the model gives for a split that was evaluated; None in a task whose outputs are no texts."""
        return None

    @property
    def seconds(self) -> float:
        """Wall seconds of training, over all attempts."""
        return self._seconds_before + time.perf_counter() - self._started

    # --- one step

    def configure_model(self) -> None:
        """Shards the model where the strategy is to; Lightning asks before it makes the optimizer."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Optimizer:
        """The optimizer; the schedule is applied by `optimizer_step`, a pure function of the step, so that resuming restores nothing."""
        optimizer = self.make_optimizer(self.model)
        if self._scales_loss():
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # gradients are unscaled before they are clipped
        self._rates = [group["lr"] for group in optimizer.param_groups]
        d_model = getattr(self.model, "d_model", None)
        widths = {} if d_model is None else {"d_model": d_model}
        self._schedule = complete(self.make_schedule, total_steps=self.trainer.max_steps, lr=self._rates[0], **widths)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    def targets(self, batch: Any) -> Tensor | None:
        """The target tokens (N,) that a batch's loss is over; None in a task whose targets are no tokens."""
        return None

    def training_step(self, batch: Any) -> Tensor:
        """The loss of one micro-batch, as Lightning differentiates it."""
        self._batches.append(batch)
        nats, tokens, also = self.all_sums(batch)
        trainer = self.trainer
        return self.sums.add(nats, tokens, also, alone=trainer.accumulate_grad_batches * trainer.world_size == 1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """What goes between the backward pass and the update: sums over micro-batches and ranks, gradients of the mean over the
        tokens, the schedule's rate. Raises Diverged."""
        trainer, step = self.trainer, self.global_step
        logged = self._is_logged(step + 1)
        batches = self._batches.copy()
        self._batches.clear()
        try:
            tokens = self.sums.close_step(step + 1, logged, self.reduce if trainer.world_size > 1 else None)
        except Diverged as error:
            raise Diverged(error.step, error.reason, self.first_not_finite(batches)) from None
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        parts = trainer.accumulate_grad_batches * trainer.world_size
        self.sums.scale_gradients(gradients, tokens, parts, gradient_clip_val, logged)
        norm = self.sums.gradient_norm
        if gradient_clip_val and isinstance(norm, float) and not math.isfinite(norm) and not self._scales_loss():
            raise Diverged(step + 1, "the gradient was not finite", self.first_not_finite(batches))
        multiple = self._schedule(step)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * multiple

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """The update, and a line in the logs every `log_every` steps; the closure holds all that comes before."""
        optimizer.step(closure=optimizer_closure)
        step = self.global_step
        self.averaging.after_step(self.model, step)
        if self._is_logged(step + 1):
            means = self.sums.take_window()
            means = {f"train/{name}": value for name, value in ({self.loss_name: means.pop("loss")} | means).items()}
            rate = self._rates[0] * self._schedule(step)
            self.report({**means, "train/lr": rate, "train/gradient_norm": float(self.sums.gradient_norm)}, step + 1)

    def first_not_finite(self, batches: Sequence[Any]) -> str:
        """What in the model is not finite first on any rank, in computing these micro-batches once more; see the function."""
        with gathered(self), self._autocast():
            here = first_not_finite(self.model, [partial(self._loss, batch) for batch in batches])
        found = [here]
        if self.trainer.world_size > 1:
            found *= self.trainer.world_size
            torch.distributed.all_gather_object(found, here)
        return next((each for each in found if each != NOTHING), NOTHING)

    def _loss(self, batch: Any) -> Tensor:
        return self.all_sums(batch)[0]

    def _scales_loss(self) -> bool:
        return str(self.trainer.precision).startswith("16")

    def _is_logged(self, step: int) -> bool:
        return step % self.log_every == 0 or step == 1

    # --- what is reported

    def report(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Hands values to every logger at an optimizer step (the present one by default), with the tokens and seconds so far."""
        self.latest.update(values)
        if self.trainer.is_global_zero:
            line = {**values, "tokens": self.tokens, "seconds": self.seconds}
            for logger in self.trainer.loggers:
                logger.log_metrics(line, self.global_step if step is None else step)

    def on_fit_start(self) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_fit_end(self) -> None:
        """Stops the clock, so that `seconds` is of the training alone, and leaves the weights to evaluate."""
        self._seconds_before, self._started = self.seconds, time.perf_counter()
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        self.averaging.put_into(self.model)

    @contextlib.contextmanager
    def weights_to_evaluate(self) -> Iterator[bool]:
        """Inside, the model has the weights to evaluate; gives whether they differ from those that are trained."""
        with contextlib.ExitStack() as stack:
            differ = [stack.enter_context(evaluation_weights(optimizer)) for optimizer in self.trainer.optimizers]
            yield stack.enter_context(self.averaging.applied(self.model)) or any(differ)

    # --- validation

    def on_validation_start(self) -> None:
        """Turns to the weights to evaluate."""
        self.averaging.before_validation(self.model, self.global_step)
        self._evaluated.enter_context(self.weights_to_evaluate())
        self._evaluated.enter_context(gathered(self))

    def validation_step(self, batch: Any) -> None:
        """Adds a batch to the sums."""
        nats, tokens, also = self.all_sums(batch)
        self._validated.append({"tokens": tokens, self.loss_name: nats.detach(), **also})

    def on_validation_epoch_end(self) -> None:
        """Turns back to the weights to train (a checkpoint may follow), reports the validation and keeps the best value."""
        self._evaluated.close()
        validated, self._validated = self._validated, []
        self.report(self.validation_metrics(*self.sum_up(validated)))
        self._keep_best()

    def _keep_best(self) -> None:
        value = self.latest.get(self.monitor, math.nan)
        old = self.best["value"] if self.best else math.inf if self.monitor_lower else -math.inf
        if value < old if self.monitor_lower else value > old:
            self.best = {"metric": self.monitor, "value": value, "step": self.global_step}

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the counts, and the weights to evaluate as `state_dict` (those to train, where they differ, beside them)."""
        counts = {"step": self.global_step, "tokens": self.tokens, "seconds": self.seconds}
        window = self.sums.window_sums()
        checkpoint["attnlab"] = counts | {"window": window, "best": self.best, "latest": dict(self.latest)}
        checkpoint["averaging"] = whole(self.averaging.state_dict())
        trained = checkpoint["state_dict"]
        with self.weights_to_evaluate() as differ:
            if differ:
                checkpoint["state_dict"] = {name: value.clone() for name, value in whole(self.state_dict()).items()}
        if differ:
            # The names still stand for the parameters themselves, which hold the trained weights again.
            checkpoint["training_weights"] = trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counts and the weights to train."""
        counts = checkpoint["attnlab"]
        self.sums.tokens, self.sums.window = counts["tokens"], dict(counts["window"])
        self._seconds_before, self.best, self.latest = counts["seconds"], counts["best"], dict(counts["latest"])
        self.averaging.load_state_dict(checkpoint["averaging"])
        checkpoint["state_dict"] = checkpoint.get("training_weights", checkpoint["state_dict"])
