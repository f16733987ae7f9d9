"""DeltaNet and its gated form: against loops, and against whole layers of transformers with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import OlmoHybridConfig, Qwen3NextConfig
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from attnlab.layers import DeltaNet, GatedDeltaNet, PositionEncoding, build_scope

B, T, D, H, K, V = 2, 70, 24, 3, 4, 8
SIZES = {
    "hidden_size": D, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": H,
    "linear_num_value_heads": H, "linear_key_head_dim": K, "linear_value_head_dim": V, "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def scope(x):
    return build_scope(x, PositionEncoding(), causal=True)


def stream():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))


def ours(theirs, **fields):
    mixer = GatedDeltaNet(D, H, d_head=K, d_value=V, convolution=4, **fields)
    with torch.no_grad():
        mixer.convolution.taps_XP.copy_(theirs.conv1d.weight[:, 0])
        mixer.log_rate_H.copy_(theirs.A_log)
        mixer.step_bias_H.copy_(theirs.dt_bias)
    return mixer


def drawn(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer.eval()


@torch.no_grad()
def test_the_gated_form_is_qwen3_nexts_layer():
    torch.manual_seed(0)
    theirs, x = drawn(Qwen3NextGatedDeltaNet(Qwen3NextConfig(**SIZES), 0)), stream()
    mixer = ours(theirs)
    q, k, v, gate = theirs.in_proj_qkvz.weight.unflatten(0, (H, 2 * K + 2 * V)).split([K, K, V, V], dim=1)
    beta, step = theirs.in_proj_ba.weight.unflatten(0, (H, 2)).unbind(dim=1)
    named = {"query": q, "key": k, "value": v, "gate": gate, "beta": beta, "step": step}
    for name, weight in named.items():
        getattr(mixer, name).weight.copy_(weight.reshape(-1, D))
    mixer.norm.weight.copy_(theirs.norm.weight)
    mixer.output.weight.copy_(theirs.out_proj.weight)
    torch.testing.assert_close(mixer(x, scope(x)), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negative", [True, False])
@torch.no_grad()
def test_the_gated_form_is_olmo_hybrids_layer_with_negative_eigenvalues_too(negative):
    torch.manual_seed(0)
    theirs = drawn(OlmoHybridGatedDeltaNet(OlmoHybridConfig(**SIZES, linear_allow_neg_eigval=negative), 0))
    mixer, x = ours(theirs, negative_eigenvalues=negative), stream()
    named = {"query": "q", "key": "k", "value": "v", "gate": "g", "beta": "b", "step": "a", "output": "o"}
    for name, other in named.items():
        getattr(mixer, name).load_state_dict(getattr(theirs, f"{other}_proj").state_dict())
    mixer.norm.weight.copy_(theirs.o_norm.weight)
    torch.testing.assert_close(mixer(x, scope(x)), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negative", [True, False])
@torch.no_grad()
def test_deltanet_replaces_what_stands_under_a_key(negative):
    """S_t = S_t-1 (I - beta k k^T) + beta v k^T, values by keys (Yang et al. 2024, section 2.2)."""
    torch.manual_seed(0)
    mixer, x = drawn(DeltaNet(D, H, negative_eigenvalues=negative, convolution=None)).double(), stream().double()
    q, k, v = (F.silu(linear(x)).unflatten(2, (H, -1)) for linear in (mixer.query, mixer.key, mixer.value))
    q, k = (x / (x.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    beta = mixer.beta(x).sigmoid() * (2 if negative else 1)
    out, width = torch.zeros(B, T, H, 8, dtype=x.dtype), 8
    for b in range(B):
        for h in range(H):
            state = torch.zeros(width, width, dtype=x.dtype)
            for t in range(T):
                kept = torch.eye(width, dtype=x.dtype) - beta[b, t, h] * torch.outer(k[b, t, h], k[b, t, h])
                state = state @ kept + beta[b, t, h] * torch.outer(v[b, t, h], k[b, t, h])
                out[b, t, h] = state @ q[b, t, h] / width**0.5
    normed = out / (out.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x, scope(x)), mixer.output(normed.flatten(2)), rtol=1e-9, atol=1e-9)


def test_negative_eigenvalues_keep_the_parity_of_a_text_and_without_them_a_state_only_shrinks():
    """beta = 2 turns the state under a key round (Grazzi et al. 2024, section 3.2); beta = 1 clears it."""
    for negative, kept in ((True, [-1.0, 1.0, -1.0]), (False, [0.0, 0.0, 0.0])):
        mixer = DeltaNet(1, 1, negative_eigenvalues=negative, convolution=None).double()
        with torch.no_grad():
            mixer.key.weight.fill_(20.0)
            mixer.query.weight.fill_(20.0)
            mixer.beta.weight.fill_(40.0)
            mixer.value.weight.zero_()
        state = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for expected in kept:
            x = torch.ones(1, 1, 1, dtype=torch.float64)
            terms = mixer.terms(x, *(x[None] * 20.0, x[None] * 20.0, x[None] * 0.0), scope(x))
            _, state = mixer.scan(terms, None, state)
            assert state.item() == pytest.approx(expected, abs=1e-6)


def test_first_rates_and_steps_are_those_of_the_paper():
    torch.manual_seed(0)
    mixer = GatedDeltaNet(4096, 2048, d_head=1, d_value=1)
    rates, steps = mixer.log_rate_H.detach().exp(), F.softplus(mixer.step_bias_H.detach())
    assert rates.min() >= 0.01 * 0.999
    assert rates.max() <= 16.001
    assert rates.mean() == pytest.approx(8.0, rel=0.05)
    assert steps.min() >= 0.00099
    assert steps.max() <= 0.101
    assert steps.log().mean().exp() == pytest.approx(0.01, rel=0.1)  # the middle of 0.001 and 0.1, by ratios
