"""The summed cross-entropy against torch's, with its gradient by finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from attnlab.training.loss import _in_one_pass, cross_entropy_sums


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 300),
    classes=st.integers(2, 40),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    ignored=st.floats(0, 0.9),
    seed=st.integers(0, 999),
)
def test_agrees_with_torch(tokens, classes, smoothing, ignored, seed):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, classes, generator=random, dtype=torch.float32).mul(3).requires_grad_()
    targets = torch.randint(0, classes, (tokens,), generator=random)
    targets[torch.rand(tokens, generator=random) < ignored] = -100
    smoothed, nats = cross_entropy_sums(logits, targets, smoothing)
    (made,) = torch.autograd.grad(smoothed * 0.7, logits)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(expected * 0.7, logits)
    torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(nats, F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(made, gradient, rtol=1e-5, atol=1e-6)
    again, plain = _in_one_pass(logits, targets, smoothing, -100)  # as on a GPU
    (made,) = torch.autograd.grad(again * 0.7, logits)
    torch.testing.assert_close((again, plain), (smoothed, nats), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(made, gradient, rtol=1e-5, atol=1e-6)
    assert not plain.requires_grad


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, requires_grad=True)
    targets = torch.tensor([4, -100, 0])
    smoothed, nats = cross_entropy_sums(logits, targets, 0.1)
    smoothed.backward()
    assert not nats.requires_grad
    for place in [(0, 4), (0, 1), (1, 2), (2, 0)]:
        step = torch.zeros(3, 5)
        step[place] = 1e-2
        up, down = (cross_entropy_sums(logits.detach() + sign * step, targets, 0.1)[0] for sign in (1, -1))
        assert logits.grad[place].item() == pytest.approx(((up - down) / 2e-2).item(), abs=2e-3)


def test_other_numbers_can_be_ignored_and_bf16_is_summed_in_fp32():
    torch.manual_seed(0)
    logits = torch.randn(200, 11).bfloat16().requires_grad_()
    targets = torch.randint(0, 11, (200,))
    smoothed, _ = cross_entropy_sums(logits, targets, ignore=0)
    expected = F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=0)
    torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=0)
    smoothed.backward()
    assert logits.grad.dtype == torch.bfloat16
    assert (logits.grad[targets == 0] == 0).all()


def test_a_gradient_in_bf16_is_scaled_by_the_factor_itself():
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(40, 9, generator=generator).bfloat16()
    targets_N = torch.randint(0, 9, (40,), generator=generator)
    gradients = {}
    for tokens in (1, 769):  # 1 / 769 in bf16 is 0.26% too small
        given_NV = logits_NV.clone().requires_grad_()
        (cross_entropy_sums(given_NV, targets_N)[0] / tokens).backward()
        gradients[tokens] = given_NV.grad
    assert torch.equal(gradients[769], (gradients[1].float() / 769).bfloat16())
