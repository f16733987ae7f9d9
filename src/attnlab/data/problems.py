"""Problems that show an architecture in minutes: rows of tokens drawn at random, and which of them are answers.

A row is a function of seed, split and number, so that nothing is stored.
"""

# ruff: noqa: N815 - shape suffixes on fields, too
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from attnlab.parts import Part
from attnlab.ranges import NonNegativeFloat, PositiveInt, Probability, check_ranges, must_be

Random = np.random.Generator
DIGITS = [str(digit) for digit in range(10)]


class Row(NamedTuple):
    """Tokens (T,) by their number among the problem's symbols, and which of them are answers, bool (T,)."""

    tokens_T: np.ndarray
    is_answer_T: np.ndarray


class Problem(Part, ABC):
    """A problem; a choice gives `symbols` and `draw`.

    answers_last: the answers end the row, so that an encoder-decoder can read what stands before them. smallest: the
    least length that there is; None: the problem has no lengths.
    """

    answers_last: ClassVar[bool] = True
    smallest: ClassVar[int | None] = 1

    @property
    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """What each token is written as."""

    @abstractmethod
    def draw(self, random: Random, length: int, split: str) -> Row:
        """A row of this length. Raises ValueError for a length that there is not."""

    def all_rows(self, split: str) -> Sequence[Row] | None:
        """Every row of a split, in an order without a meaning, where they are so few that a training sees them again
        and again; None: rows are drawn without end.
        """
        return None

    def longest(self, length: int) -> int:
        """The most tokens that a row of this length has."""
        return max(len(self.draw(np.random.default_rng(i), length, "train").tokens_T) for i in range(16))

    def write(self, tokens_T: np.ndarray) -> str:
        """Tokens as a reader sees them."""
        return " ".join(self.symbols[token] for token in tokens_T)


def row_of(asked: Sequence[int], answers: Sequence[int]) -> Row:
    """A row whose answers stand at its end."""
    tokens_T = np.array([*asked, *answers], dtype=np.int64)
    return Row(tokens_T, np.arange(len(tokens_T)) >= len(asked))


def named(count: int, first: str = "") -> list[str]:
    return [f"{first}{number}" for number in range(count)]


@check_ranges
class MQAR(Problem):
    """Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927, section 3): pairs of a key and a
    value, then each key once more among noise, after distances by a power law; the values that follow are the answers.
    length: tokens of a row.
    """

    answers_last = False

    def __init__(
        self, num_pairs: PositiveInt = 8, vocabulary: PositiveInt = 256, power: NonNegativeFloat = 0.01
    ) -> None:
        if vocabulary % 2 or vocabulary // 2 < num_pairs:
            wanted = f"even, and at least twice problem.num_pairs={num_pairs}"
            raise ValueError(must_be("data.problem.vocabulary", wanted, vocabulary))
        self.num_pairs, self.vocabulary, self.power = num_pairs, vocabulary, power

    @property
    def symbols(self) -> Sequence[str]:
        half = self.vocabulary // 2
        return named(half, "k") + named(half, "v")

    def draw(self, random: Random, length: int, split: str) -> Row:
        half, count = self.vocabulary // 2, self.num_pairs
        places = length // 2 - count  # of two tokens each
        if length % 2 or places < count:
            raise ValueError(must_be("data.length", f"even, and at least {4 * count} for {count} pairs", length))
        keys, values = random.permutation(half)[:count], half + random.integers(half, size=count)
        tokens_T = half + random.integers(half, size=length)
        tokens_T[: 2 * count : 2], tokens_T[1 : 2 * count : 2] = keys, values
        # Gumbel's way of drawing without replacement by weights (Kool et al. 2019, arXiv 1903.06059, section 2.2).
        chances = (self.power - 1) * np.log(np.arange(1, places + 1)) + random.gumbel(size=places)
        asked = 2 * (count + np.argsort(chances)[places - count :])
        tokens_T[asked], tokens_T[asked + 1] = keys, values
        is_answer_T = np.zeros(length, dtype=bool)
        is_answer_T[asked + 1] = True
        return Row(tokens_T, is_answer_T)


