import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.layers import GEGLU, GELU, GLU, ReGLU, ReLU, SiLU, SquaredReLU, SwiGLU


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
