"""The kernels that a GPU has, against attention written out on a CPU.

Legend: B batch, T length, D model width, H heads, K head width.
"""

import pytest
import torch

from attnlab import layers
from attnlab.layers import Eager, Flex, Fused, Math, Scope, Scores, build_scope
from attnlab.parts import build_part

B, T, H, K = 2, 37, 4, 16  # a length that no block of a kernel divides
WIDTHS = {"d_model": H * K, "num_heads": H, "d_head": K, "max_length": 64, "grid": (4, 10)}
POSITIONS = ["PositionEncoding", "Rotary", "RotaryYaRN", "ALiBi", "RelativeBias", "AxialRotary"]
LEFT_BT = torch.arange(T) >= torch.tensor([[9], [0]])
MASKS = {
    "causal": {"causal": True},
    "bidirectional": {"causal": False},
    "causal_window": {"causal": True, "window": 5},
    "left_padding": {"causal": True, "is_token_BT": LEFT_BT},
    "bidirectional_padding": {"causal": False, "is_token_BT": LEFT_BT.flip(1)},
    "prefix": {"causal": True, "prefix_B1": torch.tensor([[3], [20]])},
}


def run(backend, device, position_name, mask, num_key_value_heads=H, dtype=torch.float32, **options):
    """What comes out, and the gradients of query, key, value and the position encoding's own weights, on the CPU."""
    given = dict(MASKS[mask])
    causal, window = given.pop("causal"), given.pop("window", None)
    torch.manual_seed(1)
    position = build_part(getattr(layers, position_name), causal=causal, **WIDTHS)
    if hasattr(position, "table"):
        torch.nn.init.normal_(position.table.weight)
    position.to(device)
    scope = build_scope(
        torch.zeros(B, T, H * K, device=device), position, causal, **{n: v.to(device) for n, v in given.items()}
    )
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(B, heads, T, K, generator=generator).to(device, dtype).requires_grad_()
        for heads in (H, num_key_value_heads, num_key_value_heads)
    )
    rotated = (q, k) if scope.rotation is None else (scope.rotation.queries(q), scope.rotation.keys(k))
    out_BHTK = backend(*rotated, v, scope.mask(window), Scores(**options))
    weights = torch.randn(out_BHTK.shape, generator=torch.Generator().manual_seed(2)).to(device)
    gradients = torch.autograd.grad((out_BHTK * weights).sum(), (q, k, v, *position.parameters()), allow_unused=True)
    return [x.float().cpu() for x in (out_BHTK.detach(), *(g for g in gradients if g is not None))]


def assert_alike(made, expected, tolerance):
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("position_name", POSITIONS)
@pytest.mark.parametrize("backend", [Fused(), Math()])
def test_fused_and_math_are_eager(backend, position_name, mask):
    for heads in (4, 2, 1):
        expected = run(Eager(), "cpu", position_name, mask, heads)
        assert_alike(run(backend, "cuda", position_name, mask, heads), expected, 1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("position_name", ["PositionEncoding", "Rotary", "ALiBi", "RelativeBias"])
def test_flex_is_eager_and_trains(position_name, mask):
    """Its products take TF32's shape of sums inside the kernel: single sums of 16 products, so the bound is a little wider."""
    expected = run(Eager(), "cpu", position_name, mask, 2)
    assert_alike(run(Flex(), "cuda", position_name, mask, 2), expected, 2e-5)


@pytest.mark.parametrize("position_name", ["Rotary", "ALiBi"])
def test_flex_caps_scores(position_name):
    expected = run(Eager(), "cpu", position_name, "causal", soft_cap=2.0)
    assert_alike(run(Flex(), "cuda", position_name, "causal", soft_cap=2.0), expected, 2e-5)


@pytest.mark.parametrize("backend", [Fused(), Math(), Flex()])
@pytest.mark.parametrize("mask", ["causal", "left_padding"])
def test_bf16_stays_near_fp32(backend, mask):
    [out, *_] = run(backend, "cuda", "ALiBi", mask, dtype=torch.bfloat16)
    [expected, *_] = run(Eager(), "cpu", "ALiBi", mask)
    torch.testing.assert_close(out, expected, atol=3e-2, rtol=2e-2)


@pytest.mark.parametrize("backend", [Fused(), Math(), Flex()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_to_attend_to_gives_exact_zeros(backend, dtype):
    positions = torch.arange(T, device="cuda")[None]
    is_token_BS = LEFT_BT.clone()
    is_token_BS[1] = False
    q, k, v = (torch.randn(B, H, T, K, device="cuda", dtype=dtype) for _ in range(3))
    with torch.no_grad():
        out_BHTK = backend(q, k, v, Scope(positions, positions, True, is_token_BS.cuda()).mask(), Scores())
    assert out_BHTK.isfinite().all()
    assert (out_BHTK != 0).any(dim=(1, 3)).tolist() == is_token_BS.tolist()
