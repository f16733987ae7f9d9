"""Outputs of tasks on an encoder, as the classes of transformers that have them. Legend: D model width, C outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.models.encoder import Encoder
from attnlab.models.heads import SequenceClassifier, SpanFinder, TokenClassifier

FAMILIES = {"bert": "Bert", "roberta": "Roberta"}
# tanh(x / SMALL) * SMALL is x to its last bits for states of the size that a norm gives, and a power of two costs no bit.
SMALL = 2.0**14


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
    """
    There, a dense layer and tanh stand between the first token's state and the output: they pass a small state on as
    it is.
    """
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


def _classifier(encoder: Encoder, num_outputs: int) -> nn.Module:
    return SequenceClassifier(encoder, num_outputs, "first")


def _span_finder(encoder: Encoder, num_outputs: int) -> nn.Module:
    assert num_outputs == 2
    return SpanFinder(encoder)


# By the name of the task whose model has the output; a sequence classifier's, where it reads the first token's state.
HEADS = {
    "SequenceClassification": Head("ForSequenceClassification", _classifier, _of_the_first_token),
    "TokenClassification": Head("ForTokenClassification", TokenClassifier, _as_it_is("classifier")),
    "SpanExtraction": Head(
        "ForQuestionAnswering",
        _span_finder,
        _as_it_is("qa_outputs"),
        lambda found: (found.start_logits, found.end_logits),
    ),
}
