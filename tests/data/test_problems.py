"""Problems, against what a reader of their rows says."""

import re
from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlab.data import (
    MQAR,
    Addition,
    Copy,
    Depo,
    FlipFlop,
    Induction,
    ListOps,
    Mano,
    ModularAddition,
    Parity,
    SelectiveCopy,
    Sort,
)
from attnlab.data.problems import PROBLEMS
from attnlab.data.synthetic import most_frequent, prompt_of, rows


def recalled(words):
    """For each place the value of a key that stood before it, where it has come before with another token after it."""
    seen = {}
    for place, word in enumerate(words):
        if word.startswith("k"):
            if word in seen:
                yield place + 1, seen[word]
            seen[word] = words[place + 1]


def after_mark(words, answer, mark="="):
    first = words.index(mark) + 1
    return {first + place: word for place, word in enumerate(answer(words[: first - 1]))}


def of_list(words):
    """The value of a list, by a stack."""
    stack = []
    for word in words:
        if word == "]":
            values = []
            while not isinstance(stack[-1], str):
                values.append(stack.pop())
            found = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(median(v)), "[SM": lambda v: sum(v) % 10}
            stack.append(found[stack.pop()](values))
        else:
            stack.append(word if word.startswith("[") else int(word))
    return [str(stack.pop())]


def of_expression(words, modulus=23):
    stack = []
    for word in reversed(words):
        if word in "+-*":
            first, second = stack.pop(), stack.pop()
            stack.append({"+": first + second, "-": first - second, "*": first * second}[word] % modulus)
        else:
            stack.append(int(word))
    return [str(stack.pop())]


