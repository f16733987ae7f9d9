"""`model.init_from=RUN`: another run's choices are the defaults of this one, and its weights the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from attnlab.cli.compose import Mistake
from attnlab.cli.overrides import key_and_value, literal
from attnlab.training.run_directory import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnlab.interop import Settings
    from attnlab.models import ViT

FIELD = "model.init_from"
INHERITED = (
    "model",
    "position",
    "residual",
    "norm",
    "attention",
    "feed_forward",
    "task",
    "data",
    "tokenizer",
    "augmentation",
)
OWN = (FIELD, "task.pretrained", "data.tokenizer_from")
STATE = "_extra_state"  # what a model keeps beside its tensors: where they are, it is a number


def inherit(overrides: Sequence[str]) -> list[str]:
    """
    The overrides with those of the run in `model.init_from` before them, as far as they do not choose anew; themselves where there is none.

    Raises: Mistake where that directory holds no run.
    """
    keys = {key_and_value(override)[0] for override in overrides}
    groups = {key for key in keys if "." not in key}
    theirs = [
        override
        for override in _choices_of_run(overrides)
        if (key := key_and_value(override)[0]) not in keys and key.split(".")[0] not in groups
    ]
    return [*theirs, *overrides]


def own_choices(overrides: Sequence[str]) -> list[str]:
    """
    The overrides without what `model.init_from` brought, that run by its cell's name: how a run is told from its neighbours.

    Raises: Mistake as `inherit`.
    """
    run = _run(overrides)
    if run is None:
        return list(overrides)
    brought = {_read(override) for override in _choices_of_run(overrides)}
    name = read_json(Path(run).expanduser() / "run.json", {}).get("cell_name", run)
    own = [override for override in overrides if _read(override) not in brought]
    return [f"init_from={name}" if key_and_value(override)[0] == FIELD else override for override in own]


def _choices_of_run(overrides: Sequence[str]) -> list[str]:
    """What `inherit` takes from the run in `model.init_from`: its choices of parts and data, and its own copy of its tokenizer."""
    run = _run(overrides)
    if run is None:
        return []
    directory = Path(run).expanduser()
    record = read_json(directory / "run.json", {})
    if not record:
        several = "; of several runs each is a cell of a study" if "," in run else ""
        raise Mistake(
            f"{FIELD}={run}: there is no run (no run.json); give the directory of a run, or of an imported model{several}"
        )
    theirs = [word for word in record["overrides"] if _is_inherited(key_and_value(word)[0])]
    if not (directory / "tokenizer.json").is_file():
        return theirs
    others = [word for word in theirs if key_and_value(word)[0].split(".")[0] != "tokenizer"]
    return [*others, "tokenizer=pretrained", f"tokenizer.path={literal(run)}"]


def _run(overrides: Sequence[str]) -> str | None:
    """The directory in `model.init_from`."""
    given = [override for override in overrides if key_and_value(override)[0] == FIELD]
    value = _value(given[-1]) if given else None
    return None if value in (None, "") else str(value)


def _read(override: str) -> tuple[str, str]:
    """An override by what it says: a multirun writes the words of its jobs in its own way."""
    return key_and_value(override)[0], repr(_value(override))


def _value(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


def _is_inherited(key: str) -> bool:
    return key.split(".")[0] in INHERITED and key not in OWN


def start(model: nn.Module, node: dict[str, Any], widths: dict[str, Any]) -> list[str]:
    """
    Gives a new model the weights of the run in its node's `init_from`; says in lines what was kept, converted, fresh and left.

    model: with or without memory for its weights. node: its own in the resolved configuration. widths: the data's. Raises: Mistake where
    the two do not fit.
    """
    from attnlab.cli.records import plain_widths, read_record, read_tensors, settings_of
    from attnlab.interop import CannotConvert, canonical, different, start_from
    from attnlab.models import ViT
    from attnlab.tasks.pretrained import weights_file

    run = str(node["init_from"])
    directory = Path(run).expanduser()
    record = read_record(directory)
    try:
        path = weights_file(run, FIELD)
    except ValueError as error:
        raise Mistake(str(error)) from error
    there = settings_of(record, directory)
    try:
        here = canonical(node, **plain_widths(widths))
        given = _on_device_of(model, read_tensors(path))
        told: list[str] = []
        if isinstance(model, ViT) and there["model"] == "ViT" and there["patch_size"] == model.patch_size:
            given, told = _at_size_of(model, given, there)
        begun = start_from(model, here, given, there)
    except KeyError as error:
        raise Mistake(f"{FIELD}={run}: {error.args[0]}, so nothing is known of what it computes") from error
    except CannotConvert as error:
        raise Mistake(f"{FIELD}={run}: {error}") from error
    if changes := different(here, there):
        told = [f"this model and that one differ in {'; '.join(changes)}", *told]
    return [f"started from {path}", *told, *begun.lines()]


def _on_device_of(model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors where the model's are: a model without memory for its weights is told by their shapes alone whether they fit."""
    device = next(model.parameters()).device
    return {name: tensor if name.endswith(STATE) else tensor.to(device) for name, tensor in given.items()}


def _at_size_of(model: ViT, given: dict[str, Tensor], there: Settings) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of another ViT for this one's size of images (Dosovitskiy et al. 2021, section 3.2), and what that means in words."""
    import torch

    from attnlab.interop import build

    with torch.device(next(model.parameters()).device):
        other: Any = build(there)
    other.load_state_dict(given)
    state = other.at_size(model.image_size).state_dict()
    return state, [] if other.grid == model.grid else [f"positions {other.grid} -> {model.grid}"]
