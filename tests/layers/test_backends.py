"""Backends against each other and against attention written as loops.

Legend: B batch, T target length, S source length, D model width, H heads, G key/value heads, K head width.
"""

import math

import pytest
import torch

from attnlab import layers
from attnlab.layers import Eager, Flex, Fused, InBlocks, Math, Scope, Scores, build_scope, choose_backend
from attnlab.parts import build_part

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

B, T, H, K = 2, 7, 6, 8
WIDTHS = {"d_model": H * K, "num_heads": H, "d_head": K, "max_length": 16, "grid": (4, 4)}
POSITIONS = [
    "PositionEncoding",
    "Sinusoidal",
    "Learned",
    "Rotary",
    "RotaryLinear",
    "RotaryNTK",
    "RotaryYaRN",
    "RotaryLlama3",
    "ALiBi",
    "RelativeBias",
    "Sinusoidal2D",
    "Learned2D",
    "AxialRotary",
]
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
MASKS = {
    "causal": {"causal": True},
    "bidirectional": {"causal": False},
    "causal_window": {"causal": True, "window": 3},
    "bidirectional_window": {"causal": False, "window": 2},
    "left_padding": {"causal": True, "is_token_BT": LEFT},
    "right_padding": {"causal": True, "is_token_BT": LEFT.flip(1)},
    "bidirectional_padding": {"causal": False, "is_token_BT": LEFT},
    "padding_and_window": {"causal": True, "window": 2, "is_token_BT": LEFT},
    "prefix": {"causal": True, "prefix_B1": torch.tensor([[3], [5]])},
    "prefix_and_padding": {"causal": True, "prefix_B1": torch.tensor([[2], [5]]), "is_token_BT": LEFT},
}


def tensors(seed=0, num_key_value_heads=H):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, T, K), (B, num_key_value_heads, T, K), (B, num_key_value_heads, T, K)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def case(position_name, causal, window=None, **who):
    torch.manual_seed(1)
    position = build_part(getattr(layers, position_name), causal=causal, **WIDTHS)
    if hasattr(position, "table"):
        torch.nn.init.normal_(position.table.weight)
    x_BTD = torch.randn(B, T, H * K)
    return build_scope(x_BTD, position, causal, **who), window


def run(backend, scope, window, num_key_value_heads=H, **options):
    q, k, v = tensors(num_key_value_heads=num_key_value_heads)
    rotated = (q, k) if scope.rotation is None else (scope.rotation.queries(q), scope.rotation.keys(k))
    out_BHTK = backend(*rotated, v, scope.mask(window), Scores(**options))
    weights = torch.randn(out_BHTK.shape, generator=torch.Generator().manual_seed(2))
    return out_BHTK, torch.autograd.grad((out_BHTK * weights).sum(), (q, k, v))


