"""The states of random generators, and that ranks draw numbers of their own."""

import random

import numpy as np
import torch

from attnlab.training.random_state import draw_apart, random_state, set_random_state


def drawn(seed, rank):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    draw_apart(seed, rank)
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_ranks_and_seeds_draw_numbers_of_their_own_and_the_same_ones_again():
    found = [drawn(seed, rank) for seed in (0, 1) for rank in (0, 1, 2)]
    for kind in zip(*found, strict=True):
        assert len(set(map(str, kind))) == 6
    assert drawn(1, 2) == found[-1]


def test_the_first_rank_draws_what_a_rank_that_is_alone_draws():
    torch.manual_seed(4)
    expected = torch.rand(2)
    assert drawn(4, 0)[0] == expected.tolist()


def test_a_state_that_is_set_draws_the_same_numbers():
    state = random_state()
    one = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    set_random_state(state)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == one
