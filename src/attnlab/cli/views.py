"""What the views of runs (W&B, TensorBoard) are told by a command: W&B's mode before it, tables and pictures after a training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from attnlab.analysis.attention_maps import attention_maps, picture
from attnlab.cli.compose import Mistake
from attnlab.cli.records import checkpoint_of, read_record
from attnlab.training import Picture, Sink, Table, TokenTask, Tracking, read_checkpoint, restricted_figures
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
    sinks: Iterable[Sink],
    task: TokenTask,
    data: Any,
    final: Mapping[str, float],
    with_maps: bool,
    say: Callable[[str], None],
) -> None:
    """Hands the figures by length, samples of the test part and, where asked for, a picture of the heads to the views. Never fails."""
    step = task.global_step
    makers: list[Callable[[], Mapping[str, Table | Picture]]] = [
        lambda: restricted_figures(final),
        lambda: _samples(task, data),
    ]
    if with_maps:
        makers.append(lambda: _maps(task, data, say))
    for make in makers:
        try:
            items = make()
        except Exception as error:  # a view is not worth a run
            say(f"nothing to show: {type(error).__name__}: {error}")
            continue
        for sink in sinks:
            sink.show(items, step)


def _samples(task: TokenTask, data: Any) -> Mapping[str, Table]:
    with task.evaluating():
        found = task.samples(data)
    return {} if found is None else {"test/samples": found}


def _maps(task: TokenTask, data: Any, say: Callable[[str], None]) -> Mapping[str, Picture]:
    batch = task.on_device(data.example_batch())
    with task.evaluating():
        maps = attention_maps(task.model, lambda: task.all_sums(batch))
    if not maps:
        say(f"logger.attention_maps: {type(task.model).__name__} has no heads to show")
        return {}
    return {"attention": picture(maps)}


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
