"""The size of a GPT and what training it costs, in closed form from its configuration: nothing is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from attnlab.layers.attention import head_width
from attnlab.layers.parts import count_parameters
from attnlab.layers.stack import Stack, stack_widths
from attnlab.models.gpt import GPT


@dataclass(frozen=True)
class Size:
    """Parameters, and floating-point operations to train on one token.

    embedding_parameters: the token table, the position encoding, and the output matrix where it is untied; the rest is
    non-embedding, the N of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1).
    flops_per_token: a multiplication and an addition are two operations. Only matrix products count, as in that
    section's table 1: every weight of a linear layer (the output matrix too, tied or not) once, and per layer q.k and
    weights.v over all max_length keys, not halved for causality and not cut to a window. Norms, activations, positions,
    softmax and the embedding's look-up count nothing. The backward pass costs twice the forward pass, so training is 3
    x forward; recomputed activations do not count.
    """

    parameters: int
    embedding_parameters: int
    non_embedding_parameters: int
    flops_per_token: int


def gpt_size(*args: Any, **configuration: Any) -> Size:
    """The size of GPT(*args, **configuration), trained at its max_length. Raises as that call would."""
    call = inspect.signature(GPT).bind(*args, **configuration)
    call.apply_defaults()
    gpt = call.arguments
    names = ("d_model", "num_heads", "num_layers", "max_length", "d_ff", "dropout", "bias")
    widths = stack_widths(causal=True, **{name: gpt[name] for name in names})
    seams = {name: gpt[name] for name in ("position", "residual", "attention", "feed_forward")}
    table = gpt["vocabulary_size"] * gpt["d_model"]
    embedding = table * (1 if gpt["tied"] else 2) + count_parameters(gpt["position"], **widths)
    parameters = table * (1 if gpt["tied"] else 2) + Stack.parameter_count(**seams, **widths)
    matrices = _matrices(gpt["attention"], widths) + _matrices(gpt["feed_forward"], widths)
    scores = 2 * gpt["max_length"] * gpt["num_heads"] * _head_width(gpt["attention"], gpt["d_model"], gpt["num_heads"])
    forward = 2 * (gpt["num_layers"] * (matrices + scores) + table)
    return Size(parameters, embedding, parameters - embedding, 3 * forward)


def _matrices(part: Callable[..., Any], widths: dict[str, Any]) -> int:
    """The weights of a part's linear layers: its parameters less those that are no matrix."""
    fields = inspect.signature(part).parameters
    bare = {name: False for name in ("bias", "qk_norm") if name in fields}
    return count_parameters(partial(part, **bare), **widths)


def _head_width(attention: Callable[..., Any], d_model: int, num_heads: int) -> int:
    return head_width(d_model, num_heads, inspect.signature(attention).parameters["d_head"].default)