def sum_of(words):
    return list(reversed(str(sum(map(int, "".join(words).split("+")))).zfill((len(words) + 1) // 2)))


def read_bits(words):
    last = None
    for place in range(0, len(words), 2):
        if words[place] == "w":
            last = words[place + 1]
        elif words[place] == "r":
            yield place + 1, last


def walked(words):
    first = words.index("?")
    following = dict(zip(words[:first:2], words[1:first:2], strict=True))
    for place in range(first, len(words), 4):
        node = words[place + 2]
        for _ in range(int(words[place + 1])):
            node = following[node]
        yield place + 3, node


def repeated(words):
    period = next(p for p in range(1, len(words)) if all(a == b for a, b in zip(words[p:], words, strict=False)))
    return {place: words[place - period] for place in range(period + 1, len(words))}


READERS = {
    MQAR: (MQAR(num_pairs=4, vocabulary=40), lambda words: dict(recalled(words)), 32),
    Copy: (Copy(), lambda words: after_mark(words, list), 7),
    Sort: (Sort(), lambda words: after_mark(words, lambda items: sorted(items, key=int)), 7),
    SelectiveCopy: (SelectiveCopy(), lambda words: after_mark(words, lambda items: [i for i in items if i != "."]), 15),
    Induction: (Induction(vocabulary=64), repeated, 40),
    FlipFlop: (FlipFlop(ignored=0.4), lambda words: dict(read_bits(words)), 12),
    Parity: (Parity(), lambda words: after_mark(words, lambda bits: [str(bits.count("1") % 2)]), 9),
    ModularAddition: (ModularAddition(7), lambda words: after_mark(words, lambda ab: [str(sum(map(int, ab)) % 7)]), 1),
    Addition: (Addition(), lambda words: after_mark(words, sum_of), 4),
    ListOps: (ListOps(), lambda words: after_mark(words, of_list), 24),
    Depo: (Depo(), lambda words: dict(walked(words)), 9),
    Mano: (Mano(), lambda words: after_mark(words, of_expression), 5),
}


def test_every_problem_has_a_reader():
    assert {*READERS} == {*PROBLEMS}


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
@given(seed=st.integers(0, 2**31), number=st.integers(0, 2**31), split=st.sampled_from(["train", "validation", "test"]))
def test_the_answers_are_those_that_a_reader_gives(kind, seed, number, split):
    problem, answers_of, length = READERS[kind]
    (row,) = rows(problem, seed, split, [number], [length])
    words = problem.write(row.tokens_T).split(" ")
    assert {int(place): words[place] for place in row.is_answer_T.nonzero()[0]} == {
        place: word.lstrip("+") if kind is Depo else word for place, word in answers_of(words).items()
    }
    assert len(words) <= problem.longest(length)
    if kind.answers_last:
        assert row.is_answer_T[row.is_answer_T.argmax() :].all()


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_a_row_is_the_same_whenever_it_is_drawn_and_no_other(kind):
    problem, _, length = READERS[kind]
    together = rows(problem, 3, "train", range(20), [length])
    assert all(
        rows(problem, 3, "train", [number], [length])[0].tokens_T.tolist() == row.tokens_T.tolist()
        for number, row in enumerate(together)
    )
    if kind is not ModularAddition:  # of which there are 24 in all
        assert len({row.tokens_T.tobytes() for row in together}) > 15
        others = [*rows(problem, 4, "train", range(20), [length]), *rows(problem, 3, "test", range(20), [length])]
        assert len({row.tokens_T.tobytes() for row in others} & {row.tokens_T.tobytes() for row in together}) < 5


def test_pairs_of_modular_addition_are_in_one_split_alone():
    problem = ModularAddition(11, train_share=0.5)
    asked = {s: {prompt_of(r) for r in rows(problem, 0, s, range(3000), [1])} for s in ("train", "validation", "test")}
    assert [len(asked[split]) for split in asked] == [60, 31, 30]
    assert not asked["train"] & asked["test"]


def test_distances_of_recall_follow_the_power_law():
    """The first of the keys that are asked stands where the weights of the law say, near in most rows."""
    near, far = (MQAR(num_pairs=1, vocabulary=8, power=power) for power in (0.01, 1.0))
    place = [
        np.array([r.is_answer_T.argmax() for r in rows(p, 0, "train", range(4000), [34])]) // 2 for p in (near, far)
    ]
    counts = [np.bincount(found - 1, minlength=17)[:16] / 4000 for found in place]
    weights = np.arange(1, 17) ** -0.99
    np.testing.assert_allclose(counts[0], weights / weights.sum(), atol=0.025)
    np.testing.assert_allclose(counts[1], 1 / 16, atol=0.02)


def test_periods_of_induction_are_spread_over_their_shares():
    drawn = rows(Induction(vocabulary=1000), 0, "train", range(400), [40])
    assert sorted(Counter(int(r.is_answer_T.argmax()) - 1 for r in drawn)) == list(range(10, 21))


def test_the_most_frequent_answers_are_by_place():
    assert most_frequent(rows(Parity(), 0, "test", range(64), [1])) in ([0], [1])
    found = most_frequent(rows(Sort(vocabulary=4), 0, "test", range(400), [6]))
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == 3


@pytest.mark.parametrize(
    ("problem", "length", "words"),
    [
        (MQAR(num_pairs=8), 30, "data.length must be even, and at least 32 for 8 pairs, got 30"),
        (MQAR(num_pairs=8), 33, "data.length must be even"),
        (SelectiveCopy(num_items=8), 7, "data.length must be at least problem.num_items=8, got 7"),
        (Depo(nodes=8), 9, "data.length must be at most problem.nodes=8, got 9"),
    ],
)
def test_lengths_that_there_are_not_are_refused(problem, length, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        problem.draw(np.random.default_rng(0), length, "train")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(MQAR, {"vocabulary": 7}), (MQAR, {"num_pairs": 9, "vocabulary": 16}), (Induction, {"period": (0.5, 0.25)})],
)
def test_fields_that_make_no_sense_are_refused(kind, fields):
    with pytest.raises(ValueError, match="must be"):
        kind(**fields)
