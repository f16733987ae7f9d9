"""Attentions that weigh, gate or share otherwise, against their formulas written as loops and transformers' own.

Legend: B batch, T length, D model width, H heads, G key/value heads, K width of queries and keys, V width of values.
"""

import math
from functools import partial

import pytest
import torch
from transformers import DiffLlamaConfig, GptOssConfig
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from attnlab.layers import (
    ALiBi,
    Attention,
    DifferentialAttention,
    Eager,
    ForgettingAttention,
    HeadGate,
    KeyValueCache,
    LatentAttention,
    Memory,
    MultiHead,
    PositionEncoding,
    Rotary,
    SharedKeyValues,
    SigmoidAttention,
    SinkLogit,
    SoftmaxPlusOne,
    Stack,
    TalkingHeads,
    ValueResidual,
    build_scope,
)
from attnlab.parts import parameters_of

B, T, D, H = 2, 7, 24, 4
K = D // H
PADDED = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7], dtype=torch.bool)
SIGMOID = partial(SigmoidAttention, sequence_length=16)
WEIGHING = [SoftmaxPlusOne, SinkLogit, SIGMOID, ForgettingAttention, DifferentialAttention, TalkingHeads]


def example(seed=0, length=T):
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed))


def shaken(module, seed=0):
    """A module off its first values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return module.eval()


def attend(attention, x_BTD, causal=True, position=None, **given):
    """The output, and the weights that it kept."""
    attention.backend = Eager(keep_weights=True)
    out_BTD = attention(x_BTD, build_scope(x_BTD, position or PositionEncoding(), causal, **given))
    return out_BTD, attention.backend.weights_BHTS


def scores_by_loops(attention, x_TD, bias=None):
    """q.k scale + bias of each head, query and key of one row."""
    q, k = attention.query(x_TD), attention.key(x_TD)
    per_group = attention.num_heads // attention.num_key_value_heads
    found = torch.zeros(attention.num_heads, len(x_TD), len(x_TD))
    for h in range(attention.num_heads):
        for t in range(len(x_TD)):
            for s in range(len(x_TD)):
                g = h // per_group
                found[h, t, s] = q[t, h * K : (h + 1) * K] @ k[s, g * K : (g + 1) * K] * attention.scale
    return found if bias is None else found + bias


def seen(t, s, is_token_T, causal):
    return bool(is_token_T[s]) and (s <= t or not causal)


def alibi_HTS():
    slopes_H = 2.0 ** (-8 / H * torch.arange(1, H + 1))
    distance_TS = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    return -slopes_H[:, None, None] * distance_TS


def weigh_by_loops(attention, scores_HTS, allowed, x_TD):
    """The weights (H, T, S) of one row, from the papers' formulas, in Python's floats."""
    heads, length = scores_HTS.shape[:2]
    if isinstance(attention, TalkingHeads):
        mixed = torch.einsum("hts,hi->its", scores_HTS - alibi_HTS(), attention.mix_scores_HH)
        scores_HTS = mixed + alibi_HTS()  # the bias is no part of what is mixed
    if isinstance(attention, ForgettingAttention):
        gates_TH = torch.sigmoid(attention.forget(x_TD))
    found = torch.zeros(heads, length, length)
    for h in range(heads):
        for t in range(length):
            keys = [s for s in range(length) if allowed(t, s)]
            values = {s: float(scores_HTS[h, t, s]) for s in keys}
            if isinstance(attention, ForgettingAttention):
                values = {s: v + math.log(math.prod(gates_TH[s + 1 : t + 1, h].tolist())) for s, v in values.items()}
            for s in keys:
                if isinstance(attention, SigmoidAttention):
                    found[h, t, s] = 1 / (1 + 16 * math.exp(-values[s]))
                    continue
                below = sum(math.exp(v) for v in values.values())
                if isinstance(attention, SoftmaxPlusOne):
                    below += 1
                if isinstance(attention, SinkLogit):
                    below += math.exp(attention.sink_H[h])
                found[h, t, s] = math.exp(values[s]) / below
    if isinstance(attention, TalkingHeads):
        found = torch.einsum("hts,hi->its", found, attention.mix_weights_HH)
    return found


@torch.no_grad()
@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("part", [SoftmaxPlusOne, SinkLogit, SIGMOID, ForgettingAttention, TalkingHeads])
def test_weights_are_their_formula_written_as_loops(part, causal, groups):
    if part is ForgettingAttention and not causal:
        assert not part.sees_both_sides
        return
    attention = shaken(part(d_model=D, num_heads=H, num_key_value_heads=groups))
    x_BTD = example()
    out_BTD, weights_BHTS = attend(attention, x_BTD, causal, ALiBi(H), is_token_BT=PADDED)
    for row in range(B):
        real = PADDED[row]
        scores_HTS = scores_by_loops(attention, x_BTD[row], alibi_HTS())
        allowed = partial(seen, is_token_T=real, causal=causal)
        expected_HTS = weigh_by_loops(attention, scores_HTS, allowed, x_BTD[row])
        torch.testing.assert_close(weights_BHTS[row][:, real], expected_HTS[:, real], atol=2e-6, rtol=1e-5)
        v_GTV = attention.value(x_BTD[row]).view(T, groups, K).transpose(0, 1).repeat_interleave(H // groups, 0)
        mixed_TD = (expected_HTS @ v_GTV).transpose(0, 1).flatten(1)
        torch.testing.assert_close(out_BTD[row][real], attention.output(mixed_TD)[real], atol=1e-5, rtol=1e-5)


def causal_mask():
    return torch.full((T, T), -torch.inf).triu(1)[None, None]


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
def test_sink_logits_are_those_of_transformers_gpt_oss(window):
    config = GptOssConfig(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=2, head_dim=8, attention_bias=True,
        num_hidden_layers=1, attn_implementation="eager",
    )  # fmt: skip
    theirs = GptOssAttention(config, 0)
    torch.nn.init.normal_(theirs.sinks)
    ours = SinkLogit(D, H, num_key_value_heads=2, d_head=8, bias=True, window=window).eval()
    ours.sink_H.copy_(theirs.sinks)
    for name, own in {"q_proj": ours.query, "k_proj": ours.key, "v_proj": ours.value, "o_proj": ours.output}.items():
        own.load_state_dict(getattr(theirs, name).state_dict())
    mask_TS = causal_mask()
    if window:
        mask_TS = mask_TS.masked_fill(torch.ones(T, T, dtype=torch.bool).tril(-window), -torch.inf)
    cos_TP, sin_TP = torch.ones(1, T, 4), torch.zeros(1, T, 4)  # no rotation; theirs takes half of a head's width
    expected_BTD, weights_BHTS = theirs.eval()(example(), (cos_TP, sin_TP), mask_TS)
    made_BTD, kept_BHTS = attend(ours, example())
    torch.testing.assert_close(made_BTD, expected_BTD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept_BHTS, weights_BHTS, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("groups", [4, 2])
def test_differential_attention_is_that_of_transformers_diffllama(groups, layer):
    config = DiffLlamaConfig(
        hidden_size=D, num_attention_heads=2 * H, num_key_value_heads=2 * groups, head_dim=K, rms_norm_eps=1e-5,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = DiffLlamaAttention(config, layer).eval()
    torch.manual_seed(0)
    ours = DifferentialAttention(D, H, layer, num_key_value_heads=groups, d_head=2 * K).eval()
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        getattr(ours, name).normal_(std=0.5)
        getattr(theirs, name).copy_(getattr(ours, name))

    def apart(weight, heads):  # the halves of every head one after the other: the first of all heads, then the second
        return weight.unflatten(0, (heads, 2, K)).transpose(0, 1).flatten(0, 2)

    theirs.q_proj.weight.copy_(apart(ours.query.weight, H))
    theirs.k_proj.weight.copy_(apart(ours.key.weight, groups))
    theirs.v_proj.weight.copy_(apart(ours.value.weight, groups))
    theirs.o_proj.weight.copy_(ours.output.weight)
    rotary, positions = Rotary(K), torch.arange(T)[None]
    angles_1TP = rotary.angles(positions).repeat(1, 1, 2)
    expected_BTD, _ = theirs(example(), (angles_1TP.cos(), angles_1TP.sin()), causal_mask())
    made_BTD, _ = attend(ours, example(), position=rotary)
    torch.testing.assert_close(made_BTD, expected_BTD, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_differential_maps_are_the_difference_of_two_softmaxes():
    attention, x_BTD = shaken(DifferentialAttention(D, H, layer_index=2)), example()
    _, weights_BHTS = attend(attention, x_BTD, causal=False)
    start = 0.8 - 0.6 * math.exp(-0.6)
    factor = math.exp(attention.lambda_q1 @ attention.lambda_k1) - math.exp(attention.lambda_q2 @ attention.lambda_k2)
    for h in range(H):
        maps = []
        for half in range(2):
            span = slice(h * K + half * K // 2, h * K + (half + 1) * K // 2)
            scores_BTS = attention.query(x_BTD)[..., span] @ attention.key(x_BTD)[..., span].transpose(1, 2)
            maps.append((scores_BTS / math.sqrt(K / 2)).softmax(-1))
        torch.testing.assert_close(weights_BHTS[:, h], maps[0] - (factor + start) * maps[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sink_far_below_is_no_sink_and_one_at_nought_is_plus_one():
    sink, plain, one = (shaken(part(D, H)) for part in (SinkLogit, MultiHead, SoftmaxPlusOne))
    for other in (plain, one):
        other.load_state_dict({name: value for name, value in sink.state_dict().items() if name != "sink_H"})
    sink.sink_H.fill_(-1e4)
    torch.testing.assert_close(attend(sink, example())[0], attend(plain, example())[0], atol=1e-6, rtol=1e-5)
    sink.sink_H.zero_()
    assert attend(sink, example())[0].equal(attend(one, example())[0])


@torch.no_grad()
def test_gates_that_are_open_forget_nothing_and_shut_ones_see_but_themselves():
    forgetting, plain = shaken(ForgettingAttention(D, H)), MultiHead(D, H).eval()
    plain.load_state_dict({k: v for k, v in forgetting.state_dict().items() if not k.startswith("forget")})
    forgetting.forget.weight.zero_()
    forgetting.forget.bias.fill_(50.0)
    torch.testing.assert_close(attend(forgetting, example())[0], attend(plain, example())[0], atol=1e-6, rtol=1e-5)
    forgetting.forget.bias.fill_(-200.0)
    weights_BHTS = attend(forgetting, example())[1]
    torch.testing.assert_close(weights_BHTS, torch.eye(T).expand(B, H, T, T), atol=1e-6, rtol=0)


@torch.no_grad()
def test_talking_heads_start_as_heads_that_do_not():
    torch.manual_seed(0)
    talking, plain = TalkingHeads(D, H).eval(), MultiHead(D, H).eval()
    plain.load_state_dict({k: v for k, v in talking.state_dict().items() if not k.startswith("mix")})
    torch.testing.assert_close(attend(talking, example())[0], attend(plain, example())[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_gate_weighs_whole_heads(bias):
    gated, plain = shaken(HeadGate(D, H, bias=bias)), MultiHead(D, H, bias=bias).eval()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    assert sum(p.numel() for p in gated.parameters()) - sum(p.numel() for p in plain.parameters()) == H * (D + bias)
    x_BTD, before = example(), []
    handle = plain.output.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    attend(plain, x_BTD)
    handle.remove()
    gates_BTH = 1 / (1 + torch.exp(-gated.gate(x_BTD)))
    heads = [before[0][..., h * K : (h + 1) * K] * gates_BTH[..., h : h + 1] for h in range(H)]
    torch.testing.assert_close(attend(gated, x_BTD)[0], gated.output(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"window": 3}, {"soft_cap": 1.5}, {"qk_norm": True}, {"output_gate": True}, {}])
@pytest.mark.parametrize("part", WEIGHING)
def test_math_is_eager_and_pieces_are_the_whole_with_every_field(part, fields):
    attention = shaken(part(d_model=D, num_heads=H, **fields))
    x_BTD, position = example(length=9), Rotary(attention.d_head) if attention.d_head % 2 == 0 else ALiBi(H)
    with torch.no_grad():
        whole_BTD, _ = attend(attention, x_BTD, position=position)
        for backend in ("auto", "math"):
            attention.backend = backend
            made_BTD = attention(x_BTD, build_scope(x_BTD, position, True))
            torch.testing.assert_close(made_BTD, whole_BTD, atol=1e-5, rtol=1e-5)
        cache = KeyValueCache(1, 9)
        pieces = [
            attention(piece, build_scope(piece, position, True, cache=cache), cache.layer(0))
            for piece in x_BTD.split([4, 1, 1, 3], dim=1)
        ]
        torch.testing.assert_close(torch.cat(pieces, 1), whole_BTD, atol=1e-5, rtol=1e-5)
    for backend in ("fused", "flex"):
        with pytest.raises(ValueError, match=f"backend={backend} makes weights by a softmax alone"):
            part(d_model=D, num_heads=H, backend=backend)


@torch.no_grad()
@pytest.mark.parametrize("part", [SinkLogit, SIGMOID, DifferentialAttention, TalkingHeads, HeadGate])
def test_a_memory_is_attended_to_as_by_a_query_of_the_same_text(part):
    attention, source_BSD = shaken(part(d_model=D, num_heads=H)), example(seed=3)
    # Without a mask and positions, attention to one's own states is attention to a memory of the same states.
    expected_BTD, _ = attend(attention, source_BSD, causal=False)
    attention.backend = "auto"
    torch.testing.assert_close(Memory(source_BSD).attend(attention, source_BSD), expected_BTD, atol=1e-5, rtol=1e-5)


def stack_of(part, num_layers=4, causal=True, **fields):
    torch.manual_seed(0)
    described = {"d_model": D, "num_heads": H, "num_layers": num_layers, "attention": part, "position": Rotary}
    return shaken(Stack({**described, **fields}, causal=causal, max_length=16))


@torch.no_grad()
def test_values_of_later_layers_are_mixed_with_the_first():
    stack, x_BTD = stack_of(ValueResidual, num_layers=3), example()
    reference = stack_of(MultiHead, num_layers=3)
    reference.load_state_dict({k: v for k, v in stack.state_dict().items() if not k.endswith("value_weights")})
    assert stack.layers[0].attention.value_weights is None
    first = []

    def mix(layer, weights):
        def hook(module, args, out):
            if layer == 0:
                first.append(out)
                return out
            return weights[0] * first[0] + weights[1] * out

        return hook

    for index, (layer, own) in enumerate(zip(reference.layers, stack.layers, strict=True)):
        layer.attention.value.register_forward_hook(mix(index, own.attention.value_weights))
    torch.testing.assert_close(stack(x_BTD), reference(x_BTD), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sharing", [2, 3])
def test_shared_keys_and_values_are_those_of_the_first_layer_of_a_group(sharing):
    stack, x_BTD = stack_of(partial(SharedKeyValues, sharing=sharing, qk_norm=True)), example()
    reference = stack_of(partial(MultiHead, qk_norm=True))
    state = stack.state_dict()
    assert not any(f"layers.{sharing - 1}.attention.{name}" in key for key in state for name in ("key", "value"))
    reference.load_state_dict(state, strict=False)
    kept = {}

    def take(index, name):
        def hook(module, args, out):
            return kept.setdefault((index - index % sharing, name), out)

        return hook

    for index, layer in enumerate(reference.layers):
        for name in ("key", "value"):
            getattr(layer.attention, name).register_forward_hook(take(index, name))
        owner = reference.layers[index - index % sharing].attention
        layer.attention.key_norm.load_state_dict(owner.key_norm.state_dict())
    torch.testing.assert_close(stack(x_BTD), reference(x_BTD), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_cache_of_shared_keys_and_values_is_half_as_large():
    stack, x_BTD = stack_of(SharedKeyValues), example()
    cache = KeyValueCache(4, T)
    pieces = [stack(piece, cache=cache) for piece in x_BTD.split([3, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), stack(x_BTD), atol=1e-5, rtol=1e-5)
    assert [len(kept.buffers) for kept in cache._kept] == [2, 0, 2, 0]


@pytest.mark.parametrize("part", [SharedKeyValues, ValueResidual, LatentAttention])
@pytest.mark.parametrize("cross", [False, True])
def test_what_layers_share_has_the_same_gradients_under_activation_checkpointing(part, cross):
    torch.manual_seed(0)
    fields = {"d_model": D, "num_heads": H, "num_layers": 4, "attention": part}
    stack = shaken(Stack(fields, causal=True, max_length=16, cross_attention=cross)).train()
    x_BTD, found = example(), []
    for recompute in (False, True):
        stack.checkpoint_activations = recompute
        memory = Memory(example(seed=5)) if cross else None
        loss = stack(x_BTD, is_token_BT=PADDED, memory=memory).square().sum()
        found.append(torch.autograd.grad(loss, list(stack.parameters())))
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [SharedKeyValues, ValueResidual])
def test_a_layer_that_finds_nothing_left_says_so(part):
    attention, x_BTD = part(D, H, layer_index=1), example()
    with pytest.raises(ValueError, match=f"all layers of a stack have to be {part.__name__}"):
        attend(attention, x_BTD)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (partial(SigmoidAttention, D, H), "sequence_length must be a number of positions where there is no max_length"),
        (partial(DifferentialAttention, 20, 4), "d_head must be even, for two halves, got 5"),
        (partial(SharedKeyValues, D, H, sharing=0), "sharing must be at least 1, got 0"),
        (partial(SinkLogit, D, H, num_key_value_heads=3), "num_key_value_heads=3 does not divide num_heads=4"),
    ],
)
def test_mistakes_are_refused_with_what_is_accepted(part, message):
    with pytest.raises(ValueError, match=message):
        part()


def test_a_head_gate_has_no_second_gate():
    with pytest.raises(TypeError, match="HeadGate has no field 'output_gate'"):
        HeadGate(D, H, output_gate=True)
    assert "output_gate" not in parameters_of(HeadGate)


def test_with_no_change_of_weights_any_backend_serves():
    for part in (HeadGate, ValueResidual, SharedKeyValues, Attention, LatentAttention):
        assert not part.weighs()
    for part in WEIGHING:
        assert getattr(part, "func", part).weighs()
