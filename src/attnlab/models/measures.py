"""What is measured of a model by running it: its size, what training it costs, and which inputs reach an output.

Legend: T outputs, S inputs, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop


@dataclass(frozen=True)
class Size:
    """Parameters, and floating-point operations to train on one token.

    embedding_parameters: the tables of tokens, positions and distances, and the output matrix where it is untied; the
    rest is non-embedding, the N of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1). flops_per_token: a
    multiplication and an addition are two operations. Only matrix products, convolutions and recurrences count, as in
    that section's table 1: every weight of a linear layer (the output matrix too, tied or not) once a token, and q.k
    and weights.v over all keys, not halved for causality and not cut to a window. Of a model with a source, all that is
    computed on it counts for the target. The backward pass costs twice the forward pass, so training is 3 x forward;
    recomputed activations do not count.
    """

    parameters: int
    embedding_parameters: int
    non_embedding_parameters: int
    flops_per_token: int


def measure_size(model: nn.Module, forward: Callable[[], int]) -> Size:
    """The size of a model; `forward` computes a loss with it and returns of how many tokens. Draws no random number."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {
        parameter
        for name, module in model.named_modules()
        if _is_table(name, module, model)
        for parameter in module.parameters()
    }
    embedding = sum(parameter.numel() for parameter in tables)
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_missing()) as counter:
        tokens = forward()
    model.train(training)
    return Size(total, embedding, total - embedding, 3 * counter.get_total_flops() // max(1, tokens))


def _is_table(name: str, module: nn.Module, model: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        # By its name, too: layers may happen to be as wide as the vocabulary, as with bytes and d_ff=256.
        is_output = name.rpartition(".")[2] == "head"
        return is_output and module.out_features == getattr(model, "vocabulary_size", None)
    return isinstance(module, nn.Embedding)


def _missing() -> dict[Any, Any]:
    """What torch's counter does not know: its fused attention on a CPU, and recurrent layers."""
    counts: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    counts |= dict.fromkeys((torch.ops.aten.lstm, torch.ops.aten.gru), _recurrence)
    counts[torch.ops.aten.mkldnn_rnn_layer] = _one_layer
    return counts


def _attention(q_shape: Any, k_shape: Any, v_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop(q_shape, k_shape, v_shape))


def _one_layer(x_shape: Any, input_shape: Any, state_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * prod(x_shape[:-1]) * (prod(input_shape) + prod(state_shape)))


def _recurrence(x_shape: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    shapes = [shape for item in rest if isinstance(item, tuple | list) for shape in item]
    matrices = [shape for shape in shapes if isinstance(shape, tuple | list | torch.Size) and len(shape) == 2]
    return int(2 * prod(x_shape[:-1]) * sum(prod(shape) for shape in matrices))


def reach(mix: Callable[[Tensor], Tensor], length: int, d_model: int, outputs: Sequence[int] | None = None) -> Tensor:
    """True where an output depends on an input, bool (T, S); `mix` takes states (1, S, D) of fp64 to states of the same
    length.

    Counted on one random input by the gradients of single outputs: what a mask or a window shuts out has a gradient of
    exactly zero. outputs: the positions that are asked for (None: all).
    """
    x_1SD = torch.randn(
        1, length, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    out_1TD = mix(x_1SD)
    rows = []
    for place in range(length) if outputs is None else outputs:
        (gradient_1SD,) = torch.autograd.grad(out_1TD[0, place].sum(), x_1SD, retain_graph=True)
        rows.append((gradient_1SD[0] != 0).any(dim=-1))
    return torch.stack(rows)


def layers_until(connected: Callable[[int], bool], at_most: int) -> int:
    """The fewest layers at which `connected` holds, as at every number above. Raises ValueError above `at_most`."""
    low, high = 0, 1
    while not connected(high):
        if high >= at_most:
            raise ValueError(f"{at_most} layers do not connect them")
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if connected(middle) else (middle, high)
    return high
