from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnlab.layers import (
    GELU,
    DeepNorm,
    HyperConnections,
    LayerNormScaling,
    LayerScale,
    OutputNorm,
    Parallel,
    PostNorm,
    PreNorm,
    ReZero,
    RMSNorm,
    Sandwich,
    Stack,
    StochasticDepth,
    Xavier,
    build_scope,
)
from attnlab.parts import build_part

D = 6


def attention(h):
    return torch.sin(3 * h) + 0.5


def feed_forward(h):
    return h.flip(-1) ** 2


def norm(h, number=0):
    """The norm that `marked` makes number `number` of a residual."""
    return F.layer_norm(h, (D,)) * (number + 1)


def marked(residual):
    """Gives each norm of a residual another gain, so that a swapped norm shows."""
    for norms in (residual.norms, getattr(residual, "output_norms", [])):
        for number, module in enumerate(norms):
            nn.init.constant_(module.weight, number + 1)
    return residual


@pytest.fixture
def x():
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0))


def test_post_norm_stands_after_the_sum(x):
    y = norm(x + attention(x), 0)
    torch.testing.assert_close(marked(PostNorm(D))(x, attention, feed_forward), norm(y + feed_forward(y), 1))


def test_pre_norm_stands_before_the_sublayer(x):
    y = x + attention(norm(x, 0))
    torch.testing.assert_close(marked(PreNorm(D))(x, attention, feed_forward), y + feed_forward(norm(y, 1)))


def test_sandwich_norms_what_goes_in_and_what_comes_out(x):
    y = x + norm(attention(norm(x, 0)), 0)
    expected = y + norm(feed_forward(norm(y, 1)), 1)
    torch.testing.assert_close(marked(Sandwich(D))(x, attention, feed_forward), expected)


@pytest.mark.parametrize("num_layers", [1, 6, 100])
def test_deepnorm_scales_the_stream_by_the_papers_alpha(x, num_layers):
    alpha = (2 * num_layers) ** (1 / 4)
    y = norm(alpha * x + attention(x), 0)
    residual = marked(DeepNorm(D, num_layers=num_layers))
    torch.testing.assert_close(residual(x, attention, feed_forward), norm(alpha * y + feed_forward(y), 1))


def test_deepnorm_constants_are_the_papers():
    # Wang et al. 2022, figure 2: encoder or decoder alone (2N)^1/4, (8N)^-1/4; a decoder with cross-attention (3M)^1/4, (12M)^-1/4.
    alone, crossing = DeepNorm(D, num_layers=18), DeepNorm(D, num_layers=18, num_sublayers=3)
    assert (alone.alpha, alone.init_gain) == pytest.approx((36**0.25, 144**-0.25))
    assert (crossing.alpha, crossing.init_gain) == pytest.approx((54**0.25, 216**-0.25))
    given = DeepNorm(D, num_layers=18, alpha=0.81 * 2, beta=0.87)
    assert (given.alpha, given.init_gain) == (0.81 * 2, 0.87)


def test_rezero_starts_as_the_identity_and_shares_one_alpha(x):
    residual = ReZero()
    assert torch.equal(residual(x, attention, feed_forward), x)
    nn.init.constant_(residual.alpha, 0.3)
    y = x + 0.3 * attention(x)
    torch.testing.assert_close(residual(x, attention, feed_forward), y + 0.3 * feed_forward(y))
    assert [p.numel() for p in residual.parameters()] == [1]


@pytest.mark.parametrize("shared_norm", [True, False])
def test_parallel_sublayers_read_the_same_stream(x, shared_norm):
    residual = marked(Parallel(D, shared_norm=shared_norm))
    expected = x + attention(norm(x, 0)) + feed_forward(norm(x, 0 if shared_norm else 1))
    torch.testing.assert_close(residual(x, attention, feed_forward), expected)


@pytest.mark.parametrize("cls", [PostNorm, PreNorm, Sandwich, DeepNorm, Parallel, ReZero])
def test_dropout_acts_on_the_sublayers_and_not_on_the_stream(cls, x):
    residual = cls(dropout=1.0) if cls is ReZero else cls(D, dropout=1.0)
    y = residual(x, attention, feed_forward)
    expected = norm(norm(x)) if cls in (PostNorm, DeepNorm) else x
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)  # twice normed: eps enters twice


