"""Models in from and out to folders of Hugging Face transformers' layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.interop.architecture import Architecture
from attnlab.interop.decoders import DECODERS
from attnlab.interop.encoders import ENCODERS
from attnlab.interop.fields import CannotConvert, some
from attnlab.interop.files import read_config, read_tensors, write_model
from attnlab.interop.heads import Head
from attnlab.interop.rules import Rule, to_ours, to_theirs
from attnlab.interop.seq2seq import SEQ2SEQ
from attnlab.interop.settings import Settings, build, completed
from attnlab.interop.start import under_own_names

ARCHITECTURES: dict[str, Architecture] = {known.name: known for known in (*DECODERS, *ENCODERS, *SEQ2SEQ)}
LISTED = 12


@dataclass(frozen=True)
class Imported:
    """
    A model of another library as settings and tensors here.

    fresh: names of tensors that the files lack and a new model initialises. ignored: tensors and fields there that were left out.
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
        """Copies the weights into a model of these settings, or into the encoder of one of a task. Raises CannotConvert for another."""
        tensors = under_own_names(model.state_dict(), self.tensors)
        unknown = sorted(set(tensors) - set(model.state_dict()))
        if unknown:
            raise CannotConvert(f"the model that is to take the weights lacks {some(unknown)}")
        model.load_state_dict(tensors, strict=False)


def read_model(folder: str | Path, ignore: Iterable[str] = ()) -> Imported:
    """
    The model in a folder as `save_pretrained` writes it.

    ignore: fields of its configuration, and names of tensors (or patterns such as `classifier.*`), that are left out. Raises
    CannotConvert for an architecture, a field or a tensor without a counterpart here, a missing tensor, one of another shape, and files
    that are damaged or pickles.
    """
    folder = Path(folder)
    return from_theirs(read_config(folder), read_tensors(folder), ignore)


def from_theirs(config: Mapping[str, Any], tensors: Mapping[str, Tensor], ignore: Iterable[str] = ()) -> Imported:
    """The model of a configuration and tensors in Hugging Face's names; see `read_model`."""
    ignore = list(ignore)
    known = architecture_of(config)
    theirs, ignored = _wanted(known, tensors, ignore)
    try:
        settings = completed(known.read_config(config, ignore) | known.settings_of_tensors(theirs, config))
        _check_depth(settings, theirs)
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


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a configuration names. Raises CannotConvert for one that is not known here."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CannotConvert(f"model_type={name!r} is not known here; accepted: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def to_folder(
    folder: str | Path,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    architecture: str | None = None,
    head: Head | None = None,
    output: tuple[Tensor, Tensor] | None = None,
    **fields: Any,
) -> Architecture:
    """
    Writes a model of these settings as config.json and safetensors that `transformers.AutoModel.from_pretrained` loads.

    architecture: one of ARCHITECTURES; None: the first that computes the same. head, output: what a task has put on
    the model in the place of its own output, and the weight (C, D) and bias (C) of that. fields: more fields of
    config.json, such as the numbers of marks. Raises CannotConvert where none, or not that one, computes the same,
    with what differs, and where the tensors are not those of such a model.
    """
    known = architecture_for(settings, architecture, fields)
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith("_extra_state")}
    odd = sorted({name for name in known.blank(settings).state_dict() if not name.endswith("_extra_state")} ^ {*given})
    if odd:
        raise CannotConvert(
            f"the tensors are not those of a model of these settings, they lack or have besides: {some(odd)}"
        )
    settings = known.as_written(settings)
    config = known.write_config(settings) | {"torch_dtype": "float32"} | fields
    model = known.blank(settings)
    rules, whole = known.of_model(model, settings), model.state_dict()
    zeros = {name: torch.zeros(whole[name].shape) for rule in rules for name in rule.ours if name not in given}
    theirs = to_theirs(rules, given | zeros, settings)
    if settings.get("tied") and config.get("tie_word_embeddings") is False and known.output is not None:
        theirs[known.output.theirs] = theirs[known.output.embedding]
    if not settings.get("tied", True):  # transformers then takes copies for tensors of their own
        theirs |= {copy: theirs[original] for copy, original in known.copies.items() if original in theirs}
    if head is not None and output is not None:
        config["architectures"] = [head.class_of(known.name)]
        theirs = {name: tensor for name, tensor in theirs.items() if name.startswith(known.prefix)}
        theirs = {name: tensor for name, tensor in theirs.items() if ".pooler." not in name}
        theirs |= head.write(known.name, *output)
    write_model(Path(folder), config, theirs)
    return known


