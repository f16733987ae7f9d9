"""A model that no architecture of transformers computes, as a folder that transformers loads with
`trust_remote_code=True`: its configuration as plain data, its weights, and a few lines that import attnlab.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attnlab.interop.fields import CannotConvert
from attnlab.interop.files import write_model
from attnlab.models import CLIP, Encoder, LanguageModel, Seq2Seq, ViT, Whisper
from attnlab.models.heads import EncoderHead, SequenceClassifier, SpanFinder, TokenClassifier

MODEL_TYPE = "attnlab"
STATE = "_extra_state"  # what a model keeps beside its tensors
# By the model's class, the first that it is of: how the names of its class in `remote` and of transformers' Auto class
# end, and the pipeline of the hub.
KINDS: Mapping[type, tuple[str, str]] = {
    SequenceClassifier: ("SequenceClassification", "text-classification"),
    TokenClassifier: ("TokenClassification", "token-classification"),
    SpanFinder: ("QuestionAnswering", "question-answering"),
    ViT: ("ImageClassification", "image-classification"),
    CLIP: ("ZeroShotImageClassification", "zero-shot-image-classification"),
    Whisper: ("SpeechSeq2Seq", "automatic-speech-recognition"),
    Seq2Seq: ("Seq2SeqLM", "text2text-generation"),
    LanguageModel: ("CausalLM", "text-generation"),
    Encoder: ("MaskedLM", "fill-mask"),
}
CODE = "modeling_attnlab"  # the file's name without its ending
LINES = '''"""What transformers loads with trust_remote_code=True: a model of attnlab, which has to be installed."""

from attnlab.interop.remote import (
    AttnlabConfig,
{classes}
)
'''


def kind_of(model: nn.Module) -> tuple[str, str]:
    """The ending of the classes that serve a model, and its pipeline. Raises CannotConvert where none does."""
    found = next((kind for cls, kind in KINDS.items() if isinstance(model, cls)), None)
    if found is None or (found[0] == "MaskedLM" and not hasattr(model, "predict")):
        raise CannotConvert(
            f"{type(model).__name__} by itself is no model that transformers has a class for; accepted: models derived "
            f"from {', '.join(cls.__name__ for cls in KINDS)}"
        )
    return found


def described(model: nn.Module, node: Mapping[str, Any], widths: Mapping[str, object]) -> dict[str, Any]:
    """A model as plain data that `remote.build` reads. node: its own in the resolved configuration; widths: what the
    data told it.
    """
    head: dict[str, Any] | None = None
    if isinstance(model, EncoderHead):
        head = {"class": type(model).__name__, "dropout": model.dropout.rate}
        if not isinstance(model, SpanFinder):
            head["num_classes" if isinstance(model, SequenceClassifier) else "num_outputs"] = model.output.out_features
        if isinstance(model, SequenceClassifier):
            head["pooling"] = model.pooling
    # Where a model starts is of the run: itself it knows nothing of it.
    own = {name: value for name, value in node.items() if name != "init_from"}
    state = {name: value for name, value in model.state_dict().items() if name.endswith(STATE)}
    states = {name.removesuffix(STATE).removesuffix("."): value.tolist() for name, value in state.items()}
    return {"model": own, "widths": dict(widths), "head": head, "states": states}


def write_folder(folder: Path, model: nn.Module, description: Mapping[str, Any], fields: Mapping[str, object]) -> str:
    """Writes config.json, safetensors and the modelling file; gives the class's name. fields: more of config.json, such
    as the numbers of special tokens. Raises CannotConvert.
    """
    ending, _ = kind_of(model)
    name, auto = f"AttnlabFor{ending}", f"AutoModelFor{ending}"
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{CODE}.AttnlabConfig", auto: f"{CODE}.{name}"},
        "dtype": "float32",
        "is_encoder_decoder": isinstance(model, Seq2Seq),
        **_sizes(model),
        **fields,
        "attnlab": dict(description),
    }
    tensors: dict[str, Tensor] = {f"model.{key}": value for key, value in model.state_dict().items()}
    write_model(folder, config, {key: value for key, value in tensors.items() if not key.endswith(STATE)})
    classes = "\n".join(f"    AttnlabFor{one}," for one in sorted(ending for ending, _ in KINDS.values()))
    (folder / f"{CODE}.py").write_text(LINES.format(classes=classes), encoding="utf-8")
    return name


def _sizes(model: nn.Module) -> dict[str, object]:
    """What clients look for, as far as the model has it."""
    known = {"vocab_size": "vocabulary_size", "hidden_size": "d_model"}
    return {theirs: value for theirs, ours in known.items() if (value := getattr(model, ours, None)) is not None}