@pytest.mark.parametrize(
    ("cls", "ends_in_norm"),
    [
        (PostNorm, False),
        (PreNorm, True),
        (OutputNorm, True),
        (LayerScale, True),
        (LayerNormScaling, True),
        (Sandwich, True),
        (DeepNorm, False),
        (ReZero, False),
        (Parallel, True),
    ],
)
def test_a_stack_ends_in_the_residuals_norm_where_the_stream_is_not_normed(cls, ends_in_norm):
    part = cls if cls is ReZero else partial(cls, norm=RMSNorm)
    stack = Stack({"d_model": 8, "num_heads": 2, "num_layers": 1, "residual": part}, causal=True)
    assert isinstance(stack.norm, RMSNorm if ends_in_norm else nn.Identity)


def last_gradient(residual, num_layers):
    """The gradient's norm at the last feed-forward matrix of a fresh stack, mean of five."""
    norms = []
    for seed in range(5):
        torch.manual_seed(seed)
        stack = Stack({"d_model": 64, "num_heads": 1, "num_layers": num_layers, "residual": residual}, causal=False)
        Xavier()(stack)
        target = torch.randn(4, 8, 64)
        (stack(torch.randn(4, 8, 64)) * target).sum().backward()
        norms.append(stack.layers[-1].feed_forward.down.weight.grad.norm())
    return torch.stack(norms).mean().item()


def test_first_gradients_shrink_with_depth_before_the_norm_and_not_after_it():
    # Xiong et al. 2020, theorem 1: the last feed-forward's gradient is O(1) in depth for Post-LN and O(L^-1/2) for Pre-LN.
    assert last_gradient(PostNorm, 16) / last_gradient(PostNorm, 2) == pytest.approx(1, abs=0.15)
    assert last_gradient(PreNorm, 16) / last_gradient(PreNorm, 2) < 0.6


# --- norm on outputs, LayerScale, LayerNorm scaling


def test_output_norm_is_olmo_2s_layer():
    from transformers.models.olmo2.modeling_olmo2 import Olmo2Config, Olmo2DecoderLayer, Olmo2RotaryEmbedding

    torch.manual_seed(0)
    config = Olmo2Config(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24, vocab_size=5
    )
    config._attn_implementation = "eager"
    layer = Olmo2DecoderLayer(config, layer_idx=0).eval()
    nn.init.normal_(layer.post_attention_layernorm.weight)
    nn.init.normal_(layer.post_feedforward_layernorm.weight)
    residual = OutputNorm(16, norm=partial(RMSNorm, eps=config.rms_norm_eps))
    residual.norms[0].load_state_dict(layer.post_attention_layernorm.state_dict())
    residual.norms[1].load_state_dict(layer.post_feedforward_layernorm.state_dict())
    x = torch.randn(2, 5, 16)
    rotation = Olmo2RotaryEmbedding(config)(x, torch.arange(5)[None])
    theirs = layer(x, attention_mask=None, position_embeddings=rotation)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    ours = residual(x, lambda h: layer.self_attn(h, position_embeddings=rotation, attention_mask=None)[0], layer.mlp)
    torch.testing.assert_close(ours, theirs)


def test_output_norm_stands_on_what_is_added(x):
    y = x + norm(attention(x), 0)
    torch.testing.assert_close(marked(OutputNorm(D))(x, attention, feed_forward), y + norm(feed_forward(y), 1))


def test_layer_scale_has_one_scale_for_each_channel_of_each_sublayer(x):
    residual = marked(LayerScale(D, init=0.1))
    assert torch.equal(torch.stack(list(residual.scales)), torch.full((2, D), 0.1))
    scales = torch.arange(1.0, 13).view(2, D)
    for scale, value in zip(residual.scales, scales, strict=True):
        scale.data.copy_(value)
    y = x + scales[0] * attention(norm(x, 0))
    torch.testing.assert_close(residual(x, attention, feed_forward), y + scales[1] * feed_forward(norm(y, 1)))


@pytest.mark.parametrize("layer_index", [0, 1, 8])
def test_layer_norm_scaling_divides_by_the_root_of_the_layer_counted_from_1(x, layer_index):
    root = (layer_index + 1) ** 0.5
    y = x + attention(norm(x, 0) / root)
    residual = marked(LayerNormScaling(D, layer_index=layer_index))
    torch.testing.assert_close(residual(x, attention, feed_forward), y + feed_forward(norm(y, 1) / root))


