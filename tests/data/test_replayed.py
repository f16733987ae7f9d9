"""Loaders that keep no position go on where they were, on every rank; and how many steps their epochs have."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

from attnlab.data import DataError, DataModule
from attnlab.data.order import ShuffledOrder
from attnlab.data.replayed import ReplayedLoader

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
