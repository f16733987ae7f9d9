"""Attention against torch.nn.MultiheadAttention and its published formulas.

Legend: B batch, T target length, D model width, H heads, G key/value heads, K head width.
"""

from functools import partial

import pytest
import torch

from attnlab.layers import (
    ALiBi,
    Attention,
    Eager,
    GroupedQuery,
    Memory,
    MultiHead,
    MultiQuery,
    PositionEncoding,
    Rotary,
    build_scope,
)
from attnlab.parts import build_part

B, T, D, H = 2, 9, 32, 4
IS_TOKEN = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9], dtype=torch.bool)


def example(seed=0):
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def attend(attention, x_BTD, causal=True, position=None, **given):
    return attention(x_BTD, build_scope(x_BTD, position or PositionEncoding(), causal, **given))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_multi_head_is_torchs_multihead_attention(bias, causal, padded):
    torch.manual_seed(0)
    attention = MultiHead(D, H, bias=bias)
    reference = torch.nn.MultiheadAttention(D, H, bias=bias, batch_first=True)
    with torch.no_grad():
        projections = (attention.query, attention.key, attention.value)
        reference.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        reference.out_proj.weight.copy_(attention.output.weight)
        if bias:
            reference.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
            reference.out_proj.bias.copy_(attention.output.bias)
    x_BTD = example()
    made = attend(attention, x_BTD, causal, is_token_BT=IS_TOKEN if padded else None)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    expected, _ = reference(x_BTD, x_BTD, x_BTD, attn_mask=hidden, key_padding_mask=~IS_TOKEN if padded else None)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", [MultiHead, GroupedQuery])
