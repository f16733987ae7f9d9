"""Attention with the queries in rows, against the same with all scores at once.

Legend: B batch, T length, D model width, H heads, K head width.
"""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab import layers
from attnlab.layers import Fused, InBlocks, InRows, Math, Scores, Stack, build_scope, choose_backend
from attnlab.parts import build_part

B, T, H, K = 2, 19, 4, 8
WIDTHS = {"d_model": H * K, "num_heads": H, "d_head": K}
PADDING = {
    None: None,
    "left": torch.arange(T) >= torch.tensor([[7], [0]]),
    "right": torch.arange(T) < torch.tensor([[T], [6]]),
    "between": torch.arange(T).expand(B, T) % 5 > 0,  # places are not positions there: all keys are looked at
}


@pytest.fixture
def short_rows(monkeypatch):
    """Rows of four queries, the last of three."""
    monkeypatch.setattr(layers.scope, "ROWS", 4)


@pytest.fixture
def from_256(monkeypatch):
    """Rows of 64 queries, in causal sequences from 256 and in others from 512 on."""
    monkeypatch.setattr(layers.scope, "ROWS", 64)
    monkeypatch.setattr(layers.backends, "LEAST_CAUSAL", 256)


def encoding(name, causal, dtype=torch.float64):
    torch.manual_seed(1)
    position = build_part(getattr(layers, name), causal=causal, **WIDTHS).to(dtype)
    if hasattr(position, "table"):
        torch.nn.init.normal_(position.table.weight)
    return position


