"""What a run's directory says of its model, without its data: settings, widths, weights, tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from attnlab.cli.compose import Mistake
from attnlab.interop import Settings, canonical
from attnlab.training import UnusableCheckpoint, read_checkpoint
from attnlab.training.run_directory import effective_state, read_json


def read_record(directory: Path) -> dict[str, Any]:
    """A run's run.json. Raises: Mistake where there is no run."""
    record = read_json(directory / "run.json")
    if isinstance(record, dict) and "config" in record:
        return record
    if (directory / "run.json").is_file():
        raise Mistake(f"{directory}: its run.json cannot be read; restore it, or remove the directory and train again")
    near = sorted(str(p.parent) for p in directory.glob("**/run.json"))[:3]
    hint = f"; below it are {', '.join(near)}" if near else "; a run's directory looks like runs/STUDY/CELL/seed=0"
    raise Mistake(f"{directory}: there is no run (no run.json){hint}")


def checkpoint_of(directory: Path, name: str) -> Path:
    """The file of a run's checkpoint, `best` or `last`. Raises: Mistake where it is not there yet."""
    path = directory / "checkpoints" / f"{name}.ckpt"
    if not path.is_file():
        raise Mistake(f"{directory}: there is no {path.name} yet; the run is {effective_state(directory)}")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names in the model. Raises: Mistake for a damaged one."""
    try:
        state = read_checkpoint(path)["state_dict"]
    except UnusableCheckpoint as error:
        raise Mistake(str(error)) from error
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def plain_widths(widths: dict[str, Any]) -> dict[str, Any]:
    """What data told a model, as run.json keeps it: numbers, and lists of them."""
    lists = {name: list(value) for name, value in widths.items() if isinstance(value, list | tuple)}
    return {name: value for name, value in widths.items() if isinstance(value, int)} | lists


def widths_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the data told the model of a run."""
    known = ("vocabulary_size", "source_vocabulary_size")
    of_old_runs = {name: value for name, value in record.get("data", {}).items() if name in known}
    widths: dict[str, Any] = record.get("widths", of_old_runs)
    return widths


def settings_of(record: dict[str, Any], directory: Path) -> Settings:
    """What a run's model computes. Raises: Mistake for a model that is none of attnlab's own."""
    try:
        return canonical(record["config"]["model"], **widths_of(record))
    except KeyError as error:
        raise Mistake(f"{directory}: {error.args[0]}, so nothing is known of what it computes") from error
