"""Synthetic problems as data: rows that are drawn as they are needed and never stored, but where there are few in all.

Shapes: B rows of a batch, T tokens of a row, S tokens of a question.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property, partial

import numpy as np
import torch

from attnlab.data.ahead import BatchesAhead
from attnlab.data.cache import DataError
from attnlab.data.module import DataModule, padded
from attnlab.data.order import ENDLESS, Batch, EvaluationLoader, ShuffledOrder, TrainingLoader
from attnlab.data.problems import Problem, Row
from attnlab.parts import Choices
from attnlab.ranges import PositiveInt, Seed, check_ranges, must_be

PAD, START = 0, 1  # before the symbols of a problem
FIRST = 2
MOST_COMPARED = 200_000  # training rows that questions are compared with


class FreshRows(ShuffledOrder):
    """Rows that are all new: a batch has the next numbers."""

    def __init__(self, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(ENDLESS, batch_size, seed, rank, world_size, "rows")

    def examples(self, first: int, count: int) -> np.ndarray:
        return np.arange(first, first + count)


@check_ranges
class SyntheticData(DataModule):
    """Rows of a problem, another one at each step; of one whose rows are few (`Problem.all_rows`) each once an epoch.

    length: of training rows, as the problem counts it. shortest: each row's length is drawn from there to `length`;
    None: all have that length. validation_rows, test_rows: how many are asked at each length, or all that there are.
    seed: draws the training rows, or their order; those that are asked are the same for every seed. Raises ValueError
    for a length that the problem has not.
    """

    frame = None
    unit = "answer"
    takes_batch_ramp = True

    def __init__(
        self,
        problem: Problem,
        length: PositiveInt = 16,
        shortest: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        validation_rows: PositiveInt = 512,
        test_rows: PositiveInt = 1024,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.problem, self.length, self.batch_size, self.seed = problem, length, batch_size, seed
        self.name = type(problem).__name__.lower()
        self.shortest = length if shortest is None else shortest
        self.num_rows = {"validation": validation_rows, "test": test_rows}
        if self.shortest > length:
            raise ValueError(must_be("data.shortest", f"at most data.length={length}", shortest))
        if problem.smallest is not None and self.shortest < problem.smallest:
            wanted = f"at least {problem.smallest} for {self.name}"
            raise ValueError(must_be("data.length" if shortest is None else "data.shortest", wanted, self.shortest))
        for each in {self.shortest, length}:
            problem.draw(np.random.default_rng(0), each, "train")

    @cached_property
    def finite(self) -> Sequence[Row] | None:
        """All training rows, where they are few."""
        return self.problem.all_rows("train")

    @classmethod
    def longest_row(cls, choices: Choices) -> tuple[int, str]:
        return 0, "data.length"

    def dims(self) -> dict[str, object]:
        size = FIRST + len(self.problem.symbols)
        return {"vocabulary_size": size, "source_vocabulary_size": size}

    def placeholder_dims(self) -> dict[str, object]:
        return self.dims()

    @cached_property
    def tokens_per_batch(self) -> int:
        some = self.training_rows(range(256)) if self.finite is None else self.finite
        answers = [int(row.is_answer_T.sum()) for row in some]
        return max(1, round(self.batch_size * sum(answers) / len(answers)))

    @property
    def train_tokens(self) -> int:
        """Without end, where no row comes twice."""
        return ENDLESS if self.finite is None else sum(int(row.is_answer_T.sum()) for row in self.finite)

    def steps_in(self, epochs: int, accumulated: int = 1, ranks: int = 1) -> int:
        if self.finite is None:
            raise DataError(f"trainer.max_epochs: rows of {self.name} are new at each step; set trainer.max_steps")
        return super().steps_in(epochs, accumulated, ranks)

    def facts(self) -> dict[str, object]:
        return {
            "fingerprint": self.fingerprint,
            "vocabulary_size": FIRST + len(self.problem.symbols),
            "rows_asked": {split: len(self.rows_of(split, self.length)) for split in self.num_rows},
        }

    @property
    def fingerprint(self) -> str:
        """Of rows that are asked, so that another way of drawing them is known for another problem."""
        asked = self.rows_of("test", self.length, count=16)
        said = json.dumps([[row.tokens_T.tolist(), row.is_answer_T.tolist()] for row in asked])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def describe(self) -> str:
        lengths = str(self.length) if self.shortest == self.length else f"{self.shortest} to {self.length}"
        example = self.problem.write(self.training_rows([0])[0].tokens_T)
        said = f"new rows of length {lengths} at each step"
        if self.finite is not None:
            said = f"{len(self.finite):,} rows, each once an epoch"
        return f"{self.name}: {said}, as {example[:200]}"

    def training_rows(self, numbers: Iterable[int]) -> list[Row]:
        """The training rows of these numbers."""
        if self.finite is not None:
            return [self.finite[number] for number in numbers]
        return rows(self.problem, self.seed, "train", numbers, range(self.shortest, self.length + 1))

    def rows_of(self, split: str, length: int, problem: Problem | None = None, count: int | None = None) -> list[Row]:
        """The rows that are asked of a split at a length, of a problem of another difficulty where one is given; all
        where there are not as many.
        """
        problem, count = problem or self.problem, count or self.num_rows[split]
        known = problem.all_rows(split)
        return rows(problem, 0, split, range(count), [length]) if known is None else list(known[:count])

    def overlap(self, asked: Sequence[Row], answers: int) -> float:
        """The share of questions that were among the training rows, of which so many answers were trained on."""
        questions = [prompt_of(row) for row in asked]
        wanted, found = {*questions}, set[bytes]()
        for number in range(MOST_COMPARED if self.finite is None else len(self.finite)):
            if answers <= 0:
                break
            (row,) = self.training_rows([number])
            answers -= int(row.is_answer_T.sum())
            found |= {prompt_of(row)} & wanted
        return sum(question in found for question in questions) / len(questions)

    def setup(self, stage: str | None = None) -> None:
        """There is nothing to prepare."""
        return

    def train_dataloader(self) -> TrainingLoader | BatchesAhead:
        ranks = self.rank_and_world_size()
        order = (
            FreshRows(self.batch_size, self.seed, *ranks)
            if self.finite is None
            else ShuffledOrder(len(self.finite), self.batch_size, self.seed, *ranks, "rows")
        )
        return self.in_order(order, lambda numbers_B, _: self.collate(self.training_rows(numbers_B)))

    def val_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader("validation")

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        return self.loader_of(self.rows_of(split, self.length))

    def loader_of(self, asked: Sequence[Row]) -> EvaluationLoader:
        """Rows in batches, each once over all ranks, with their numbers (`ids`)."""
        rank, world_size = self.rank_and_world_size()
        numbers = np.arange(len(asked))[rank::world_size]
        batches = [numbers[first : first + self.batch_size] for first in range(0, len(numbers), self.batch_size)]
        return EvaluationLoader(batches, partial(self._asked, asked))

    def _asked(self, asked: Sequence[Row], numbers_B: np.ndarray) -> Batch:
        return self.collate([asked[number] for number in numbers_B]) | {"ids": torch.from_numpy(numbers_B)}

    def collate(self, drawn: Sequence[Row]) -> Batch:
        """{"tokens", "targets", "is_answer": (B, T)} for a language model; where the answers end the rows, {"source",
        "is_source": (B, S), "target_in", "target_out", "is_target": (B, T)} for an encoder-decoder, too.
        """
        whole = [row.tokens_T + FIRST for row in drawn]
        batch = {
            "tokens": padded([tokens_T[:-1] for tokens_T in whole], PAD),
            "targets": padded([tokens_T[1:] for tokens_T in whole], PAD),
            "is_answer": padded([row.is_answer_T[1:] for row in drawn], False).astype(bool),
        }
        if self.problem.answers_last:
            firsts = [int(row.is_answer_T.argmax()) for row in drawn]
            sources = [tokens_T[:first] for tokens_T, first in zip(whole, firsts, strict=True)]
            targets = [tokens_T[first:] for tokens_T, first in zip(whole, firsts, strict=True)]
            started = [np.concatenate([[START], target_T[:-1]]) for target_T in targets]
            batch |= {
                "source": padded(sources, PAD),
                "is_source": padded([np.ones(len(source_S)) for source_S in sources], 0).astype(bool),
                "target_in": padded(started, PAD),
                "target_out": padded(targets, PAD),
                "is_target": padded([np.ones(len(target_T)) for target_T in targets], 0).astype(bool),
            }
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def rows(problem: Problem, seed: int, split: str, numbers: Iterable[int], lengths: Sequence[int]) -> list[Row]:
    """The rows of these numbers: each has a length drawn from `lengths`, and is the same whenever it is drawn."""
    stream = ("train", "validation", "test").index(split)
    found = []
    for number in numbers:
        random = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, int(number)]))
        length = lengths[int(random.integers(len(lengths)))] if len(lengths) > 1 else lengths[0]
        found.append(problem.draw(random, length, split))
    return found


def prompt_of(row: Row) -> bytes:
    """What a row asks, by which two rows are the same: its tokens before the first answer."""
    first = int(row.is_answer_T.argmax())
    return row.tokens_T[:first].tobytes()


def most_frequent(found: Sequence[Row]) -> list[int]:
    """The answer that is given most often in each place among a row's answers."""
    places = itertools.zip_longest(*(row.tokens_T[row.is_answer_T].tolist() for row in found))
    return [int(np.bincount([token for token in place if token is not None]).argmax()) for place in places]
