"""The training loop of one process: what a step needs and nothing else.

Lightning's own step enters some fifty hooks, a millisecond on a slow core, which is much of a small model's step. On one device, without a
gradient scaler and with callbacks that watch whole batches only, this loop does the same work without them; everything else (validation,
progress, checkpoints, resuming, signals) stays Lightning's. Other runs take Lightning's step, and so do a run's first steps after a restart.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from attnlab.training.task_base import TokenTask

HOOKS_WITHIN = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
HOOKS_OF_DATA = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class LeanEpochLoop(_TrainingEpochLoop):
    """Lightning's epoch loop with a step of its own where the run allows it."""

    lean = False

    def on_run_start(self, data_fetcher: Any) -> None:
        """Decides which step this training takes."""
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        self.lean = can_be_lean(trainer)
        if self.lean:
            self._starts = [c for c in trainer.callbacks if is_overridden("on_train_batch_start", c, pl.Callback)]
            self._ends = [c for c in trainer.callbacks if is_overridden("on_train_batch_end", c, pl.Callback)]
            self._parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]

    def advance(self, data_fetcher: Any) -> None:
        """One micro-batch, and the update where it completes a step."""
        if not self.lean or self.restarting:
            super().advance(data_fetcher)
            return
        trainer, task, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        assert isinstance(task, TokenTask)
        if self.val_loop.restarting:  # the next validation is a whole one
            self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        if trainer.strategy.root_device.type != "cpu":
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        for callback in self._starts:
            callback.on_train_batch_start(trainer, task, batch, index)
        progress.increment_started()
        self._train(task, batch, index)
        progress.increment_processed()
        for callback in self._ends:
            callback.on_train_batch_end(trainer, task, None, batch, index)
        progress.increment_completed()

    def _train(self, task: TokenTask, batch: Any, index: int) -> None:
        trainer, accumulate = self.trainer, self.trainer.accumulate_grad_batches
        with trainer.precision_plugin.train_step_context():
            loss = task.training_step(batch)
        if index % accumulate == 0:
            for parameter in self._parameters:
                parameter.grad = None
        (loss / accumulate if accumulate > 1 else loss).backward()
        if (index + 1) % accumulate and not self._num_ready_batches_reached():
            return
        steps = self.automatic_optimization.optim_progress.optimizer.step
        steps.increment_ready()
        task.update(trainer.optimizers[0], trainer.gradient_clip_val)
        steps.increment_completed()


def can_be_lean(trainer: Any) -> bool:
    """Whether nothing in this training needs the hooks that a lean step leaves out."""
    task = trainer.lightning_module
    return (
        isinstance(task, TokenTask)
        and task.automatic_optimization
        and type(trainer.strategy) is SingleDeviceStrategy
        and getattr(trainer.precision_plugin, "scaler", None) is None
        and not any(is_overridden(hook, c, pl.Callback) for hook in HOOKS_WITHIN for c in trainer.callbacks)
        and not any(is_overridden(hook, task) for hook in (*HOOKS_WITHIN, *HOOKS_OF_DATA))
        and not (trainer.datamodule and any(is_overridden(hook, trainer.datamodule) for hook in HOOKS_OF_DATA))
    )
