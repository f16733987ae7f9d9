"""What acts on every position alone.

Dropout: the share that it drops, the mean that it keeps, its gradient, and that a seed repeats it. Norms and feed-forward
layers: the published formulas.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import (
    GEGLU,
    GELU,
    GLU,
    Dropout,
    DynamicTanh,
    LayerNorm,
    NoNorm,
    ReGLU,
    ReLU,
    RMSNorm,
    SiLU,
    SquaredReLU,
    SwiGLU,
)


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


def random_norm(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


X_BTD = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_layer_norm_is_the_published_formula():
    norm = random_norm(LayerNorm(8, eps=0.1))
    mean, variance = X_BTD.mean(-1, keepdim=True), X_BTD.var(-1, correction=0, keepdim=True)
    expected = (X_BTD - mean) / (variance + 0.1).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(X_BTD), expected)


def test_rms_norm_is_the_published_formula():
    norm = random_norm(RMSNorm(8, eps=0.1))
    torch.testing.assert_close(norm(X_BTD), X_BTD / (X_BTD.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight)


def test_dynamic_tanh_is_the_published_formula():
    assert DynamicTanh(8, alpha=0.3).alpha.item() == torch.tensor(0.3)
    norm = random_norm(DynamicTanh(8))
    torch.testing.assert_close(norm(X_BTD), norm.weight * torch.tanh(norm.alpha * X_BTD) + norm.bias)


def test_without_a_norm_the_states_stay():
    assert NoNorm()(X_BTD) is X_BTD


def test_a_layer_norm_without_bias_has_only_a_gain():
    assert [name for name, _ in LayerNorm(8, bias=False).named_parameters()] == ["weight"]


def sigmoid(h):
    return 1 / (1 + torch.exp(-h))


def gelu(h):
    return h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))


def gelu_by_tanh(h):
    # Hendrycks & Gimpel 2016, section 2.
    return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def swish(h):
    return h * sigmoid(h)


PLAIN = {
    ReLU: lambda h: h.clamp(min=0),
    GELU: gelu,
    partial(GELU, approximate="tanh"): gelu_by_tanh,
    SiLU: swish,
    SquaredReLU: lambda h: h.clamp(min=0) ** 2,
}
GATED = {
    GLU: sigmoid,
    GEGLU: gelu,
    partial(GEGLU, approximate="tanh"): gelu_by_tanh,
    SwiGLU: swish,
    ReGLU: lambda h: h.clamp(min=0),
}


@pytest.fixture
def x_btd():
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("cls", PLAIN)
def test_plain_layer_is_the_published_formula(cls, x_btd):
    layer = cls(6, 12, bias=True)
    hidden = PLAIN[cls](x_btd @ layer.up.weight.T + layer.up.bias)
    torch.testing.assert_close(layer(x_btd), hidden @ layer.down.weight.T + layer.down.bias)


@pytest.mark.parametrize("cls", GATED)
def test_gated_layer_is_the_published_formula(cls, x_btd):
    layer = cls(6, 12)
    hidden = GATED[cls](x_btd @ layer.gate.weight.T) * (x_btd @ layer.up.weight.T)
    torch.testing.assert_close(layer(x_btd), hidden @ layer.down.weight.T)


def test_the_approximate_gelu_is_not_the_exact_one(x_btd):
    exact, approximate = GELU(6, 12), GELU(6, 12, approximate="tanh")
    approximate.load_state_dict(exact.state_dict())
    apart = (exact(x_btd) - approximate(x_btd)).abs().max()
    assert 1e-6 < apart < 1e-3


def test_matched_width_is_shazeers():
    # Shazeer 2020, section 3.1: d_ff = 3072 becomes 2048.
    assert SwiGLU(768, 3072).up.out_features == 2048
    assert SwiGLU(768, 3072, matched=False).up.out_features == 3072


def weights(part, d_model, d_ff):
    with torch.device("meta"):
        return sum(p.numel() for p in part(d_model, d_ff).parameters())


@settings(deadline=None)
@given(st.integers(1, 512), st.integers(1, 4096))
def test_gated_layer_weighs_what_the_plain_one_does(d_model, d_ff):
    gated, plain = (weights(part, d_model, d_ff) for part in (SwiGLU, ReLU))
    assert abs(gated - plain) <= d_model  # rounded to a third of a hidden unit of three matrices


@pytest.mark.parametrize("cls", [GELU, SwiGLU])
def test_dropout_acts_on_the_hidden_units_in_training_only(cls, x_btd):
    layer = cls(6, 600, dropout=0.5)
    assert torch.equal(layer.eval()(x_btd), layer(x_btd))
    hidden = []
    layer.down.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    layer.train()(x_btd)
    assert 0.45 < (hidden[0] == 0).float().mean() < 0.55


def test_a_zero_centered_gain_is_one_more_than_its_weight():
    torch.manual_seed(0)
    norm, x = RMSNorm(6, eps=1e-3, zero_centered=True), torch.randn(2, 5, 6)
    torch.testing.assert_close(norm(x), RMSNorm(6, eps=1e-3)(x))  # before training both leave the scale as it is
    norm.weight.data.normal_()
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + norm.weight)
    torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-6)
    # A weight far below bf16's steps around 1 still counts.
    norm.weight.data.fill_(2**-11)
    wide = norm.bfloat16()(x.bfloat16() * 100)
    assert wide.dtype == torch.bfloat16
    assert not wide.equal(RMSNorm(6, eps=1e-3).bfloat16()(x.bfloat16() * 100))