def attention_by_loops(q_BHTK, k_BGSK, v_BGSK, allowed, bias, scale, soft_cap):
    """softmax(scores) V in Python floats; `allowed(b, t, s)` and `bias(b, h, t, s)` are functions."""
    out = torch.zeros_like(q_BHTK, dtype=torch.float64)
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q_BHTK.shape[:3])).tolist():
        exponentials = []
        for s in range(k_BGSK.shape[2]):
            score = scale * float(q_BHTK[b, h, t].double() @ k_BGSK[b, h // groups, s].double())
            if soft_cap is not None:
                score = soft_cap * math.tanh(score / soft_cap)
            exponentials.append(math.exp(score + bias(b, h, t, s)) if allowed(b, t, s) else 0.0)
        for s, exponential in enumerate(exponentials):
            if exponential:
                out[b, h, t] += exponential / sum(exponentials) * v_BGSK[b, h // groups, s].double()
    return out


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("num_key_value_heads", [6, 2, 1])
def test_eager_is_attention_written_as_loops(soft_cap, num_key_value_heads):
    q, k, v = (x.detach() for x in tensors(num_key_value_heads=num_key_value_heads))
    position = layers.ALiBi(H)
    x_BTD = torch.zeros(B, T, H * K)
    scope = build_scope(x_BTD, position, True, is_token_BT=LEFT)
    positions = scope.query_positions_BT
    made = Eager()(q, k, v, scope.mask(3), Scores(0.4, soft_cap))

    def allowed(b, t, s):
        return bool(LEFT[b, s]) and 0 <= int(positions[b, t] - positions[b, s]) < 3

    def bias(b, h, t, s):
        return -position.slopes[h] * abs(int(positions[b, t] - positions[b, s]))

    expected = attention_by_loops(q, k, v, allowed, bias, 0.4, soft_cap)
    torch.testing.assert_close(made.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("position_name", POSITIONS)
def test_fused_is_eager_forward_and_backward(position_name, mask):
    for num_key_value_heads in (6, 2, 1):
        made, made_gradients = run(Fused(), *case(position_name, **MASKS[mask]), num_key_value_heads)
        expected, expected_gradients = run(Eager(), *case(position_name, **MASKS[mask]), num_key_value_heads)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
        for made_gradient, expected_gradient in zip(made_gradients, expected_gradients, strict=True):
            torch.testing.assert_close(made_gradient, expected_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", [Fused(), Math(), Eager()])
@pytest.mark.parametrize("mask", ["causal", "left_padding"])
def test_a_learned_bias_gets_its_gradient(backend, mask):
    gradients = []
    for one in (backend, Eager()):
        torch.manual_seed(0)
        position = layers.RelativeBias(H, causal=True)
        scope = build_scope(torch.zeros(B, T, H * K), position, **MASKS[mask])
        (one(*tensors(), scope.mask(), Scores()) ** 2).sum().backward()
        gradients.append(position.table.weight.grad)
    assert gradients[1].abs().sum() > 0
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("position_name", "mask", "soft_cap"),
    [
        ("PositionEncoding", "bidirectional", None),
        ("PositionEncoding", "causal", 2.0),
        ("Rotary", "causal_window", None),
        ("ALiBi", "padding_and_window", 2.0),
        ("RelativeBias", "prefix", None),
        ("Rotary", "prefix_and_padding", None),
    ],
)
def test_flex_is_eager_forward(position_name, mask, soft_cap):
    scope, window = case(position_name, **MASKS[mask])
    with torch.no_grad():
        q, k, v = tensors(num_key_value_heads=2)
        q, k, v = (x.detach() for x in (q, k, v))
        made = Flex()(q, k, v, scope.mask(window), Scores(soft_cap=soft_cap))
        expected = Eager()(q, k, v, scope.mask(window), Scores(soft_cap=soft_cap))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position_name", ["PositionEncoding", "ALiBi"])
@pytest.mark.parametrize("backend", [Fused(), Math(), Eager(), Flex()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_attend_to_gives_exact_zeros(backend, position_name, dtype):
    q, k, v = (x.detach().to(dtype) for x in tensors())
    positions = torch.arange(T)[None]
    is_token_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7], dtype=torch.bool)
    bias = build_part(getattr(layers, position_name), **WIDTHS).bias_if_any
    with torch.no_grad():
        out_BHTK = backend(q, k, v, Scope(positions, positions, True, is_token_BS, bias=bias).mask(), Scores())
    assert out_BHTK.isfinite().all()
    assert (out_BHTK != 0).any(dim=(1, 3)).tolist() == is_token_BS.tolist()


@pytest.mark.parametrize("backend", [Fused(), Math(), Eager()])
@pytest.mark.parametrize("position_name", ["PositionEncoding", "ALiBi"])
def test_nothing_to_attend_to_gives_zero_gradients(backend, position_name):
    is_token_BS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0] * 7], dtype=torch.bool)
    positions = torch.arange(T)[None]
    bias = build_part(getattr(layers, position_name), **WIDTHS).bias_if_any
    scope = Scope(positions, positions, True, is_token_BS, bias=bias)
    out_BHTK, (q_gradient, k_gradient, v_gradient) = run(backend, scope, None)
    assert out_BHTK[0, :, :3].count_nonzero() == 0
    assert out_BHTK[0, :, 3:].count_nonzero() == out_BHTK[0, :, 3:].numel()
    for gradient in (q_gradient, k_gradient, v_gradient):
        assert gradient.isfinite().all()
        assert gradient[1].count_nonzero() == 0
        assert gradient[0, :, :3].count_nonzero() == 0


def test_fused_makes_no_mask_where_the_causal_flag_says_it():
    for causal in (True, False):
        scope, _ = case("Rotary", causal=causal)
        run(Fused(), scope, None)
        run(Fused(), scope, T)
        assert not scope.mask()._made
        assert not scope.mask(T)._made


def test_eager_keeps_its_weights():
    backend = Eager(keep_weights=True)
    scope, window = case("ALiBi", causal=True, window=3)
    run(backend, scope, window)
    torch.testing.assert_close(backend.weights_BHTS.sum(-1), torch.ones(B, H, T))
    assert backend.weights_BHTS[:, :, ~scope.mask(3).allowed_BHTS[0, 0]].count_nonzero() == 0
    assert not backend.weights_BHTS.requires_grad


def test_eager_computes_in_fp32_whatever_comes_in():
    scope, _ = case("PositionEncoding", causal=True)
    q, k, v = (x.detach().bfloat16() for x in tensors())
    expected = Eager()(q.float(), k.float(), v.float(), scope.mask(), Scores())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = Eager()(q, k, v, scope.mask(), Scores())
    assert made.dtype == torch.bfloat16
    assert made.equal(expected.bfloat16())


def test_dropout_drops_weights_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(64, 8, 16, 4)
    scope = Scope(torch.arange(16)[None], torch.arange(16)[None], causal=False, contiguous=True)
    for backend in (Fused(), Math(), Eager()):
        out_BHTK = backend(ones, ones, ones, scope.mask(), Scores(dropout=0.5))
        assert out_BHTK.std() > 0.1
        assert abs(out_BHTK.mean().item() - 1) < 0.02


@pytest.mark.parametrize(
    ("name", "soft_cap", "device_type", "dropout", "expected"),
    [
        ("auto", None, "cpu", 0.0, Fused),
        ("auto", None, "cpu", 0.1, Math),
        ("auto", None, "cuda", 0.1, Fused),
        ("auto", 30.0, "cpu", 0.0, Math),
        ("auto", 30.0, "cuda", 0.0, Flex),
        ("auto", 30.0, "cuda", 0.1, Math),
        ("eager", 30.0, "cuda", 0.1, Eager),
        ("math", None, "cuda", 0.0, Math),
        ("flex", None, "cuda", 0.0, Flex),
        ("fused", None, "cpu", 0.0, Fused),
    ],
)
def test_backends_by_name(name, soft_cap, device_type, dropout, expected):
    assert type(choose_backend(name, soft_cap, device_type, dropout)) is expected


@pytest.mark.parametrize(("device_type", "expected"), [("cpu", Math), ("cuda", Fused)])
def test_one_query_is_two_small_products_on_a_cpu(device_type, expected):
    assert type(choose_backend("auto", None, device_type, num_queries=1)) is expected


@pytest.mark.parametrize(
    ("length", "window", "causal", "expected"),
    [
        (512, 128, True, InBlocks),
        (512, 129, True, Fused),  # a query would see more than half of the keys
        (512, 85, False, InBlocks),
        (512, 86, False, Fused),
        (511, 4, True, Fused),
        (512, 512, True, Fused),
        (512, None, True, Fused),
    ],
)
def test_a_narrow_window_in_a_long_sequence_is_computed_in_blocks(length, window, causal, expected):
    scope = build_scope(torch.zeros(1, length, 1), layers.PositionEncoding(), causal)
    assert type(choose_backend("auto", None, "cpu", 0.0, scope.mask(window))) is expected
    assert type(choose_backend("math", None, "cpu", 0.0, scope.mask(window))) is Math
    with_dropout = choose_backend("auto", None, "cpu", 0.1, scope.mask(window))
    assert type(with_dropout) is (InBlocks if expected is InBlocks else Math)
    assert not isinstance(with_dropout, InBlocks) or type(with_dropout.backend) is Math


def in_blocks(monkeypatch):
    """Blocks as small as a window, in sequences of any length."""
    monkeypatch.setattr(layers.scope, "LEAST_LENGTH", 1)
    monkeypatch.setattr(layers.scope, "SMALLEST_BLOCK", 1)


LONG = 19
ROWS = {
    None: None,
    "left": torch.arange(LONG) >= torch.tensor([[7], [0]]),
    "right": torch.arange(LONG) < torch.tensor([[LONG], [6]]),
    "both": (torch.arange(LONG) >= torch.tensor([[2], [5]])) & (torch.arange(LONG) < torch.tensor([[17], [18]])),
}


@pytest.mark.parametrize("position_name", ["PositionEncoding", "ALiBi", "RelativeBias", "Rotary"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_are_eager_forward_and_backward(monkeypatch, causal, rows, position_name):
    in_blocks(monkeypatch)
    torch.manual_seed(1)
    position = build_part(getattr(layers, position_name), causal=causal, **{**WIDTHS, "max_length": LONG})
    if hasattr(position, "table"):
        torch.nn.init.normal_(position.table.weight)
    is_token_BT = ROWS[rows]
    for window, shared in ((1, H), (2, 1), (3, 2)):
        q, k, v = (torch.randn(B, heads, LONG, K, requires_grad=True) for heads in (H, shared, shared))
        weights_BHTK = torch.randn(B, H, LONG, K)
        if is_token_BT is not None:  # what padding attends to counts for nothing
            weights_BHTK = weights_BHTK * is_token_BT[:, None, :, None]
        found = []
        for backend in (Eager(), InBlocks(Math()), InBlocks(Fused())):
            scope = build_scope(torch.zeros(B, LONG, H * K), position, causal, is_token_BT=is_token_BT)
            assert scope.mask(window).blocks.size == window
            rotated = (q, k) if scope.rotation is None else (scope.rotation.queries(q), scope.rotation.keys(k))
            weighted_BHTK = backend(*rotated, v, scope.mask(window), Scores()) * weights_BHTK
            found.append((weighted_BHTK, *torch.autograd.grad(weighted_BHTK.sum(), (q, k, v, *position.parameters()))))
        for other in found[1:]:
            for made, expected in zip(other, found[0], strict=True):
                torch.testing.assert_close(
                    made, expected, atol=1e-5 if position_name == "RelativeBias" else 2e-6, rtol=1e-5
                )


def test_blocks_see_a_prefix_and_cap_scores(monkeypatch):
    in_blocks(monkeypatch)
    who = {"causal": True, "prefix_B1": torch.tensor([[4], [9]])}
    scope = build_scope(torch.zeros(B, LONG, 1), layers.PositionEncoding(), **who)
    q, k, v = (torch.randn(B, H, LONG, K) for _ in range(3))
    made = InBlocks(Math())(q, k, v, scope.mask(3), Scores(soft_cap=1.5))
    expected = Eager()(q, k, v, scope.mask(3), Scores(soft_cap=1.5))
    torch.testing.assert_close(made, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "who",
    [
        {"is_token_BT": torch.arange(LONG) % 5 > 0},  # tokens on both sides of padding are nearer than their places
        {"positions_BT": torch.arange(LONG)[None] // 2},
        {"positions_BT": torch.arange(LONG)[None] % 8},
    ],
)
def test_a_sequence_whose_places_are_not_its_positions_is_not_cut(monkeypatch, who):
    in_blocks(monkeypatch)
    who = {name: value.expand(B, LONG) for name, value in who.items()}
    assert build_scope(torch.zeros(B, LONG, 1), layers.PositionEncoding(), True, **who).mask(2).blocks is None
    shifted = {"positions_BT": 3 + torch.arange(LONG)[None]}
    assert build_scope(torch.zeros(B, LONG, 1), layers.PositionEncoding(), True, **shifted).mask(2).blocks is not None


def test_a_layer_with_a_narrow_window_gives_the_same_in_blocks():
    torch.manual_seed(0)
    layer = layers.MultiHead(16, 2, window=33)
    x_BTD = torch.randn(2, 515, 16)
    scope = build_scope(x_BTD, layers.PositionEncoding(), True)
    assert scope.mask(33).blocks is not None
    made_BTD = layer(x_BTD, scope)
    layer.backend = "eager"
    torch.testing.assert_close(made_BTD, layer(x_BTD, scope), atol=2e-6, rtol=1e-5)


def test_what_cannot_be_served_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"backend='flash' is unknown; accepted: auto, fused, math, eager, flex"):
        choose_backend("flash", None, "cpu")
    with pytest.raises(ValueError, match=r"fused cannot cap scores \(soft_cap=30.0\)"):
        choose_backend("fused", 30.0, "cpu")
    with pytest.raises(ValueError, match=r"flex cannot drop attention weights \(dropout=0.1\)"):
        choose_backend("flex", None, "cuda", 0.1)
    scope, _ = case("PositionEncoding", causal=True)
    with pytest.raises(ValueError, match="flex trains only on cuda, not on cpu"):
        Flex()(*tensors(), scope.mask(), Scores())


@pytest.mark.parametrize("backend", [Fused(), Math(), Eager()])
def test_who_sees_whom_with_a_prefix_is_its_definition(backend):
    prefix, positions = torch.tensor([[3], [0]]), torch.arange(T)[None]
    scope = Scope(positions, positions, True, contiguous=True, prefix_B1=prefix)
    q, k, v = (x.detach() for x in tensors())
    expected = attention_by_loops(
        q, k, v, lambda b, t, s: s <= t or s < int(prefix[b]), lambda *_: 0.0, K**-0.5, soft_cap=None
    )
    torch.testing.assert_close(backend(q, k, v, scope.mask(), Scores()).double(), expected, atol=2e-6, rtol=1e-5)
