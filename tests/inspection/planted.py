"""Attention that is planted, so that every statistic of it is known."""

import numpy as np
import torch

from attnlab.inspection.attended import Attended
from attnlab.inspection.attention_maps import SELF, Axis, LayerMap


def axis_of(text, num_special_tokens=0):
    """A token a character, of which the first ones are marks."""
    numbers_N = np.array([ord(c) for c in text])
    places_N2 = np.stack([np.arange(len(text)), np.arange(len(text)) + 1], axis=1)
    places_N2[:num_special_tokens] = -1
    return Axis(list(text), numbers_N, np.arange(len(text)) < num_special_tokens, places_N2)


def map_of(weights, allowed=None, kind=SELF, layer=0):
    """A layer's map of these heads, where all may attend to all unless it is said who may."""
    weights_HTS = torch.as_tensor(np.array(weights), dtype=torch.float32)
    allowed_TS = torch.ones(weights_HTS.shape[1:], dtype=torch.bool) if allowed is None else allowed
    return LayerMap(f"{kind}.{layer}", kind, layer, weights_HTS, allowed_TS)


def example_of(one, queries, keys=None):
    """An example of one map."""
    return Attended("", [one], {one.kind: (queries, queries if keys is None else keys)})


def causal(length):
    """Each sees itself and what stands before it."""
    return torch.ones(length, length).tril().bool()


def uniform(allowed_TS):
    """Attention to all that may be attended to alike."""
    return (allowed_TS.float() / allowed_TS.sum(1, keepdim=True)).numpy()


def at(targets, num_keys):
    """All weight of each query on one key; of None on the first."""
    weights_TS = np.zeros((len(targets), num_keys))
    weights_TS[np.arange(len(targets)), [0 if target is None else target for target in targets]] = 1
    return weights_TS
