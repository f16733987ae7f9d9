"""How a model is trained: optimizers, schedules, precision, the run directory, checkpoints, loggers.

Names are looked up where they are first used: reading a run directory loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "run_directory": [
        "CannotWrite",
        "Held",
        "RunDirectory",
        "effective_state",
        "read_json",
        "write_json",
        "write_text",
    ],
    "averaging": ["EMA", "Averaging", "LastCheckpoints"],
    "optimizers": ["MuonWithAdamW", "adafactor", "adam", "adamw", "decay_groups", "lion", "muon", "schedule_free"],
    "schedules": ["WSD", "Constant", "Cosine", "InverseSqrt", "Linear", "Noam", "Schedule"],
    "precision": ["Precision", "resolve"],
    "pruning": ["Pruned", "Pruning"],
    "ranks": ["Ranks"],
    "task_base": ["TokenTask"],
    "token_sums": ["TokenSums"],
    "divergence": ["Diverged", "DivergenceCheck", "Plateau", "first_not_finite"],
    "inside": ["Inside"],
    "sharding": ["FullySharded"],
    "stop_request": ["Interrupted", "StopRequest", "Stopped"],
    "checkpoint_files": ["DamagedCheckpoint", "UnusableCheckpoint", "read_checkpoint", "write_checkpoint"],
    "trainer": ["TrainerSettings", "apply_to_model", "build_trainer"],
    "callbacks": ["Progress", "StatusWriter"],
    "checkpoints": ["Checkpoints", "find_resume", "load_weights", "save_weights"],
    "json_lines": ["JsonLines"],
    "media": ["NUM_SAMPLES", "Picture", "Table", "restricted_figures"],
    "sinks": ["Sink"],
    "trackers": ["RunName", "Tracking", "build_loggers", "finishing", "resolve_wandb_mode", "run_id"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
