"""Weights of another run's model as the start of this one's, and the tasks on an encoder's states, which take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from attnlab.data.special_tokens import SpecialTokens
from attnlab.models.base import Encoder
from attnlab.models.heads import EncoderHead
from attnlab.models.vit import ViT
from attnlab.training.checkpoints import UnusableCheckpoint, read_checkpoint
from attnlab.training.task import Task


class EncoderTask(Task):
    """A task whose model is an EncoderHead. pretrained: the directory of a run whose encoder this one starts from."""

    model_type: ClassVar[type] = Encoder

    def __init__(self, head: nn.Module, pretrained: str | None = None) -> None:
        super().__init__(head)
        self.pretrained = pretrained

    def initialise(self) -> list[str]:
        if self.pretrained is None:
            return []
        assert isinstance(self.model, EncoderHead)
        return [load_pretrained(self.model.encoder, self.pretrained)]


def mask_for(token_dropout: float, special_tokens: SpecialTokens) -> int:
    """What hides a token in training. Raises DataError where tokens are to be hidden and the tokenizer has no mask."""
    return special_tokens.require("mask") if token_dropout else special_tokens.pad_id


def load_pretrained(encoder: nn.Module, run: str) -> str:
    """Copies the encoder of a run into this one; see `take`."""
    path, given = read_weights(run)
    return take(encoder, {name.removeprefix("encoder."): tensor for name, tensor in given.items()}, run, path)


def load_pretrained_vit(model: ViT, run: str) -> str:
    """Copies the weights of a ViT, its output excepted, into one for images of another size, or the same: positions are
    interpolated (Dosovitskiy et al. 2021, section 3.2). See `take`."""
    path, given = read_weights(run)
    given = {name: tensor for name, tensor in given.items() if not name.startswith("head.")}
    if "_extra_state" not in given:
        raise ValueError(f"task.pretrained={run}: its model is no ViT; give the directory of a run of model=vit")
    as_trained = model.at_size((given["_extra_state"] * model.patch_size).tolist())
    said = take(as_trained, given, run, path)
    model.load_state_dict(as_trained.at_size(model.image_size).state_dict())
    return said if as_trained.grid == model.grid else f"{said}; positions {as_trained.grid} -> {model.grid}"


def weights_file(run: str, field: str = "task.pretrained") -> Path:
    """The best weights of a run, else its last. field: the setting that names it. Raises ValueError where none are."""
    folder = Path(run).expanduser() / "checkpoints"
    path = next((folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{field}={run}: there is no checkpoint; give the directory of a trained run")
    return path


def read_weights(run: str) -> tuple[Path, dict[str, Tensor]]:
    """The weights of a run by their names in its model, and their file. Raises ValueError where no file is whole."""
    path = weights_file(run)
    try:
        saved = read_checkpoint(path)["state_dict"]
    except UnusableCheckpoint as error:
        raise ValueError(f"task.pretrained={run}: {error}") from error
    return path, {name.removeprefix("model."): tensor for name, tensor in saved.items()}


def take(module: nn.Module, given: Mapping[str, Tensor], run: str, path: Path) -> str:
    """Copies the tensors that `module` shares by name with those given; says what was taken.

    What `module` has besides its layers, such as a table of segments, may be fresh. Raises ValueError where nothing is
    shared, a shared name has another shape, or the layers of one are not those of the other.
    """
    own = module.state_dict()
    shared = {name: given[name] for name in own if name in given}
    unlike = [name for name in shared if given[name].shape != own[name].shape]
    other = [f"{name}: {tuple(given[name].shape)} there, {tuple(own[name].shape)} here" for name in unlike]
    if shared and not other:
        other = [f"{name}: only {side}" for name, side in _unmatched_layers(module, own, given)]
    if not shared or other:
        reason = "; ".join(other[:5]) or f"no name in common ({', '.join(list(given)[:3])}, ...)"
        raise ValueError(
            f"task.pretrained={run} does not fit this model: {reason}. Give the model the sizes of that run, and its "
            "tokenizer (data.tokenizer_from)"
        )
    module.load_state_dict(shared, strict=False)
    fresh = [name for name in own if name not in shared]
    return f"took {len(shared)} tensors from {path}; fresh: {', '.join(fresh) if fresh else 'none'} and the output"


def _unmatched_layers(module: nn.Module, own: Iterable[str], given: Iterable[str]) -> list[tuple[str, str]]:
    """Names within the lists of layers of `module` that only one side has, and which: that is another encoder."""
    lists = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.ModuleList))
    here, there = ({name for name in names if name.startswith(lists)} for names in (own, given))
    return [(name, "here") for name in sorted(here - there)] + [(name, "there") for name in sorted(there - here)]
