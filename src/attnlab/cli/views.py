"""What the views of runs (W&B, TensorBoard) are told by a command: W&B's mode before it, tables and pictures after a training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from attnlab.cli.compose import Mistake
from attnlab.cli.examples import Examples
from attnlab.cli.records import checkpoint_of, read_record
from attnlab.training import Picture, Sink, Table, Tracking, read_checkpoint, restricted_figures
from attnlab.training.trackers import RunName, evaluation_part, log_evaluation, resolve_wandb_mode

AFTERWARDS = {"offline": "; `attnlab sync` sends them", "disabled": ", so nothing is kept"}


def settle_mode(configs: Iterable[DictConfig]) -> list[str]:
    """
    W&B's mode for all runs of a command, decided once and said, as a setting for each of them; none where no run asks for it.

    Raises: Mistake for a mode that W&B does not have.
    """
    asking = [config for config in configs if config.logger.get("wandb") and config.logger.get("mode") == "auto"]
    if not asking:
        return []
    try:
        mode, why = resolve_wandb_mode()
    except ValueError as error:
        raise Mistake(str(error)) from error
    places = " and ".join(dict.fromkeys(f"{config.runs_dir}/wandb" for config in asking))
    print(f"W&B: {mode}, as {why}; its files stand in {places}{AFTERWARDS.get(mode, '')}", file=sys.stderr)
    return [f"++logger.mode={mode}"]


def show_media(
    sinks: Iterable[Sink], step: int, final: Mapping[str, float], examples: Examples, with_maps: bool
) -> None:
    """Hands the figures by length, samples of the test part and, where asked for, a picture of the heads to the views."""
    items: dict[str, Table | Picture] = dict(restricted_figures(final))
    if examples.samples:
        items["test/samples"] = examples.samples
    if with_maps and examples.attention:
        items["attention"] = examples.attention
    for sink in sinks:
        sink.show(items, step)


def show_evaluation(
    directory: Path, tracking: Tracking, figures: Mapping[str, float], arguments: argparse.Namespace
) -> None:
    """
    Hands what `attnlab evaluate` found to W&B, where the training was logged there or `--wandb` asks for it; said on standard error.

    The same evaluation is always the same W&B run, of the job type `evaluate`. Never fails.
    """
    if not (tracking.wandb or arguments.wandb):
        return
    try:
        record = read_record(directory)
        runs_dir = _runs_dir(directory.resolve(), record)
        mode, why = tracking.mode, "the training was"
        if mode == "auto" or "WANDB_MODE" in os.environ:
            mode, why = resolve_wandb_mode()
        print(f"W&B: {mode}, as {why}; its files stand in {runs_dir}/wandb{AFTERWARDS.get(mode, '')}", file=sys.stderr)
        part = evaluation_part(arguments.split, arguments.checkpoint)
        name = RunName(record["study"], record["cell_name"], record["seed"], record["cell"], "evaluate", part)
        step = int(read_checkpoint(checkpoint_of(directory, arguments.checkpoint))["attnlab"]["step"])
        about = {**record, "split": arguments.split, "checkpoint": arguments.checkpoint}
        log_evaluation(replace(tracking, wandb=True, mode=mode), name, runs_dir, about, figures, step, _warn)
    except Exception as error:  # a view is not worth an evaluation
        _warn(f"wandb: {type(error).__name__}: {error}; the figures are not logged")


def _runs_dir(directory: Path, record: Mapping[str, Any]) -> Path:
    """Where all runs stand: above study and cell, wherever that is now; of a run that stands elsewhere, where the others were."""
    if directory.name.startswith("seed=") and directory.parents[1].name == record["study"]:
        found = directory.parents[2]
        return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    return Path(record["config"].get("runs_dir", "runs"))


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