def test_one_product_for_queries_keys_and_values_is_three(monkeypatch, part, bias):
    torch.manual_seed(0)
    attention, found = part(D, H, bias=bias, qk_norm=True), []
    for joined in (False, True):  # as on a GPU in training
        monkeypatch.setattr("attnlab.layers.attention._joins", lambda _, joined=joined: joined)
        out_BTD = attend(attention, example(), position=Rotary(D // H))
        found.append((out_BTD, *torch.autograd.grad(out_BTD.square().sum(), attention.parameters())))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shared", "part"), [(1, MultiQuery), (2, GroupedQuery)])
def test_shared_heads_are_multi_head_with_repeated_weights(shared, part):
    torch.manual_seed(0)
    attention, full = build_part(part, d_model=D, num_heads=H), MultiHead(D, H)
    assert attention.num_key_value_heads == shared
    state = attention.state_dict()
    for name in ("key.weight", "value.weight"):
        state[name] = state[name].unflatten(0, (shared, D // H)).repeat_interleave(H // shared, 0).flatten(0, 1)
    full.load_state_dict(state)
    for position in (PositionEncoding(), Rotary(D // H), ALiBi(H)):
        made, expected = (attend(a, example(), position=position) for a in (attention, full))
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_qk_norm_and_gate_are_their_formulas():
    torch.manual_seed(0)
    attention = Attention(D, H, qk_norm=True, output_gate=True)
    with torch.no_grad():
        attention.query_norm.weight.normal_()
        attention.key_norm.weight.normal_()
    x_BTD = example()

    def heads(linear):
        return (x_BTD @ linear.weight.T).view(B, T, H, D // H).transpose(1, 2)

    def normed(y, norm):
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    q, k = normed(heads(attention.query), attention.query_norm), normed(heads(attention.key), attention.key_norm)
    weights = (q @ k.transpose(-2, -1) / (D // H) ** 0.5).softmax(-1)
    mixed_BTD = (weights @ heads(attention.value)).transpose(1, 2).reshape(B, T, D)
    gate_BTD = 1 / (1 + (-(x_BTD @ attention.gate.weight.T)).exp())
    expected = (mixed_BTD * gate_BTD) @ attention.output.weight.T
    torch.testing.assert_close(attend(attention, x_BTD, causal=False), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", [False, True])
def test_qk_norm_of_the_full_width_is_over_all_heads_together(memory):
    torch.manual_seed(0)
    attention, x_BTD = Attention(D, H, num_key_value_heads=2, qk_norm="full_width"), torch.randn(2, 5, D)
    for norm in (attention.query_norm, attention.key_norm):
        norm.weight.data.normal_()
    plain = Attention(D, H, num_key_value_heads=2)
    plain.load_state_dict({name: w for name, w in attention.state_dict().items() if "norm" not in name})
    for norm, part in ((attention.query_norm, "query"), (attention.key_norm, "key")):
        assert norm.weight.shape == getattr(attention, part).weight.shape[:1]
        hook = lambda _, given, x, gain=norm.weight: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain  # noqa: E731
        getattr(plain, part).register_forward_hook(hook)

    def out(part):
        if memory:
            return Memory(x_BTD.flip(1)).attend(part, x_BTD)
        return part(x_BTD, build_scope(x_BTD, PositionEncoding(), causal=True))

    torch.testing.assert_close(out(attention), out(plain), atol=1e-5, rtol=1e-5)


def test_an_unknown_qk_norm_is_refused():
    with pytest.raises(ValueError, match="qk_norm must be true, false or full_width, got 'heads'"):
        Attention(D, H, qk_norm="heads")


def test_qk_norm_comes_before_rotation():
    torch.manual_seed(0)
    attention = Attention(D, H, qk_norm=True, backend="eager")
    with torch.no_grad():
        attention.query_norm.weight.normal_()
    rotary, x_BTD = Rotary(D // H), example()
    positions = torch.arange(T)[None]
    q = attention.query_norm(attention.query(x_BTD).view(B, T, H, -1).transpose(1, 2))
    k = attention.key_norm(attention.key(x_BTD).view(B, T, H, -1).transpose(1, 2))
    scores = rotary.rotate(q, positions) @ rotary.rotate(k, positions).transpose(-2, -1) * (D // H) ** -0.5
    attention.backend = Eager(keep_weights=True)
    attend(attention, x_BTD, causal=False, position=rotary)
    torch.testing.assert_close(attention.backend.weights_BHTS, scores.softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale", "factor"), [(None, (D // H) ** -0.5), (1.0, 1.0), (0.3, 0.3)])
def test_scores_are_multiplied_by_the_scale(scale, factor):
    torch.manual_seed(0)
    attention, x_BTD = Attention(D, H, scale=scale), example()
    q, k, v = (
        linear(x_BTD).view(B, T, H, D // H).transpose(1, 2)
        for linear in (attention.query, attention.key, attention.value)
    )
    weights = (q @ k.transpose(-2, -1) * factor).softmax(-1)
    expected = attention.output((weights @ v).transpose(1, 2).reshape(B, T, D))
    for backend in ("auto", "fused", "math", "eager"):
        attention.backend = backend
        torch.testing.assert_close(attend(attention, x_BTD, causal=False), expected, atol=1e-5, rtol=1e-5)


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"scale must be above 0, got 0.0"):
        Attention(D, H, scale=0.0)


def test_soft_cap_bounds_the_scores():
    torch.manual_seed(0)
    attention = Attention(D, H, soft_cap=0.5)
    attention.backend = Eager(keep_weights=True)
    attend(attention, 1000 * example(), causal=False)
    weights = attention.backend.weights_BHTS
    ratio = weights.amax(-1) / weights.amin(-1)
    assert ratio.max() <= torch.tensor(1.0).exp() * (1 + 1e-5)  # scores lie in [-0.5, 0.5]
    assert ratio.max() > 2.5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_lets_through_exactly_its_keys(window, causal):
    torch.manual_seed(0)
    attention, x_BTD = Attention(D, H, window=window), example().requires_grad_()
    out_BTD = attend(attention, x_BTD, causal)
    for t in range(T):
        (gradient_BTD,) = torch.autograd.grad(out_BTD[0, t].sum(), x_BTD, retain_graph=True)
        reached = gradient_BTD[0].abs().sum(-1) > 0
        expected = [abs(t - s) < window and (s <= t or not causal) for s in range(T)]
        assert reached.tolist() == expected


def test_weights_are_dropped_in_training_only():
    torch.manual_seed(0)
    attention, x_BTD = Attention(D, H, dropout=0.5), example()
    assert not attend(attention, x_BTD).equal(attend(attention, x_BTD))
    attention.eval()
    assert attend(attention, x_BTD).equal(attend(attention, x_BTD))


@pytest.mark.parametrize(
    ("part", "shared"),
    [(MultiHead, H), (MultiQuery, 1), (GroupedQuery, 2), (partial(Attention, num_key_value_heads=4), 4)],
)
@pytest.mark.parametrize(
    "fields", [{}, {"d_head": 6, "bias": True}, {"qk_norm": True, "output_gate": True, "bias": True}]
)
def test_has_the_weights_that_its_fields_say(part, shared, fields):
    built = build_part(partial(part, **fields), d_model=D, num_heads=H)
    d_head, gate = fields.get("d_head", D // H), fields.get("output_gate", False)
    rows = H * d_head * (1 + gate) + 2 * shared * d_head
    expected = D * (rows + H * d_head) + fields.get("bias", False) * (rows + D) + 2 * d_head * ("qk_norm" in fields)
    assert sum(p.numel() for p in built.parameters()) == expected
    assert attend(built, example()).shape == (B, T, D)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (partial(MultiHead, 64, 7), r"num_heads=7 does not divide d_model=64; accepted: 1, 2, 4, 8, 16, 32, 64"),
        (partial(MultiHead, 64, 0), "num_heads must be at least 1, got 0"),
        (
            partial(GroupedQuery, 60, 6, num_key_value_heads=4),
            "num_key_value_heads=4 does not divide num_heads=6; accepted: 1, 2, 3, 6",
        ),
        (partial(GroupedQuery, 64, 4, num_key_value_heads=0), "num_key_value_heads must be at least 1, got 0"),
        (partial(MultiHead, 64, 4, d_head=0), "d_head must be at least 1, got 0"),
        (partial(MultiHead, 64, 4, num_key_value_heads=2), "MultiHead fixes num_key_value_heads, got 2"),
        (partial(MultiQuery, 64, 4, num_key_value_heads=2), "MultiQuery fixes num_key_value_heads, got 2"),
        (partial(MultiHead, 64, 4, window=0), "window must be at least 1, got 0"),
        (partial(MultiHead, 64, 4, soft_cap=-1.0), "soft_cap must be above 0, got -1.0"),
        (partial(MultiHead, 64, 4, soft_cap=9.0, backend="fused"), "fused cannot cap scores"),
        (partial(MultiHead, 64, 4, dropout=0.1, backend="flex"), "flex cannot drop"),
        (
            partial(MultiHead, 64, 4, backend="sdpa"),
            "backend='sdpa' is unknown; accepted: auto, fused, math, eager, flex",
        ),
    ],
)
def test_mistakes_are_refused_with_what_is_accepted(part, message):
    with pytest.raises(ValueError, match=message):
        part()


def test_a_part_that_needs_an_unknown_width_says_so():
    with pytest.raises(ValueError, match="MultiHead needs num_heads, which is not given here; given: d_model"):
        build_part(MultiHead, d_model=64)
