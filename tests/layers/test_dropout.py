"""Dropout: the share that it drops, the mean that it keeps, its gradient, and that a seed repeats it."""

import pytest
import torch

from attnlab.layers import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(300, 333), (99_999,)])
def test_drops_the_share_and_keeps_the_mean(rate, shape):
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(shape))
    dropped = (out == 0).float().mean().item()
    deviation = (rate * (1 - rate) / out.numel()) ** 0.5
    assert abs(dropped - rate) < 5 * deviation
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-2 if rate == 0.99 else 1e-4)


def test_neighbours_are_dropped_independently():
    # Four elements share one drawn number: none of its parts may say anything about another.
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).double().view(-1, 4)
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / kept.shape[0] ** 0.5


def test_the_gradient_flows_where_the_value_does():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out != 0, 1 / 0.6, 0.0), rtol=1e-4, atol=0)


def test_a_seed_repeats_it_and_evaluation_leaves_it_out():
    dropout, x = Dropout(0.3), torch.randn(1001)
    first, second, third = (torch.manual_seed(seed) and dropout(x) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_type(dtype):
    assert Dropout(0.3)(torch.ones(10, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_refuses_what_is_no_rate(rate):
    with pytest.raises(ValueError, match="rate must be from 0 to 1"):
        Dropout(rate)
