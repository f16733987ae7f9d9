"""Gated convolutions against torch's own and against loops over windows; what padding and the future may reach."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnlab.layers.baselines import ConvolutionStack, GatedConvolution


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("dropout_shows")
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize(
    ("kernel_size", "causal"), [(1, True), (2, True), (3, True), (1, False), (3, False), (5, False)]
)
def test_it_is_the_sum_over_each_window_gated(kernel_size, causal, rate):
    torch.manual_seed(0)
    layer, x = GatedConvolution(4, kernel_size, causal, rate), torch.randn(2, 6, 4)
    weight, bias = layer.windows.weight.view(8, kernel_size, 4), layer.windows.bias
    first = 1 - kernel_size if causal else -(kernel_size // 2)
    found = layer(x)
    for row in range(2):
        for place in range(6):
            sums = bias.clone()
            for tap in range(kernel_size):
                if 0 <= place + first + tap < 6:
                    sums += weight[:, tap] @ (x[row, place + first + tap] * (1 + rate))
            assert_close(found[row, place], sums[:4] * torch.sigmoid(sums[4:]))


@pytest.mark.parametrize("causal", [True, False])
def test_agrees_with_torchs_convolution(causal):
    torch.manual_seed(0)
    layer, x = GatedConvolution(4, 3, causal), torch.randn(2, 6, 4)
    theirs = nn.Conv1d(4, 8, 3, padding=2 if causal else 1)
    with torch.no_grad():
        theirs.weight.copy_(layer.windows.weight.view(8, 3, 4).transpose(1, 2))
        theirs.bias.copy_(layer.windows.bias)
    assert_close(layer(x), F.glu(theirs(x.transpose(1, 2))[:, :, :6].transpose(1, 2), dim=2))


@settings(max_examples=30, deadline=None)
@given(
    causal=st.booleans(),
    left=st.booleans(),
    kernel_size=st.sampled_from([1, 3, 5]),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padding_on_either_side_changes_nothing(causal, left, kernel_size, lengths, seed):
    torch.manual_seed(seed)
    stack, longest = ConvolutionStack(4, 3, kernel_size, causal), max(lengths) + 2
    x, places = torch.randn(len(lengths), longest, 4), torch.arange(longest)[None]
    size = torch.tensor(lengths)[:, None]
    is_token = places >= longest - size if left else places < size
    together = stack(x, is_token)
    for row, real in enumerate(is_token):
        assert_close(together[row : row + 1, real], stack(x[row : row + 1, real]))


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.integers(1, 4), min_size=1, max_size=4), kernel_size=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_it_goes_on_from_its_last_inputs(parts, kernel_size, seed):
    torch.manual_seed(seed)
    stack, x = ConvolutionStack(4, 3, kernel_size, causal=True), torch.randn(2, sum(parts), 4)
    before: list[torch.Tensor] = []
    found = torch.cat([stack(part, before=before) for part in x.split(parts, dim=1)], dim=1)
    assert_close(found, stack(x))
    assert {inputs.shape for inputs in before} == {(2, kernel_size - 1, 4)}


def test_the_streams_sum_keeps_its_variance():
    torch.manual_seed(0)
    stack, x = ConvolutionStack(4, 2, 3, causal=True), torch.randn(1, 5, 4)
    for layer in stack.layers:
        with torch.no_grad():
            layer.windows.weight.zero_()
            layer.windows.bias.fill_(1.0)
    once = (x + torch.sigmoid(torch.tensor(1.0))) * 0.5**0.5
    assert_close(stack(x), (once + torch.sigmoid(torch.tensor(1.0))) * 0.5**0.5)
    assert_close(
        stack(x, between=lambda index, y: y * index), (x * 0.5**0.5 + torch.sigmoid(torch.tensor(1.0))) * 0.5**0.5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd where it lies around its token, got 4"),
        ({"num_layers": 0}, "num_layers must be .*got 0"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionStack(**{"d_model": 4, "num_layers": 1, "kernel_size": 3, "causal": False, **fields})
