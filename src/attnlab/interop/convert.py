"""Models in from and out to folders of Hugging Face transformers' layout, with the outputs that tasks put on an
encoder, and on trial: that a folder gives what the model here gives.

Shapes: B batch, T length, S source length, D model width, C outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attnlab.interop.architecture import Architecture, Rule, blank, some, to_ours, to_theirs
from attnlab.interop.decoders import DECODERS
from attnlab.interop.encoders import ENCODERS
from attnlab.interop.fields import CannotConvert
from attnlab.interop.files import read_config, read_tensors, write_model
from attnlab.interop.gemma import GEMMA
from attnlab.interop.image_text import IMAGE_TEXT
from attnlab.interop.settings import Settings, build, completed
from attnlab.interop.speech import SPEECH
from attnlab.interop.warm_start import own_tensors, under_own_names
from attnlab.models.heads import TokenClassifier

ARCHITECTURES: dict[str, Architecture] = {
    known.name: known for known in (*DECODERS, *GEMMA, *ENCODERS, *IMAGE_TEXT, *SPEECH)
}
LISTED = 12
FAMILIES = {"bert": "Bert", "roberta": "Roberta"}
# tanh(x / SMALL) * SMALL is x to its last bits for states of the size that a norm gives; a power of two costs no bit.
SMALL = 2.0**14
TOLERANCE = 1e-4  # relative to the largest logit, where that is above 1: fp32 in another order

# Tokens (1, T); source (1, S) and target (1, T); images (B, C, Y, X); or images and tokens.
Given = tuple[Tensor, ...]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Imported:
    """A model of another library as settings and tensors here. fresh: names of tensors that the files lack and a new
    model initialises. ignored: what was left out.
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
    """The model in a folder as `save_pretrained` writes it. ignore: fields of its configuration, and names of tensors
    (or patterns such as `classifier.*`), that are left out. Raises CannotConvert for an architecture, a field or a
    tensor without a counterpart here, a missing tensor, one of another shape, and files that are damaged or pickles.
    """
    return from_theirs(read_config(Path(folder)), read_tensors(Path(folder)), ignore)


