"""Models to look at or go on with: trained runs by their directories, untrained ones by the settings of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnlab.config import UsageError, find_parts, gone
from attnlab.config.check import check
from attnlab.config.compose import OWN, Composed, ConfigSpace
from attnlab.config.identity import key_and_value, readable
from attnlab.data import Tokenizer
from attnlab.parts import Config
from attnlab.runs.build import Parts, build
from attnlab.runs.record import Record, checkpoint_of, plain_widths, read_record, source_changes
from attnlab.training.checkpoints import UnusableCheckpoint, load_weights
from attnlab.training.task import Task

READ = "attnlab.data.read_tokenizer"


def load_run(directory: Path, checkpoint: str) -> tuple[Parts, Task]:
    """The parts and the trained task of a run, its data ready to be read.

    Raises: UsageError where there is no run, it has no checkpoint yet, or the data are others than it was trained on.
    """
    record, path = read_record(directory), checkpoint_of(directory, checkpoint)
    parts = _parts(record, directory)
    parts.data.setup()
    widths = parts.data.dims()
    # The data of a model that was made elsewhere may be none that it can read.
    there, here = record.get("widths", {}) if "imported" in record else {}, plain_widths(widths)
    if other := [name for name, value in there.items() if here.get(name, value) != value]:
        changes = ", ".join(f"{name}: {there[name]} there, {here[name]} here" for name in other)
        raise UsageError(
            f"{directory}: the model was not made for these data: {changes}. Import it with data that are as it knows "
            "them (attnlab import ... data=...), or train it on these first: attnlab train model.init_from=RUN"
        )
    return parts, _load(parts.build_task(widths), path)


def load_model(directory: Path, checkpoint: str) -> tuple[torch.nn.Module, Tokenizer | None]:
    """A run's trained model and its tokenizer, if any; the data are not needed. Raises: UsageError."""
    task, tokenizer = load_task(directory, checkpoint)
    return task.model, tokenizer


def load_task(directory: Path, checkpoint: str) -> tuple[Task, Tokenizer | None]:
    """A run's trained task and its tokenizer, if any; the data are not needed. Raises: UsageError."""
    record, path = read_record(directory), checkpoint_of(directory, checkpoint)
    parts = _parts(record, directory)
    task = _load(parts.build_task({**parts.data.placeholder_dims(), **record.get("widths", {})}), path)
    tokenizer = directory / "tokenizer.json"
    return task, Tokenizer.load(tokenizer) if tokenizer.is_file() else None


def _parts(record: Record, directory: Path) -> Parts:
    config_dirs = record.get("config_dirs", [])
    find_parts(config_dirs)
    try:
        parts = build(with_own_tokenizer(record["config"], directory))
    except UsageError as error:
        if missing := gone(config_dirs):
            back = "put it back, or give the command where its parts stand"
            raise UsageError(
                f"{error} {directory} was trained with {OWN} {missing[0]}, which is gone: {back}"
            ) from error
        raise
    if changes := source_changes(record, record["config"]):
        print(
            f"attnlab: {directory} was trained with another source of your own parts ({', '.join(changes)}): what "
            "follows is of the code that is there now",
            file=sys.stderr,
        )
    return parts


def _load(task: Task, path: Path) -> Task:
    other = f"--checkpoint {'best' if path.stem == 'last' else 'last'} takes the other one"
    try:
        load_weights(task, path)
    except UnusableCheckpoint as error:
        raise UsageError(f"{error}; {other}") from error
    except ValueError as error:
        why = "The file was altered, or the data have changed since the training"
        raise UsageError(f"{error}. {why}; {other}") from error
    return task.eval()


def with_own_tokenizer(config: Config, directory: Path) -> dict[str, Any]:
    """A run's configuration with its own copy of a tokenizer that was read from elsewhere: the other may be gone."""

    def own(node: object) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("_target_") == READ:
            return {"_target_": READ, "path": str(directory)}
        return {name: own(value) for name, value in node.items()}

    found = {name: own(value) for name, value in config.items()}
    if found["data"].get("tokenizer_from"):
        found["data"]["tokenizer_from"] = str(directory)
    return found


@dataclass(frozen=True)
class InspectedModel:
    """A model that a command looks inside of, its configuration, whether it is trained, and what it is called."""

    name: str
    model: torch.nn.Module
    config: Config
    trained: bool

    @property
    def context(self) -> int | None:
        """How many positions a text has in training, as far as the configuration says."""
        fields = (("data", "context_length"), ("model", "max_length"))
        found = next((value for group, key in fields if (value := (self.config.get(group) or {}).get(key))), None)
        return found if isinstance(found, int) else None


def models_of(words: Iterable[str], checkpoint: str, config_dirs: Sequence[str]) -> list[InspectedModel]:
    """A model for each run's directory and each combination of settings, or the defaults'. Raises: UsageError."""
    runs: list[str] = []
    settings: list[str] = []
    for word in words:
        (runs if "=" not in word or Path(word).is_dir() else settings).append(word)
    found = [
        InspectedModel(str(run), load_model(run, checkpoint)[0], read_record(run)["config"], trained=True)
        for run in map(Path, runs)
    ]
    if not settings and runs:
        return found
    with ConfigSpace(config_dirs) as space:
        settings = readable(settings, multirun=True)
        swept = [key_and_value(word)[0] for word in settings if len(space.expand([word])) > 1]
        for job in space.expand(settings):
            # A word stands for itself, a number needs its field's name.
            chosen = [(key.rpartition(".")[2], value) for key, value in map(key_and_value, job) if key in swept]
            name = ", ".join(value if value.isidentifier() else f"{key} {value}" for key, value in chosen)
            found.append(_untrained(name, space.compose(job)))
    return found


def _untrained(name: str, composed: Composed) -> InspectedModel:
    check(composed)
    parts = build(composed.resolved)
    torch.manual_seed(composed.seed)
    try:
        task = parts.build_task(parts.data.placeholder_dims())
    except ValueError as error:
        raise UsageError(str(error)) from error
    return InspectedModel(name or type(task.model).__name__, task.model.eval(), composed.resolved, trained=False)