@check_ranges
class Copy(Problem):
    """Items, a mark, and the same items again (Graves et al. 2014, arXiv 1410.5401, section 4.1). length: items."""

    def __init__(self, vocabulary: PositiveInt = 16) -> None:
        self.vocabulary = vocabulary

    @property
    def symbols(self) -> Sequence[str]:
        return [*named(self.vocabulary), "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        items = random.integers(self.vocabulary, size=length)
        return row_of([*items, self.vocabulary], self.answer(items))

    def answer(self, items: np.ndarray) -> Sequence[int]:
        return [int(item) for item in items]


class Sort(Copy):
    """Items, a mark, and the same items from the least to the greatest. length: items."""

    def answer(self, items: np.ndarray) -> Sequence[int]:
        return sorted(items.tolist())


@check_ranges
class SelectiveCopy(Problem):
    """Items at random places among blanks, then marks in whose places the items stand in their order (Arjovsky et al.
    2016, arXiv 1511.06464, section 5.1; Gu & Dao 2023, arXiv 2312.00752, section 3.1). length: items and blanks.
    """

    smallest = 2

    def __init__(self, num_items: PositiveInt = 8, vocabulary: PositiveInt = 16) -> None:
        self.num_items, self.vocabulary = num_items, vocabulary

    @property
    def symbols(self) -> Sequence[str]:
        return [*named(self.vocabulary), ".", "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        if length < self.num_items:
            raise ValueError(must_be("data.length", f"at least problem.num_items={self.num_items}", length))
        items = random.integers(self.vocabulary, size=self.num_items)
        asked = np.full(length + 1, self.vocabulary)
        asked[np.sort(random.permutation(length)[: self.num_items])] = items
        asked[-1] = self.vocabulary + 1
        return row_of(asked.tolist(), items.tolist())


@check_ranges
class Induction(Problem):
    """A random text that comes again and again, with another period in each row, so that no fixed distance solves it
    (Olsson et al. 2022, arXiv 2209.11895); the answers are its tokens from the second of the second time on. length:
    tokens of a row. period: the shortest and the longest, as shares of the length.
    """

    smallest = 8

    def __init__(self, vocabulary: PositiveInt = 32, period: Sequence[Probability] = (0.25, 0.5)) -> None:
        if len(period) != 2 or not 0 < period[0] <= period[1] < 1:
            raise ValueError(must_be("data.problem.period", "two rising shares between 0 and 1", list(period)))
        self.vocabulary, self.period = vocabulary, period

    @property
    def symbols(self) -> Sequence[str]:
        return named(self.vocabulary)

    def draw(self, random: Random, length: int, split: str) -> Row:
        low, high = (max(1, round(share * length)) for share in self.period)
        period = int(random.integers(low, high + 1))
        tokens_T = np.resize(random.integers(self.vocabulary, size=period), length)
        return Row(tokens_T, np.arange(length) > period)


@check_ranges
class FlipFlop(Problem):
    """Instructions with a bit each: write, ignore, read; after a read stands the bit that was written last (Liu et al.
    2023, arXiv 2306.00946, section 3: FFL). length: instructions. ignored: the share of those that are ignored.
    """

    answers_last = False
    smallest = 2

    def __init__(self, ignored: Probability = 0.8) -> None:
        self.ignored = ignored

    @property
    def symbols(self) -> Sequence[str]:
        return ["0", "1", "w", "i", "r"]

    def draw(self, random: Random, length: int, split: str) -> Row:
        write, ignore, read = 2, 3, 4
        others = (1 - self.ignored) / 2
        given = random.choice([write, ignore, read], size=length, p=[others, self.ignored, others])
        given[0], given[-1] = write, read
        bits = random.integers(2, size=length)
        last = np.maximum.accumulate(np.where(given == write, np.arange(length), 0))
        bits = np.where(given == read, bits[last], bits)
        tokens_T = np.stack([given, bits], axis=1).reshape(-1).astype(np.int64)
        return Row(tokens_T, np.stack([np.zeros(length, dtype=bool), given == read], axis=1).reshape(-1))


class Parity(Problem):
    """Bits, a mark, and whether an odd number of them is set (Hahn 2020, arXiv 1906.06755). length: bits."""

    @property
    def symbols(self) -> Sequence[str]:
        return ["0", "1", "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        bits = random.integers(2, size=length).tolist()
        return row_of([*bits, 2], [sum(bits) % 2])


@check_ranges
class ModularAddition(Problem):
    """a, b and a + b modulo a prime, of which a share of all pairs is trained on and the others are asked (Power et al.
    2022, arXiv 2201.02177: grokking).
    """

    smallest = None

    def __init__(self, modulus: PositiveInt = 59, train_share: Probability = 0.5) -> None:
        if not modulus >= 2 or not 0 < train_share < 1:
            wanted = "a modulus of at least 2, and a share between 0 and 1"
            raise ValueError(must_be("data.problem", wanted, f"{modulus}, {train_share}"))
        self.modulus, self.train_share = modulus, train_share

    @property
    def symbols(self) -> Sequence[str]:
        return [*named(self.modulus), "="]

    @cached_property
    def _pairs(self) -> dict[str, np.ndarray]:
        order = np.random.default_rng(0).permutation(self.modulus**2)
        cut = round(self.train_share * len(order))
        halves = np.array_split(order[cut:], 2)
        return {"train": order[:cut], "validation": halves[0], "test": halves[1]}

    def all_rows(self, split: str) -> Sequence[Row]:
        return [self._row(int(pair)) for pair in self._pairs[split]]

    def draw(self, random: Random, length: int, split: str) -> Row:
        return self._row(int(random.choice(self._pairs[split])))

    def _row(self, pair: int) -> Row:
        a, b = divmod(pair, self.modulus)
        return row_of([a, b, self.modulus], [(a + b) % self.modulus])


@check_ranges
class Addition(Problem):
    """Two numbers of so many digits and their sum, one digit longer (Nogueira et al. 2021, arXiv 2102.13019). length:
    digits. reverse: the sum's last digit stands first (Lee et al. 2023, arXiv 2307.03381, section 3).
    """

    def __init__(self, reverse: bool = True) -> None:
        self.reverse = reverse

    @property
    def symbols(self) -> Sequence[str]:
        return [*DIGITS, "+", "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        first, second = random.integers(10, size=(2, length)).tolist()
        total = sum(10**place * (a + b) for place, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=True)))
        digits = [total // 10**place % 10 for place in range(length + 1)]
        return row_of([*first, 10, *second, 11], digits if self.reverse else digits[::-1])


@check_ranges
class ListOps(Problem):
    """Nested lists with minimum, maximum, median and sum modulo 10, and what they come to (Nangia & Bowman 2018, arXiv
    1804.06028). length: the most tokens of a list. depth, arguments: the most of each.
    """

    smallest = 4
    OPERATIONS: ClassVar[Sequence[str]] = ("[MIN", "[MAX", "[MED", "[SM")

    def __init__(self, depth: PositiveInt = 3, arguments: PositiveInt = 4) -> None:
        if arguments < 2:
            raise ValueError(must_be("data.problem.arguments", "at least 2", arguments))
        self.depth, self.arguments = depth, arguments

    @property
    def symbols(self) -> Sequence[str]:
        return [*DIGITS, *self.OPERATIONS, "]", "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        while True:
            tokens, value = self._list(random, self.depth)
            if len(tokens) <= length:
                return row_of([*tokens, 15], [value])

    def _list(self, random: Random, depth: int) -> tuple[list[int], int]:
        operation, tokens, values = int(random.integers(4)), list[int](), list[int]()
        for _ in range(int(random.integers(2, self.arguments + 1))):
            if depth > 1 and random.random() < 0.25:
                inner, value = self._list(random, depth - 1)
            else:
                value = int(random.integers(10))
                inner = [value]
            tokens += inner
            values.append(value)
        found = (min(values), max(values), int(np.median(values)), sum(values) % 10)[operation]
        return [10 + operation, *tokens, 14], found

    def longest(self, length: int) -> int:
        return length + 2


@check_ranges
class Depo(Problem):
    """Steps along a permutation (Allen-Zhu 2025, Physics of language models 4.1, arXiv 2512.17351: Depo): the edges of
    a directed circle in random order, then questions of a number of hops and a node, with the node that they lead to.
    length: nodes. hops: the most.
    """

    answers_last = False
    smallest = 3

    def __init__(self, hops: PositiveInt = 4, num_questions: PositiveInt = 4, nodes: PositiveInt = 64) -> None:
        self.hops, self.num_questions, self.nodes = hops, num_questions, nodes

    @property
    def symbols(self) -> Sequence[str]:
        return [*named(self.nodes, "n"), *named(self.hops + 1, "+"), "?"]

    def draw(self, random: Random, length: int, split: str) -> Row:
        if length > self.nodes:
            raise ValueError(must_be("data.length", f"at most problem.nodes={self.nodes}", length))
        circle = random.permutation(self.nodes)[:length]
        edges = np.stack([circle, np.roll(circle, -1)], axis=1)[random.permutation(length)].reshape(-1)
        hops = random.integers(1, self.hops + 1, self.num_questions)
        starts = random.integers(length, size=self.num_questions)
        ends = circle[(starts + hops) % length]
        mark = np.full(self.num_questions, len(self.symbols) - 1)
        asked = np.stack([mark, self.nodes + hops, circle[starts], ends], axis=1).reshape(-1)
        is_answer_T = np.zeros(2 * length + len(asked), dtype=bool)
        is_answer_T[2 * length + 3 :: 4] = True
        return Row(np.concatenate([edges, asked]), is_answer_T)


@check_ranges
class Mano(Problem):
    """Sums in the head (Allen-Zhu 2025: Mano): an expression of additions, subtractions and products modulo a prime,
    each before its two arguments, and what it comes to. length: operations.
    """

    def __init__(self, modulus: PositiveInt = 23) -> None:
        self.modulus = modulus

    @property
    def symbols(self) -> Sequence[str]:
        return [*named(self.modulus), "+", "-", "*", "="]

    def draw(self, random: Random, length: int, split: str) -> Row:
        tokens, value = self._expression(random, length)
        return row_of([*tokens, self.modulus + 3], [value])

    def _expression(self, random: Random, operations: int) -> tuple[list[int], int]:
        if operations == 0:
            value = int(random.integers(self.modulus))
            return [value], value
        on_left = int(random.integers(operations))
        (left, a), (right, b) = (self._expression(random, n) for n in (on_left, operations - 1 - on_left))
        operation = int(random.integers(3))
        value = (a + b, a - b, a * b)[operation] % self.modulus
        return [self.modulus + operation, *left, *right], value


PROBLEMS: tuple[type[Problem], ...] = (
    MQAR, Copy, Sort, SelectiveCopy, Induction, FlipFlop, Parity, ModularAddition, Addition, ListOps, Depo, Mano,
)  # fmt: skip
