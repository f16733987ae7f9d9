"""Attention of recurrent decoders: the papers' formulas, one pair of states after the other."""

import pytest
import torch

from attnlab.layers.baselines import AdditiveAttention, ProductAttention, weigh


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def of_every_pair(score, queries, states):
    return torch.stack(
        [
            torch.stack([torch.stack([score(s, h) for h in hs]) for s in ss])
            for ss, hs in zip(queries, states, strict=True)
        ]
    )


def test_additive_scores_are_bahdanaus():
    torch.manual_seed(0)
    attention, queries, states = AdditiveAttention(3, 4, 5), torch.randn(2, 3, 3), torch.randn(2, 6, 4)
    w, u, v = attention.query.weight, attention.key.weight, attention.score.weight[0]
    expected = of_every_pair(lambda s, h: v @ torch.tanh(w @ s + u @ h), queries, states)
    assert_close(attention.scores(queries, attention.key(states)), expected)


def test_product_scores_are_luongs():
    torch.manual_seed(0)
    queries, states = torch.randn(2, 3, 4), torch.randn(2, 6, 4)
    general, dot = ProductAttention(4, 4), ProductAttention(4, 4, "dot")
    expected = of_every_pair(lambda s, h: s @ general.key.weight @ h, queries, states)
    assert_close(general.scores(queries, general.key(states)), expected)
    assert_close(dot.scores(queries, dot.key(states)), of_every_pair(torch.dot, queries, states))
    with pytest.raises(ValueError, match="score=concat: there is no such score; accepted: general, dot"):
        ProductAttention(4, 4, "concat")


def test_the_mean_is_over_real_tokens_and_zero_where_there_are_none():
    torch.manual_seed(0)
    scores, values = torch.randn(3, 2, 4) * 30, torch.randn(3, 4, 5)
    is_source = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    found = weigh(scores, values, is_source)
    assert_close(found[:1], weigh(scores[:1], values[:1], None))
    for place in range(2):
        weights = torch.exp(scores[1, place, ::2] - scores[1, place, ::2].max())
        assert_close(found[1, place], weights @ values[1, ::2] / weights.sum())
    assert not found[2].any()
