"""Any loader of batches as an endless one that can be gone on with: for data modules whose training order keeps no place of its own."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from attnlab.data.cache import DataError
from attnlab.data.windows import ENDLESS

LOOKED_AT = 1 << 16  # bytes of each tensor by which a batch is known again


class KeptOrder:
    """
    The batches of `loader` epoch after epoch; a saved place is an epoch and how many of its batches were given.

    What the loader draws from the generators of torch (CPU), NumPy and Python, it draws for each batch from numbers of their own, made
    from seed, epoch and batch, and the training's generators stay as they are: so an order that was stopped is found again by giving
    the epoch's batches once more. The numbers are the same on every rank, so that each can take its share of one order. Generators
    that samplers have are seeded for each epoch, `set_epoch` is called. Raises DataError where the last batch before the place is
    another one than it was, for a loader without batches, and where every rank is given the same.
    """

    def __init__(self, loader: Iterable[Any], name: str, seed: int, world_size: int = 1) -> None:
        self.loader, self.name, self.seed = loader, name, seed
        self._is_shared_out = world_size == 1  # or not known yet
        self._generators = {id(one): (one, one.initial_seed()) for one in _generators(loader)}
        self._epoch, self._given, self._mark = 0, 0, 0
        self._batches: Iterator[Any] | None = None

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._begin()
        batch = self._fetch()
        if batch is None:
            if self._given == 0:
                raise DataError(f"{self.name}: its training loader gave no batch; it must give at least one an epoch")
            self._epoch, self._given = self._epoch + 1, 0
            self._begin()
            return next(self)
        self._given, self._mark = self._given + 1, _mark(batch)
        if not self._is_shared_out:
            self._refuse_the_same_on_every_rank()
        return batch

    def state_dict(self) -> dict[str, int]:
        """The place in the order."""
        return {"epoch": self._epoch, "given": self._given, "mark": self._mark}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a place that `state_dict` gave. Raises DataError where the order there is another."""
        self._epoch, self._given = int(state["epoch"]), 0
        self._begin()
        while self._given < int(state["given"]):
            batch = self._fetch()
            self._given, self._mark = self._given + 1, _mark(batch)
        if self._mark != int(state["mark"]):
            raise DataError(
                f"{self.name}: batch {self._given} of epoch {self._epoch + 1} is another one than it was before the stop, so the run "
                "cannot go on with the numbers that it would have had. The order must be drawn, at the start of an epoch, from a "
                "generator of torch, NumPy or Python, or the data module must keep its place by state_dict and load_state_dict"
            )

    def _refuse_the_same_on_every_rank(self) -> None:
        marks: list[int] = [0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(marks, self._mark)
        if len(set(marks)) == 1:
            raise DataError(
                f"{self.name}: every rank is given the same batches; each must be given its share, as by a DistributedSampler or by "
                "place(), which says a rank's number and how many there are"
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

    def _fetch(self) -> Any:
        assert self._batches is not None
        with _drawing(self.seed, self._epoch, self._given + 1):
            return next(self._batches, None)


def _generators(loader: Any) -> Iterator[torch.Generator]:
    """The generators that a DataLoader and its samplers have of their own."""
    sampler = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None)):
        if isinstance(found := getattr(holder, "generator", None), torch.Generator):
            yield found


@contextlib.contextmanager
def _drawing(*place: int) -> Iterator[None]:
    """In it, the generators draw numbers that belong to a place alone; then they go on where they were."""
    first, second, third = _numbers(*place)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(first)
    np.random.seed(second % 2**32)
    random.seed(third)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _numbers(*place: int) -> list[int]:
    return [int(n) >> 1 for n in np.random.SeedSequence([n % 2**64 for n in place]).generate_state(3, np.uint64)]


def _mark(batch: Any) -> int:
    """What is the same for the same batch, and hardly for another."""
    mark = 0
    for leaf in _leaves(batch):
        mark = zlib.crc32(leaf, mark)
    return mark


def _leaves(batch: Any) -> Iterator[bytes]:
    if isinstance(batch, Tensor):
        few = batch.detach().cpu().reshape(-1)[: LOOKED_AT // batch.element_size()]
        yield few.contiguous().view(torch.uint8).numpy().tobytes()
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _leaves(value)
    elif hasattr(batch, "__dict__"):
        yield from _leaves(vars(batch))
    else:
        yield repr(batch).encode("utf-8", "replace")
