"""Weights of another run's model as the start of this one's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn


def load_pretrained(module: nn.Module, run: str) -> str:
    """
    Copies what `module` shares by name with the model of a run (its best weights, else its last); says what was taken.

    What `module` has besides its layers, such as a table of segments, may be fresh. Raises ValueError where there is no checkpoint,
    nothing is shared, a shared name has another shape, or the layers of one are not those of the other.
    """
    folder = Path(run).expanduser() / "checkpoints"
    path = next((folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"task.pretrained={run}: there is no checkpoint; give the directory of a trained run")
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    given = {name.removeprefix("model.").removeprefix("encoder."): tensor for name, tensor in saved.items()}
    own = module.state_dict()
    shared = {name: given[name] for name in own if name in given}
    other = [
        f"{name}: {tuple(given[name].shape)} there, {tuple(own[name].shape)} here"
        for name in shared
        if given[name].shape != own[name].shape
    ]
    if shared and not other:
        other = [f"{name}: only {place}" for name, place in _unmatched_layers(module, own, given)]
    if not shared or other:
        reason = "; ".join(other[:5]) or f"no name in common ({', '.join(list(given)[:3])}, ...)"
        raise ValueError(
            f"task.pretrained={run} does not fit this model: {reason}. Give the model the sizes of that run, and its tokenizer "
            "(data.tokenizer_from)"
        )
    module.load_state_dict(shared, strict=False)
    fresh = [name for name in own if name not in shared]
    return f"took {len(shared)} tensors from {path}; fresh: {', '.join(fresh) if fresh else 'none'} and the output"


def _unmatched_layers(module: nn.Module, own: Iterable[str], given: Iterable[str]) -> list[tuple[str, str]]:
    """Names within the lists of layers of `module` that only one side has, and which: what is fresh there is no pretrained encoder."""
    lists = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.ModuleList))
    here, there = ({name for name in names if name.startswith(lists)} for names in (own, given))
    return [(name, "here") for name in sorted(here - there)] + [(name, "there") for name in sorted(there - here)]
