"""Attention followed back through the layers. Legend: H heads, T length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnlab.analysis.attention_maps import LayerMap


def rollout(weights: Sequence[Tensor]) -> list[Tensor]:
    """
    How much of each position's state after each layer comes from each input position, (T, T) a layer (Abnar & Zuidema 2020, arXiv 2005.00928, eq. 1).

    weights: the maps (H, T, T) of the layers, lowest first. A layer is taken for half its heads' mean and half the residual stream; values,
    norms and the feed-forward layers are not looked at. Rows of weights that sum to 1 give rows that sum to 1.
    """
    so_far_TT = torch.eye(weights[0].shape[1], dtype=torch.float64)
    found = []
    for weights_HTT in weights:
        mixed_TT = (weights_HTT.double().mean(dim=0) + torch.eye(len(so_far_TT), dtype=torch.float64)) / 2
        so_far_TT = mixed_TT @ so_far_TT
        found.append(so_far_TT.float())
    return found


def with_rollouts(maps: list[LayerMap]) -> list[LayerMap]:
    """The maps, and behind them the rollout of every kind of self-attention, one head a layer."""
    found = list(maps)
    for kind in dict.fromkeys(one.kind for one in maps if one.kind.endswith("self")):
        layers = [one for one in maps if one.kind == kind]
        reached_TT = torch.eye(layers[0].weights_HTS.shape[1], dtype=torch.bool)
        for layer, rolled_TT in zip(layers, rollout([one.weights_HTS for one in layers]), strict=True):
            reached_TT = (
                (layer.allowed_TS | torch.eye(len(reached_TT), dtype=torch.bool)).float() @ reached_TT.float()
            ) > 0
            found.append(LayerMap(layer.name, rollout_of(kind), layer.layer, rolled_TT[None], reached_TT))
    return found


def rollout_of(kind: str) -> str:
    """The name of the rollout of a kind of self-attention."""
    return f"{kind.removesuffix('self')}rollout"
