"""What each head does: statistics on planted maps, roles, and induction on repeated random tokens."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inspection.planted import at, axis_of, causal, example_of, map_of, uniform

from attnlab.data import Character
from attnlab.inspection.ablation import Effect
from attnlab.inspection.attention_maps import CROSS, SELF
from attnlab.inspection.heads import (
    BAR,
    Head,
    Score,
    head_scores,
    heads_csv,
    heads_json,
    repeat_scores,
    repeated_rows,
    role_of,
    strength,
)
from attnlab.layers import Learned, PositionEncoding
from attnlab.models import GPT

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
    from attnlab.inspection.attention_maps import patch_axis

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


N = 12
ALLOWED = causal(N)
BACK = at([None, *range(N - 1)], N)
TEXT = "abcdefghijkl"


def scores_of_heads(*weights, text=TEXT):
    return head_scores([example_of(map_of(list(weights), ALLOWED), axis_of(text))])


def roles_of(scores):
    return {head: role_of(named) for head, named in scores.items()}


def test_planted_heads_get_their_roles():
    found = roles_of(scores_of_heads(BACK, at([0] * N, N), uniform(ALLOWED), 0.5 * BACK + 0.5 * at([0] * N, N)))
    assert [role and role.name for role in found.values()] == ["previous token", "first token", "even", None]
    assert found[Head(SELF, 0, 0)].strength == pytest.approx(1)


@pytest.mark.parametrize(("share", "name"), [(0.49, None), (0.51, "previous token")])
def test_the_bar_is_half_of_the_way_from_chance(share, name):
    # Of each query a share on the token before, the rest as uniform attention has it.
    (role,) = roles_of(scores_of_heads(share * BACK + (1 - share) * uniform(ALLOWED))).values()
    assert BAR == 0.5
    assert (role.name if role else None) == name


def test_too_few_queries_and_certain_chance_give_no_role():
    assert role_of({"previous": Score(1.0, 0.2, 7)}) is None
    assert role_of({"previous": Score(1.0, 0.2, 8)}).name == "previous token"
    assert strength(Score(1.0, 1.0, 9)) == 0


def test_of_equals_the_one_that_says_more():
    induction = at([None, *[None] * 5, 1, 2, 3, 4, 5, 6], N)
    named = scores_of_heads(induction, text="abcdefabcdef")[Head(SELF, 0, 0)]
    assert role_of({**named, "repeats": Score(1.0, 0.1, 50)}).statistic == "repeats"


def test_induction_on_repeated_tokens_comes_before_where_the_head_rests():
    rests = {"first": Score(0.97, 0.05, 60), "repeats": Score(0.69, 0.02, 400)}
    assert role_of(rests).name == "induction"
    assert role_of({**rests, "repeats": Score(0.4, 0.02, 400)}).name == "first token"


def test_the_table_as_csv_and_json():
    scores = scores_of_heads(BACK, uniform(ALLOWED))
    effects = {Head(SELF, 0, 0): Effect(0.5, 0.25, 0.75, 2.0, 9)}
    rows = list(csv.DictReader(io.StringIO(heads_csv(scores, effects))))
    assert [(row["kind"], row["layer"], row["head"], row["role"]) for row in rows] == [
        ("self", "0", "0", "previous token"),
        ("self", "0", "1", "even"),
    ]
    assert float(rows[0]["previous"]) == 1
    assert [rows[0][f"masked{end}"] for end in ("", "_low", "_high", "_verdict")] == ["0.5", "0.25", "0.75", "needed"]
    assert rows[1]["masked"] == ""
    found = heads_json(scores, effects)
    assert found["heads"][0]["masked"]["verdict"] == "needed"
    assert found["heads"][0]["statistics"]["previous"]["queries"] == N - 1
    assert found["heads"][1]["role"]["name"] == "even"
    assert "50%" in found["rule"]


ALPHABET = "abcdefghijklmnopqrstuvwxyz"
V = len(ALPHABET)


def test_rows_are_different_tokens_twice():
    rows = repeated_rows(np.arange(5, 30), 10, 3, before=(1, 2))
    assert rows.shape == (3, 22)
    np.testing.assert_array_equal(rows[:, 2:12], rows[:, 12:])
    assert all(len(set(row[2:12])) == 10 for row in rows)
    assert (rows[:, :2] == (1, 2)).all()
    assert repeated_rows(np.arange(3), 6, 1).shape == (1, 12)


def test_chance_of_a_flat_model_and_the_limits_of_length():
    torch.manual_seed(0)
    model = GPT(V, max_length=16, d_model=8, num_heads=2, num_layers=1, position=PositionEncoding).eval()
    with torch.no_grad():
        model.stack.layers[0].attention.query.weight.zero_()  # every score is 0
    named = repeat_scores(model, Character(alphabet=ALPHABET), room=20)[Head(SELF, 0, 1)]["repeats"]
    # Ten tokens twice: queries 10 to 19, each with one right key of all that it sees.
    chance = np.mean([1 / (t + 1) for t in range(10, 20)])
    assert (named.value, named.chance, named.queries) == pytest.approx((chance, chance, 80), abs=1e-6)
    assert repeat_scores(model, Character(alphabet=ALPHABET), room=7) == {}
    table = GPT(V, max_length=9, d_model=8, num_heads=2, num_layers=1, position=Learned).eval()
    assert repeat_scores(table, Character(alphabet=ALPHABET))[Head(SELF, 0, 0)]["repeats"].queries == 8 * 4


def test_a_head_that_was_built_for_it():
    # The stream holds a token and, by a planted table of positions, nothing; queries ask for what a key is told of the token before it.
    model = GPT(V, max_length=64, d_model=2 * V, num_heads=1, num_layers=1, position=PositionEncoding).eval()
    attention = model.stack.layers[0].attention
    with torch.no_grad():
        for part in (attention.query, attention.key):
            part.weight.zero_()
        model.embedding.weight.zero_()
        model.embedding.weight[:, :V] = torch.eye(V)
        attention.query.weight[:V, :V] = 100 * torch.eye(V)
        attention.key.weight[:V, V:] = 100 * torch.eye(V)

    def tell_of_the_token_before(module, args):
        x_BTD = args[0].clone()
        x_BTD[:, 1:, V:] = args[0][:, :-1, :V]
        return (x_BTD, *args[1:])

    attention.register_forward_pre_hook(tell_of_the_token_before)
    named = repeat_scores(model, Character(alphabet=ALPHABET))[Head(SELF, 0, 0)]["repeats"]
    assert named.value == pytest.approx(1, abs=1e-4)
    assert named.queries == 8 * V
