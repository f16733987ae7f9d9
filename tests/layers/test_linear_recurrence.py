"""The recurrence in its two forms: against loops over single numbers, transformers' delta rule, and each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from attnlab.layers.linear_recurrence import chunked, recurrent

RULES = ["no decay", "head", "channel", "delta", "gated delta"]


def arguments(rule, batch=2, heads=2, length=70, keys=8, values=5, strength=1.0, dtype=torch.float32, seed=0):
    """Queries, keys of norm 1, values, logarithms of decays, beta up to 2, and a state to go on from."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=dtype)

    rows = (batch, heads, length)
    decay = {"head": (*rows, 1), "channel": (*rows, keys), "gated delta": (*rows, 1)}.get(rule)
    log_decay = (
        normal(*decay).sub(1).mul(strength).sigmoid().log() if decay else torch.zeros(1, 1, length, 1, dtype=dtype)
    )
    beta = 2 * normal(*rows, 1).sigmoid() if "delta" in rule else None
    k = torch.nn.functional.normalize(normal(*rows, keys), dim=-1)
    return [normal(*rows, keys), k, normal(*rows, values), log_decay, beta, normal(batch, heads, keys, values)]


def loops(q, k, v, log_decay, beta, state):
    """One head of one row, number by number: S[i][j] decays, is corrected, and is read."""
    length, keys, values = len(q), len(k[0]), len(v[0])
    state = [[float(x) for x in row] for row in state]
    outputs = []
    for t in range(length):
        for i in range(keys):
            g = float(log_decay[t][i if len(log_decay[t]) > 1 else 0])
            state[i] = [math.exp(g) * x for x in state[i]]
        for j in range(values):
            new = float(v[t][j])
            if beta is not None:
                new = float(beta[t][0]) * (new - sum(float(k[t][i]) * state[i][j] for i in range(keys)))
            for i in range(keys):
                state[i][j] += float(k[t][i]) * new
        outputs.append([sum(float(q[t][i]) * state[i][j] for i in range(keys)) for j in range(values)])
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(state, dtype=torch.float64)


@pytest.mark.parametrize("form", [recurrent, chunked])
@pytest.mark.parametrize("rule", RULES)
def test_both_forms_are_the_formula(rule, form):
    given = arguments(rule, batch=1, heads=1, length=11, keys=3, values=2, dtype=torch.float64)
    out, state = form(*given)
    expected, last = loops(*(None if x is None else x[0, 0] for x in given))
    torch.testing.assert_close(out[0, 0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state[0, 0], last, rtol=1e-12, atol=1e-12)


def off(found, expected):
    """The greatest difference, relative to the greatest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("rule", RULES)
def test_chunks_are_the_recurrence_at_2048_tokens_with_strong_decays_too(rule, strength):
    given = arguments(rule, batch=1, length=2048, keys=16, values=16, strength=strength)
    with torch.no_grad():
        for found, expected in zip(chunked(*given), recurrent(*given), strict=True):
            assert found.isfinite().all()
            assert off(found, expected) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_both_forms_agree_and_are_those_of_finite_differences(rule):
    given = arguments(rule, length=150)
    gradients = []
    for form in (recurrent, chunked):
        leaves = [None if x is None else x.clone().requires_grad_() for x in given]
        out, state = form(*leaves)
        (out.square().sum() + state.square().sum()).backward()
        gradients.append([x.grad for x in leaves if x is not None])
    for found, expected in zip(*gradients, strict=True):
        assert found.isfinite().all()
        assert off(found, expected) < 1e-5
    small = [
        None if x is None else x.requires_grad_()
        for x in arguments(rule, batch=1, heads=1, length=5, keys=2, values=2, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(lambda *leaves: chunked(*leaves, size=4), small)


@settings(max_examples=25, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    length=st.integers(1, 40),
    size=st.sampled_from([1, 2, 8, 64]),
    cut=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_chunks_of_any_size_and_texts_cut_anywhere_give_the_same(rule, length, size, cut, seed):
    given = arguments(rule, length=length, keys=3, values=2, dtype=torch.float64, seed=seed)
    expected, last = recurrent(*given)
    cut, state, pieces = min(cut, length), given[5], []
    for part in (slice(0, cut), slice(cut, length)):
        if part.stop > part.start:
            piece, state = chunked(*(None if x is None else x[:, :, part] for x in given[:5]), state, size=size)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=2), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theirs", [qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule])
@pytest.mark.parametrize("form", [recurrent, chunked])
def test_the_gated_delta_rule_is_that_of_qwen3_next(form, theirs):
    q, k, v, log_decay, beta, state = arguments("gated delta", length=100)
    out, last = form(q * q.shape[-1] ** -0.5, k, v, log_decay, beta, state)
    swapped = [x.transpose(1, 2) for x in (q, k, v, log_decay[..., 0:1], beta)]
    expected, expected_last = theirs(
        *swapped[:3], g=swapped[3][..., 0], beta=swapped[4][..., 0], initial_state=state, output_final_state=True
    )
    assert off(out.transpose(1, 2), expected) < 1e-5
    assert off(last, expected_last) < 1e-5
