"""Token-budget batches: every example once, within the budget, the same for any split of the work, little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import DataError
from attnlab.data.order import (
    EvaluationLoader,
    TokenBatchOrder,
    batches_by_length,
    typical,
)

LENGTHS = st.integers(1, 2).flatmap(
    lambda width: st.lists(st.lists(st.integers(1, 12), min_size=width, max_size=width), min_size=4, max_size=60)
)


def dealt(lengths, *fields, parts, seed=0, steps):
    """The parts of the first steps, by step: what as many ranks draw."""
    ranks = [TokenBatchOrder(lengths, *fields, seed, parts, rank, parts) for rank in range(parts)]
    return [[rank.draw()[0] for rank in ranks] for _ in range(steps)]


def padding_share(lengths, batches):
    """Which share of all positions of these batches is padding, over all sequences of their examples."""
    return 1 - sum(int(lengths[rows].sum()) for rows in batches) / sum(positions(lengths, rows) for rows in batches)


def positions(lengths, rows):
    return len(rows) * lengths[rows].max(axis=0).sum()


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    budget=st.integers(24, 90),
    parts=st.integers(1, 4),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_an_epoch_gives_every_example_once_within_the_budget(lengths, budget, parts, epoch, seed):
    lengths = np.array(lengths)
    groups = TokenBatchOrder(lengths, budget, seed, parts).epoch(epoch)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for step, group in zip(dealt(lengths, budget, parts=parts, seed=seed, steps=len(groups)), groups, strict=True):
        assert all(len(rows) for rows in step)
        # Only what had to be merged, so that each part gets an example, may exceed the budget.
        assert positions(lengths, group) <= budget * parts or len(group) < 2 * parts


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9), stop=st.integers(0, 20))
def test_a_saved_place_goes_on_with_the_same_steps(lengths, seed, stop):
    lengths = np.array(lengths)
    whole, stopped = (TokenBatchOrder(lengths, 24, seed) for _ in range(2))
    expected = [whole.draw()[0].tolist() for _ in range(stop + 15)]
    for _ in range(stop):
        stopped.draw()
    resumed = TokenBatchOrder(lengths, 24, seed)
    resumed.load_state_dict(stopped.state_dict())
    assert [resumed.draw()[0].tolist() for _ in range(15)] == expected[stop:]


def test_a_step_has_the_same_examples_however_its_work_is_split():
    lengths = np.random.default_rng(0).integers(1, 30, (200, 2))
    alone = TokenBatchOrder(lengths, 400, seed=3)
    halves = TokenBatchOrder(lengths, 200, seed=3, parts=2)
    assert [g.tolist() for g in alone.epoch(1)] == [g.tolist() for g in halves.epoch(1)]


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.random.default_rng(0).integers(1, 30, (200, 2))
    first, again, other = (TokenBatchOrder(lengths, 200, seed) for seed in (0, 0, 1))
    as_lists = [
        [g.tolist() for g in order.epoch(epoch)] for order, epoch in ((first, 0), (again, 0), (first, 1), (other, 0))
    ]
    assert as_lists[0] == as_lists[1]
    assert as_lists[0] != as_lists[2]
    assert as_lists[0] != as_lists[3]
    # Also the company that an example is in changes, not the order of the batches alone.
    assert {frozenset(g) for g in as_lists[0]} != {frozenset(g) for g in as_lists[2]}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_little_of_a_batch_is_padding_however_its_step_is_split(parts):
    # Lengths as in a translation corpus: the target is about as long as the source.
    random = np.random.default_rng(0)
    source = random.gamma(9, 1.8, 20_000).astype(int) + 3
    lengths = np.stack([source, np.maximum(3, source + random.normal(1, 2.5, len(source)).astype(int))], axis=1)
    steps = len(TokenBatchOrder(lengths, 4096, parts=parts).epoch(0))
    batches = [rows for step in dealt(lengths, 4096, parts=parts, steps=steps) for rows in step]
    shuffled = np.array_split(random.permutation(len(lengths)), len(batches))
    assert padding_share(lengths, batches) < 0.05 < 0.3 < padding_share(lengths, shuffled)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(24, 90), parts=st.integers(1, 4))
def test_the_parts_of_a_step_follow_one_another_in_length_and_have_as_many_examples(lengths, budget, parts):
    lengths = np.array(lengths)
    groups = TokenBatchOrder(lengths, budget, parts=parts).epoch(0)
    for step, group in zip(dealt(lengths, budget, parts=parts, steps=len(groups)), groups, strict=True):
        assert np.concatenate(step).tolist() == group.tolist()
        assert max(map(len, step)) - min(map(len, step)) <= 1


def test_padding_is_counted_over_all_sequences():
    # Rows of 2 + 5 and 4 + 3 positions: 2 * (4 + 5) = 18 hold 14 tokens.
    assert padding_share(np.array([[2, 5], [4, 3]]), [np.array([0, 1])]) == pytest.approx(4 / 18)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_gives_every_example_once_over_all_ranks(world_size):
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    ranks = [batches_by_length(lengths, 60, rank, world_size) for rank in range(world_size)]
    loaders = [EvaluationLoader(batches, np.asarray) for batches in ranks]
    rows = np.concatenate([batch for loader in loaders for batch in loader])
    assert sorted(rows.tolist()) == list(range(50))
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(DataError, match=r"batch_tokens=10 cannot hold the longest example of 11 tokens"):
        TokenBatchOrder(np.array([[5, 6], [1, 1]]), 10)
    with pytest.raises(DataError, match="2 training examples are too few for 3 batches a step"):
        TokenBatchOrder(np.array([[5, 6], [1, 1]]), 100, parts=3)
    with pytest.raises(DataError, match="there is no training example"):
        TokenBatchOrder(np.zeros((0, 2), dtype=int), 100)
    with pytest.raises(DataError, match="2 examples to evaluate are too few for 3 ranks; evaluate on fewer devices"):
        batches_by_length(np.array([[5, 6], [1, 1]]), 100, 0, 3)


def test_nothing_to_evaluate_makes_no_batch():
    loader = EvaluationLoader(batches_by_length(np.zeros((0, 2), dtype=int), 100, 1, 3), np.asarray)
    assert len(loader) == 0
    assert list(loader) == []


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(24, 90), seed=st.integers(0, 9))
def test_a_typical_batch_costs_a_term_what_the_epoch_costs_it(lengths, budget, seed):
    lengths = np.array(lengths)
    groups = TokenBatchOrder(lengths, budget, seed).epoch(0)
    terms = lengths[:, -1]

    def cost(*batches):
        return sum(positions(lengths, rows) for rows in batches) / sum(terms[rows].sum() for rows in batches)

    found, mean = typical(groups, lengths, terms), cost(*groups)
    assert any(found is group for group in groups)
    assert abs(cost(found) - mean) <= min(abs(cost(group) - mean) for group in groups) + 1e-12


def test_a_typical_batch_is_neither_the_shortest_nor_the_longest():
    lengths = np.array([2] * 8 + [10] * 8 + [100] * 8)
    batches = [np.arange(start, start + 8) for start in (0, 8, 16)]
    found = typical(batches, lengths, np.ones(24, dtype=np.int64))
    assert found.tolist() == list(range(8, 16))


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(24, 90), parts=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_epoch_of_a_token_budget_has_as_many_steps(lengths, budget, parts, seed):
    order = TokenBatchOrder(np.array(lengths), budget, seed, parts)
    assert len({len(order.epoch(number)) for number in range(6)}) == 1
