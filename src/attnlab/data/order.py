"""In which order examples are seen: without end and resumable in training, once each in evaluation, over all ranks.

Shapes: N examples, L sequences an example has (1, or 2 for a source and its target), B examples of a batch, K numbers.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Self, TypeVar

import numpy as np
from torch import Tensor

from attnlab.data.cache import DataError
from attnlab.data.ramps import Ramp, StepSizes

# A length at all keeps Lightning from fetching ahead, which would put the saved order one batch off.
ENDLESS = 1 << 40

Batch = dict[str, Tensor]
E = TypeVar("E", covariant=True)


def uniforms(seed: int, epochs_B: np.ndarray | int, examples_B: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each example of its epoch, (B, K), fp64, others for each purpose.

    They are a function of what they are for, so that a resumed training has no generator to restore: the finaliser of
    SplitMix64 (Steele et al. 2014) over one number after the other, so that neighbours share nothing.
    """
    named = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest())
    of_epoch = _mix(_mix(np.array([named], dtype=np.uint64), seed), epochs_B)
    of_example_B1 = _mix(of_epoch, np.asarray(examples_B).astype(np.uint64))[:, None]
    numbers_BK = _mix(_mix(of_example_B1, np.arange(count, dtype=np.uint64)), 0)
    return (numbers_BK >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _mix(numbers: np.ndarray, also: np.ndarray | int) -> np.ndarray:
    # Arrays of unsigned integers wrap around, as is meant here.
    mixed = numbers + np.asarray(also, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Order(ABC, Generic[E]):
    """Which examples each training batch of one rank has, without end: a function of the data, seed and position.

    A step has the same examples whether one rank takes them at once, two ranks take half each, or one takes two halves.
    """

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._drawn: tuple[int, E] | None = None

    @abstractmethod
    def draw(self) -> tuple[np.ndarray, ...]:
        """The examples (B,) of the next batch, and what else a collate function is told of them."""

    @abstractmethod
    def state_dict(self) -> dict[str, int]:
        """The position in the order, which holds for another number of ranks too."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a position that `state_dict` gave."""

    @abstractmethod
    def draw_epoch(self, random: np.random.Generator) -> E: ...

    def follow(self, ramp: Ramp, micro_batches: int = 1) -> None:
        """Has the first steps, of so many batches on each rank, be smaller. Raises DataError where they cannot be."""
        if ramp.steps:
            raise DataError(f"batch_ramp: {type(self).__name__} has no batches of a fixed number of examples")

    def epoch(self, number: int) -> E:
        """The order of an epoch; the last one asked for is kept."""
        if self._drawn is None or self._drawn[0] != number:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
            self._drawn = (number, self.draw_epoch(random))
        return self._drawn[1]


class ShuffledOrder(Order[np.ndarray]):
    """Every epoch gives each of `count` examples once, `batch_size` a batch and rank.

    A batch may begin in one epoch and end in the next, so all are full; those of a ramp's step (see `follow`) have
    equal shares of it, or one example more. unit: what the saved position counts. step: that of the batch drawn last.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, unit: str = "images"
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.count, self.batch_size, self.unit, self.seen = count, batch_size, f"{unit}_seen", 0
        self.follow(Ramp())

    def follow(self, ramp: Ramp, micro_batches: int = 1) -> None:
        parts = self.world_size * micro_batches
        self.sizes, self.parts, self.step = StepSizes(ramp, self.batch_size * parts), parts, 0
        self._begun, self._dealt = self.seen, 0  # of the step: what was seen before, and its parts that are dealt out
        if (least := min(map(self.sizes.size, range(ramp.steps + 1)))) < parts:
            raise DataError(
                f"batch_ramp: a step of {least} examples is too few for {parts} batches (ranks times accumulated "
                "batches), one for each; begin with more, or with a larger data.batch_size"
            )

    def draw_epoch(self, random: np.random.Generator) -> np.ndarray:
        return random.permutation(self.count)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The examples (B,), and their numbers (B,) among all that all ranks ever see."""
        if self._dealt == 0:
            self._begun, self.step = self.seen, self.sizes.step_at(self.seen)
        size, part = self.sizes.size(self.step), self._dealt + self.rank
        first, end = (self._begun + size * k // self.parts for k in (part, part + 1))
        self._dealt = (self._dealt + self.world_size) % self.parts
        self.seen = self._begun + (size * self._dealt // self.parts if self._dealt else size)
        return self.examples(first, end - first), np.arange(first, end)

    def examples(self, first: int, count: int) -> np.ndarray:
        """So many examples from the `first` that is ever seen."""
        parts, missing = [], count
        while missing:
            number, position = divmod(first, self.count)
            parts.append(self.epoch(number)[position : position + missing])
            first, missing = first + len(parts[-1]), missing - len(parts[-1])
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, int]:
        return {self.unit: self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen, self._dealt = int(state[self.unit]), 0


class TokenBatchOrder(Order[list[np.ndarray]]):
    """Every epoch gives each of the examples with lengths (N, L) once, in batches within a token budget.

    An epoch sorts the examples by length, equal ones shuffled, cuts this row into groups and shuffles the groups. A
    group is what one optimizer step takes: it is dealt out to `parts` batches (all ranks times accumulated ones), so
    every rank has as many batches. `batch_tokens` times `parts` bounds a step's examples times the longest of each of
    their sequences, padding included. A saved position is that after the last whole step. Raises DataError.
    """

    def __init__(
        self,
        lengths_NL: np.ndarray,
        batch_tokens: int,
        seed: int = 0,
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        check_budget(lengths_NL, batch_tokens)
        self.lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
        if len(self.lengths_NL) < parts:
            raise DataError(
                f"{len(self.lengths_NL)} training examples are too few for {parts} batches a step (ranks times "
                "accumulated batches)"
            )
        self.batch_tokens, self.parts = batch_tokens, parts
        self.number, self.step = 0, 0  # of the epoch, and of the step in it
        self._waiting: list[np.ndarray] = []

    def draw_epoch(self, random: np.random.Generator) -> list[np.ndarray]:
        """The examples of every step, neighbours in length."""
        order_N = random.permutation(len(self.lengths_NL))
        order_N = order_N[by_length(self.lengths_NL[order_N])]
        groups = cut(order_N, self.lengths_NL, self.batch_tokens * self.parts, self.parts)
        return [groups[i] for i in random.permutation(len(groups))]

    def draw(self) -> tuple[np.ndarray]:
        """The examples (B,): of each part of a step as many or one more."""
        if not self._waiting:
            groups = self.epoch(self.number)
            self._waiting = np.array_split(groups[self.step], self.parts)[self.rank :: self.world_size]
            self.step += 1
            if self.step == len(groups):
                self.number, self.step = self.number + 1, 0
        return (self._waiting.pop(0),)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.number, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.step = int(state["epoch"]), int(state["step"])


class Endless:
    """A loader without an end, whose `__next__` gives a batch."""

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Self:
        return self


class TrainingLoader(Endless):
    """The batches that `collate` makes of what an order draws."""

    def __init__(self, order: Order[object], collate: Callable[..., Batch]) -> None:
        self.order, self.collate = order, collate

    def __next__(self) -> Batch:
        return self.collate(*self.order.draw())

    def position(self) -> dict[str, int]:
        """The order's position after the batch given out last."""
        return self.order.state_dict()


class EvaluationLoader:
    """One rank's batches that `collate` makes of examples, each given once over all ranks."""

    def __init__(self, batches: Sequence[np.ndarray], collate: Callable[[np.ndarray], Batch]) -> None:
        self.batches, self.collate = batches, collate

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.collate, self.batches)


def batches_by_length(
    lengths_NL: np.ndarray, batch_tokens: int, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """One rank's share of all examples, the longest first, in batches of similar length within the budget.

    Raises DataError where a rank would have none while others have some.
    """
    if not len(lengths_NL):
        return []
    if len(lengths_NL) < world_size:
        raise DataError(
            f"{len(lengths_NL)} examples to evaluate are too few for {world_size} ranks; evaluate on fewer devices"
        )
    lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
    return cut(by_length(lengths_NL)[::-1][rank::world_size], lengths_NL, batch_tokens, 1)


def typical(batches: list[np.ndarray], lengths_NL: np.ndarray, terms_N: np.ndarray) -> np.ndarray:
    """Of these batches, the first whose positions a term, padding included, are nearest to those of all together."""
    lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
    positions = np.array([len(batch_B) * int(lengths_NL[batch_B].max(axis=0).sum()) for batch_B in batches])
    terms = np.array([int(terms_N[batch_B].sum()) for batch_B in batches])
    return batches[int(np.abs(positions / np.maximum(terms, 1) - positions.sum() / max(1, terms.sum())).argmin())]


def by_length(lengths_NL: np.ndarray) -> np.ndarray:
    """An order by the last sequence's length, then by the first's, up and down in turns: neighbours stay alike."""
    last_N, first_N = lengths_NL[:, -1], lengths_NL[:, 0]
    return np.lexsort((np.where(last_N % 2 == 1, -first_N, first_N), last_N))


def cut(order_N: np.ndarray, lengths_NL: np.ndarray, budget: int, at_least: int) -> list[np.ndarray]:
    """The order in groups of as many examples as fit into the budget, padding included, and never below `at_least`."""
    starts, longest = [0], [0] * lengths_NL.shape[1]
    for position, row_L in enumerate(lengths_NL[order_N].tolist()):  # plain numbers: there may be millions of rows
        grown = list(map(max, longest, row_L))
        count = position - starts[-1]
        if count >= at_least and (count + 1) * sum(grown) > budget:
            starts.append(position)
            grown = row_L
        longest = grown
    short = at_least - (len(order_N) - starts[-1])
    if len(starts) > 1 and short > 0:
        if starts[-1] - starts[-2] - short >= at_least:
            starts[-1] -= short
        else:
            starts.pop()
    return np.split(order_N, starts[1:])


def check_budget(lengths_NL: np.ndarray, batch_tokens: int) -> None:
    """Raises DataError where there is no example, or the longest does not fit into the budget."""
    if not len(lengths_NL):
        raise DataError("there is no training example; look at data.path and at what was dropped")
    longest = int(lengths_NL.reshape(len(lengths_NL), -1).sum(axis=1).max())
    if batch_tokens < longest:
        raise DataError(
            f"data.batch_tokens={batch_tokens} cannot hold the longest example of {longest} tokens; give at least "
            "that, or a smaller data.max_length"
        )
