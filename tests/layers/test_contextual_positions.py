"""CoPE against its formula written as loops; B batch, T length, D model width, H heads, K head width."""

import math

import pytest
import torch
from tests.layers.test_attention_choices import causal_mask

from attnlab.layers import (
    Attention,
    CoPE,
    DifferentialAttention,
    Eager,
    KeyValueCache,
    LatentAttention,
    MultiHead,
    SinkLogit,
    TalkingHeads,
    build_scope,
)
from attnlab.models import GPT, measure_size

B, T, D, H = 2, 7, 24, 4
K = D // H
IS_TOKEN = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7], dtype=torch.bool)


def example(length=T):
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(0))


def filled(width, num_positions=None):
    position = CoPE(width, causal=True, num_positions=num_positions, max_length=16)
    torch.nn.init.normal_(position.table.weight, generator=torch.Generator().manual_seed(2))
    return position


def by_loops(q_TK, k_SK, table_PK, scale, allowed):
    """Scores q (k + e[p]) of one head and row, in Python's floats; p counts the gates from a key up to the query."""
    found = [[-math.inf] * len(k_SK) for _ in q_TK]
    for t, q in enumerate(q_TK):
        products = [float(q @ k) * scale for k in k_SK]
        gates = [1 / (1 + math.exp(-product)) if allowed(t, s) else 0.0 for s, product in enumerate(products)]
        for s in range(len(k_SK)):
            if not allowed(t, s):
                continue
            place = min(sum(gates[s : t + 1]), len(table_PK) - 1)
            below, above = table_PK[math.floor(place)], table_PK[math.ceil(place)]
            share = place - math.floor(place)
            found[t][s] = products[s] + scale * float(q @ (share * above + (1 - share) * below))
    return torch.tensor(found)


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_positions", [None, 3])
def test_scores_are_their_formula_written_as_loops(num_positions, window, scale):
    torch.manual_seed(0)
    attention, position = MultiHead(D, H, window=window, scale=scale).eval(), filled(K, num_positions)
    assert position.table.num_embeddings == (num_positions or 17)
    attention.backend, x_BTD = Eager(keep_weights=True), 3 * example()
    attention(x_BTD, build_scope(x_BTD, position, True, is_token_BT=IS_TOKEN))
    for row in range(B):
        real = IS_TOKEN[row]

        def allowed(t, s, real=real):
            return bool(real[s]) and 0 <= t - s < (window or T)

        for h in range(H):
            part = slice(h * K, (h + 1) * K)
            q, k = attention.query(x_BTD[row])[:, part], attention.key(x_BTD[row])[:, part]
            scores = by_loops(q, k, position.table.weight, attention.scale, allowed)
            made = attention.backend.weights_BHTS[row, h]
            torch.testing.assert_close(made[real], scores[real].softmax(-1), atol=2e-6, rtol=1e-4)


@torch.no_grad()
def test_it_starts_as_no_position_and_tells_places_apart_afterwards():
    torch.manual_seed(0)
    attention, x_BTD = MultiHead(D, H).eval(), example()
    attention.query.weight.mul_(4)
    start = attention(x_BTD, build_scope(x_BTD, CoPE(K, True, max_length=16), True))
    q, k, v = (f(x_BTD).view(B, T, H, K).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
    weights = (q @ k.transpose(2, 3) / K**0.5 + causal_mask()).softmax(-1)
    torch.testing.assert_close(start, attention.output((weights @ v).transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-5)
    order = [1, 0, *range(2, T)]  # the last query sees the same tokens in another order
    last = [attention(x, build_scope(x, filled(K), True))[:, -1] for x in (x_BTD, x_BTD[:, order])]
    assert not torch.allclose(*last, atol=1e-3)


@pytest.mark.parametrize("part", [Attention, SinkLogit, TalkingHeads, DifferentialAttention])
def test_it_goes_with_other_weights_and_a_cache(part):
    torch.manual_seed(0)
    attention = part(D, H).eval()
    position, x_BTD, cache = filled(attention.d_head), example(9), KeyValueCache(1, 9)
    whole_BTD = attention(x_BTD, build_scope(x_BTD, position, True))
    gradients = torch.autograd.grad(whole_BTD.square().sum(), [*attention.parameters(), position.table.weight])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        pieces = [
            attention(piece, build_scope(piece, position, True, cache=cache), cache.layer(0))
            for piece in x_BTD.split([5, 1, 3], dim=1)
        ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole_BTD, atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_differences():
    torch.manual_seed(0)
    attention, position = MultiHead(4, 2).double(), CoPE(2, causal=True, max_length=5).double()
    torch.nn.init.normal_(position.table.weight)
    x_BTD = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    attention.backend = "math"
    assert torch.autograd.gradcheck(lambda x: attention(x, build_scope(x, position, True)), [x_BTD])


def test_its_table_is_counted_with_those_of_positions_and_kept_by_an_init():
    model = GPT(13, 16, d_model=D, num_heads=H, num_layers=1, position=CoPE)
    tokens = torch.zeros(1, 12, dtype=torch.long)
    size = measure_size(model, lambda: model(tokens).shape[1])
    assert size.embedding_parameters == 13 * D + 17 * K
    assert model.stack.position.table.weight.abs().max() == 0


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="these layers see both sides"):
        CoPE(K, causal=False, max_length=16)
    with pytest.raises(ValueError, match="num_positions must be a number of positions"):
        CoPE(K, causal=True)
    attention, x_BTD = MultiHead(D, H, backend="fused"), example()
    with pytest.raises(ValueError, match="backend=fused makes weights by a softmax alone"):
        attention(x_BTD, build_scope(x_BTD, filled(K), True))
    assert "acts on whole queries" in LatentAttention.refuses(CoPE)
