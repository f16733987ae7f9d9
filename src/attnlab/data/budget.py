"""Batches of examples of similar length within a budget of tokens: deterministic, resumable, the same work for every rank.

Letters of shapes: N examples, L sequences an example has (1, or 2 for a source and its target), B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from attnlab.data.cache import DataError
from attnlab.data.windows import ENDLESS


class TokenBudgetBatches:
    """
    The endless training order of examples with lengths (N, L): every epoch gives each example once.

    An epoch sorts the examples by length, equal ones shuffled, cuts this row into groups and shuffles the groups. A group is
    what one optimizer step takes: it is dealt out to `parts` batches (all ranks times accumulated micro-batches), so every
    rank has the same number of batches, and a step has the same examples whether one rank takes them at once, two ranks take
    half each, or one takes two halves. `batch_tokens` times `parts` bounds a step's examples times the longest of each of their
    sequences, padding included, so it bounds a batch on average over the parts of its step. Step i is a function of the
    arguments and i alone. Raises DataError.
    """

    def __init__(self, lengths_NL: np.ndarray, batch_tokens: int, seed: int = 0, parts: int = 1) -> None:
        check_budget(lengths_NL, batch_tokens)
        self.lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
        if len(self.lengths_NL) < parts:
            raise DataError(
                f"{len(self.lengths_NL)} training examples are too few for {parts} batches a step (ranks times accumulated batches)"
            )
        self.batch_tokens, self.seed, self.parts = batch_tokens, seed, parts
        self.epoch, self.step = 0, 0
        self._groups: tuple[int, list[np.ndarray]] = (-1, [])

    def groups(self, epoch: int) -> list[np.ndarray]:
        """The examples of every step of an epoch."""
        if self._groups[0] != epoch:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
            order_N = random.permutation(len(self.lengths_NL))
            order_N = order_N[by_length(self.lengths_NL[order_N])]
            groups = cut(order_N, self.lengths_NL, self.batch_tokens * self.parts, self.parts)
            self._groups = (epoch, [groups[i] for i in random.permutation(len(groups))])
        return self._groups[1]

    def next_group(self) -> np.ndarray:
        """The examples of the next step."""
        groups = self.groups(self.epoch)
        group = groups[self.step]
        self.step += 1
        if self.step == len(groups):
            self.epoch, self.step = self.epoch + 1, 0
        return group

    def part(self, group_B: np.ndarray, index: int) -> np.ndarray:
        """The examples of part `index` of a group: neighbours in length, as many as in any other part or one more."""
        return np.array_split(group_B, self.parts)[index]

    def state_dict(self) -> dict[str, int]:
        """The place in the order, for any number of ranks with the same number of parts."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a place that `state_dict` gave."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])


class BudgetedRows:
    """
    The batches of one rank in the order of TokenBudgetBatches; `collate` makes a batch of rows. A saved place is that after the last
    whole step.
    """

    def __init__(
        self, collate: Callable[[np.ndarray], Any], order: TokenBudgetBatches, rank: int, world_size: int
    ) -> None:
        self.collate, self.order, self.rank, self.world_size = collate, order, rank, world_size
        self._waiting: list[np.ndarray] = []

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._waiting:
            group = self.order.next_group()
            self._waiting = [
                self.order.part(group, part) for part in range(self.rank, self.order.parts, self.world_size)
            ]
        return self.collate(self._waiting.pop(0))


class EvaluationBatches:
    """
    Every example once over all ranks, the longest first, in batches of similar length within the budget; `collate` makes a batch of rows.

    Raises DataError where a rank would have none while others have some.
    """

    def __init__(
        self,
        lengths_NL: np.ndarray,
        batch_tokens: int,
        collate: Callable[[np.ndarray], Any],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows: list[np.ndarray] = []
        self.collate = collate
        if not len(lengths_NL):
            return
        if len(lengths_NL) < world_size:
            raise DataError(
                f"{len(lengths_NL)} examples to evaluate are too few for {world_size} ranks; evaluate on fewer devices"
            )
        lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
        order_N = by_length(lengths_NL)[::-1][rank::world_size]
        self.rows = cut(order_N, lengths_NL, batch_tokens, 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return map(self.collate, self.rows)


def typical(batches: list[np.ndarray], lengths_NL: np.ndarray, terms_N: np.ndarray) -> np.ndarray:
    """Of these batches, the one whose positions a term, padding included, are nearest to those of all together; the first of equals."""
    lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
    positions = np.array([len(batch_B) * int(lengths_NL[batch_B].max(axis=0).sum()) for batch_B in batches])
    terms = np.array([int(terms_N[batch_B].sum()) for batch_B in batches])
    return batches[int(np.abs(positions / np.maximum(terms, 1) - positions.sum() / max(1, terms.sum())).argmin())]


def padding_share(lengths_NL: np.ndarray, batches: list[np.ndarray]) -> float:
    """Which share of all positions of these batches is padding, over all sequences of their examples."""
    lengths_NL = np.asarray(lengths_NL).reshape(len(lengths_NL), -1)
    positions = sum(len(batch_B) * int(lengths_NL[batch_B].max(axis=0).sum()) for batch_B in batches)
    return 1 - sum(int(lengths_NL[batch_B].sum()) for batch_B in batches) / max(1, positions)


def by_length(lengths_NL: np.ndarray) -> np.ndarray:
    """An order by the last sequence's length, then by the first's, up and down in turns so that neighbours stay alike."""
    last_N, first_N = lengths_NL[:, -1], lengths_NL[:, 0]
    return np.lexsort((np.where(last_N % 2 == 1, -first_N, first_N), last_N))


def cut(order_N: np.ndarray, lengths_NL: np.ndarray, budget: int, at_least: int) -> list[np.ndarray]:
    """The order in groups of as many examples as fit into the budget, padding included, and never fewer than `at_least`."""
    starts, longest = [0], [0] * lengths_NL.shape[1]
    for place, row_L in enumerate(lengths_NL[order_N].tolist()):  # plain numbers: there may be millions of rows
        grown = list(map(max, longest, row_L))
        count = place - starts[-1]
        if count >= at_least and (count + 1) * sum(grown) > budget:
            starts.append(place)
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
            f"data.batch_tokens={batch_tokens} cannot hold the longest example of {longest} tokens; give at least that, or "
            "a smaller data.max_length"
        )
