"""`model.init_from=RUN` and `task.pretrained=RUN`: another run's weights are the start of this one, where they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.config import UsageError
from attnlab.config.identity import INIT_FROM
from attnlab.runs.record import plain_widths, read_record, read_tensors, settings_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnlab.data import Tokenizer
    from attnlab.interop import Settings
    from attnlab.models import ViT

STATE = "_extra_state"  # what a model keeps beside its tensors: where they are, it is a number


def start(model: nn.Module, node: Mapping[str, Any], widths: Mapping[str, Any]) -> list[str]:
    """
    Gives a new model the weights of the run in `init_from`; says in lines what was kept, converted, fresh and left.

    model: with or without memory for its weights. node: its own in the resolved configuration. widths: the data's.
    Raises: UsageError where the two do not fit.
    """
    from attnlab.interop import CannotConvert, canonical, different, start_from
    from attnlab.models import ViT
    from attnlab.tasks.pretrained import weights_file

    run = str(node["init_from"])
    directory = Path(run).expanduser()
    record = read_record(directory)
    try:
        path = weights_file(run, INIT_FROM)
    except ValueError as error:
        raise UsageError(str(error)) from error
    there = settings_of(record, directory)
    try:
        here = canonical(dict(node), **plain_widths(widths))
        given = _on_device_of(model, read_tensors(path))
        told: list[str] = []
        if isinstance(model, ViT) and there["model"] == "ViT" and there["patch_size"] == model.patch_size:
            given, told = _at_size_of(model, given, there)
        begun = start_from(model, here, given, there)
    except KeyError as error:
        raise UsageError(f"{INIT_FROM}={run}: {error.args[0]}, so nothing is known of what it computes") from error
    except CannotConvert as error:
        raise UsageError(f"{INIT_FROM}={run}: {error}") from error
    if changes := different(here, there):
        told = [f"this model and that one differ in {'; '.join(changes)}", *told]
    return [f"started from {path}", *told, *begun.lines()]


def _on_device_of(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors where the model's are: without memory for its weights, their shapes alone tell whether they fit."""
    device = next(model.parameters()).device
    return {name: tensor if name.endswith(STATE) else tensor.to(device) for name, tensor in given.items()}


def _at_size_of(model: ViT, given: Mapping[str, Tensor], there: Settings) -> tuple[dict[str, Tensor], list[str]]:
    """Another ViT's tensors for this one's size of images (Dosovitskiy et al. 2021, section 3.2), and that in words."""
    import torch

    from attnlab.interop import build

    with torch.device(next(model.parameters()).device):
        other: Any = build(there)
    other.load_state_dict(given)
    state = other.at_size(model.image_size).state_dict()
    return state, [] if other.grid == model.grid else [f"positions {other.grid} -> {model.grid}"]


def refuse_other_tokenizer(run: str, own: Mapping[str, Tokenizer], field: str) -> None:
    """Raises: UsageError where the run that `field` names has another tokenizer: its numbers mean other sub-words."""
    for name, tokenizer in own.items():
        path = Path(run).expanduser() / name
        if path.is_file() and path.read_text(encoding="utf-8") != tokenizer.as_json():
            raise UsageError(
                f"{field}={run}: {path.name} there is not this run's, so each token would get the weights of another; "
                "leave data.tokenizer_from and tokenizer out to take that run's tokenizer"
            )
