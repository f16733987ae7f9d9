"""What a task is: a model, its loss as sums over target tokens, and the figures that say how well it does.

No step waits for the device except where a line is logged; on a CPU every step is checked for a loss that is not
finite.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypedDict, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnlab.parts import Config
from attnlab.training.additions import PartCounts, figures_of
from attnlab.training.evaluation import Batch, Evaluation
from attnlab.training.loss import NOTHING, OBJECTIVE, Diverged, LossAccumulator, first_not_finite
from attnlab.training.metrics import LOSS, Metric, prefix_of
from attnlab.training.optimizers import Optimization
from attnlab.training.tracking import Table

__all__ = ["Batch", "Best", "Evaluation", "Task", "as_task"]
T = TypeVar("T")


class Best(TypedDict):
    """The best value so far of the metric that is watched, and the optimizer step of it."""

    metric: str
    value: float
    step: int


class Task(Evaluation):
    """A task says everything about itself; a subclass gives `loss_sums` and `metrics`.

    A step's gradient is that of the summed loss over the number of tokens, over all its micro-batches and ranks, so
    that splitting a batch changes nothing; `optimization` says how it is trained. On the class: `monitor`, the metric
    of the validation part by which a run is watched and chosen; `headline`, those that sum a run up; `use`, the command
    for a trained run; `data_type`, `model_type`, what it works on. Attributes: `seconds` and `tokens` of training over
    all attempts (and ranks); `latest` values reported; `best` of the metric that is watched; `unavailable`, figures
    that a run cannot have, and why; `notes`, how figures were computed; `outputs`, texts worth keeping, by file name.
    """

    monitor: ClassVar[Metric] = LOSS
    separable: ClassVar[bool] = True  # the loss of a batch is the sum of its examples' own
    validates_figures: ClassVar[bool] = False  # at the end a validation reports what a whole split does
    headline: ClassVar[Sequence[str]] = ("val/loss",)
    use: ClassVar[str] = "evaluate RUN"
    data_type: ClassVar[type] = object
    model_type: ClassVar[type] = nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.optimization = Optimization()
        self.latest: dict[str, float] = {}
        self.best: Best | None = None
        self.sums = LossAccumulator()
        self.unavailable: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.before_next_step: Callable[[], None] | None = None
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._batches: list[Batch] = []
        self._counts = PartCounts()
        self._validated: list[Any] = []
        self._evaluated = contextlib.ExitStack()

    @property
    def tokens(self) -> int:
        return int(self.sums.tokens)

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    # --- what a task says

    @classmethod
    @abstractmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        """The metrics of a finished run of this resolved configuration, as far as the task computes them."""
        return ()

    @classmethod
    def reports(cls, metric: str, config: Config) -> bool:
        """Whether a run can report a metric; of a class that computes its figures anew and names none, every one."""
        for owner in cls.__mro__[: cls.__mro__.index(Task)]:
            if "metrics" in vars(owner):
                names = [name for known in cls.metrics(config) for name in known.names()]
                return any(fnmatch.fnmatchcase(metric, name) for name in names)
            if vars(owner).keys() & {"loss_sums", "figures_of_sums", "validate", "figures", "evaluate"}:
                return True
        return True

    def initialise(self) -> list[str]:
        """Called once before a training from scratch: takes in weights from elsewhere, and says in lines which."""
        return []

    def check_split(self, data: Any, split: str) -> None:
        """Asked of every split before its first use. Raises ValueError for an example that the model cannot serve."""
        return

    def figures_of_sums(self, sums: Mapping[str, float], tokens: int) -> dict[str, float]:
        """What is reported of a validation, from its sums by name and its number of tokens."""
        return {name: value / max(1, tokens) for name, value in sums.items()}

    def kept_of(self, batch: Batch) -> Any:
        """What a validation during the training keeps of a batch."""
        return self._named_sums(batch)

    def figures_of_kept(self, kept: list[Any]) -> dict[str, float]:
        """What is reported of such a validation, from what was kept of this rank's batches; all ranks ask."""
        return self.figures_of_sums(*self.sum_up(kept))

    def validate(self, data: Any) -> dict[str, float]:
        """What a validation reports, of the weights as they are."""
        if self.validates_figures:
            return self.evaluate(data, "validation")
        figures = self.figures_of_sums(*self.score_sums(data.val_dataloader()))
        return {f"val/{name}": value for name, value in figures.items()}

    def evaluate(self, data: Any, split: str = "test") -> dict[str, float]:
        """The figures of a split by metric name; `unavailable` is filled with what has none, and why."""
        return {f"{prefix_of(split)}/{name}": value for name, value in self.figures(data, split).items()}

    def figures(self, data: Any, split: str) -> dict[str, float]:
        """What `evaluate` reports of a split, by the names of its metrics without the split's own."""
        return self.figures_of_sums(*self.score_sums(data.evaluation_loader(split)))

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """Some of what the model gives for a split that was evaluated; None in a task whose outputs are no texts."""
        return None

    # --- one step

    def configure_model(self) -> None:
        """Shards the model where the strategy is to; Lightning asks before it makes the optimizer."""
        if self.device_mesh is not None:
            from attnlab.training.sharding import shard

            shard(self, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Optimizer:
        """The optimizer; Lightning is told of no schedule, which `configure_gradient_clipping` applies."""
        optimizer = self.optimization.start(self.model, self.trainer.max_steps)
        if self._scales_loss():  # gradients are unscaled before they are clipped
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Does what a restart has left to do just before its first step, when nothing else draws random numbers."""
        before, self.before_next_step = self.before_next_step, None
        if before is not None:
            before()

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of one micro-batch, as Lightning differentiates it."""
        self._batches.append(batch)
        alone = self.trainer.accumulate_grad_batches * self.trainer.world_size == 1
        sums = self.training_sums(batch)
        self._counts.accumulate(sums.counts)
        return self.sums.accumulate(sums, alone)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """What goes between the backward pass and the update: sums over micro-batches and ranks, gradients of the mean
        over the tokens, the schedule's rate. Raises Diverged."""
        trainer, step = self.trainer, self.global_step
        logged, parts = self.is_logged(step + 1), trainer.accumulate_grad_batches * trainer.world_size
        batches, self._batches = self._batches, []
        try:
            tokens = self.sums.finish_step(step + 1, logged, self.reduce if trainer.world_size > 1 else None)
        except Diverged as error:
            raise Diverged(error.step, error.reason, self.first_not_finite(batches)) from None
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.sums.scale_gradients(gradients, tokens, parts, gradient_clip_val, logged)
        norm = self.sums.gradient_norm
        if gradient_clip_val and isinstance(norm, float) and not math.isfinite(norm) and not self._scales_loss():
            raise Diverged(step + 1, "the gradient was not finite", self.first_not_finite(batches))
        self.optimization.set_rates(optimizer, step)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], object] | None = None
    ) -> None:
        """The update, and a line in the logs every so many steps; the closure holds all that comes before."""
        optimizer.step(closure=optimizer_closure)
        step = self.global_step
        told = self._counts.tell(self.model, self.reduce if self.trainer.world_size > 1 else None)
        self.optimization.averaging.after_step(self.model, step)
        if self.is_logged(step + 1):
            means = self.sums.take_means()
            means = {f"train/{name}": value for name, value in ({self.loss_name: means.pop(OBJECTIVE)} | means).items()}
            rate, norm = self.optimization.rate(step), float(self.sums.gradient_norm)
            self.report({**means, "train/lr": rate, "train/gradient_norm": norm, **figures_of(told)}, step + 1)
        self.optimization.set_rates(optimizer, step + 1)

    def first_not_finite(self, batches: Sequence[Batch]) -> str:
        """What in the model is not finite first on any rank, in computing these micro-batches once more."""
        with self._gathered(), self._autocast():
            here = first_not_finite(self.model, [partial(self._loss, batch) for batch in batches])
        return next((each for each in self.of_all_ranks(here) if each != NOTHING), NOTHING)

    def _loss(self, batch: Batch) -> Tensor:
        return self.training_sums(batch).objective

    def _scales_loss(self) -> bool:
        return str(self.trainer.precision).startswith("16")

    def is_logged(self, step: int) -> bool:
        """Whether a step, counted from 1, has a line in the logs: the first one, and every `log_every_n_steps`."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        return step % every == 0 or step == 1

    # --- what is reported

    def report(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Hands values of an optimizer step (by default the present one) to callbacks, and with tokens to loggers."""
        self.latest.update(values)
        self.trainer.callback_metrics.update({name: torch.tensor(x, dtype=torch.double) for name, x in values.items()})
        line = {**values, "tokens": self.tokens, "seconds": self.seconds}
        for logger in self.trainer.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics(line, self.global_step if step is None else step)

    def on_fit_start(self) -> None:
        self._started = time.perf_counter()

    def on_fit_end(self) -> None:
        """Stops the clock, so that `seconds` is of the training alone, and leaves the weights to evaluate."""
        self._seconds_before, self._started = self.seconds, time.perf_counter()
        self.optimization.leave_weights_to_evaluate(self.model, self.trainer.optimizers)

    def on_validation_start(self) -> None:
        """Turns to the weights to evaluate."""
        if not self.trainer.sanity_checking:
            self.optimization.averaging.before_validation(self.model, self.global_step)
        self._evaluated.enter_context(self.optimization.weights_to_evaluate(self.model, self.trainer.optimizers))
        self._evaluated.enter_context(self._gathered())

    def validation_step(self, batch: Batch) -> None:
        self._validated.append(self.kept_of(batch))

    def on_validation_epoch_end(self) -> None:
        """Turns back to the weights to train (a checkpoint may follow), reports, and keeps the best value."""
        self._evaluated.close()
        validated, self._validated = self._validated, []
        if self.trainer.sanity_checking:  # it is to find mistakes early, and leaves no trace
            return
        figures = self.figures_of_kept(validated)
        self.report({f"val/{name}": value for name, value in figures.items()})
        name, is_lower = f"val/{self.monitor.name}", self.monitor.better == "lower"
        value = self.latest.get(name, math.nan)
        old = self.best["value"] if self.best else math.inf if is_lower else -math.inf
        if value < old if is_lower else value > old:
            self.best = {"metric": name, "value": value, "step": self.global_step}

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the counts, and the weights to evaluate as `state_dict` (those to train, where others, beside them)."""
        counts = {"step": self.global_step, "tokens": self.tokens, "seconds": self.seconds}
        window = self.sums.window_sums()
        checkpoint["attnlab"] = counts | {"window": window, "best": self.best, "latest": dict(self.latest)}
        checkpoint["averaging"] = self._whole(self.optimization.averaging.state_dict())
        trained = checkpoint["state_dict"]
        with self.optimization.weights_to_evaluate(self.model, self.trainer.optimizers) as differ:
            if differ:
                whole = self._whole(self.state_dict())
                checkpoint["state_dict"] = {name: value.clone() for name, value in whole.items()}
        if differ:
            # The names still stand for the parameters themselves, which hold the trained weights again.
            checkpoint["training_weights"] = trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the counts and the weights to train."""
        counts = checkpoint["attnlab"]
        self.sums.tokens, self.sums.window = counts["tokens"], dict(counts["window"])
        self._seconds_before, self.best, self.latest = counts["seconds"], counts["best"], dict(counts["latest"])
        self.optimization.averaging.load_state_dict(checkpoint["averaging"])
        checkpoint["state_dict"] = checkpoint.get("training_weights", checkpoint["state_dict"])


def as_task(module: pl.LightningModule) -> Task:
    """What Lightning hands to the callbacks of a run: its task."""
    assert isinstance(module, Task)
    return module
