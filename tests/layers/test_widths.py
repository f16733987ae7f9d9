"""muP is table 8 of Yang et al. 2022, CompleteP table 1 of Dey et al. 2025: both written out here."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from attnlab.layers import (
    FIRE,
    GRU,
    LSTM,
    CompleteP,
    DeltaNet,
    DifferentialAttention,
    Eager,
    ForgettingAttention,
    GatedDeltaNet,
    GatedLinear,
    GPT2Init,
    GroupedQuery,
    HeadGate,
    HyperConnections,
    LatentAttention,
    Learned,
    LinearAttention,
    MixtureOfExperts,
    MultiDConvHead,
    MultiHead,
    MuP,
    PositionEncoding,
    PostNorm,
    PreNorm,
    RelativeBias,
    ReLU,
    Retention,
    SwiGLU,
    TalkingHeads,
    build_scope,
)
from attnlab.models import GPT, NGPT, Bert, EncoderDecoder, RecurrentLanguageModel, ViT
from attnlab.training import adamw

V, BASE = 300, 64
TOKENS = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(0))


def build(init=MuP, d_model=BASE, model=GPT, **fields):
    torch.manual_seed(0)
    fields = {"num_heads": 4, "num_layers": 2} | fields
    return model(V, max_length=16, d_model=d_model, init=init, **fields)


def std(weight):
    return weight.std().item()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init", [MuP, partial(CompleteP, base_layers=2)])
def test_at_the_base_it_is_gpt2_bit_for_bit(init, tied):
    ours, theirs = build(init, tie_embeddings=tied), build(GPT2Init, tie_embeddings=tied)
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(ours(TOKENS), theirs(TOKENS))


@pytest.mark.parametrize("width", [16, 256])
def test_deviations_are_those_of_the_table(width):
    r = width / BASE
    model = build(d_model=width, tie_embeddings=False, position=Learned, feed_forward=SwiGLU)
    for layer in model.stack.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        for hidden in (attention.query, attention.key, attention.value, feed_forward.up, feed_forward.gate):
            assert std(hidden.weight) == pytest.approx(0.02 * r**-0.5, rel=0.1)
        for writes in (attention.output, feed_forward.down):
            assert std(writes.weight) == pytest.approx(0.02 * r**-0.5 / math.sqrt(2 * 2), rel=0.1)
    for constant in (model.embedding, model.head, model.stack.position.table):
        assert std(constant.weight) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_is_over_the_growth_of_the_width(tied):
    model = build(partial(MuP, output_multiplier=3.0), d_model=256, tie_embeddings=tied)
    states = model.stack(model.embed(TOKENS))
    weight = model.embedding.weight if tied else model.head.weight
    torch.testing.assert_close(model(TOKENS), states @ weight.T * 3.0 / 4)


@pytest.mark.parametrize(("fields", "base"), [({}, BASE / 4), ({"base_d_head": 64}, 64), ({"base_d_head": 8}, 8)])
def test_scores_are_over_the_width_of_a_head(fields, base):
    """q.k sqrt(base) / d_head, in loops: heads of 64 here, and at the base as many or as wide."""
    attention = build(partial(MuP, **fields), d_model=256).stack.layers[0].attention
    kept = Eager(keep_weights=True)
    attention.backend = kept
    model_input = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(1))
    attention(model_input, build_scope(model_input, PositionEncoding(), causal=True))
    for weights, head in zip(kept.weights_BHTS[0], range(4), strict=True):
        for t in range(5):
            q = attention.query(model_input)[0, t].view(4, 64)[head]
            keys = [attention.key(model_input)[0, s].view(4, 64)[head] for s in range(t + 1)]
            scores = torch.stack([sum(q * k) * math.sqrt(base) / 64 for k in keys])
            torch.testing.assert_close(weights[t, : t + 1], scores.softmax(0), rtol=1e-4, atol=1e-6)


def test_queries_may_start_at_zero():
    attention = build(partial(MuP, zero_query=True), d_model=128).stack.layers[1].attention
    assert not attention.query.weight.any()
    assert attention.key.weight.any()


def test_a_scaled_embedding_keeps_its_scale():
    model = build(d_model=256, model=EncoderDecoder, scale_embedding=True)
    torch.testing.assert_close(model.embed(TOKENS), model.embedding(TOKENS) * 8.0)


def test_the_growth_of_each_kind_of_parameter():
    model = build(
        d_model=128, bias=True, tie_embeddings=False, position=RelativeBias, attention=partial(MultiHead, qk_norm=True)
    )
    grown = {name: (g.fan_in, g.fan_out) for name, g in model.growths.items()}
    assert grown.keys() == dict(model.named_parameters()).keys()
    layer = "stack.layers.0."
    assert grown["embedding.weight"] == (None, 2.0)
    assert grown["head.weight"] == (2.0, None)
    assert grown["stack.position.table.weight"] == (None, None)
    assert grown[f"{layer}attention.query.weight"] == grown[f"{layer}feed_forward.down.weight"] == (2.0, 2.0)
    assert grown[f"{layer}attention.query.bias"] == grown[f"{layer}residual.norms.0.weight"] == (None, 2.0)
    assert grown[f"{layer}attention.query_norm.weight"] == (None, 2.0)


@pytest.mark.parametrize(("qk_norm", "grown"), [(True, 1.0), ("full_width", 2.0)])
def test_gains_of_queries_and_keys_grow_with_what_they_norm(qk_norm, grown):
    attention = partial(GroupedQuery, d_head=16, qk_norm=qk_norm)
    growths = build(partial(MuP, base_d_head=16), d_model=128, attention=attention).growths
    assert {growths[f"stack.layers.0.attention.{name}_norm.weight"].fan_out for name in ("query", "key")} == {grown}


@pytest.mark.parametrize(
    "kind",
    [
        *(LinearAttention, GatedLinear, Retention, DeltaNet, GatedDeltaNet, LSTM, GRU, HeadGate, MultiDConvHead),
        *(DifferentialAttention, ForgettingAttention, LatentAttention, TalkingHeads),
    ],
)
def test_every_mixer_is_gpt2_s_at_the_base(kind):
    ours, theirs = build(attention=kind), build(GPT2Init, attention=kind)
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS))


def test_what_mixers_project_grows_at_the_sides_that_do():
    """Four times as wide: hidden sides both, a number a head only the input, of a narrow waist one side each."""
    wide = {kind: build(d_model=256, attention=kind) for kind in (GatedLinear, GatedDeltaNet, Retention, LSTM)}
    grown = {
        (kind.__name__, name.removeprefix("stack.layers.0.attention.")): (g.fan_in, g.fan_out)
        for kind, model in wide.items()
        for name, g in model.growths.items()
    }
    hidden, narrow, vector = (4.0, 4.0), (4.0, None), (None, 4.0)
    assert grown["GatedLinear", "decay.0.weight"] == grown["GatedDeltaNet", "beta.weight"] == narrow
    assert grown["GatedDeltaNet", "step.weight"] == narrow
    assert grown["GatedLinear", "decay.1.weight"] == grown["GatedLinear", "decay.1.bias"] == vector
    assert grown["GatedDeltaNet", "convolution.taps_XP"] == grown["Retention", "norm.weight"] == vector
    assert grown["GatedDeltaNet", "norm.weight"] == vector
    assert grown["Retention", "gate.weight"] == grown["LSTM", "recurrence.ahead.0.weight_hh_l0"] == hidden
    assert grown["GatedDeltaNet", "log_rate_H"] == (None, None)
    delta, gated = (wide[kind].stack.layers[0].attention for kind in (GatedDeltaNet, GatedLinear))
    assert std(delta.step.weight) == pytest.approx(0.02 / 4, rel=0.1)
    assert std(gated.decay[1].weight) == pytest.approx(0.02, rel=0.1)
    assert (delta.scale, gated.scale) == (pytest.approx(16**-0.5), pytest.approx(8**0.5 / 32))
    by_heads = build(partial(MuP, base_d_head=16), d_model=256, attention=partial(DeltaNet, d_head=16, d_value=16))
    assert by_heads.growths["stack.layers.0.attention.beta.weight"].fan_out == 4.0


def test_what_other_attentions_have_of_their_own_grows_with_what_it_is_as_wide_as():
    """Four times as wide: with as many heads, which are then wider, or with more of 16."""
    kinds = (DifferentialAttention, ForgettingAttention, partial(LatentAttention, q_rank=128), TalkingHeads)
    wider = [build(d_model=256, attention=kind) for kind in kinds]
    more = [build(partial(MuP, base_d_head=16), d_model=256, num_heads=16, attention=kind) for kind in kinds]
    grown = [
        {
            name.removeprefix("stack.layers.0.attention."): (g.fan_in, g.fan_out)
            for model in models
            for name, g in model.growths.items()
        }
        for models in (wider, more)
    ]
    for name, as_many, as_wide in (
        ("lambda_q1", (None, 4.0), (None, 1.0)),
        ("head_norm.weight", (None, 4.0), (None, 1.0)),
        ("forget.weight", (4.0, None), (4.0, 4.0)),
        ("forget.bias", (None, None), (None, 4.0)),
        ("latent.weight", (4.0, 4.0), (4.0, 4.0)),
        ("query_norm.weight", (None, 4.0), (None, 4.0)),
        ("mix_scores_HH", (None, None), (4.0, 4.0)),
    ):
        assert (grown[0][name], grown[1][name]) == (as_many, as_wide), name
    differential, _, latent, _ = (model.stack.layers[0].attention for model in wider)
    assert differential.head_growth == 4
    assert latent.scale == pytest.approx(24**0.5 / 96)  # heads of 64 and 32 that rotate; of 16 and 8 at the base
    assert [model.stack.layers[0].attention.scale for model in more] == pytest.approx(
        [8**-0.5, 16**-0.5, 24**-0.5, 16**-0.5]
    )
    assert build(attention=DifferentialAttention).stack.layers[0].attention.head_growth == 1


def test_other_parts_have_rules_for_weights_of_their_own():
    model = build(d_model=256, position=FIRE, residual=HyperConnections, feed_forward=MixtureOfExperts)
    grown = {name: (g.fan_in, g.fan_out) for name, g in model.growths.items()}
    layer = "stack.layers.0."
    assert grown["stack.position.output_weight_HF"] == (None, None)
    assert grown[f"{layer}residual.dynamic.0"] == grown[f"{layer}feed_forward.router.weight"] == (4.0, None)
    assert grown[f"{layer}feed_forward.experts.3.up.weight"] == (4.0, 4.0)
    assert std(model.stack.layers[0].feed_forward.router.weight) == pytest.approx(0.02 / 4, rel=0.1)


def test_images_come_in_by_patches_and_the_output_is_over_the_growth():
    model = ViT(10, 8, 1, patch_size=2, d_model=256, num_heads=4, num_layers=1, pooling="class", init=MuP)
    grown = {name: (g.fan_in, g.fan_out) for name, g in model.growths.items()}
    assert grown["patches.weight"] == grown["patches.bias"] == grown["before.weight"] == (None, 4.0)
    assert (grown["head.weight"], grown["head.bias"]) == ((4.0, None), (None, None))
    assert std(model.patches.weight) == pytest.approx(0.02, rel=0.1)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model(images), model.head(model.encode(images)[:, 0] / 4))


def test_bert_has_hidden_matrices_outside_of_its_layers():
    grown = build(d_model=128, model=Bert, pooler=True).growths
    assert {(g.fan_in, g.fan_out) for name, g in grown.items() if name in ("transform.weight", "pooler.weight")} == {
        (2.0, 2.0)
    }
    assert grown["head_bias"].fan_out is None


class Routed(ReLU):
    """A feed-forward with a matrix of which one side does not grow."""

    def __init__(self, d_model, d_ff, **fields):
        super().__init__(d_model, d_ff, **fields)
        self.router = nn.Linear(d_model, 3, bias=False)


REFUSED = {
    "knows no rule for stack.layers.0.feed_forward.router.weight": lambda: build(feed_forward=Routed),
    "attention.scale must be null": lambda: build(attention=partial(MultiHead, scale=1.0)),
    "residual must be pre_ln or parallel, got PostNorm": lambda: build(CompleteP, residual=PostNorm),
    "is known for model=gpt, bert, encoder_decoder, t5, vit, got NGPT": lambda: NGPT(
        V, 16, d_model=16, num_heads=2, num_layers=1, init=MuP
    ),
    "got RecurrentLanguageModel": lambda: RecurrentLanguageModel(V, d_model=16, init=MuP),
    "attention must have an output projection, got GRU": lambda: build(CompleteP, attention=GRU),
    "zero_query must be false where attention.feature_map=relu": lambda: build(
        partial(MuP, zero_query=True), attention=partial(LinearAttention, feature_map="relu")
    ),
    "next_sentence.weight": lambda: build(model=Bert, next_sentence=True),
    "base_width": lambda: build(partial(MuP, base_width=0)),
    "alpha": lambda: build(partial(CompleteP, alpha=1.5)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_rule_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


class Divided(PreNorm):
    """x + f(norm(x)) / m^alpha."""

    by = 1.0

    def join(self, x_BTD, index, sublayer):
        return x_BTD + sublayer(self.norms[index](x_BTD)) / self.by


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_complete_p_is_the_paper_s_division_of_what_layers_add(alpha, monkeypatch):
    """A model whose residuals divide, trained with table 1's rates, eps and decay, is the same function throughout."""
    r, m, lr, decay, eps = 2.0, 3.0, 0.01, 0.1, 1e-4
    ours = build(partial(CompleteP, base_layers=1, alpha=alpha), d_model=128, num_layers=3, bias=True).double()
    monkeypatch.setattr(Divided, "by", m**alpha)
    theirs = build(MuP, d_model=128, num_layers=3, bias=True, residual=Divided).double()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for layer in theirs.stack.layers:
            layer.attention.output.weight.mul_(m**alpha)
            layer.feed_forward.down.weight.mul_(m**alpha)
    groups = []
    for name, parameter in theirs.named_parameters():
        in_layers, is_matrix = "layers." in name, parameter.ndim == 2
        rate = lr * (m ** (alpha - 1) if in_layers else 1) / (r if in_layers and is_matrix else 1)
        of_decay = (decay * lr / rate if in_layers else decay) if is_matrix else 0.0
        groups.append(
            {
                "params": [parameter],
                "lr": rate,
                "weight_decay": of_decay,
                "eps": eps / r * (m**-alpha if in_layers else 1),
            }
        )
    optimizers = adamw(ours, lr=lr, eps=eps, weight_decay=decay), torch.optim.AdamW(groups, betas=(0.9, 0.98))
    for _ in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
            optimizer.step()
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), rtol=1e-9, atol=1e-11)
