"""Loaders that keep no position, as torch's own, made resumable: their order is drawn again."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from attnlab.data.cache import DataError
from attnlab.data.order import Endless

COMPARED_BYTES = 1 << 16  # of each tensor by which a batch is known again


class ReplayedLoader(Endless):
    """The batches of `loader` epoch after epoch; a saved position is an epoch and how many of its batches were given.

    What the loader draws from the generators of torch (CPU), NumPy and Python, it draws for each batch from numbers of
    their own, made from seed, epoch and batch, and the training's generators stay as they are: so an order that was
    stopped is found again by giving the epoch's batches once more. The numbers are the same on every rank, so that each
    can take its share of one order. Generators that samplers have are seeded for each epoch, `set_epoch` is called.
    Raises DataError where the last batch before the position is another one than it was, for a loader without batches,
    and where every rank is given the same.
    """

    def __init__(self, loader: Iterable[object], name: str, seed: int, world_size: int = 1) -> None:
        self.loader, self.name, self.seed = loader, name, seed
        self._is_shared_out = world_size == 1  # or not known yet
        self._generators = {id(one): (one, one.initial_seed()) for one in _generators(loader)}
        self._epoch, self._given, self._mark = 0, 0, 0
        self._batches: Iterator[object] | None = None

    def __next__(self) -> object:
        if self._batches is None:
            self._begin()
        batch = self._fetch()
        if batch is None:
            if self._given == 0:
                raise DataError(f"{self.name}: its training loader gave no batch; it must give at least one an epoch")
            self._epoch, self._given = self._epoch + 1, 0
            self._begin()
            return next(self)
        self._given, self._mark = self._given + 1, _checksum(batch)
        if not self._is_shared_out:
            self._refuse_the_same_on_every_rank()
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "given": self._given, "mark": self._mark}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a position that `state_dict` gave. Raises DataError where the order there is another."""
        self._epoch, self._given = int(state["epoch"]), 0
        self._begin()
        while self._given < int(state["given"]):
            batch = self._fetch()
            self._given, self._mark = self._given + 1, _checksum(batch)
        if self._mark != int(state["mark"]):
            raise DataError(
                f"{self.name}: batch {self._given} of epoch {self._epoch + 1} is another one than it was before the "
                "stop, so the run cannot go on with the numbers that it would have had. The order must be drawn, at "
                "the start of an epoch, from a generator of torch, NumPy or Python, or the data module must keep its "
                "position by state_dict and load_state_dict"
            )

    def _refuse_the_same_on_every_rank(self) -> None:
        marks: list[int] = [0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(marks, self._mark)
        if len(set(marks)) == 1:
            raise DataError(
                f"{self.name}: every rank is given the same batches; each must be given its share, as by a "
                "DistributedSampler or by rank_and_world_size()"
            )
        self._is_shared_out = True

    def _begin(self) -> None:
        for generator, own in self._generators.values():
            generator.manual_seed(_numbers(own, self._epoch)[0])
        sampler = getattr(self.loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self._epoch)
        with _drawing(self.seed, self._epoch, 0):
            self._batches = iter(self.loader)

    def _fetch(self) -> object:
        assert self._batches is not None
        with _drawing(self.seed, self._epoch, self._given + 1):
            return next(self._batches, None)


def _generators(loader: object) -> Iterator[torch.Generator]:
    sampler = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None)):
        if isinstance(found := getattr(holder, "generator", None), torch.Generator):
            yield found


@contextlib.contextmanager
def _drawing(*position: int) -> Iterator[None]:
    """In it, the generators draw numbers that belong to a position alone; then they go on where they were."""
    first, second, third = _numbers(*position)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(first)
        np.random.seed(second % 2**32)
        random.seed(third)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _numbers(*position: int) -> list[int]:
    return [int(n) >> 1 for n in np.random.SeedSequence([n % 2**64 for n in position]).generate_state(3, np.uint64)]


def _checksum(batch: object) -> int:
    """What is the same for the same batch, and hardly for another."""
    mark = 0
    for leaf in _leaves(batch):
        mark = zlib.crc32(leaf, mark)
    return mark


def _leaves(batch: object) -> Iterator[bytes]:
    if isinstance(batch, Tensor):
        few = batch.detach().cpu().reshape(-1)[: COMPARED_BYTES // batch.element_size()]
        yield few.contiguous().view(torch.uint8).numpy().tobytes()
    elif isinstance(batch, Mapping | list | tuple):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(value)
    elif hasattr(batch, "__dict__"):
        yield from _leaves(vars(batch))
    else:
        yield repr(batch).encode("utf-8", "replace")