def outcome(backend, position, causal, who, window=None, shared=H, scores=None):
    """What comes out for real tokens (what padding attends to counts for nothing), and all gradients, in fp64."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(B, heads, T, K, dtype=torch.float64, requires_grad=True) for heads in (H, shared, shared))
    scope = build_scope(torch.zeros(B, T, H * K), position, causal, **who)
    rotated = (q, k) if scope.rotation is None else (scope.rotation.queries(q), scope.rotation.keys(k))
    out_BHTK = backend(*rotated, v, scope.mask(window), scores or Scores())
    if (is_token_BT := who.get("is_token_BT")) is not None:
        out_BHTK = out_BHTK * is_token_BT[:, None, :, None]
    weighted_BHTK = out_BHTK * torch.randn(B, H, T, K, dtype=torch.float64)
    return out_BHTK, *torch.autograd.grad(weighted_BHTK.sum(), (q, k, v, *position.parameters()))


def assert_same(made, expected):
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("backend", [Fused(), Math()])
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["PositionEncoding", "Rotary", "ALiBi", "RelativeBias"])
def test_rows_are_all_scores_at_once_forward_and_backward(name, causal, padding, backend):
    who = {} if padding is None else {"is_token_BT": PADDING[padding]}
    for window, shared in ((None, H), (None, 1), (1, 2), (6, 2)):
        given = (encoding(name, causal), causal, who, window, shared)
        assert_same(outcome(InRows(backend), *given), outcome(Math(), *given))


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("name", ["ALiBi", "RelativeBias"])
@pytest.mark.parametrize(
    "who",
    [
        {"prefix_B1": torch.tensor([[3], [9]])},
        {"prefix_B1": torch.tensor([[3], [9]]), "is_token_BT": PADDING["left"]},
        {"positions_BT": torch.arange(T)[None] % 8},
        {"positions_BT": torch.arange(T, 0, -1)[None]},
    ],
)
def test_rows_see_a_prefix_and_positions_in_any_order(name, who):
    given = (encoding(name, True), True, who)
    expected = outcome(Math(), *given)
    for backend in (Fused(), Math()):
        assert_same(outcome(InRows(backend), *given), expected)
    capped = Scores(0.3, soft_cap=1.5)
    assert_same(outcome(InRows(Math()), *given, scores=capped), outcome(Math(), *given, scores=capped))


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("backend", [Fused(), Math()])
def test_rows_of_a_memory_are_all_scores_at_once(backend):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, length, K, dtype=torch.float64, requires_grad=True) for length in (T, 5, 5))
    is_token_BS = torch.tensor([[True] * 5, [False] * 5])
    queries, keys = torch.zeros(1, T, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
    made = []
    for one in (InRows(backend), Math()):
        out_BHTK = one(q, k, v, layers.Scope(queries, keys, False, is_token_BS).mask(), Scores())
        made.append([out_BHTK, *torch.autograd.grad(out_BHTK.square().sum(), (q, k, v))])
    assert made[0][0][1].count_nonzero() == 0
    assert_same(*made)


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("causal", [True, False])
def test_the_gradient_of_a_learned_bias_is_its_difference_quotient(causal):
    position = encoding("RelativeBias", causal)
    q, k, v = (torch.randn(B, H, T, K, dtype=torch.float64) for _ in range(3))

    def attend(table):
        x_BTD = torch.zeros(B, T, H * K)
        with torch.nn.utils.stateless._reparametrize_module(position, {"table.weight": table}):
            scope = build_scope(x_BTD, position, causal)
            return InRows(Fused())(q, k, v, scope.mask(), Scores())

    assert torch.autograd.gradcheck(attend, (position.table.weight.detach().requires_grad_(),), fast_mode=True)


@pytest.mark.usefixtures("short_rows")
def test_dropout_drops_the_same_weights_in_the_backward_pass():
    position = encoding("ALiBi", True)

    def attend(*qkv):
        torch.manual_seed(3)
        scope = build_scope(torch.zeros(B, T, H * K), position, True)
        return InRows(Math())(*qkv, scope.mask(), Scores(dropout=0.4))

    qkv = [torch.randn(B, H, T, K, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attend, qkv, fast_mode=True)
    assert attend(*qkv).equal(attend(*qkv))


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(16, 4, 600, 4)
    scope = build_scope(torch.zeros(16, 600, 16), layers.ALiBi(4), False)
    out_BHTK = InRows(Math())(ones, ones, ones, scope.mask(), Scores(dropout=0.5))
    assert out_BHTK.std() > 0.01
    assert abs(out_BHTK.mean().item() - 1) < 0.005


class Largest(TorchDispatchMode):
    """The most elements that a tensor has of those that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        made = operation(*given, **(named or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, torch.Tensor) and not operation.is_view:
                self.elements = max(self.elements, x.numel())
        return made


def largest(stack, length, **who):
    """The most elements of what a step keeps for its backward pass, and of what it makes."""
    kept = 0

    def pack(x):
        nonlocal kept
        kept = max(kept, x.untyped_storage().nbytes() // x.element_size())
        return x

    x_BTD = torch.randn(1, length, 8, requires_grad=True)
    with Largest() as made, saved_tensors_hooks(pack, lambda x: x):
        out_BTD = stack(x_BTD, **who)
        out_BTD.sum().backward()
    return kept, made.elements


@pytest.mark.usefixtures("from_256")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["PositionEncoding", "Rotary", "ALiBi", "RelativeBias"])
def test_memory_grows_with_the_length_alone(name, causal, padded, dropout):
    fields = {"d_model": 8, "num_heads": 2, "num_layers": 1, "dropout": dropout, "position": getattr(layers, name)}
    stack = Stack(fields, causal)
    found = []
    for length in (512, 1024):
        who = {"is_token_BT": torch.arange(length)[None] < length - 5} if padded else {}
        found.append(largest(stack, length, **who))
    (kept, made), (kept_twice, made_twice) = found
    assert kept_twice <= 2.1 * kept
    assert kept_twice < 100 * 1024
    assert made_twice <= 2.1 * made


def test_memory_of_all_scores_at_once_grows_with_the_square():
    stack = Stack({"d_model": 8, "num_heads": 2, "num_layers": 1, "position": layers.ALiBi}, True)
    stack.layers[0].attention.backend = "fused"
    (kept, made), (kept_twice, made_twice) = (largest(stack, length) for length in (512, 1024))
    assert kept_twice > 3.9 * kept
    assert made_twice > 3.9 * made


@pytest.mark.parametrize("name", ["PositionEncoding", "ALiBi", "RelativeBias"])
def test_a_mask_goes_with_its_forward_pass(name):
    scope = build_scope(torch.zeros(B, T, H * K), build_part(getattr(layers, name), causal=True, **WIDTHS), True)
    gone = weakref.ref(scope.mask(3).additive(torch.float32))
    assert gone() is not None
    gc.disable()
    try:
        del scope
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("from_256")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["ALiBi", "RelativeBias"])
def test_recomputed_layers_have_the_same_gradients(name, dropout):
    stack = Stack(
        {"d_model": 16, "num_heads": 2, "num_layers": 2, "dropout": dropout, "position": getattr(layers, name)}, True
    )
    x_BTD = torch.randn(2, 515, 16)
    gradients = []
    for recompute in (False, True):
        stack.checkpoint_activations = recompute
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(stack(x_BTD).square().sum(), list(stack.parameters())))
    assert len(gradients[0]) > 10
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed, atol=0, rtol=0)


