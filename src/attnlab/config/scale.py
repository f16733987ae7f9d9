"""One dial that grows a whole run: what follows from its depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from attnlab.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, check_ranges


class Sizes(TypedDict):
    """The fields of a run that the dial sets."""

    d_model: int
    num_heads: int
    batch_size: int
    max_steps: int
    lr: float
    weight_decay: float


@check_ranges
def by_depth(
    depth: PositiveInt,
    context_length: PositiveInt,
    aspect_ratio: PositiveInt,
    d_head: PositiveInt,
    tokens_per_parameter: PositiveFloat,
    reference_depth: PositiveInt,
    batch_size: PositiveInt,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    batch_power: float,
    width_power: float,
) -> Sizes:
    """The sizes of a run of this depth by the rules of nanochat (Karpathy 2025, scripts/base_train.py), from those of
    `reference_depth`.

    d_model: aspect_ratio a layer, in whole heads. Tokens of training: tokens_per_parameter for each of the 12 depth
    d_model^2 weights in layers (Kaplan et al. 2020, table 1). Batch: as tokens^batch_power (Bergsma et al. 2025),
    rounded to a power of 2. Rate: as d_model^width_power and the root of the batch. Weight decay: as the root of the
    batch over the tokens, so that batch / (rate decay tokens) stays (Wang & Aitchison 2024).
    """
    num_heads, heads_there = (math.ceil(layers * aspect_ratio / d_head) for layers in (depth, reference_depth))
    weights = depth * (num_heads * d_head) ** 2
    growth = weights / (reference_depth * (heads_there * d_head) ** 2)  # of weights, and of tokens
    batch = 2 ** round(math.log2(batch_size * growth**batch_power)) if growth != 1.0 else batch_size
    root = math.sqrt(batch / batch_size)
    return {
        "d_model": num_heads * d_head,
        "num_heads": num_heads,
        "batch_size": batch,
        "max_steps": max(1, int(tokens_per_parameter * 12 * weights / (batch * context_length))),
        "lr": lr * root * (num_heads / heads_there) ** width_power,
        "weight_decay": weight_decay * root / growth,
    }


def resolve(name: str, scale: Mapping[str, Any], context_length: int) -> int | float:
    """One of them, as an interpolation of a configuration asks for it. Raises ValueError for a value out of range."""
    sizes: Mapping[str, Any] = by_depth(context_length=context_length, **scale)
    value: int | float = sizes[name]
    return value