def test_layers_of_a_stack_are_told_their_index():
    stack = Stack({"d_model": 8, "num_heads": 2, "num_layers": 4, "residual": LayerNormScaling}, causal=True)
    assert [layer.residual.scale for layer in stack.layers] == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5])


# --- stochastic depth


def test_stochastic_depth_drops_whole_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = StochasticDepth(0.3).train()(torch.ones(20000, 2, 3))
    rows = dropped.flatten(1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert sorted(rows[:, 0].unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert (rows[:, 0] == 0).float().mean() == pytest.approx(0.3, abs=0.015)  # over 4 sigma
    assert torch.equal(StochasticDepth(0.3).eval()(torch.ones(5, 2, 3)), torch.ones(5, 2, 3))


def test_stochastic_depth_grows_linearly_up_to_the_last_layer():
    # Huang et al. 2016, equation 4: survival p_l = 1 - l / L (1 - p_L).
    fields = {"d_model": 8, "num_heads": 2, "num_layers": 4, "residual": partial(PreNorm, stochastic_depth=0.2)}
    stack = Stack({**fields, "dropout": 0.1}, causal=True)
    rates = [layer.residual.dropout[1].rate for layer in stack.layers]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert "StochasticDepth" not in str(Stack({**fields, "residual": PreNorm}, causal=True))


EVERY = [
    PostNorm,
    PreNorm,
    OutputNorm,
    LayerScale,
    LayerNormScaling,
    Sandwich,
    DeepNorm,
    Parallel,
    ReZero,
    HyperConnections,
]


@pytest.mark.parametrize("cls", EVERY)
def test_stochastic_depth_acts_in_every_residual_and_not_in_evaluation(cls):
    torch.manual_seed(0)
    part = partial(cls, stochastic_depth=0.5)
    dims = {"d_model": D, "num_layers": 1, "dropout": 0.0, "num_sublayers": 2, "layer_index": 0}
    residual, plain = build_part(part, **dims), build_part(cls, **dims)
    for module in (residual, plain):
        if cls is ReZero:
            nn.init.constant_(module.alpha, 0.5)
    x = torch.randn(64, 3, D, generator=torch.Generator().manual_seed(0))
    entered = residual.enter(x)
    expected = plain.leave(plain(entered, attention, feed_forward))
    torch.testing.assert_close(residual.eval().leave(residual(entered, attention, feed_forward)), expected)
    torch.manual_seed(1)
    first = residual.train().leave(residual(entered, attention, feed_forward))
    torch.manual_seed(1)
    assert torch.equal(first, residual.leave(residual(entered, attention, feed_forward)))  # torch's generator decides
    assert not torch.allclose(first, expected)
    none = build_part(partial(cls, dropout=1.0), **{**dims, "dropout": 1.0})  # as where both sublayers are left out
    untouched = none.leave(none(entered, attention, feed_forward))
    share = torch.isclose(first, untouched, atol=1e-4).flatten(1).all(dim=1).float().mean()
    assert 0.08 < share < 0.45  # a quarter of the rows


# --- Mix-LN


def test_mix_ln_is_a_pattern():
    # Li et al. 2024, arXiv 2412.13795: Post-LN in the first quarter of the layers, Pre-LN in the others.
    torch.manual_seed(0)
    layers = {"post": {"residual": PostNorm}, "pre": {"residual": PreNorm}}
    fields = {"d_model": 8, "num_heads": 2, "num_layers": 4, "pattern": ["post", "pre", "pre", "pre"], "layers": layers}
    stack = Stack({**fields, "feed_forward": GELU}, causal=True).eval()
    x = torch.randn(2, 5, 8)
    scope = build_scope(x, stack.position, causal=True)
    expected = stack.position.embed(x, scope.query_positions_BT)
    for index, layer in enumerate(stack.layers):
        norms = layer.residual.norms
        for number, sublayer in enumerate((lambda h, layer=layer: layer.attention(h, scope), layer.feed_forward)):
            if index < 1:
                expected = norms[number](expected + sublayer(expected))
            else:
                expected = expected + sublayer(norms[number](expected))
    torch.testing.assert_close(stack(x), stack.norm(expected))
    assert not isinstance(stack.norm, nn.Identity)
