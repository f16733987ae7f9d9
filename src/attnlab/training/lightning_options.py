"""What of Lightning's own a run may choose: callbacks, and arguments of its Trainer; and what attnlab does itself in
their place."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

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

ENDLESS = "batches come from an order without end"
EVALUATES = "evaluations are attnlab's own, of whole splits"
# Arguments of Lightning's Trainer that attnlab gives itself: what to do in their place.
GIVEN_HERE = {
    "accelerator": "set trainer.device",
    "accumulate_grad_batches": "set trainer.accumulate_grad_batches",
    "barebones": "it would leave out checkpoints and loggers, of which a run is made; choose logger=jsonl",
    "callbacks": "choose them as callbacks=[NAME,NAME]",
    "check_val_every_n_epoch": f"set trainer.val_check_interval, in steps: {ENDLESS}",
    "default_root_dir": "set runs_dir",
    "deterministic": "set trainer.deterministic",
    "devices": "set trainer.devices",
    "enable_autolog_hparams": "run.json and every logger have the whole configuration already",
    "enable_checkpointing": "every run saves checkpoints; set trainer.checkpoint_every_seconds and "
    "trainer.checkpoint_budget_gb",
    "enable_model_summary": "choose callbacks=[rich_model_summary]",
    "enable_progress_bar": "set progress",
    "fast_dev_run": "choose debug=fast",
    "gradient_clip_algorithm": "gradients are clipped by their norm, of the mean over a step's tokens; set "
    "trainer.gradient_clip_val",
    "gradient_clip_val": "set trainer.gradient_clip_val",
    "inference_mode": f"validations need no gradients, and {EVALUATES}",
    "limit_predict_batches": EVALUATES,
    "limit_test_batches": EVALUATES,
    "limit_train_batches": f"set trainer.max_steps: {ENDLESS}",
    "log_every_n_steps": "set trainer.log_every_n_steps",
    "logger": "choose logger=NAME",
    "max_epochs": "set trainer.max_epochs",
    "max_steps": "set trainer.max_steps",
    "max_time": "choose callbacks=[timer] and set callbacks.timer.duration",
    "min_epochs": f"set trainer.lightning.min_steps: {ENDLESS}",
    "model_registry": "it is of Lightning's hosted service; `attnlab export` writes a model",
    "num_nodes": "set trainer.num_nodes",
    "overfit_batches": "choose debug=overfit",
    "plugins": "they are how attnlab writes checkpoints, computes in trainer.precision and finds its ranks",
    "precision": "set trainer.precision",
    "profiler": "choose debug=profile",
    "reload_dataloaders_every_n_epochs": ENDLESS,
    "strategy": "set trainer.strategy",
    "use_distributed_sampler": "the order deals batches out to ranks itself",
    "val_check_interval": "set trainer.val_check_interval, in steps",
}


def refused_callback(kind: object) -> str | None:
    """Why a run cannot have a callback of this class, and what to do; None where it can."""
    bases = kind.__mro__ if inspect.isclass(kind) else ()
    return next((DONE_HERE[base.__name__] for base in bases if base.__name__ in DONE_HERE), None)


def why_stopped(callbacks: Iterable[object]) -> str:
    """Why a training ended before its last step, as its callbacks say it."""
    from lightning.pytorch.callbacks import Timer

    found = list(callbacks)
    said = [getattr(one, "stopping_reason_message", None) for one in found]
    stopped = [reason.removesuffix(" Signaling Trainer to stop.").rstrip(".") for reason in said if reason]
    timers = [one for one in found if isinstance(one, Timer) and (one.time_remaining() or 0) <= 0]
    stopped += [f"the time limit of a timer was reached after {one.time_elapsed():.0f} s" for one in timers]
    return "; ".join(stopped) or "a callback ended it"
