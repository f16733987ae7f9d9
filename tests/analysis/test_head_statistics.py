"""Every statistic on planted attention has the value that its definition says, and so has uniform attention."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.analysis.planted import at, axis_of, causal, example_of, map_of, uniform

from attnlab.analysis.attention_maps import CROSS, SELF
from attnlab.analysis.head_statistics import Head, head_scores

EXACT = 1e-6


def scores_of(weights, text, allowed=None, kind=SELF, keys=None, marks=0):
    """The statistics of each head."""
    key_axis = None if keys is None else axis_of(keys, marks)
    example = example_of(map_of(weights, allowed, kind), axis_of(text, marks), key_axis)
    return [named for _, named in sorted(head_scores([example]).items())]


def value(named, name):
    return (named[name].value, named[name].chance, named[name].queries)


def test_heads_that_look_back_on_and_at_themselves():
    n = 6
    back, on, itself = at([None, 0, 1, 2, 3, 4], n), at([1, 2, 3, 4, 5, None], n), np.eye(n)
    previous, following, current = scores_of([back, on, itself], "abcdef")
    # Uniform attention gives each of six keys 1/6; the first query has none before it, and the last none after it.
    assert value(previous, "previous") == pytest.approx((1, 1 / 6, 5), abs=EXACT)
    assert value(following, "next") == pytest.approx((1, 1 / 6, 5), abs=EXACT)
    assert value(current, "current") == pytest.approx((1, 1 / 6, 6), abs=EXACT)
    assert value(current, "previous") == pytest.approx((0, 1 / 6, 5), abs=EXACT)
    assert value(previous, "distance") == pytest.approx((5 / 6, (15 + 11 + 9) * 2 / 36, 6), abs=EXACT)
    assert value(previous, "entropy") == pytest.approx((0, math.log(6), 6), abs=EXACT)


def test_under_a_causal_mask_chance_is_one_over_what_is_seen_and_the_first_query_has_no_choice():
    allowed = causal(4)
    (flat,) = scores_of([uniform(allowed)], "abcd", allowed)
    chance = (1 / 2 + 1 / 3 + 1 / 4) / 3
    for name in ("previous", "first", "current"):
        assert value(flat, name) == pytest.approx((chance, chance, 3), abs=EXACT)
    assert "next" not in flat
    assert value(flat, "relative_entropy") == pytest.approx((1, 1, 3), abs=EXACT)
    logs = (0 + math.log(2) + math.log(3) + math.log(4)) / 4
    assert value(flat, "entropy") == pytest.approx((logs, logs, 4), abs=EXACT)
    distance = (1 / 2 + 3 / 3 + 6 / 4) / 3
    assert value(flat, "distance") == pytest.approx((distance, distance, 3), abs=EXACT)


def test_a_sink_and_marks():
    allowed = causal(5)
    (sink,) = scores_of([at([0] * 5, 5)], "^abcd", allowed, marks=1)
    chance = (1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4
    assert value(sink, "first") == pytest.approx((1, chance, 4), abs=EXACT)
    assert value(sink, "marks") == pytest.approx((1, chance, 4), abs=EXACT)


def test_same_token_and_induction():
    text, allowed = "abcabca", causal(7)
    same = at([None, None, None, 0, 1, 2, 3], 7)
    follows = at([None, None, None, 1, 2, 3, 4], 7)  # what came after the last time
    split = 0.5 * at([None, None, None, 1, 2, 3, 1], 7) + 0.5 * at([None, None, None, 1, 2, 3, 4], 7)
    first, second, third = scores_of([same, follows, split], text, allowed)
    # The last "a" has two earlier ones, at 0 and 3, and stands behind 7 keys.
    chance = (1 / 4 + 1 / 5 + 1 / 6 + 2 / 7) / 4
    assert value(first, "same") == pytest.approx((1, chance, 4), abs=EXACT)
    assert value(second, "induction") == pytest.approx((1, chance, 4), abs=EXACT)
    assert value(third, "induction") == pytest.approx((1, chance, 4), abs=EXACT)
    assert value(first, "induction") == pytest.approx((0, chance, 4), abs=EXACT)


def test_a_token_that_follows_itself_is_no_induction_by_attending_to_itself():
    (named,) = scores_of([np.eye(3)], "aab", causal(3))
    # The second a would be "the token after an earlier a": that is itself, which says nothing.
    assert "induction" not in named
    assert value(named, "same") == pytest.approx((0, 1 / 2, 1), abs=EXACT)


def test_with_both_sides_in_sight_the_same_token_may_stand_behind():
    (named,) = scores_of([at([2, 0, 0], 3)], "aba")
    assert value(named, "same") == pytest.approx((1, 1 / 3, 2), abs=EXACT)


def test_alignments():
    n = 5
    straight, flat = np.eye(n), np.full((n, n), 1 / n)
    diagonal, backwards, even = scores_of([straight, straight[::-1], flat], "abcde", kind=CROSS, keys="vwxyz")
    places = np.linspace(0, 1, n)
    near = np.exp(-((places[:, None] - places[None]) ** 2) / 0.08)
    assert value(diagonal, "diagonal") == pytest.approx((1, near.mean(), n), abs=EXACT)
    assert value(backwards, "diagonal")[0] == pytest.approx(near[::-1].trace() / n, abs=EXACT)
    assert value(even, "diagonal")[0] == pytest.approx(near.mean(), abs=EXACT)
    monotonic = [named["monotonic"].value for named in (diagonal, backwards, even)]
    assert monotonic == pytest.approx([1, -1, 0], abs=EXACT)
    assert set(diagonal) == {"entropy", "relative_entropy", "diagonal", "monotonic", "first", "last"}


def test_a_longer_target_that_stays_on_each_word_is_monotonic():
    (named,) = scores_of([at([0, 0, 1, 1, 2, 2], 3)], "abcdef", kind=CROSS, keys="xyz")
    assert named["monotonic"].value == pytest.approx(np.corrcoef(np.arange(6), [0, 0, 1, 1, 2, 2])[0, 1], abs=EXACT)


def test_examples_weigh_by_their_queries():
    long, short = (example_of(map_of([at([0] * n, n)]), axis_of("abcdefgh"[:n])) for n in (8, 2))
    short.maps[0].weights_HTS[:] = torch.eye(2)
    named = head_scores([long, short])[Head(SELF, 0, 0)]
    # "first" of the queries: seven of eight and the first of the long text, the first alone of the short one.
    assert named["first"].queries == 10
    assert named["first"].value == pytest.approx(9 / 10)
    assert named["first"].chance == pytest.approx((8 / 8 + 2 / 2) / 10)


@given(st.integers(2, 8), st.integers(0, 2**31), st.booleans())
@settings(max_examples=30, deadline=None)
def test_entropy_is_that_of_scipy_and_uniform_attention_is_always_at_chance(length, seed, is_causal):
    from scipy.stats import entropy

    random = np.random.default_rng(seed)
    allowed = causal(length) if is_causal else torch.ones(length, length).bool()
    drawn = random.random((length, length)) * allowed.numpy() + 1e-9 * allowed.numpy()
    drawn /= drawn.sum(1, keepdims=True)
    text = "".join(random.choice(list("abc"), length))
    noisy, flat = scores_of([drawn, uniform(allowed)], text, allowed)
    assert noisy["entropy"].value == pytest.approx(np.mean([entropy(row) for row in drawn]), abs=1e-5)
    for name, score in flat.items():
        assert score.value == pytest.approx(score.chance, abs=1e-5), name
        assert score.chance == noisy[name].chance


def test_patches_are_as_far_apart_as_they_are_in_the_image():
    from attnlab.analysis.token_axis import patch_axis

    axis = patch_axis((2, 2), 1, has_class=True)  # a class token, then patches at (0, 0), (0, 1), (1, 0), (1, 1)
    across = at([0, 4, 3, 2, 1], 5)  # each patch to the one diagonally opposite
    half = 0.5 * across + 0.5 * at([0] * 5, 5)  # what goes to the class token has no distance
    named = head_scores([example_of(map_of([across, half, np.full((5, 5), 0.2)]), axis)])
    first, second, flat = (named[Head(SELF, 0, head)] for head in range(3))
    chance = (0 + 1 + 1 + math.sqrt(2)) / 4
    assert value(first, "distance") == pytest.approx((math.sqrt(2), chance, 4), abs=EXACT)
    assert value(second, "distance") == pytest.approx((math.sqrt(2), chance, 4), abs=EXACT)
    assert value(flat, "distance") == pytest.approx((chance, chance, 4), abs=EXACT)
    assert value(second, "marks") == pytest.approx((0.5 * 4 / 5 + 1 / 5, 1 / 5, 5), abs=EXACT)
    assert set(first) == {"entropy", "relative_entropy", "distance", "first", "marks", "current"}