def architecture_for(
    settings: Settings, name: str | None = None, fields: Mapping[str, Any] | None = None
) -> Architecture:
    """The architecture that computes what these settings do, with these further fields. Raises CannotConvert with what differs."""
    if name is not None and name not in ARCHITECTURES:
        raise CannotConvert(f"--as {name}: there is no such architecture; accepted: {', '.join(ARCHITECTURES)}")
    tried = {key: known.differences(settings, fields) for key, known in ARCHITECTURES.items() if name in (None, key)}
    same = [ARCHITECTURES[key] for key, differences in tried.items() if not differences]
    if same:  # rather one that has no zeros to write
        return next((known for known in same if known.as_written(settings) == settings), same[0])
    nearest = min(tried, key=lambda key: len(tried[key]) + 100 * (ARCHITECTURES[key].model != settings["model"]))
    what = f"{nearest}, which was asked for" if name else f"the nearest, {nearest},"
    raise CannotConvert(
        f"no architecture of Hugging Face transformers computes what this model does; {what} differs in\n"
        + "\n".join(tried[nearest][:LISTED])
        if name is None
        else f"{what}, computes something else:\n" + "\n".join(tried[nearest][:LISTED])
    )


def _wanted(
    known: Architecture, tensors: Mapping[str, Tensor], ignore: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the architecture's own names, without buffers, copies and what is to be ignored; and what was ignored."""
    named: dict[str, Tensor] = {}
    bare = known.prefix and not any(name.startswith(known.prefix) for name in tensors)
    for name, tensor in tensors.items():
        for old, new in known.old_names.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        named[f"{known.prefix}{name}" if bare else name] = tensor
    ignored = [name for name in named if any(fnmatchcase(name, pattern) for pattern in ignore)]
    kept = {
        name: tensor for name, tensor in named.items() if name not in ignored and not re.fullmatch(known.buffers, name)
    }
    for copy, original in known.copies.items():
        if copy in kept:
            if original in kept and not torch.equal(kept[copy], kept[original]):
                raise CannotConvert(f"{copy} differs from {original}, and here they are one tensor")
            kept.setdefault(original, kept[copy])
            del kept[copy]
    return kept, ignored


def _check_depth(settings: Settings, theirs: Mapping[str, Tensor]) -> None:
    """Raises CannotConvert for more layers than there are tensors, before so many are built."""
    depth = max(settings["num_layers"], settings.get("num_decoder_layers", 0))
    if depth > len(theirs):
        raise CannotConvert(f"config.json says {depth:,} layers, and the files hold {len(theirs):,} tensors")


def _compare(
    known: Architecture, config: Mapping[str, Any], model: nn.Module, rules: list[Rule], theirs: Mapping[str, Tensor]
) -> list[str]:
    """Names here that are to be initialised anew. Raises CannotConvert for missing and unexpected tensors."""
    missing = [rule for rule in rules if rule.theirs not in theirs]
    with_output = set(config.get("architectures") or known.classes) & set(known.classes)
    fresh = [rule for rule in missing if not with_output and all(name.startswith(known.fresh) for name in rule.ours)]
    lost = [rule.theirs for rule in missing if rule not in fresh]
    unexpected = sorted(set(theirs) - {rule.theirs for rule in rules})
    findings = []
    if lost:
        findings.append(f"missing: {some(lost)}")
    if unexpected:
        findings.append(
            f"unexpected: {some(unexpected)} (--ignore NAME, or a pattern such as 'classifier.*', leaves one out)"
        )
    if findings:
        raise CannotConvert(
            f"the tensors are not those of {known.name} with this configuration; " + "; ".join(findings)
        )
    covered = {name for rule in rules for name in rule.ours}
    assert covered == {name for name in model.state_dict() if not name.endswith("_extra_state")}, "a tensor has no rule"
    return sorted(name for rule in fresh for name in rule.ours)


def _check_kinds(expected: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raises CannotConvert for tensors of other shapes than the configuration says, and for those of whole numbers."""
    other = [
        f"{name}: {tuple(theirs[name].shape)} in the file, {tuple(blank.shape)} by the configuration"
        for name, blank in expected.items()
        if name in theirs and theirs[name].shape != blank.shape
    ]
    if other:
        raise CannotConvert(f"tensors of other shapes than config.json says: {'; '.join(other[:LISTED])}")
    whole = [
        f"{name} ({theirs[name].dtype})" for name in expected if name in theirs and not theirs[name].is_floating_point()
    ]
    if whole:
        raise CannotConvert(
            f"tensors that are no floating-point numbers, as in quantised models: {some(whole)}; accepted: fp32, fp16, bf16"
        )
