"""Masking: how many tokens, which, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import Masking
from attnlab.data.vocabulary import MASK


def words_of(random, batch, length):
    """Numbers of words of one to four tokens."""
    return np.cumsum(random.random((batch, length)) < 0.5, axis=1)


@settings(max_examples=60, deadline=None)
@given(probability=st.floats(0.01, 0.9), length=st.integers(1, 60), whole=st.booleans(), seed=st.integers(0, 999))
def test_the_number_is_the_probabilitys_and_words_stay_whole(probability, length, whole, seed):
    random = np.random.default_rng(seed)
    masking, words = Masking(probability, whole_words=whole), words_of(random, 5, length)
    chosen = masking.choose(words, random.random((5, length)))
    limit = max(1, round(probability * length))
    if not whole:
        assert (chosen.sum(axis=1) == limit).all()
        return
    for row in range(5):
        parts = [set(chosen[row, words[row] == word].tolist()) for word in np.unique(words[row])]
        sizes = np.unique(words[row], return_counts=True)[1]
        whole_ones = [size for part, size in zip(parts, sizes, strict=True) if part == {True}]
        cut = [part for part in parts if len(part) == 2]
        assert 1 <= chosen[row].sum() <= limit
        assert not cut or (len(cut) == 1 and not whole_ones)


def test_every_token_is_as_likely():
    random = np.random.default_rng(0)
    words = np.tile(np.arange(20), (20_000, 1))
    share = Masking().choose(words, random.random(words.shape)).mean(axis=0)
    assert np.abs(share - 0.15).max() < 5 * (0.15 * 0.85 / 20_000) ** 0.5


def test_the_chosen_ones_become_mask_random_or_stay_in_their_shares():
    random = np.random.default_rng(0)
    tokens = np.full((400, 500), 50)
    chosen = random.random(tokens.shape) < 0.15
    seen = Masking().replace(tokens, chosen, random.random(tokens.shape), np.full_like(tokens, 60), MASK)
    assert (seen[~chosen] == 50).all()
    number = chosen.sum()
    for token, share in ((MASK, 0.8), (60, 0.1), (50, 0.1)):
        assert abs((seen[chosen] == token).mean() - share) < 5 * (share * (1 - share) / number) ** 0.5


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_other_shares(shares):
    random = np.random.default_rng(0)
    tokens, chosen = np.full((4, 9), 50), np.ones((4, 9), dtype=bool)
    seen = Masking(0.15, *shares).replace(tokens, chosen, random.random((4, 9)), np.full_like(tokens, 60), MASK)
    assert set(seen.flatten().tolist()) == {MASK if shares[0] else 60 if shares[1] else 50}


@pytest.mark.parametrize(
    "fields", [{"probability": 0.0}, {"probability": 1.0}, {"mask_share": 0.9, "random_share": 0.2}]
)
def test_what_is_no_share_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        Masking(**fields)
