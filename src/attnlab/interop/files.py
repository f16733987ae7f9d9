"""Models of other libraries as folders: config.json, safetensors, tokenizer files. No pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnlab.interop.fields import CannotConvert, some

ONE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LARGEST_FILE = 5 * 10**9  # bytes of one file of weights that is written


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a folder. Raises CannotConvert."""
    path = folder / CONFIG
    config = _read_json(path)
    if "model_type" not in config:
        raise CannotConvert(f"{path} names no model_type, so it is not that of a model of Hugging Face transformers")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, one or many. Raises CannotConvert for damaged, missing and pickled ones."""
    if (folder / INDEX).is_file() and not (folder / ONE).is_file():  # one file goes first, as in transformers
        placed = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise CannotConvert(
                f"{folder / INDEX} has no weight_map, which says where each tensor lies; fetch it again"
            )
        paths = sorted({folder / str(name) for name in placed.values()})
        if any(path.parent != folder for path in paths):
            raise CannotConvert(
                f"{folder / INDEX} names files outside of its folder; accepted: names of files beside it"
            )
    else:
        placed, paths = {}, [folder / ONE]
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise CannotConvert(_no_weights(folder, path))
        tensors |= read_safetensors(path)
    lost = sorted(set(placed) - set(tensors))
    if lost:
        raise CannotConvert(
            f"{folder / INDEX} lists tensors that no file holds: {some(lost, 8)}; fetch the folder again"
        )
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises CannotConvert where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CannotConvert(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged ({error}); fetch it again"
        ) from error


def write_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes config.json and safetensors, in several files where they are large."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > LARGEST_FILE:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().clone()  # safetensors takes no two tensors of one memory
        size += tensor.nbytes
    names = (
        [ONE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        placed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _write_json(folder / CONFIG, config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotConvert(
            f"{path} cannot be read ({error.strerror or error}); accepted: a folder with config.json and model.safetensors, as "
            "save_pretrained writes them"
        ) from error
    except ValueError as error:
        raise CannotConvert(f"{path} is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CannotConvert(f"{path} holds no table of fields; fetch it again")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _no_weights(folder: Path, path: Path) -> str:
    pickles = sorted(found.name for pattern in PICKLES for found in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds its weights as a pickle ({', '.join(pickles[:3])}), and a pickle can run any code while it is read; accepted: "
            "safetensors. Where you trust it, convert it once with its own library: "
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER)"
        )
    return f"{path} is not there; accepted: a folder with config.json and model.safetensors, or the files that {INDEX} lists"
