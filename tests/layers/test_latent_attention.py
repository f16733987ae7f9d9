"""Latent attention against transformers' DeepSeek, its cache, and the operations that it takes.

Legend: B batch, T length, D model width, H heads, C width of the latent state, R rotated width, V width of values.
"""

from functools import partial

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from attnlab.layers import (
    ALiBi,
    Eager,
    KeyValueCache,
    LatentAttention,
    Memory,
    PositionEncoding,
    Rotary,
    Stack,
    build_scope,
)
from attnlab.models import GPT, measure_size

B, T, D, H, C, K, R, V = 2, 7, 24, 4, 10, 6, 4, 5
WIDTHS = {"kv_rank": C, "d_head": K, "d_rotary": R, "d_value": V}
OF_THEIRS = {
    "hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H, "kv_lora_rank": C, "qk_nope_head_dim": K,
    "qk_rope_head_dim": R, "v_head_dim": V, "attn_implementation": "eager",
}  # fmt: skip


def example(seed=0, length=T):
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed))


def copied(theirs, ours):
    """Gives ours the weights of theirs, which stand together there: latent and rotated key, keys and values."""
    down, up = theirs.kv_a_proj_with_mqa, theirs.kv_b_proj.weight.unflatten(0, (H, K + V))
    ours.latent.weight.copy_(down.weight[:C])
    ours.rotary_key.weight.copy_(down.weight[C:])
    if down.bias is not None:
        ours.latent.bias.copy_(down.bias[:C])
        ours.rotary_key.bias.copy_(down.bias[C:])
    ours.latent_norm.weight.copy_(theirs.kv_a_layernorm.weight.normal_())
    ours.key.weight.copy_(up[:, :K].flatten(0, 1))
    ours.value.weight.copy_(up[:, K:].flatten(0, 1))
    ours.output.load_state_dict(theirs.o_proj.state_dict())
    if theirs.q_lora_rank is None:
        ours.query.load_state_dict(theirs.q_proj.state_dict())
        return
    ours.query_down.load_state_dict(theirs.q_a_proj.state_dict())
    ours.query_norm.weight.copy_(theirs.q_a_layernorm.weight.normal_())
    ours.query.load_state_dict(theirs.q_b_proj.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("q_rank", [None, 8])
@pytest.mark.parametrize("version", [2, 3])
def test_it_is_transformers_deepseek(version, q_rank, bias):
    torch.manual_seed(0)
    kind, config = {2: (DeepseekV2Attention, DeepseekV2Config), 3: (DeepseekV3Attention, DeepseekV3Config)}[version]
    theirs = kind(config(**OF_THEIRS, q_lora_rank=q_rank, attention_bias=bias, rms_norm_eps=1e-6), 0).eval()
    ours = LatentAttention(D, H, **WIDTHS, q_rank=q_rank, bias=bias).eval()
    copied(theirs, ours)
    rotary = Rotary(R, interleaved=True)
    angles_1TP = rotary.angles(torch.arange(T)[None])
    twice_1TR = angles_1TP.repeat(1, 1, 2)
    turns = torch.polar(torch.ones_like(angles_1TP), angles_1TP) if version == 2 else (twice_1TR.cos(), twice_1TR.sin())
    mask_TS = torch.full((T, T), -torch.inf).triu(1)[None, None]
    expected_BTD, weights_BHTS, *_ = theirs(example(), position_embeddings=turns, attention_mask=mask_TS)
    ours.backend = Eager(keep_weights=True)
    made_BTD = ours(example(), build_scope(example(), rotary, True))
    torch.testing.assert_close(made_BTD, expected_BTD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.backend.weights_BHTS, weights_BHTS, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("position", [Rotary, PositionEncoding, partial(ALiBi, H)])
def test_the_cache_keeps_the_latent_state_and_the_rotated_key_alone(position):
    torch.manual_seed(0)
    attention = LatentAttention(D, H, **WIDTHS, window=4).eval()
    encoding = position(R) if position is Rotary else position()
    cache, x_BTD = KeyValueCache(1, 9), example(length=9)
    pieces = [
        attention(piece, build_scope(piece, encoding, True, cache=cache), cache.layer(0))
        for piece in x_BTD.split([4, 1, 1, 3], dim=1)
    ]
    whole_BTD = attention(x_BTD, build_scope(x_BTD, encoding, True))
    torch.testing.assert_close(torch.cat(pieces, 1), whole_BTD, atol=1e-5, rtol=1e-5)
    assert [tuple(kept.shape) for kept in cache._kept[0].buffers] == [(B, 1, 9, C + R)]


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"soft_cap": 1.5}, {"window": 7}, {"q_rank": 8, "backend": "eager"}])
@pytest.mark.parametrize("position", [Rotary, partial(ALiBi, H)])
def test_decoding_attends_to_the_latent_states_themselves_and_gives_the_same(position, fields):
    torch.manual_seed(0)
    attention = LatentAttention(D, H, **WIDTHS, **fields).eval()
    encoding = position(R) if position is Rotary else position()
    cache, x_BTD, ups = KeyValueCache(1, 40), example(length=40), []
    attention.value.register_forward_hook(lambda up, given, made: ups.append(made.shape[1]))
    pieces = [
        attention(piece, build_scope(piece, encoding, True, cache=cache), cache.layer(0))
        for piece in x_BTD.split([20, *[1] * 18, 2], dim=1)
    ]
    assert ups == [20]  # after the prompt, no values are made any more
    whole_BTD = attention(x_BTD, build_scope(x_BTD, encoding, True))
    torch.testing.assert_close(torch.cat(pieces, 1), whole_BTD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_memory_keeps_latent_states_too():
    torch.manual_seed(0)
    attention, source_BSD = LatentAttention(D, H, **WIDTHS).eval(), example(seed=3)
    memory, plain = Memory(source_BSD, keep=True), Memory(source_BSD)
    for seed in (0, 1):
        x_BTD = example(seed)
        torch.testing.assert_close(memory.attend(attention, x_BTD), plain.attend(attention, x_BTD))
    assert [tuple(kept.shape) for kept in memory._kept[attention]] == [(B, 1, T, C), (B, 1, T, R)]


@pytest.mark.parametrize("fields", [{}, {"soft_cap": 1.5}, {"window": 3}, {"scale": 0.3}])
def test_every_backend_gives_the_same(fields):
    torch.manual_seed(0)
    found = []
    for backend in ("auto", "math", "eager", *(() if "soft_cap" in fields else ("fused",))):
        torch.manual_seed(0)
        attention, x_BTD = LatentAttention(D, H, **WIDTHS, backend=backend, **fields), example()
        out_BTD = attention(x_BTD, build_scope(x_BTD, Rotary(R), True))
        found.append((out_BTD, *torch.autograd.grad(out_BTD.square().sum(), attention.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", [Rotary, ALiBi])
def test_long_sequences_are_served_in_rows(position):
    fields = {"d_model": D, "num_heads": H, "num_layers": 1, "position": position}
    gradients = []
    for backend in ("auto", "math"):
        torch.manual_seed(0)
        stack = Stack({**fields, "attention": partial(LatentAttention, **WIDTHS, backend=backend)}, causal=True)
        gradients.append(torch.autograd.grad(stack(example(length=1100)).square().sum(), list(stack.parameters())))
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-3)


def test_operations_and_widths_are_those_of_the_closed_form():
    part = partial(LatentAttention, **WIDTHS, q_rank=8)
    model = GPT(13, 16, d_model=D, num_heads=H, num_layers=1, d_ff=40, attention=part)
    tokens = torch.zeros(2, 12, dtype=torch.long)
    size = measure_size(model, lambda: model(tokens).shape[:2].numel())
    down = D * (8 + C + R)
    up = 8 * H * (K + R) + C * H * (K + V) + H * V * D
    assert size.non_embedding_parameters == down + up + 8 + C + 2 * D * 40 + 3 * 2 * D
    scores = 12 * H * (K + R) + 12 * H * V
    assert size.flops_per_token == 3 * 2 * (down + up + 2 * D * 40 + scores + 13 * D)


def test_widths_that_nobody_gives_are_the_papers():
    attention = LatentAttention(32, 4)  # heads of 8
    assert (attention.latent.out_features, attention.d_head, attention.d_value) == (32, 4, 8)
    assert attention.query.out_features == 4 * (8 + 4)
    assert attention.scale == 12**-0.5
