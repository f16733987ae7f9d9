"""What a well-read article's code does, beside what it says: each test contrasts its formula with the right one.

Legend: B batch, T length, D model width, H heads, K head width.
"""

import math

import torch
from torch import nn

from attnlab.layers import MultiHead, PositionEncoding, PreNorm, Sinusoidal, build_scope
from attnlab.layers.attention import split_heads


def article_attention(queries, keys, values, num_heads):
    batch, length, d_model = queries.shape
    d_head = d_model // num_heads
    q, k, v = (
        x.reshape(batch, length, d_model).view(batch, num_heads, length, d_head) for x in (queries, keys, values)
    )
    weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(d_head), dim=-1)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().view(batch, length, d_model)


def article_sinusoid(position, dimension, width):
    angle = position / 10000 ** (2 * dimension / width)
    return math.sin(angle) if dimension % 2 == 0 else math.cos(angle)


def right_sinusoid(position, dimension, width):
    angle = position / 10000 ** (2 * (dimension // 2) / width)
    return math.sin(angle) if dimension % 2 == 0 else math.cos(angle)


def identity_attention(d_model, num_heads):
    attention = MultiHead(d_model, num_heads)
    for linear in (attention.query, attention.key, attention.value, attention.output):
        nn.init.eye_(linear.weight)
    return attention


def test_splitting_heads_by_view_alone_mixes_tokens_with_features():
    batch, length, num_heads, d_head = 1, 6, 2, 4
    token_of_entry = torch.arange(length)[None, :, None].expand(batch, length, num_heads * d_head).float()
    article_BHTK = token_of_entry.reshape(batch, num_heads, length, d_head)
    assert article_BHTK[0, 0, :, 0].tolist() == [0, 0, 1, 1, 2, 2]  # row 5 of a head holds token 2
    right_BHTK = split_heads(token_of_entry, num_heads)
    for head in range(num_heads):
        assert right_BHTK[0, head].equal(torch.arange(length)[:, None].expand(length, d_head).float())
    # So in the article's attention the features of one token decide how another token's parts are mixed, within one head:
    # permuting the tokens is more than permuting the outputs, which attention without positions must be blind to.
    x_BTD, order = (
        torch.randn(1, length, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 0, 5, 1, 4, 2]),
    )
    article = article_attention(x_BTD, x_BTD, x_BTD, num_heads)
    assert (article_attention(*[x_BTD[:, order]] * 3, num_heads) - article[:, order]).abs().max() > 0.1
    attention = identity_attention(8, num_heads)
    outs = [attention(x, build_scope(x, PositionEncoding(), causal=False)) for x in (x_BTD, x_BTD[:, order])]
    torch.testing.assert_close(outs[1], outs[0][:, order], atol=1e-6, rtol=1e-6)


def test_without_learned_projections_a_token_attends_back_as_it_is_attended_to():
    torch.manual_seed(0)
    x_BTD, attention = torch.randn(2, 5, 8), MultiHead(8, 2)
    assert {name for name, _ in attention.named_parameters()} == {
        f"{p}.weight" for p in ("query", "key", "value", "output")
    }

    def asymmetry(q_BHTK, k_BHTK):
        scores_BHTT = q_BHTK @ k_BHTK.transpose(-2, -1)
        return (scores_BHTT - scores_BHTT.transpose(-2, -1)).abs().max()

    article_BHTK = x_BTD.view(2, 5, 2, 4).transpose(1, 2)
    assert asymmetry(article_BHTK, article_BHTK) < 1e-6
    assert asymmetry(*(split_heads(linear(x_BTD), 2) for linear in (attention.query, attention.key))) > 0.1
    # With identities for projections ours is that formula, so the projections are all that differs.
    scope = build_scope(x_BTD, PositionEncoding(), causal=False)
    weights = (article_BHTK @ article_BHTK.transpose(-2, -1) / 4**0.5).softmax(-1)
    expected = (weights @ article_BHTK).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(identity_attention(8, 2)(x_BTD, scope), expected, atol=1e-5, rtol=1e-5)
    assert (attention(x_BTD, scope) - expected).abs().max() > 0.1


def test_sine_and_cosine_of_a_pair_share_a_frequency():
    width, length = 16, 50
    positions_BT = torch.arange(length)[None]
    made = Sinusoidal(width).embed(torch.zeros(1, length, width), positions_BT)[0]
    right, article = (
        torch.tensor([[formula(t, i, width) for i in range(width)] for t in range(length)])
        for formula in (right_sinusoid, article_sinusoid)
    )
    torch.testing.assert_close(made, right, atol=1e-5, rtol=0)
    assert (article - right).abs().max() > 0.5

    def off_the_circle(table):
        return (table[:, 0::2] ** 2 + table[:, 1::2] ** 2 - 1).abs().max()

    assert off_the_circle(made) < 1e-5
    assert off_the_circle(article) > 0.5  # so a shift of position is no rotation, which was the reason for sinusoids
    slowest = {"right": 10000 ** ((width - 2) / width), "article": 10000 ** (2 * (width - 1) / width)}
    assert slowest["right"] < 10000 < slowest["article"] / 1000  # its upper half hardly moves in 10,000 positions


def test_torchs_attention_reads_the_batch_as_the_sequence_by_default():
    torch.manual_seed(0)
    x_BTD = torch.randn(3, 5, 8)
    changed_BTD = x_BTD.clone()
    changed_BTD[1:] = torch.randn(2, 5, 8)  # other samples of the batch
    article = nn.MultiheadAttention(8, 2)  # expects (length, batch, width)
    assert (article(x_BTD, x_BTD, x_BTD)[0][0] - article(*[changed_BTD] * 3)[0][0]).abs().max() > 0.01
    attention = MultiHead(8, 2)
    outs = [attention(x, build_scope(x, PositionEncoding(), causal=False))[0] for x in (x_BTD, changed_BTD)]
    torch.testing.assert_close(*outs, atol=1e-6, rtol=1e-6)


def test_a_layer_without_dropout_is_the_same_in_training():
    torch.manual_seed(0)
    x_BTD = torch.randn(2, 5, 8)
    article = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    assert article.train()(x_BTD).equal(article.train()(x_BTD))
    residual = PreNorm(8, dropout=0.1)
    assert not residual.train()(x_BTD, article).equal(residual.train()(x_BTD, article))
    assert residual.eval()(x_BTD, article).equal(residual.eval()(x_BTD, article))
