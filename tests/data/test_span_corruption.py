"""Span corruption against the paper's example and its definition. Letters of shapes: N tokens."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import DataError
from attnlab.data.span_corruption import corrupt, count_noise, draw_noise, lengths

SENTINELS = ["<X>", "<Y>", "<Z>"]


def random_generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def spans(is_noise):
    """The lengths of runs, with what each is."""
    runs = [[bool(is_noise[0]), 0]]
    for value in is_noise:
        if bool(value) != runs[-1][0]:
            runs.append([bool(value), 0])
        runs[-1][1] += 1
    return runs


def restored(source, target, first_sentinel):
    """The text again: each sentinel of the input gives way to what the target says after it."""
    said, sentinel = {}, None
    for token in target:
        if token >= first_sentinel:
            sentinel = token
            said[sentinel] = []
        else:
            said[sentinel].append(token)
    return [token for t in source for token in (said[t] if t >= first_sentinel else [t])], said


def test_the_example_of_the_paper():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    is_noise = np.array([word in {"for", "inviting", "last"} for word in words])
    made = corrupt(np.arange(10), is_noise, np.arange(10, 13))
    texts = [" ".join([*words, *SENTINELS][token] for token in row) for row in made]
    assert texts == ["Thank you <X> me to your party <Y> week", "<X> for inviting <Y> last <Z>"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_nothing_is_lost_and_nothing_said_twice(noise):
    tokens, is_noise = np.arange(len(noise)), np.array(noise)
    source, target = corrupt(tokens, is_noise, np.arange(100, 150))
    again, said = restored(source.tolist(), target.tolist(), 100)
    assert again == tokens.tolist()
    assert sorted(token for row in said.values() for token in row) == np.flatnonzero(is_noise).tolist()
    assert list(said) == list(range(100, 100 + len(said)))
    assert said[target[-1]] == []
    assert all(said[sentinel] for sentinel in list(said)[:-1])
    assert [token for token in source if token >= 100] == list(said)[:-1]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(2, 600),
    density=st.floats(0.01, 0.99),
    mean_length=st.floats(1.0, 20.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_noise_has_the_numbers_that_were_asked_for(length, density, mean_length, seed):
    is_noise = draw_noise(length, random_generator(seed), density, mean_length)
    num_noise, num_spans = count_noise(length, density, mean_length)
    runs = spans(is_noise)
    assert len(is_noise) == length
    assert is_noise.sum() == num_noise == min(max(round(length * density), 1), length - 1)
    assert [what for what, _ in runs] == [False, True] * num_spans
    assert 1 <= num_spans <= max(1, round(num_noise / mean_length))
    source, target = corrupt(np.arange(length), is_noise, np.arange(1000, 1700))
    assert (len(source), len(target)) == lengths(length, density, mean_length)


def test_t5s_512_tokens():
    # 15% of 512 in spans of 3: 77 tokens in 26 spans.
    assert count_noise(512) == (77, 26)
    assert lengths(512) == (512 - 77 + 26, 77 + 26 + 1)
    means = [length for seed in range(40) for what, length in spans(draw_noise(512, random_generator(seed))) if what]
    assert np.mean(means) == pytest.approx(77 / 26)


def test_all_ways_to_cut_are_equally_likely():
    # 4 noise tokens in 2 spans among 8 tokens: 3 ways to cut the noise times 3 to cut the rest.
    random = random_generator()
    drawn = Counter(tuple(draw_noise(8, random, 0.5, 2.0)) for _ in range(9000))
    assert len(drawn) == 9
    assert min(drawn.values()) > 880
    assert max(drawn.values()) < 1120


def test_the_same_numbers_give_the_same_noise():
    assert (draw_noise(64, random_generator(3)) == draw_noise(64, random_generator(3))).all()
    assert (draw_noise(64, random_generator(3)) != draw_noise(64, random_generator(4))).any()


def test_more_spans_than_sentinels_are_refused():
    noise = np.array([False, True] * 3)
    with pytest.raises(DataError, match=r"3 spans of noise need 4 sentinels; data\.num_sentinels=3"):
        corrupt(np.arange(6), noise, np.arange(10, 13))
