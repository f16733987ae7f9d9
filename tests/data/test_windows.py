import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import DataError, EvaluationWindows, WindowBatches, Windows


def numbered(num_tokens):
    """Tokens that are their own places, so that a batch shows where it was cut."""
    return np.arange(num_tokens, dtype=np.uint16)


sizes = st.tuples(st.integers(1, 9), st.integers(2, 200)).map(
    lambda pair: (pair[0], max(pair))
)  # context, number of tokens
sizes = sizes.map(lambda pair: (pair[0], max(pair[1], pair[0] + 1)))


def test_target_is_the_next_token():
    batch = Windows(np.array([5, 6, 7, 8, 9], dtype=np.uint16), 3).batch(np.array([0, 1]))
    assert batch["tokens"].tolist() == [[5, 6, 7], [6, 7, 8]]
    assert batch["targets"].tolist() == [[6, 7, 8], [7, 8, 9]]
    assert batch["tokens"].dtype == torch.int64


@pytest.mark.parametrize(
    "make", [lambda t: Windows(t, 64), lambda t: WindowBatches(t, 64, 4), lambda t: EvaluationWindows(t, 64)]
)
def test_text_shorter_than_a_window_is_refused_with_both_numbers(make):
    make(numbered(65))
    with pytest.raises(
        DataError, match=r"64 tokens are too few for one window of 64 tokens .* 65 in all.*data\.context"
    ):
        make(numbered(64))


@given(size=sizes, batch_size=st.integers(1, 7), seed=st.integers(0, 99), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_epoch_covers_the_text_once_without_overlap(size, batch_size, seed, epoch):
    context, num_tokens = size
    order = WindowBatches(numbered(num_tokens), context, batch_size, seed)
    per_epoch = order.windows_per_epoch
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    batches = range(first // batch_size, -(-last // batch_size))
    starts = np.concatenate([order.starts(i) for i in batches])
    mine = np.sort(starts[first - batches[0] * batch_size :][:per_epoch])
    assert (np.diff(mine) == context).all()
    assert 0 <= mine[0] < context
    assert mine[-1] + context < num_tokens
    assert num_tokens - per_epoch * context <= 2 * context  # what an epoch leaves out, at both ends together


@given(size=sizes, batch_size=st.integers(1, 5), world_size=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_ranks_share_what_one_rank_would_take(size, batch_size, world_size, seed):
    context, num_tokens = size
    alone = WindowBatches(numbered(num_tokens), context, batch_size * world_size, seed)
    ranks = [WindowBatches(numbered(num_tokens), context, batch_size, seed, r, world_size) for r in range(world_size)]
    accumulated = WindowBatches(numbered(num_tokens), context, batch_size, seed)
    for _ in range(4):
        whole = next(alone)["tokens"]
        assert torch.equal(whole, torch.cat([next(rank)["tokens"] for rank in ranks]))
        assert torch.equal(whole, torch.cat([next(accumulated)["tokens"] for _ in range(world_size)]))


@given(size=sizes, batch_size=st.integers(1, 7), seen=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_order_goes_on_where_it_was_saved_and_batches_are_a_function_of_their_index(size, batch_size, seen, seed):
    context, num_tokens = size
    order = WindowBatches(numbered(num_tokens), context, batch_size, seed)
    for _ in range(seen):
        next(order)
    resumed = WindowBatches(numbered(num_tokens), context, batch_size, seed)
    resumed.load_state_dict(order.state_dict())
    for i in range(3):
        expected = next(order)
        assert torch.equal(next(resumed)["targets"], expected["targets"])
        assert expected["tokens"][:, 0].tolist() == resumed.starts(seen + i).tolist()


def test_seeds_and_epochs_differ_and_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    a, b = (WindowBatches(numbered(5000), 10, 499, seed) for seed in (0, 1))
    assert a.starts(0).tolist() != b.starts(0).tolist()
    assert a.starts(0).tolist() != a.starts(1).tolist()
    assert len({int(a.starts(epoch).min()) for epoch in range(20)}) > 5
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_batch_size_below_one_is_refused():
    with pytest.raises(DataError, match=r"data\.batch_size=0"):
        WindowBatches(numbered(100), 10, 0)


def scored_targets(windows):
    """The scored targets and, for each, how many tokens its window has before it (the input token itself included)."""
    targets, contexts = [], []
    for batch in windows:
        width = torch.arange(1, batch["tokens"].shape[1] + 1).expand_as(batch["tokens"])
        assert torch.equal(batch["targets"], batch["tokens"] + 1)
        targets += batch["targets"][batch["scored"]].tolist()
        contexts += width[batch["scored"]].tolist()
    return targets, contexts


@given(
    context=st.integers(1, 6),
    num_tokens=st.integers(60, 200),
    max_tokens=st.none() | st.integers(1, 400),
    batch_size=st.integers(2, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_length_and_both_kinds_score_the_same_targets_once(context, num_tokens, max_tokens, batch_size):
    longest, found = 8 * context, []
    for length in (context, 2 * context, 4 * context, longest):
        for stride in {length, max(1, length // 2)}:
            windows = EvaluationWindows(numbered(num_tokens), length, longest, stride, max_tokens, batch_size)
            assert len(list(windows)) == len(windows)
            targets, contexts = scored_targets(windows)
            assert len(targets) == windows.num_targets
            assert windows.num_targets % longest == 0
            found.append(targets)
            if stride == length:
                assert contexts == list(range(1, length + 1)) * (len(targets) // length)
            elif num_tokens > 2 * longest:
                assert min(contexts) >= length - stride + 1
    assert all(targets == found[0] for targets in found)
    assert found[0] == list(range(found[0][0], found[0][0] + len(found[0])))
    assert len(found[0]) <= max(longest, max_tokens or num_tokens)


@given(world_size=st.integers(1, 4), stride=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_ranks_divide_the_scored_targets(world_size, stride):
    whole, _ = scored_targets(EvaluationWindows(numbered(200), 8, stride=stride))
    parts = [
        target
        for rank in range(world_size)
        for target in scored_targets(
            EvaluationWindows(numbered(200), 8, stride=stride, rank=rank, world_size=world_size)
        )[0]
    ]
    assert sorted(parts) == whole


def test_stride_longer_than_the_window_is_refused():
    with pytest.raises(DataError, match="1 <= stride <= length <= longest"):
        EvaluationWindows(numbered(100), 8, stride=9)
