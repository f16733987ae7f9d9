"""Which inputs reach an output: by gradients, against what masks say."""

import pytest
import torch

from attnlab.layers import MultiHead, PositionEncoding, build_mask, build_scope
from attnlab.models.base import reach


@pytest.mark.parametrize("causal", [True, False])
def test_one_layer_is_reached_by_what_its_mask_allows(causal):
    torch.manual_seed(0)
    layer = MultiHead(8, 2, window=3, backend="eager").double()
    found = reach(lambda x: layer(x, build_scope(x, PositionEncoding(), causal)), 9, 8)
    positions = torch.arange(9)[None]
    assert torch.equal(found, build_mask(positions, positions, causal, window=3)[0, 0])


def test_outputs_that_are_asked_for_and_the_random_numbers_of_others():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = reach(lambda x: x.cumsum(dim=1), 5, 2, outputs=[2, 0])
    assert found.tolist() == [[True, True, True, False, False], [True, False, False, False, False]]
    assert torch.equal(torch.get_rng_state(), before)
