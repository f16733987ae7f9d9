"""Token-budget batches: every example once, within the budget, the same for any split of the work, little padding."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

from attnlab.data import DataError, DataModule
from attnlab.data.order import (
    EvaluationLoader,
    ReplayedLoader,
    ShuffledOrder,
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


SIZE, BATCH = 11, 4  # three batches an epoch, of which the last is short


class Noisy(Dataset):
    """Rows that are drawn anew each time from the generators of all three."""

    def __len__(self):
        return SIZE

    def __getitem__(self, row):
        noise = torch.rand(()) + np.random.rand() + random.random()
        return {"row": torch.tensor(row), "noise": noise, "text": f"row {row}"}


class Drawn(Sampler):
    """Draws its order from one of the generators, at the start of an epoch or row by row."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        return iter(self.draw())

    def __len__(self):
        return SIZE


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randint(0, 1000, ())


class Batches:
    """A loader as plain as can be."""

    def __iter__(self):
        return iter([torch.arange(3), torch.arange(4)])


def shuffled_by_python():
    rows = list(range(SIZE))
    random.shuffle(rows)
    return rows


LOADERS = {
    "shuffle": lambda: DataLoader(Noisy(), BATCH, shuffle=True),
    "generator": lambda: DataLoader(Noisy(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "sampler": lambda: DataLoader(Noisy(), BATCH, sampler=RandomSampler(Noisy(), replacement=True, num_samples=9)),
    "python": lambda: DataLoader(Noisy(), BATCH, sampler=Drawn(shuffled_by_python)),
    "numpy": lambda: DataLoader(Noisy(), BATCH, sampler=Drawn(lambda: np.random.permutation(SIZE).tolist())),
    "row by row": lambda: DataLoader(Noisy(), BATCH, sampler=Drawn(lambda: (random.randrange(SIZE) for _ in range(9)))),
    "endless": lambda: DataLoader(Endless(), BATCH),
    "plain": Batches,
    "workers": lambda: DataLoader(Noisy(), BATCH, shuffle=True, num_workers=1),
}


def plain(batch):
    return (
        {k: v.tolist() if torch.is_tensor(v) else v for k, v in batch.items()}
        if isinstance(batch, dict)
        else batch.tolist()
    )


def taken(order, count):
    return [plain(batch) for batch in itertools.islice(order, count)]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("place", [1, 3, 5])
def test_it_goes_on_where_it_was_whatever_draws_the_order(kind, place):
    straight = taken(ReplayedLoader(LOADERS[kind](), "own", 7), place + 4)
    stopped = ReplayedLoader(LOADERS[kind](), "own", 7)
    assert taken(stopped, place) == straight[:place]
    torch.rand(5), random.random(), np.random.rand()
    resumed = ReplayedLoader(LOADERS[kind](), "own", 7)
    resumed.load_state_dict(stopped.state_dict())
    assert taken(resumed, 4) == straight[place:]


def test_epochs_and_seeds_have_orders_of_their_own():
    def rows(seed, kind="shuffle"):
        batches = taken(ReplayedLoader(LOADERS[kind](), "own", seed), 6)
        return [[row for batch in batches[of : of + 3] for row in batch["row"]] for of in (0, 3)]

    (first, second), (other, _) = rows(0), rows(1)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(SIZE))
    assert first != second
    assert first != other
    assert rows(0, "generator")[0] == rows(1, "generator")[0]  # its own seed is all that it draws from
    assert rows(0, "generator")[0] != rows(0, "generator")[1]


def test_the_training_draws_what_it_would_draw_without_it():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(2).tolist(), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    order = ReplayedLoader(LOADERS["shuffle"](), "own", 0)
    taken(order, 5)
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == expected


def test_an_order_that_is_not_found_again_is_refused():
    """A list that is shuffled in place: what an epoch has depends on all before it."""

    def loader():
        rows = list(range(200))
        draw = random.Random()

        def again():
            draw.shuffle(rows)
            return list(rows)

        return DataLoader(torch.arange(200), BATCH, sampler=Drawn(again))

    stopped = ReplayedLoader(loader(), "Mine", 0)
    taken(stopped, 3)
    with pytest.raises(DataError, match="Mine: batch 3 of epoch 1 is another one than it was before the stop"):
        ReplayedLoader(loader(), "Mine", 0).load_state_dict(stopped.state_dict())


def test_a_loader_without_batches_is_refused():
    with pytest.raises(DataError, match="Mine: its training loader gave no batch"):
        next(ReplayedLoader([], "Mine", 0))


@pytest.mark.parametrize(("other", "is_refused"), [(0, True), (1, False)])
def test_the_same_batches_on_every_rank_are_refused(monkeypatch, other, is_refused):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def gather(marks, mark):
        marks[:] = [mark, mark + other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    order = ReplayedLoader(LOADERS["shuffle"](), "Mine", 0, world_size=2)
    if is_refused:
        with pytest.raises(DataError, match="Mine: every rank is given the same batches"):
            next(order)
    else:
        assert len(taken(order, 5)) == 5


class Mine(DataModule):
    given: object = Batches()

    def train_dataloader(self):
        return self.given


Mine.__abstractmethods__ = frozenset()  # it gives no more than the tests need


class Keeps(Mine):
    def state_dict(self):
        return {"place": 3}


class Stateful(Batches):
    def state_dict(self):
        return {"place": 3}


def test_only_a_loader_that_nobody_keeps_the_place_of_is_made_to_keep_it():
    assert isinstance(Mine().train_dataloader(), ReplayedLoader)
    assert Keeps().train_dataloader() is Mine.given
    data = Mine()
    data.given = Stateful()
    assert data.train_dataloader() is data.given


@pytest.mark.parametrize("given", [{"one": []}, ([], []), None, 3])
def test_what_is_no_one_loader_is_refused(given):
    data = Mine()
    data.given = given
    with pytest.raises(DataError, match=r"Mine\.train_dataloader must give one loader, got"):
        data.train_dataloader()


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(24, 90), parts=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_epoch_of_a_token_budget_has_as_many_steps(lengths, budget, parts, seed):
    order = TokenBatchOrder(np.array(lengths), budget, seed, parts)
    assert len({len(order.epoch(number)) for number in range(6)}) == 1


@pytest.mark.parametrize(("accumulated", "ranks"), [(1, 1), (3, 1), (2, 2)])
def test_so_many_steps_are_the_epochs_of_a_shuffled_order_and_one_fewer_are_not(accumulated, ranks):
    data = Mine()
    order = ShuffledOrder(23, 4, seed=1, world_size=ranks)
    data.given = data.in_order(order, lambda *drawn: {})
    steps = data.steps_in(3, accumulated, ranks)
    drawn = [np.concatenate([order.draw()[0] for _ in range(accumulated)]) for _ in range(steps)]
    assert (steps - 1) * accumulated * ranks * 4 < 3 * 23 <= order.seen
    if ranks == 1:
        assert np.bincount(np.concatenate(drawn)).min() >= 3
        assert np.bincount(np.concatenate(drawn[:-1]), minlength=23).min() < 3


def test_epochs_of_a_loader_are_its_length_where_it_has_one():
    data = Mine()
    data.given = LOADERS["shuffle"]()
    assert data.steps_in(3, 2) == -(-3 * len(data.given) // 2)
    for loader, ranks, why in ((Batches(), 1, "has no length"), (LOADERS["shuffle"](), 2, "deals out to ranks itself")):
        data.given = loader
        with pytest.raises(
            DataError, match=rf"trainer\.max_epochs: Mine has no known epoch.*{why}; set trainer.max_steps"
        ):
            data.steps_in(3, 1, ranks)
