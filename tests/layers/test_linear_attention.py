"""Mixers with a state, each against its formula in loops; what they share: sizes, states, convolutions."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from attnlab.layers import (
    ALiBi,
    DeltaNet,
    GatedDeltaNet,
    GatedLinear,
    LinearAttention,
    Memory,
    MultiDConvHead,
    MultiHead,
    PositionEncoding,
    Retention,
    Rotary,
    build_scope,
)
from attnlab.layers.linear_recurrence import chunked, recurrent
from attnlab.models import GPT, T5LanguageModel, measure_size
from attnlab.parts import Choices
from attnlab.testing import contract

B, T, D, H = 2, 9, 12, 3
MIXERS = [LinearAttention, Retention, GatedLinear, DeltaNet, GatedDeltaNet]


def of(mixer, **fields):
    """A mixer off its first weights, so that norms and biases show."""
    torch.manual_seed(0)
    made = mixer(D, H, **fields)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made.double().eval()


def stream(length=T):
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def scope(x, position=None, causal=True, **given):
    return build_scope(x, position or PositionEncoding(), causal, **given)


def heads(mixer, x):
    """Queries, keys and values of each row and head, as lists of positions."""
    made = [linear(x).unflatten(2, (H, -1)).transpose(1, 2) for linear in (mixer.query, mixer.key, mixer.value)]
    return [[[row[head] for head in range(H)] for row in each] for each in made]


def linear_by_loops(mixer, x, sees, feature, turn=lambda x, position: x):
    """Of each row and head the sum over what a query sees, as the paper has it (eq. 4)."""
    q, k, v = heads(mixer, x)
    out = torch.zeros(B, x.shape[1], H, v[0][0].shape[1], dtype=x.dtype)
    for b in range(B):
        for h in range(H):
            for t in range(x.shape[1]):
                above, below = 0.0, 0.0
                for s in (s for s in range(x.shape[1]) if sees(b, t, s)):
                    phi_q, phi_k = feature(q[b][h][t]), feature(k[b][h][s])
                    above = above + (turn(phi_q, t) @ turn(phi_k, s)) * v[b][h][s]
                    below = below + phi_q @ phi_k
                out[b, t, h] = above / below.clamp(min=1e-6)
    return mixer.output(out.flatten(2))


FEATURES = {"elu": lambda x: torch.where(x > 0, x + 1, x.exp()), "relu": lambda x: x.clamp(min=0)}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature_map", FEATURES)
def test_linear_attention_is_its_formula(feature_map, causal):
    mixer, x = of(LinearAttention, feature_map=feature_map, d_value=5, d_head=6, bias=True), stream()
    expected = linear_by_loops(mixer, x, lambda b, t, s: s <= t or not causal, FEATURES[feature_map])
    torch.testing.assert_close(mixer(x, scope(x, causal=causal)), expected)


def test_rotary_positions_turn_the_numerator_of_linear_attention_alone():
    mixer, x, rotary = of(LinearAttention), stream(), Rotary(4)

    def turn(x_K, position):
        return rotary.rotate(x_K[None, None, None], torch.tensor([[position]]))[0, 0, 0]

    expected = linear_by_loops(mixer, x, lambda b, t, s: s <= t, FEATURES["elu"], turn)
    torch.testing.assert_close(mixer(x, scope(x, rotary)), expected, rtol=1e-6, atol=1e-6)  # angles are of fp32


def test_linear_attention_sees_a_prefix_from_before_it():
    mixer, x, prefix = of(LinearAttention), stream(), torch.tensor([[4], [0]])
    expected = linear_by_loops(mixer, x, lambda b, t, s: s <= t or s < prefix[b], FEATURES["elu"])
    torch.testing.assert_close(mixer(x, scope(x, prefix_B1=prefix)), expected)


def test_linear_attention_serves_a_language_model_with_a_prefix():
    torch.manual_seed(0)
    model = T5LanguageModel(
        13, d_model=16, num_heads=4, num_layers=1, attention=LinearAttention, position=PositionEncoding
    )
    model.eval()
    source, target = torch.randint(0, 13, (2, 5)), torch.randint(0, 13, (2, 4))
    with torch.no_grad():
        state = model.start(source, capacity=4)
        steps = torch.stack([model.step(tokens, state) for tokens in target.unbind(dim=1)], dim=1)
        torch.testing.assert_close(steps, model(source, target), rtol=1e-5, atol=1e-5)


def test_linear_attention_reads_the_real_states_of_a_memory():
    mixer, x = of(LinearAttention), stream(4)
    states, is_token = stream(6), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    q, k, v = heads(mixer, x)[0], *heads(mixer, states)[1:]
    out = torch.zeros(B, 4, H, 4, dtype=x.dtype)
    for b in range(B):
        for h in range(H):
            for t in range(4):
                weights = [
                    FEATURES["elu"](q[b][h][t]) @ FEATURES["elu"](k[b][h][s]) for s in range(int(is_token[b].sum()))
                ]
                out[b, t, h] = sum(w * v[b][h][s] for s, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(Memory(states, is_token).attend(mixer, x), mixer.output(out.flatten(2)))


def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients():
    mixer, x = of(LinearAttention), stream().requires_grad_()
    out = Memory(stream(3), torch.zeros(B, 3, dtype=torch.bool)).attend(mixer, x)
    assert (out == 0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("position", [PositionEncoding(), Rotary(4)])
def test_retention_is_its_parallel_form(position):
    """Group norm of (Q K^T * D) V with D_nm = gamma^(n - m), gated (Sun et al. 2023, eq. 5 to 8)."""
    mixer, x = of(Retention), stream()
    q, k, v = (linear(x).unflatten(2, (H, -1)).transpose(1, 2) for linear in (mixer.query, mixer.key, mixer.value))
    positions = torch.arange(T)[None]
    q, k = position.rotate(q, positions), position.rotate(k, positions)
    out = torch.zeros(B, T, H, 4, dtype=x.dtype)
    for h, gamma in enumerate([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128]):
        for n in range(T):
            for m in range(n + 1):
                weight = (q[:, h, n] * k[:, h, m]).sum(dim=1, keepdim=True) / 2
                out[:, n, h] += weight * gamma ** (n - m) * v[:, h, m]
    mean, variance = out.mean(dim=-1, keepdim=True), out.var(dim=-1, correction=0, keepdim=True)
    normed = ((out - mean) / (variance + 1e-5).sqrt()).flatten(2) * mixer.norm.weight + mixer.norm.bias
    gate = mixer.gate(x)
    expected = mixer.output(gate * gate.sigmoid() * normed)
    torch.testing.assert_close(mixer(x, scope(x, position)), expected, rtol=1e-6, atol=1e-6)


def test_gated_linear_attention_is_its_recurrence():
    """S_t = diag(alpha_t) S_t-1 + k_t v_t^T with alpha_t = sigmoid(W_2 W_1 x + b)^(1/16) (Yang et al. 2023, eq. 3)."""
    mixer, x = of(GatedLinear, decay_rank=3), stream()
    q, k, v = heads(mixer, x)
    alpha = mixer.decay[1](x @ mixer.decay[0].weight.T).sigmoid() ** (1 / 16)
    out = torch.zeros(B, T, H, 4, dtype=x.dtype)
    for b in range(B):
        for h in range(H):
            state = torch.zeros(2, 4, dtype=x.dtype)  # keys of half the width of values
            for t in range(T):
                state = torch.diag(alpha[b, t, 2 * h : 2 * h + 2]) @ state + torch.outer(k[b][h][t], v[b][h][t])
                out[b, t, h] = state.T @ q[b][h][t] / 2**0.5
    normed = out / (out.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    gate = mixer.gate(x)
    expected = mixer.output(gate * gate.sigmoid() * normed.flatten(2))
    torch.testing.assert_close(mixer(x, scope(x)), expected)


def test_the_recurrence_with_a_decay_of_heads_is_minimaxs_lightning_attention():
    config = MiniMaxConfig(
        hidden_size=D,
        num_attention_heads=H,
        head_dim=4,
        num_hidden_layers=2,
        block_size=4,
        layer_types=["linear_attention"] * 2,
    )
    torch.manual_seed(0)
    theirs, x = MiniMaxLightningAttention(config, 0).eval(), stream(11).float()
    q, k, v = (part.transpose(1, 2) for part in F.silu(theirs.qkv_proj(x)).unflatten(2, (H, 12)).split(4, dim=3))
    out, state = chunked(q, k, v, -theirs.slope_rate[None].expand(1, H, 11, 1), None, torch.zeros(B, H, 4, 4), size=2)
    gated = theirs.output_gate(x).sigmoid() * theirs.norm(out.transpose(1, 2).flatten(2))
    expected, expected_state = theirs(x, None, None)
    torch.testing.assert_close(theirs.out_proj(gated), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_keeps_its_state_in_fp32(mixer):
    torch.manual_seed(0)
    model = GPT(13, max_length=8, d_model=16, num_heads=4, num_layers=1, attention=mixer).bfloat16().eval()
    cache = model.new_cache(8)
    with torch.no_grad():
        model(torch.zeros(2, 5, dtype=torch.long), cache=cache)
    state = cache.layer(0).state[0]
    for kept in state if isinstance(state, tuple) else (state,):
        assert kept.dtype == torch.float32


@pytest.mark.parametrize("mixer", MIXERS)
def test_autocast_changes_little(mixer):
    torch.manual_seed(0)
    model = GPT(13, max_length=32, d_model=16, num_heads=4, num_layers=1, attention=mixer).eval()
    tokens = torch.randint(0, 13, (2, 32))
    with torch.no_grad():
        expected = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(tokens)
    assert (found.float() - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize(
    "mixer",
    [
        *(partial(mixer, convolution=3) for mixer in MIXERS),
        partial(DeltaNet, convolution=None),
        partial(GatedDeltaNet, convolution=0, negative_eigenvalues=True, bias=True),
        partial(Retention, d_value=8),
        partial(GatedLinear, d_head=4, temperature=1.0),
        partial(LinearAttention, d_value=3),
    ],
)
def test_fields_keep_the_contract(mixer):
    for check in contract("attention", mixer):
        if check.unavailable is None:
            check()


@pytest.mark.parametrize(("mixer", "numbers"), [
    (LinearAttention, 4 * 16 + 16), (Retention, 4 * 16), (GatedLinear, 4 * 8),
    (DeltaNet, 4 * 16 + 3 * 48), (partial(DeltaNet, convolution=None), 4 * 16), (GatedDeltaNet, 4 * 16 + 3 * 48),
])  # fmt: skip
def test_decoding_keeps_as_much_after_100_tokens_as_after_one(mixer, numbers):
    """A matrix of 4 by 4 (of GLA 2 by 4) a head; sums of keys; three tokens before a convolution of four."""
    torch.manual_seed(0)
    model = GPT(13, max_length=128, d_model=16, num_heads=4, num_layers=1, attention=mixer).eval()
    cache = model.new_cache(128)
    with torch.no_grad():
        for length in (1, 50, 1, 47, 1):
            model(torch.zeros(2, length, dtype=torch.long), cache=cache)
            assert cache.num_bytes == 0
            kept = cache.layer(0).state
            sizes = [
                x.numel() for x in (*(kept[0] if isinstance(kept[0], tuple) else kept[:1]), kept[1]) if x is not None
            ]
            assert sum(sizes) == 2 * numbers


# Of a mixer of width d with h heads, k = d_head h and v = d_value h wide in all; c taps.
PARAMETERS = {
    LinearAttention: lambda d, h, k, v, c: 2 * d * k + 2 * d * v,
    Retention: lambda d, h, k, v, c: 2 * d * k + 3 * d * v + 2 * v,
    GatedLinear: lambda d, h, k, v, c: 2 * d * k + 3 * d * v + 16 * (d + k) + k + v // h,
    DeltaNet: lambda d, h, k, v, c: 2 * d * k + 2 * d * v + d * h + v // h,
    GatedDeltaNet: lambda d, h, k, v, c: 2 * d * k + 3 * d * v + 2 * d * h + 2 * h + v // h,
}


@pytest.mark.parametrize("taps", [0, 4])
@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_and_operations_are_those_of_the_closed_form(mixer, taps):
    d, h, length, d_ff = 16, 4, 70, 24
    layers = {"attention": partial(mixer, convolution=taps, d_value=6), "num_layers": 2, "d_ff": d_ff}
    model = GPT(13, max_length=length, d_model=d, num_heads=h, **layers)
    own = model.stack.layers[0].attention
    k, v = own.d_head * h, own.d_value * h
    assert (own.d_head, own.d_value) == (2 if mixer is GatedLinear else 4, 6)
    numbers = PARAMETERS[mixer](d, h, k, v, taps) + taps * (2 * k + v)
    assert sum(p.numel() for p in own.parameters()) == numbers
    vectors = {GatedLinear: k + 6, Retention: 2 * v, DeltaNet: 6, GatedDeltaNet: 2 * h + 6}.get(
        mixer, 0
    )  # of no product
    per_token = (
        2 * (numbers - vectors + 2 * d * d_ff + (3 if "Delta" in mixer.__name__ else 2) * k * 6) * 2 + 2 * 13 * d
    )
    for shape in ((2, length), (1, 64), (3, 8)):
        size = measure_size(model, lambda shape=shape: model(torch.zeros(shape, dtype=torch.long)).shape[:2].numel())
        assert size.flops_per_token == 3 * per_token
    assert own.form is None


def choices(position=None, model=GPT, convolution=None, d_model=16, num_heads=4):
    """A configuration of GPT, as a part sees it."""
    fields = {"model": {"d_model": d_model, "num_heads": num_heads}, "attention": {"convolution": convolution}}
    return Choices(
        fields,
        names={"attention": "mine", "position": "its", "model": "gpt"},
        parts={"position": position, "model": model},
    )


@pytest.mark.parametrize(("mixer", "position", "refused"), [
    (GatedDeltaNet, Rotary, True), (DeltaNet, Rotary, True), (GatedLinear, Rotary, True),
    (Retention, Rotary, False), (LinearAttention, Rotary, False), (Retention, ALiBi, True), (LinearAttention, ALiBi, True),
    (GatedDeltaNet, PositionEncoding, False),
])  # fmt: skip
def test_positions_that_would_do_nothing_are_refused(mixer, position, refused):
    reasons = list(mixer.incompatible(choices(position)))
    assert bool(reasons) is refused
    assert all(reason.startswith("position: position=its ") and "attention=mine" in reason for reason in reasons)


@pytest.mark.parametrize("mixer", [mixer for mixer in MIXERS if mixer is not LinearAttention])
def test_models_that_see_both_sides_are_refused(mixer):
    assert next(mixer.incompatible(choices(model=T5LanguageModel))).startswith("attention: attention=mine sees only")
    with pytest.raises(ValueError, match="sees only what stands before a token, and these layers see both sides"):
        T5LanguageModel(13, d_model=16, num_heads=4, num_layers=1, attention=mixer)


@pytest.mark.parametrize("mixer", MIXERS)
def test_heads_that_do_not_divide_the_width_are_refused(mixer):
    assert next(mixer.incompatible(choices(num_heads=3))).startswith("model.num_heads must be one of 1, 2, 4, 8, 16")
    with pytest.raises(ValueError, match="num_heads=3 does not divide d_model=16"):
        mixer(16, 3)


def test_what_linear_attention_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="feature_map must be one of elu, relu, got 'exp'"):
        LinearAttention(16, 4, feature_map="exp")
    with pytest.raises(ValueError, match="convolution must be null where layers see both sides, got 3"):
        LinearAttention(16, 4, convolution=3, causal=False)
    assert list(LinearAttention.incompatible(choices(model=T5LanguageModel))) == []
    (reason,) = LinearAttention.incompatible(choices(model=T5LanguageModel, convolution=3))
    assert reason.startswith("attention.convolution: model=gpt has layers that see both sides")


@pytest.mark.parametrize("mixer", [*MIXERS, MultiDConvHead, MultiHead])
def test_one_token_after_another_is_computed_as_all_at_once(mixer):
    """By the recurrent form, whatever the length, as by chunks."""
    made, x = of(mixer), stream(130)
    if hasattr(made, "form"):
        expected = made(x, scope(x))
        made.form = recurrent
        torch.testing.assert_close(made(x, scope(x)), expected, rtol=1e-9, atol=1e-9)