def from_theirs(config: Mapping[str, object], tensors: Mapping[str, Tensor], ignore: Iterable[str] = ()) -> Imported:
    """The model of a configuration and tensors in Hugging Face's names; see `read_model`."""
    name, ignore = config.get("model_type"), list(ignore)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CannotConvert(f"model_type={name!r} is not known here; accepted: {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[name]
    theirs, ignored = _wanted(known, tensors, ignore)
    try:
        settings = completed(known.read_config(config, ignore) | known.settings_of_tensors(theirs, config))
        depth = max(size for name, size in settings.items() if name.endswith(("num_layers", "num_decoder_layers")))
        if depth > len(theirs):  # before so many are built
            raise CannotConvert(f"config.json says {depth:,} layers, and the files hold {len(theirs):,} tensors")
        model = blank(settings)
    except CannotConvert:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CannotConvert(f"config.json describes a model that cannot be built: {error}") from error
    left = sorted({*ignored, *({*config, *known.spelt(config)} & set(ignore))})
    if settings.get("tie_embeddings") and known.output is not None:
        theirs.pop(known.output.theirs, None)
    rules = known.of_model(model, settings)
    fresh = _check_names(known, config, model, rules, theirs)
    _check_kinds(to_theirs(rules, model.state_dict(), settings), theirs)
    ours = to_ours(rules, theirs, settings)
    return Imported(known, settings, {name: tensor.float() for name, tensor in ours.items()}, fresh, left)


def _wanted(
    known: Architecture, tensors: Mapping[str, Tensor], ignore: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the architecture's own names, without buffers, copies and what is to be ignored; and what was
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
    out = {*ignored, *(name for name in named if re.fullmatch(known.buffers, name))}
    kept = {name: tensor for name, tensor in named.items() if name not in out}
    for copy, original in known.copies.items():
        if copy in kept:
            if original in kept and not torch.equal(kept[copy], kept[original]):
                raise CannotConvert(f"{copy} differs from {original}, and here they are one tensor")
            kept.setdefault(original, kept.pop(copy))
    return kept, ignored


def _check_names(
    known: Architecture, config: Mapping[str, object], model: nn.Module, rules: list[Rule], theirs: Mapping[str, Tensor]
) -> list[str]:
    """Names here that are to be initialised anew. Raises CannotConvert for missing and unexpected tensors."""
    missing = [rule for rule in rules if rule.theirs not in theirs]
    classes = config.get("architectures") or known.classes
    assert isinstance(classes, Iterable)
    with_output = set(classes) & set(known.classes)
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
    assert {name for rule in rules for name in rule.ours} == {*own_tensors(model.state_dict())}, "a tensor has no rule"
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


# --- out


@dataclass(frozen=True)
class Head:
    """An output on an encoder. ending: of the class's name there. write: the tensors there of the output's weight
    (C, D) and bias (C), by the architecture's name.
    """

    ending: str
    write: Callable[[str, Tensor, Tensor], Mapping[str, Tensor]]

    def class_of(self, architecture: str) -> str:
        """The name of the class there."""
        return f"{FAMILIES[architecture]}{self.ending}"


def _of_the_first_token(architecture: str, weight_CD: Tensor, bias_C: Tensor) -> dict[str, Tensor]:
    """There a dense layer and tanh stand between the first token's state and the output: they pass a small state on."""
    dense, out = {
        "bert": ("bert.pooler.dense", "classifier"),
        "roberta": ("classifier.dense", "classifier.out_proj"),
    }[architecture]
    width = weight_CD.shape[1]
    passed_on = {f"{dense}.weight": torch.eye(width) / SMALL, f"{dense}.bias": torch.zeros(width)}
    return {**passed_on, f"{out}.weight": weight_CD * SMALL, f"{out}.bias": bias_C}


# By the name of the task whose model has the output; a sequence classifier's, where it reads the first token's state.
HEADS = {
    "SequenceClassification": Head(
        "ForSequenceClassification",
        _of_the_first_token,
    ),
    "TokenClassification": Head(
        "ForTokenClassification",
        lambda _, weight_CD, bias_C: {"classifier.weight": weight_CD, "classifier.bias": bias_C},
    ),
    "SpanExtraction": Head(
        "ForQuestionAnswering",
        lambda _, weight_CD, bias_C: {"qa_outputs.weight": weight_CD, "qa_outputs.bias": bias_C},
    ),
}


def to_folder(
    folder: str | Path,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    architecture: str | None = None,
    head: Head | None = None,
    output: tuple[Tensor, Tensor] | None = None,
    **fields: object,
) -> Architecture:
    """Writes a model of these settings as config.json and safetensors that `AutoModel.from_pretrained` loads.

    architecture: one of ARCHITECTURES; None: the first that computes the same. head, output: what a task has put on the
    model in the place of its own output, and the weight (C, D) and bias (C) of that. fields: more fields of
    config.json, such as the numbers of special tokens. Raises CannotConvert where none, or not that one, computes the
    same, with what differs, and where the tensors are not those of such a model.
    """
    known = architecture_for(settings, architecture, fields)
    given = own_tensors(tensors)
    if odd := sorted({*own_tensors(blank(settings).state_dict())} ^ {*given}):
        raise CannotConvert(
            f"the tensors are not those of a model of these settings, they lack or have besides: {some(odd)}"
        )
    settings = known.as_written(settings)
    config = known.with_fields(known.write_config(settings) | {"torch_dtype": "float32"}, fields)
    model = blank(settings)
    rules, whole = known.of_model(model, settings), model.state_dict()
    zeros = {name: torch.zeros(whole[name].shape) for rule in rules for name in rule.ours if name not in given}
    theirs = to_theirs(rules, given | zeros, settings)
    if settings.get("tie_embeddings") and config.get("tie_word_embeddings") is False and known.output is not None:
        theirs[known.output.theirs] = theirs[known.output.embedding]
    if not settings.get("tie_embeddings", True):  # transformers then takes copies for tensors of their own
        theirs |= {copy: theirs[original] for copy, original in known.copies.items() if original in theirs}
    if head is not None and output is not None:
        config["architectures"] = [head.class_of(known.name)]
        of_model = [name for name in theirs if name.startswith(known.prefix) and ".pooler." not in name]
        theirs = {name: theirs[name] for name in of_model} | dict(head.write(known.name, *output))
    write_model(Path(folder), config, theirs)
    return known


def architecture_for(
    settings: Settings, name: str | None = None, fields: Mapping[str, object] | None = None
) -> Architecture:
    """The one that computes what these settings do, with further fields. Raises CannotConvert with what differs."""
    if name is not None and name not in ARCHITECTURES:
        raise CannotConvert(f"--as {name}: there is no such architecture; accepted: {', '.join(ARCHITECTURES)}")
    tried = {key: known.differences(settings, fields) for key, known in ARCHITECTURES.items() if name in (None, key)}
    same = [ARCHITECTURES[key] for key, differences in tried.items() if not differences]
    if same:  # rather one that has no zeros to write
        return next((known for known in same if known.as_written(settings) == settings), same[0])
    nearest = min(tried, key=lambda key: len(tried[key]) + 100 * (ARCHITECTURES[key].model != settings["model"]))
    what = (
        f"{nearest}, which was asked for, computes something else:"
        if name
        else "no architecture of Hugging Face transformers computes what this model does; "
        f"the nearest, {nearest}, differs in"
    )
    raise CannotConvert("\n".join([what, *tried[nearest][:LISTED]]))


# --- on trial


def tokenizer_there(folder: Path) -> Any:
    """The tokenizer of a folder, as transformers loads it. Raises CannotConvert where it does not."""
    from transformers import AutoTokenizer

    # Where the folder has code of its own, the library asks for leave to read its configuration.
    return _attempt("its tokenizer", lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=True))


def compare(folder: Path, model: nn.Module, given: Sequence[Given]) -> float:
    """The largest difference of logits between a folder, loaded by transformers, and the model that was written there.
    Relative to the largest logit where that is above 1. Raises CannotConvert where transformers fails on it, or the
    logits are others.
    """
    import transformers

    config = read_config(folder)
    # A folder with code of its own is loaded by the class that finds it.
    own = [name for name in config.get("auto_map", {}) if name != "AutoConfig"]
    (name,) = own or config["architectures"][:1]
    more = {"trust_remote_code": True} if own else {}
    with _silence():
        there = _attempt(name, lambda: getattr(transformers, name).from_pretrained(folder, **more))
        gaps = [_gap(name, there.eval(), model.eval(), tensors) for tensors in given]
    if not max(gaps) <= TOLERANCE:  # nan, too
        raise CannotConvert(
            f"transformers.{name} gives other logits than the model here, by {max(gaps):.1e}: nothing was written. "
            f"Please report this, with the run's configuration and transformers' version ({transformers.__version__})"
        )
    return max(gaps)


@contextmanager
def _silence() -> Iterator[None]:
    """Lets transformers write nothing beside what the command says."""
    from transformers import logging

    library: Any = logging  # parts of it have no types
    verbosity, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bar:
            library.enable_progress_bar()


def _gap(name: str, there: nn.Module, here: nn.Module, given: Given) -> float:
    named = dict(zip(_names_of(given), given, strict=True))
    chosen = (torch.arange(given[0].numel()),) if isinstance(here, TokenClassifier) else ()
    with torch.no_grad():
        found = _attempt(name, lambda: there(**named))
        ours = here(*given, *chosen)
    if isinstance(ours, tuple):
        pairs = list(zip(ours, (found.start_logits, found.end_logits), strict=True))
    else:
        names = ("logits", "prediction_logits", "logits_per_image")
        theirs = next(getattr(found, each) for each in names if hasattr(found, each))
        pairs = [(ours, theirs.reshape(ours.shape))]
    return max(float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in pairs)


def _names_of(given: Given) -> list[str]:
    """What transformers calls each of the tensors."""
    sound_or_image = "input_features" if given[0].ndim == 3 else "pixel_values"
    first = sound_or_image if given[0].is_floating_point() else "input_ids"
    second = "input_ids" if first == "pixel_values" else "decoder_input_ids"
    return [first, second][: len(given)]


def _attempt(what: str, action: Callable[[], Found]) -> Found:
    try:
        return action()
    except Exception as error:  # whatever the library raises, the folder does not serve its clients
        import transformers

        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise CannotConvert(
            f"transformers {transformers.__version__} cannot use what was written ({what}: {type(error).__name__}: "
            f"{first}): nothing is kept. Please report this, with the run's configuration"
        ) from error
