"""Models in from folders of Hugging Face transformers' layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.interop.architecture import Architecture, CannotConvert, Rule, some, to_ours, to_theirs
from attnlab.interop.decoders import DECODERS
from attnlab.interop.encoders import ENCODERS
from attnlab.interop.files import read_config, read_tensors
from attnlab.interop.settings import Settings, build, completed
from attnlab.interop.warm_start import under_own_names

ARCHITECTURES: dict[str, Architecture] = {known.name: known for known in (*DECODERS, *ENCODERS)}
LISTED = 12


@dataclass(frozen=True)
class Imported:
    """
    A model of another library as settings and tensors here.

    fresh: names of tensors that the files lack and a new model initialises. ignored: what was left out.
    """

    architecture: Architecture
    settings: Settings
    tensors: dict[str, Tensor]
    fresh: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def model(self) -> nn.Module:
        """The model with these weights, in evaluation mode; what is fresh is drawn from torch's generator."""
        model = build(self.settings)
        self.load(model)
        return model.eval()

    def load(self, model: nn.Module) -> None:
        """Copies the weights into a model of these settings, or a task's on it. Raises CannotConvert for another."""
        tensors = under_own_names(model.state_dict(), self.tensors)
        if unknown := sorted(set(tensors) - set(model.state_dict())):
            raise CannotConvert(f"the model that is to take the weights lacks {some(unknown)}")
        model.load_state_dict(tensors, strict=False)


def read_model(folder: str | Path, ignore: Iterable[str] = ()) -> Imported:
    """
    The model in a folder as `save_pretrained` writes it.

    ignore: fields of its configuration, and names of tensors (or patterns such as `classifier.*`), that are left out.
    Raises CannotConvert for an architecture, a field or a tensor without a counterpart here, a missing tensor, one of
    another shape, and files that are damaged or pickles.
    """
    folder = Path(folder)
    return from_theirs(read_config(folder), read_tensors(folder), ignore)


def from_theirs(config: Mapping[str, Any], tensors: Mapping[str, Tensor], ignore: Iterable[str] = ()) -> Imported:
    """The model of a configuration and tensors in Hugging Face's names; see `read_model`."""
    name, ignore = config.get("model_type"), list(ignore)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CannotConvert(f"model_type={name!r} is not known here; accepted: {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[name]
    theirs, ignored = _wanted(known, tensors, ignore)
    try:
        settings = completed(known.read_config(config, ignore) | known.settings_of_tensors(theirs, config))
        depth = max(settings["num_layers"], settings.get("num_decoder_layers", 0))
        if depth > len(theirs):  # before so many are built
            raise CannotConvert(f"config.json says {depth:,} layers, and the files hold {len(theirs):,} tensors")
        model = known.blank(settings)
    except CannotConvert:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CannotConvert(f"config.json describes a model that cannot be built: {error}") from error
    left = sorted({*ignored, *({*config, *known.spelt(config)} & set(ignore))})
    if settings.get("tied") and known.output is not None:
        theirs.pop(known.output.theirs, None)
    rules = known.of_model(model, settings)
    fresh = _compare(known, config, model, rules, theirs)
    _check_kinds(to_theirs(rules, model.state_dict(), settings), theirs)
    ours = to_ours(rules, theirs, settings)
    return Imported(known, settings, {name: tensor.float() for name, tensor in ours.items()}, fresh, left)


def _wanted(
    known: Architecture, tensors: Mapping[str, Tensor], ignore: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """
    The tensors under the architecture's own names, without buffers, copies and what is to be ignored; and what was
    ignored.
    """
    named: dict[str, Tensor] = {}
    bare = known.prefix and not any(name.startswith(known.prefix) for name in tensors)
    for name, tensor in tensors.items():
        for old, new in known.old_names.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        named[f"{known.prefix}{name}" if bare else name] = tensor
    ignored = [name for name in named if any(fnmatchcase(name, pattern) for pattern in ignore)]
    buffers = [name for name in named if re.fullmatch(known.buffers, name)]
    kept = {name: tensor for name, tensor in named.items() if name not in ignored and name not in buffers}
    for copy, original in known.copies.items():
        if copy in kept:
            if original in kept and not torch.equal(kept[copy], kept[original]):
                raise CannotConvert(f"{copy} differs from {original}, and here they are one tensor")
            kept.setdefault(original, kept.pop(copy))
    return kept, ignored


def _compare(
    known: Architecture, config: Mapping[str, Any], model: nn.Module, rules: list[Rule], theirs: Mapping[str, Tensor]
) -> list[str]:
    """Names here that are to be initialised anew. Raises CannotConvert for missing and unexpected tensors."""
    missing = [rule for rule in rules if rule.theirs not in theirs]
    with_output = set(config.get("architectures") or known.classes) & set(known.classes)
    fresh = [rule for rule in missing if not with_output and all(name.startswith(known.fresh) for name in rule.ours)]
    findings = []
    if lost := [rule.theirs for rule in missing if rule not in fresh]:
        findings.append(f"missing: {some(lost)}")
    if unexpected := sorted(set(theirs) - {rule.theirs for rule in rules}):
        hint = "(--ignore NAME, or a pattern such as 'classifier.*', leaves one out)"
        findings.append(f"unexpected: {some(unexpected)} {hint}")
    if findings:
        raise CannotConvert(
            f"the tensors are not those of {known.name} with this configuration; " + "; ".join(findings)
        )
    covered = {name for rule in rules for name in rule.ours}
    assert covered == {name for name in model.state_dict() if not name.endswith("_extra_state")}, "a tensor has no rule"
    return sorted(name for rule in fresh for name in rule.ours)


def _check_kinds(expected: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raises CannotConvert for tensors of other shapes than the configuration says, and for those of whole numbers."""
    there = {name: theirs[name] for name in expected if name in theirs}
    other = [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} by the configuration"
        for name, tensor in there.items()
        if tensor.shape != expected[name].shape
    ]
    if other:
        raise CannotConvert(f"tensors of other shapes than config.json says: {'; '.join(other[:LISTED])}")
    if whole := [f"{name} ({tensor.dtype})" for name, tensor in there.items() if not tensor.is_floating_point()]:
        raise CannotConvert(
            f"tensors that are no floating-point numbers, as in quantised models: {some(whole)}; "
            "accepted: fp32, fp16, bf16"
        )
