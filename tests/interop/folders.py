"""Folders of models, changed in one place."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def copied(source: Path, target: Path, change: Any = None, **fields: Any) -> Path:
    """
    A copy of a folder at `target`.

    fields: of config.json, changed or added; `...` takes one out. change: makes other tensors of the tensors.
    """
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | fields
    write_config(target, {key: value for key, value in config.items() if value is not ...})
    if change is not None:
        write_tensors(target, change(tensors_of(target)))
    return target


def config_of(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json."""
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: Any) -> None:
    """Replaces a folder's config.json."""
    (folder / "config.json").write_text(json.dumps(config))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's one file."""
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Replaces a folder's one file of tensors."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
