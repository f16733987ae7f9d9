"""What of Lightning's own a run may choose: callbacks, and arguments of its Trainer; and what attnlab does itself in
their place."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning.pytorch as pl

# Lightning's callbacks that would take over what attnlab does itself, by the names of their classes.
DONE_HERE = {
    "Checkpoint": "saves beside attnlab's own checkpoints, which alone are gone on from; trainer.checkpoint_budget_gb "
    "says how many are kept",
    "StochasticWeightAveraging": "puts other weights into the model that checkpoints do not know; choose averaging=ema "
    "or averaging=last_checkpoints",
    "WeightAveraging": "puts other weights into the model that checkpoints do not know; choose averaging=ema",
    "GradientAccumulationScheduler": "changes the batches of a step; set trainer.accumulate_grad_batches",
    "ProgressBar": "draws over attnlab's own line of progress; set progress",
    "BatchSizeFinder": "searches before each training; `attnlab batch-size` does so once",
    "LearningRateFinder": "searches before each training; `attnlab lr-range` does so once",
}


def refused_callback(kind: object) -> str | None:
    """Why a run cannot have a callback of this class, and what to do; None where it can."""
    bases = kind.__mro__ if inspect.isclass(kind) else ()
    return next((DONE_HERE[base.__name__] for base in bases if base.__name__ in DONE_HERE), None)


def why_stopped(trainer: pl.Trainer) -> str:
    """Why a training ended before its last step, as its callbacks say it."""
    said = (getattr(callback, "stopping_reason_message", None) for callback in trainer.callbacks)
    stopped = [reason.removesuffix(" Signaling Trainer to stop.").rstrip(".") for reason in said if reason]
    timers = [
        f"the time limit of callbacks.timer was reached after {one.time_elapsed():.0f} s"
        for one in trainer.callbacks
        if type(one).__name__ == "Timer"
    ]
    return "; ".join(stopped or timers) or "a callback ended it"
