"""Variants of rotary positions against their formulas, computed again in Python floats.

Legend: B batch, T target length, S source length, H heads, K head width, P rotated pairs.
"""

import math
from functools import partial

import pytest
import torch

from attnlab.layers import PRotary, Rotary, XPos
from attnlab.models import GPT

CPU = torch.device("cpu")


def score(encoding, q, k, query, key):
    """Of one query and key at these positions, fp32."""
    q_BHTK, k_BHSK = (torch.tensor(x)[None, None, None] for x in (q, k))
    turned_q = encoding.rotate(q_BHTK, torch.tensor([[query]]))
    return float(turned_q.flatten() @ encoding.rotate_keys(k_BHSK, torch.tensor([[key]])).flatten())


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, generator=generator).tolist() for _ in range(2)]


@pytest.mark.parametrize(("gamma", "scale_base"), [(0.4, 512.0), (0.1, 16.0)])
@pytest.mark.parametrize(("query", "key"), [(0, 0), (7, 7), (300, 260), (40, 3)])
def test_xpos_scores_are_the_papers_sum(pair, query, key, gamma, scale_base):
    # Sun et al. 2022: the real part of sum_i q_i conj(k_i) zeta_i^((n - m) / B) e^(i theta_i (n - m)).
    q, k = pair
    d, expected = len(q), 0.0
    for i in range(d // 2):
        zeta = (i / (d / 2) + gamma) / (1 + gamma)
        angle = (query - key) * 10000.0 ** (-2 * i / d)
        (a, b), (c, e) = (q[2 * i : 2 * i + 2], k[2 * i : 2 * i + 2])
        rotated = (a * c + b * e) * math.cos(angle) + (a * e - b * c) * math.sin(angle)
        expected += zeta ** ((query - key) / scale_base) * rotated
    encoding = XPos(d, gamma=gamma, scale_base=scale_base, interleaved=True)
    assert score(encoding, q, k, query, key) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_xpos_without_decay_is_rotary(pair):
    encoding = XPos(8, scale_base=1e9)
    assert score(encoding, *pair, 40, 3) == pytest.approx(score(Rotary(8), *pair, 40, 3), rel=1e-5)


def test_xpos_ends_where_fp32_and_bfloat16_do():
    encoding = XPos(8)
    last = torch.tensor([[encoding.longest - 1]])
    for dtype in (torch.float32, torch.bfloat16):
        keys = encoding.rotate_keys(torch.full((1, 1, 1, 8), 100.0, dtype=dtype), last)
        assert keys.isfinite().all()
        assert encoding.rotate(torch.ones(1, 1, 1, 8, dtype=dtype), last)[..., 0].abs() > 0
    with pytest.raises(ValueError, match="XPos ends at"):
        encoding.check(encoding.longest)


def test_xpos_is_for_causal_stacks():
    with pytest.raises(ValueError, match="accepted: a causal stack"):
        XPos(8, causal=False)


@pytest.mark.parametrize(("p", "rotated"), [(1.0, 8), (0.75, 6), (0.5, 4), (0.2, 1)])
def test_p_rotary_keeps_the_highest_of_rotarys_frequencies(p, rotated):
    frequencies = PRotary(16, p=p).frequencies(CPU).tolist()
    expected = [10000.0 ** (-2 * i / 16) if i < rotated else 0.0 for i in range(8)]
    assert frequencies == pytest.approx(expected, rel=2e-6)


def test_p_rotary_leaves_the_other_pairs_as_they_are(pair):
    x = torch.randn(1, 2, 3, 16)
    turned = PRotary(16, p=0.5, interleaved=True).rotate(x, torch.tensor([[1, 50, 1000]]))
    assert turned[..., 8:].equal(x[..., 8:])
    assert not torch.allclose(turned[..., :8], x[..., :8])
    partly = Rotary(16, fraction=0.5, interleaved=True).rotate(x, torch.tensor([[1, 50, 1000]]))
    assert not torch.allclose(turned, partly)  # a fraction spreads all frequencies over its pairs


def test_p_rotary_that_rotates_nothing_is_refused():
    with pytest.raises(ValueError, match=r"p=0.1 of 8 pairs rotates none; accepted: at least 0.125"):
        PRotary(16, p=0.1)


def test_xpos_scores_in_a_model_depend_on_distances_alone():
    torch.manual_seed(0)
    model = GPT(11, 64, d_model=16, num_heads=2, num_layers=2, position=partial(XPos, scale_base=8.0)).eval()
    tokens = torch.randint(0, 11, (2, 12))
    positions = torch.arange(12)[None]
    torch.testing.assert_close(model(tokens, positions_BT=positions + 50), model(tokens), rtol=1e-4, atol=1e-5)
