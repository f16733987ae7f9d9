"""A head that was built to do induction has the score 1 on random tokens that are repeated; an untrained one has that of chance."""

import numpy as np
import pytest
import torch

from attnlab.analysis.attention_maps import SELF
from attnlab.analysis.head_statistics import Head
from attnlab.analysis.repeated import repeat_scores, repeated_rows
from attnlab.data import Character
from attnlab.layers import Learned, PositionEncoding
from attnlab.models import GPT

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
