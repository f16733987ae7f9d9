"""Rollout is the product of the layers, each taken half for its heads and half for the residual stream."""

import numpy as np
import torch
from tests.analysis.planted import causal, map_of, uniform

from attnlab.analysis.attention_maps import CROSS, ENCODER, SELF
from attnlab.analysis.rollout import rollout, with_rollouts


def test_two_layers_by_hand():
    first = torch.tensor(
        [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
    )  # two heads: their mean is [[1, 0], [.5, .5]]
    second = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    one, both = rollout([first, second])
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    # [[.5, .5], [.25, .75]] times the one before
    torch.testing.assert_close(both, torch.tensor([[0.625, 0.375], [0.4375, 0.5625]]))


def test_it_is_the_papers_recursion_and_keeps_rows_and_masks():
    random = np.random.default_rng(0)
    allowed = causal(5)
    layers = []
    for layer in range(3):
        drawn = random.random((2, 5, 5)) * allowed.numpy()
        layers.append(map_of(drawn / drawn.sum(2, keepdims=True), allowed, SELF, layer))
    found = [one for one in with_rollouts(layers) if one.kind == "rollout"]
    expected = np.eye(5)
    for one, layer in zip(found, layers, strict=True):
        expected = (0.5 * layer.weights_HTS.numpy().mean(0) + 0.5 * np.eye(5)) @ expected
        np.testing.assert_allclose(one.weights_HTS[0], expected, atol=1e-6)
        np.testing.assert_allclose(one.weights_HTS[0].sum(1), 1, atol=1e-6)
        assert torch.equal(one.allowed_TS, allowed)
        assert (one.weights_HTS[0].triu(1) == 0).all()


def test_windows_reach_further_with_every_layer_and_cross_attention_has_no_rollout():
    offsets = torch.arange(5)[None] - torch.arange(5)[:, None]
    near = (offsets <= 0) & (offsets > -2)
    maps = [map_of([uniform(near)], near, ENCODER, layer) for layer in range(2)]
    found = with_rollouts([*maps, map_of([np.full((3, 5), 0.2)], kind=CROSS)])
    assert [one.kind for one in found] == [ENCODER, ENCODER, CROSS, "encoder rollout", "encoder rollout"]
    assert torch.equal(found[3].allowed_TS, near)
    assert torch.equal(found[4].allowed_TS, (offsets <= 0) & (offsets > -3))
