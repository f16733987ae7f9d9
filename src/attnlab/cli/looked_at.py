"""The models that a command looks inside of: trained runs by their directories, and untrained ones by the settings of `attnlab train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnlab.cli.build import build
from attnlab.cli.check import check
from attnlab.cli.compose import ConfigSpace, Mistake
from attnlab.cli.overrides import key_and_value, readable
from attnlab.cli.records import read_record
from attnlab.cli.trained import load_model


@dataclass(frozen=True)
class LookedAt:
    """A model, its configuration, whether it is trained, and what it is called."""

    name: str
    model: torch.nn.Module
    config: dict[str, Any]
    trained: bool

    @property
    def context(self) -> int | None:
        """How many positions a text has in training, as far as the configuration says."""
        data, model = self.config.get("data") or {}, self.config.get("model") or {}
        found = next((node[key] for node, key in ((data, "context"), (model, "max_length")) if node.get(key)), None)
        return found if isinstance(found, int) else None


def models_of(words: Sequence[str], checkpoint: str, config_dirs: Sequence[str]) -> list[LookedAt]:
    """
    One model a run's directory and one a combination of the settings (position=a,b gives two); without settings and runs that of the defaults.

    Raises: Mistake.
    """
    runs = [word for word in words if "=" not in word or Path(word).is_dir()]
    settings = readable([word for word in words if word not in runs], multirun=True)
    found = [_trained(Path(run), checkpoint) for run in runs]
    if not settings and runs:
        return found
    with ConfigSpace(config_dirs) as space:
        swept = [key_and_value(word)[0] for word in settings if len(space.expand([word])) > 1]
        for job in space.expand(settings):
            composed = space.compose(job)
            check(composed)
            name = ", ".join(_choice(key, value) for key, value in map(key_and_value, job) if key in swept)
            found.append(_untrained(name, composed.config, composed.resolved))
    return found


def _trained(run: Path, checkpoint: str) -> LookedAt:
    record = read_record(run)
    model, _ = load_model(run, checkpoint)
    return LookedAt(str(run), model, record["config"], trained=True)


def _untrained(name: str, config: Any, resolved: dict[str, Any]) -> LookedAt:
    parts = build(config)
    torch.manual_seed(int(config.seed))
    try:
        task = parts.build_task(parts.data.rehearsal_widths())
    except ValueError as error:
        raise Mistake(str(error)) from error
    return LookedAt(name or type(task.model).__name__, task.model.eval(), resolved, trained=False)


def _choice(key: str, value: str) -> str:
    """A word stands for itself, a number needs its field's name."""
    return value if value.isidentifier() else f"{key.rpartition('.')[2]} {value}"