@pytest.mark.usefixtures("from_256")
@pytest.mark.parametrize("name", ["ALiBi", "RelativeBias"])
def test_autocast_reaches_the_rows(name):
    stack = Stack({"d_model": 16, "num_heads": 2, "num_layers": 1, "position": getattr(layers, name)}, True)
    x_BTD, weights_BTD = torch.randn(2, 2, 515, 16)
    found = []
    for backend in ("auto", "eager"):
        stack.layers[0].attention.backend = backend
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out_BTD = stack(x_BTD)
        found.append([out_BTD, *torch.autograd.grad((out_BTD * weights_BTD).sum(), list(stack.parameters()))])
    for made, expected in zip(*found, strict=True):
        assert (made - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("name", "causal", "length", "window", "dropout", "padded", "expected"),
    [
        ("ALiBi", True, 1024, None, 0.0, False, InRows),
        ("ALiBi", False, 2048, None, 0.1, True, InRows),
        ("ALiBi", False, 2047, None, 0.0, False, Fused),
        ("ALiBi", True, 1023, None, 0.0, False, Fused),
        ("ALiBi", True, 1023, None, 0.1, False, Math),
        ("ALiBi", True, 1024, 64, 0.0, False, InBlocks),
        ("RelativeBias", False, 2048, None, 0.0, False, InRows),
        ("PositionEncoding", True, 4096, None, 0.0, False, Fused),  # the causal flag says it all
        ("PositionEncoding", False, 4096, None, 0.0, True, Fused),  # one row of a mask for all queries
        ("PositionEncoding", True, 1024, None, 0.0, True, InRows),
        ("PositionEncoding", True, 1024, 800, 0.0, False, InRows),
        ("Rotary", True, 1024, None, 0.1, False, InRows),
    ],
)
def test_rows_are_taken_where_something_of_all_scores_would_be_made(
    name, causal, length, window, dropout, padded, expected
):
    is_token_BT = torch.arange(length)[None] < length - 1 if padded else None
    position = build_part(getattr(layers, name), causal=causal, **WIDTHS)
    mask = build_scope(torch.zeros(1, length, 1), position, causal, is_token_BT=is_token_BT).mask(window)
    chosen = choose_backend("auto", None, "cpu", dropout, mask, length)
    assert type(chosen) is expected
    assert not isinstance(chosen, InRows) or type(chosen.backend) is (Math if dropout else Fused)
    assert type(choose_backend("math", None, "cpu", dropout, mask, length)) is Math
    assert type(choose_backend("auto", None, "cuda", dropout, mask, length)) is Fused
