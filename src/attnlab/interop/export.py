"""
Models out to folders that Hugging Face transformers loads, with the outputs that tasks put on an encoder, and on trial:
that it gives what the model here gives.

Shapes: B batch, T length, S source length, D model width, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attnlab.interop.architecture import Architecture, CannotConvert, some, to_theirs
from attnlab.interop.convert import ARCHITECTURES, LISTED
from attnlab.interop.files import read_config, write_model
from attnlab.interop.settings import Settings
from attnlab.models.base import Encoder
from attnlab.models.heads import SequenceClassifier, SpanFinder, TokenClassifier

FAMILIES = {"bert": "Bert", "roberta": "Roberta"}
# tanh(x / SMALL) * SMALL is x to its last bits for states of the size that a norm gives; a power of two costs no bit.
SMALL = 2.0**14
TOLERANCE = 1e-4  # relative to the largest logit, where that is above 1: fp32 in another order

Given = tuple[Tensor, ...]  # tokens (1, T); source (1, S) and target (1, T); or images (B, C, Y, X)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Head:
    """
    An output on an encoder, both ways.

    ending: of the class's name there. build: the model here of an encoder and a number of outputs. write: the tensors
    there of the output's weight (C, D) and bias (C), by the architecture's name. logits: those of the model there, as
    the model here gives them.
    """

    ending: str
    build: Callable[[Encoder, int], nn.Module]
    write: Callable[[str, Tensor, Tensor], Mapping[str, Tensor]]
    logits: Callable[[Any], Any] = lambda found: found.logits

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
    return {
        f"{dense}.weight": torch.eye(width) / SMALL,
        f"{dense}.bias": torch.zeros(width),
        f"{out}.weight": weight_CD * SMALL,
        f"{out}.bias": bias_C,
    }


def _as_it_is(name: str) -> Callable[[str, Tensor, Tensor], dict[str, Tensor]]:
    return lambda architecture, weight_CD, bias_C: {f"{name}.weight": weight_CD, f"{name}.bias": bias_C}


# By the name of the task whose model has the output; a sequence classifier's, where it reads the first token's state.
HEADS = {
    "SequenceClassification": Head(
        "ForSequenceClassification",
        lambda encoder, num_outputs: SequenceClassifier(encoder, num_outputs, "first"),
        _of_the_first_token,
    ),
    "TokenClassification": Head("ForTokenClassification", TokenClassifier, _as_it_is("classifier")),
    "SpanExtraction": Head(
        "ForQuestionAnswering",
        lambda encoder, _: SpanFinder(encoder),
        _as_it_is("qa_outputs"),
        lambda found: (found.start_logits, found.end_logits),
    ),
}


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

    architecture: one of ARCHITECTURES; None: the first that computes the same. head, output: what a task has put on the
    model in the place of its own output, and the weight (C, D) and bias (C) of that. fields: more fields of
    config.json, such as the numbers of special tokens. Raises CannotConvert where none, or not that one, computes the
    same, with what differs, and where the tensors are not those of such a model.
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
        of_model = [name for name in theirs if name.startswith(known.prefix) and ".pooler." not in name]
        theirs = {name: theirs[name] for name in of_model} | dict(head.write(known.name, *output))
    write_model(Path(folder), config, theirs)
    return known


def architecture_for(
    settings: Settings, name: str | None = None, fields: Mapping[str, Any] | None = None
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

    return _attempt("its tokenizer", lambda: AutoTokenizer.from_pretrained(folder))


def compare(folder: Path, model: nn.Module, given: Sequence[Given], head: Head | None = None) -> float:
    """
    The largest difference of logits between a folder, loaded by transformers, and the model here that was written
    there.

    Relative to the largest logit where that is above 1. Raises CannotConvert where transformers fails on it, or the
    logits are others.
    """
    import transformers

    name = read_config(folder)["architectures"][0]
    with _silence():
        there = _attempt(name, lambda: getattr(transformers, name).from_pretrained(folder))
        gaps = [_gap(name, there.eval(), model.eval(), tensors, head) for tensors in given]
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

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _gap(name: str, there: nn.Module, here: nn.Module, given: Given, head: Head | None) -> float:
    target = {} if len(given) == 1 else {"decoder_input_ids": given[1]}
    chosen = (torch.ones_like(given[0], dtype=torch.bool),) if isinstance(here, TokenClassifier) else ()
    with torch.no_grad():
        found = _attempt(name, lambda: there(given[0], **target))
        ours = here(*given, *chosen)
    if head is not None:
        theirs = head.logits(found)
    else:
        theirs = found.logits if hasattr(found, "logits") else found.prediction_logits
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs.reshape(ours.shape))]
    return max(float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in pairs)


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
