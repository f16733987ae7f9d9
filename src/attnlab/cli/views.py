"""What the views of runs (W&B, TensorBoard) are told by a command: W&B's mode before it, tables and pictures after a training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from omegaconf import DictConfig

from attnlab.cli.compose import Mistake
from attnlab.cli.examples import Examples
from attnlab.training import Picture, Sink, Table, restricted_figures
from attnlab.training.trackers import resolve_wandb_mode

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
