"""How a model is trained: tasks, optimizers, schedules, the run directory, checkpoints, loggers.

Names are looked up where they are first used: reading a run directory loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "automatic": "Compilation Precision Steps Timings Way resolve",
    "branching": "Branch KeptCheckpoints find_branch",
    "callbacks": "DivergenceCheck Progress Pruned Pruning StatusWriter",
    "checkpoints": "Checkpoints DamagedCheckpoint UnusableCheckpoint find_resume load_weights read_checkpoint "
    "save_weights write_checkpoint",
    "diagnostics": "Diagnostics",
    "loggers": "JsonLines View build_loggers finishing",
    "loss": "Diverged LossAccumulator LossSums Plateau cross_entropy_sums first_not_finite",
    "metrics": "Metric",
    "named_optimizers": "pytorch_optimizer torch_optimizer",
    "optimizers": "EMA Averaging LastCheckpoints Optimization adafactor adam adamw cautious_adamw decay_groups lion "
    "muon schedule_free",
    "processes": "Interrupted StopRequest Stopped",
    "ranks": "Ranks",
    "run_directory": "CannotWrite Held RunDirectory effective_state read_json write_json write_text",
    "schedules": "WSD Constant Cosine InverseSqrt Linear Noam Power Schedule",
    "sharding": "FullySharded",
    "task": "Task",
    "update_rules": "CautiousAdamW MuonWithAdamW hidden_matrices",
    "tracking": "NUM_SAMPLES Picture RunName Table Tracking resolve_wandb_mode restricted_figures run_id",
    "trainer": "TrainerSettings apply_to_model build_trainer",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
