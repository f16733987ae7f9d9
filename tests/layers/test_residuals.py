from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnlab.layers import (
    DeepNorm,
    Parallel,
    PostNorm,
    PreNorm,
    ReZero,
    RMSNorm,
    Sandwich,
    Stack,
    Xavier,
)

D = 6


def attention(h):
    return torch.sin(3 * h) + 0.5


def feed_forward(h):
    return h.flip(-1) ** 2


def norm(h, number=0):
    """The norm that `marked` makes number `number` of a residual."""
    return F.layer_norm(h, (D,)) * (number + 1)


def marked(residual):
    """Gives each norm of a residual another gain, so that a swapped norm shows."""
    for norms in (residual.norms, getattr(residual, "output_norms", [])):
        for number, module in enumerate(norms):
            nn.init.constant_(module.weight, number + 1)
    return residual


@pytest.fixture
def x():
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))


def test_post_norm_stands_after_the_sum(x):
    y = norm(x + attention(x), 0)
    torch.testing.assert_close(marked(PostNorm(D))(x, attention, feed_forward), norm(y + feed_forward(y), 1))


def test_pre_norm_stands_before_the_sublayer(x):
    y = x + attention(norm(x, 0))
    torch.testing.assert_close(marked(PreNorm(D))(x, attention, feed_forward), y + feed_forward(norm(y, 1)))


def test_sandwich_norms_what_goes_in_and_what_comes_out(x):
    y = x + norm(attention(norm(x, 0)), 0)
    expected = y + norm(feed_forward(norm(y, 1)), 1)
    torch.testing.assert_close(marked(Sandwich(D))(x, attention, feed_forward), expected)


@pytest.mark.parametrize("num_layers", [1, 6, 100])
def test_deepnorm_scales_the_stream_by_the_papers_alpha(x, num_layers):
    alpha = (2 * num_layers) ** (1 / 4)
    y = norm(alpha * x + attention(x), 0)
    residual = marked(DeepNorm(D, num_layers=num_layers))
    torch.testing.assert_close(residual(x, attention, feed_forward), norm(alpha * y + feed_forward(y), 1))


def test_deepnorm_constants_are_the_papers():
    # Wang et al. 2022, figure 2: encoder or decoder alone (2N)^1/4, (8N)^-1/4; a decoder with cross-attention (3M)^1/4, (12M)^-1/4.
    alone, crossing = DeepNorm(D, num_layers=18), DeepNorm(D, num_layers=18, num_sublayers=3)
    assert (alone.alpha, alone.init_gain) == pytest.approx((36**0.25, 144**-0.25))
    assert (crossing.alpha, crossing.init_gain) == pytest.approx((54**0.25, 216**-0.25))
    given = DeepNorm(D, num_layers=18, alpha=0.81 * 2, beta=0.87)
    assert (given.alpha, given.init_gain) == (0.81 * 2, 0.87)


def test_rezero_starts_as_the_identity_and_shares_one_alpha(x):
    residual = ReZero()
    assert torch.equal(residual(x, attention, feed_forward), x)
    nn.init.constant_(residual.alpha, 0.3)
    y = x + 0.3 * attention(x)
    torch.testing.assert_close(residual(x, attention, feed_forward), y + 0.3 * feed_forward(y))
    assert [p.numel() for p in residual.parameters()] == [1]


@pytest.mark.parametrize("shared_norm", [True, False])
def test_parallel_sublayers_read_the_same_stream(x, shared_norm):
    residual = marked(Parallel(D, shared_norm=shared_norm))
    expected = x + attention(norm(x, 0)) + feed_forward(norm(x, 0 if shared_norm else 1))
    torch.testing.assert_close(residual(x, attention, feed_forward), expected)


@pytest.mark.parametrize("cls", [PostNorm, PreNorm, Sandwich, DeepNorm, Parallel, ReZero])
def test_dropout_acts_on_the_sublayers_and_not_on_the_stream(cls, x):
    residual = cls(dropout=1.0) if cls is ReZero else cls(D, dropout=1.0)
    y = residual(x, attention, feed_forward)
    expected = norm(norm(x)) if cls in (PostNorm, DeepNorm) else x
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)  # twice normed: eps enters twice


@pytest.mark.parametrize(
    ("cls", "ends_in_norm"),
    [(PostNorm, False), (PreNorm, True), (Sandwich, True), (DeepNorm, False), (ReZero, False), (Parallel, True)],
)
def test_a_stack_ends_in_the_residuals_norm_where_the_stream_is_not_normed(cls, ends_in_norm):
    part = cls if cls is ReZero else partial(cls, norm=RMSNorm)
    stack = Stack({"d_model": 8, "num_heads": 2, "num_layers": 1, "residual": part}, causal=True)
    assert isinstance(stack.norm, RMSNorm if ends_in_norm else nn.Identity)


def last_gradient(residual, num_layers):
    """The gradient's norm at the last feed-forward matrix of a fresh stack, mean of five."""
    norms = []
    for seed in range(5):
        torch.manual_seed(seed)
        stack = Stack({"d_model": 64, "num_heads": 1, "num_layers": num_layers, "residual": residual}, causal=False)
        Xavier()(stack)
        target = torch.randn(4, 8, 64)
        (stack(torch.randn(4, 8, 64)) * target).sum().backward()
        norms.append(stack.layers[-1].feed_forward.down.weight.grad.norm())
    return torch.stack(norms).mean().item()


def test_first_gradients_shrink_with_depth_before_the_norm_and_not_after_it():
    # Xiong et al. 2020, theorem 1: the last feed-forward's gradient is O(1) in depth for Post-LN and O(L^-1/2) for Pre-LN.
    assert last_gradient(PostNorm, 16) / last_gradient(PostNorm, 2) == pytest.approx(1, abs=0.15)
    assert last_gradient(PreNorm, 16) / last_gradient(PreNorm, 2) < 0.6
