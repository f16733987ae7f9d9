"""Ramps: trainings whose first optimizer steps have smaller batches, or shorter rows, than the others.

A ramp says for each step, counted from 0, which share of the full size it has; it knows neither the data nor how long
the training is, so a step is the same one in a longer training. Every batch follows from the seed and the position in
the training order as it does without a ramp.
"""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from attnlab.data.cache import DataError
from attnlab.parts import Choices, Part
from attnlab.ranges import Interval, PositiveInt, check_ranges, must_be

Share = Annotated[float, Interval(gt=0, le=1)]
ROUNDING = 1e-9  # a share of 1/3 of 96 is 32


class Ramp(Part):
    """The full size at every step. Another ramp says `steps`, how many come before the first of full size, and their
    `share`; `multiple_of`: sizes are cut to multiples of it, and are never below it."""

    steps: int = 0
    multiple_of: int = 1

    def share(self, step: int) -> float:
        """The share of the full size at a step (from 0) before `steps`."""
        return 1.0

    def size(self, full: int, step: int) -> int:
        """The size at a step of what is `full` in the end."""
        if step >= self.steps:
            return full
        size = math.floor(full * self.share(step) + ROUNDING) // self.multiple_of * self.multiple_of
        return min(full, max(size, self.multiple_of))


NO_RAMP = Ramp()


@check_ranges
class LinearRamp(Ramp):
    """From the share `start` to the full size in equal increments over `steps` steps.

    stages: how many sizes there are before the full one, each for as many steps; None: another one at each step.
    multiple_of: see Ramp. For lengths this is the pacing of sequence length warm-up, start + (end - start) min(t / T,
    1) (Li et al. 2021, arXiv 2108.06084, section 4). Raises ValueError for more stages than steps.
    """

    def __init__(
        self, start: Share, steps: PositiveInt, stages: PositiveInt | None = None, multiple_of: PositiveInt = 1
    ) -> None:
        if stages is not None and stages > steps:
            raise ValueError(must_be("stages", f"at most as many as there are steps, {steps}", stages))
        self.start, self.steps, self.stages, self.multiple_of = start, steps, stages or steps, multiple_of

    def progress(self, step: int) -> float:
        """How much of the way is behind at a step, from 0 to below 1."""
        return step * self.stages // self.steps / self.stages

    def share(self, step: int) -> float:
        return self.start + (1 - self.start) * self.progress(step)


class GeometricRamp(LinearRamp):
    """From the share `start` to the full size, each stage larger than the one before by the same factor.

    A batch that grows by a factor takes the place of a rate that falls by it (Smith et al. 2018, arXiv 1711.00489).
    With as many stages as steps it is linear in the examples seen, as GPT-3's is in tokens (Brown et al. 2020, arXiv
    2005.14165, appendix B). The fields are those of LinearRamp.
    """

    def share(self, step: int) -> float:
        share: float = self.start ** (1 - self.progress(step))
        return share


@check_ranges
class StagedRamp(Ramp):
    """Stages of one's own: `stages` are (share of the full size, steps) one after the other, then the full size.

    multiple_of: see Ramp. Raises ValueError for what is no share or no number of steps.
    """

    def __init__(
        self, stages: Sequence[tuple[Annotated[float, Interval(gt=0, le=1)], PositiveInt]], multiple_of: PositiveInt = 1
    ) -> None:
        for stage in stages:
            if len(stage) != 2 or not 0 < stage[0] <= 1 or stage[1] < 1 or stage[1] != int(stage[1]):
                wanted = "a list of [share above 0 and at most 1, steps from 1], as in [[0.25, 900]]"
                raise ValueError(must_be("stages", wanted, stages))
        self.shares, self.multiple_of = [float(share) for share, _ in stages], multiple_of
        self.ends = [sum(int(steps) for _, steps in stages[: k + 1]) for k in range(len(stages))]
        self.steps = self.ends[-1] if self.ends else 0

    def share(self, step: int) -> float:
        return self.shares[bisect_right(self.ends, step)]


@dataclass(frozen=True)
class Ramps:
    """The ramps of a training: of the examples of a step, and of the length of its rows."""

    batch: Ramp = NO_RAMP
    length: Ramp = NO_RAMP

    @property
    def steps(self) -> int:
        """How many steps come before the first of full size."""
        return max(self.batch.steps, self.length.steps)


class StepSizes:
    """How many examples, over all ranks and micro-batches, each step takes: those of a ramp, then `full` each."""

    def __init__(self, ramp: Ramp, full: int) -> None:
        self.full, self.ends = full, [0]  # the examples seen after each step of the ramp
        for step in range(ramp.steps):
            self.ends.append(self.ends[-1] + ramp.size(full, step))

    def size(self, step: int) -> int:
        """The examples of a step, counted from 0."""
        return self.ends[step + 1] - self.ends[step] if step + 1 < len(self.ends) else self.full

    def step_at(self, seen: int) -> int:
        """The step that comes when so many examples were seen."""
        if seen < self.ends[-1]:
            return bisect_right(self.ends, seen) - 1
        return len(self.ends) - 1 + (seen - self.ends[-1]) // self.full

    def needed(self, examples: int) -> int:
        """In how many steps at least so many examples are seen."""
        if examples <= self.ends[-1]:
            return bisect_left(self.ends, examples)
        return len(self.ends) - 1 + -(-(examples - self.ends[-1]) // self.full)


class TakesRamps(Part):
    """What data modules say of ramps; which ones they take, and `ramps`, those of the training.

    With takes_batch_ramp the first steps can have fewer examples (`batch_size` says how many a batch has), with
    takes_length_ramp shorter rows.
    """

    takes_batch_ramp: ClassVar[bool] = False
    takes_length_ramp: ClassVar[bool] = False
    ramps: Ramps = Ramps()
    name: str

    @abstractmethod
    def tokens_per_step(self, parts: int) -> int:
        """How many terms of the loss a step of full size has, of so many batches."""

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        for group in ("batch_ramp", "length_ramp"):
            if choices.parts.get(group, Ramp) is not Ramp and not getattr(cls, f"takes_{group}"):
                yield f"{group}: {no_ramp(group, choices.name('data') or cls.__name__)}"

    def check_ramps(self) -> None:
        """Raises DataError for ramps that these data do not take."""
        for group, ramp in (("batch_ramp", self.ramps.batch), ("length_ramp", self.ramps.length)):
            if ramp.steps and not getattr(self, f"takes_{group}"):
                raise DataError(f"{group}: {no_ramp(group, self.name)}")

    def length_at(self, step: int) -> int:
        """How long the rows of a step are, counted from 0; 0 where none are cut."""
        return 0

    def at_length(self, length: int) -> Self:
        """These data with rows of another length. Raises DataError for one that is too short."""
        return self

    def tokens_in(self, steps: int, parts: int) -> int:
        """How many terms of the loss the first steps of a training have in all, of so many batches each."""
        return steps * self.tokens_per_step(parts) if not self.ramps.steps else sum(self.tokens_of_steps(steps, parts))

    def tokens_of_steps(self, steps: int, parts: int) -> list[int]:
        """The same step by step."""
        per_step = functools.cache(lambda length: self.at_length(length).tokens_per_step(parts))
        sizes = StepSizes(self.ramps.batch, getattr(self, "batch_size", 1) * parts)
        return [per_step(self.length_at(step)) * sizes.size(step) // sizes.full for step in range(steps)]

    def unramped(self) -> Self:
        """These data as they are once every step is of full size."""
        data = copy.copy(self)
        data.ramps = Ramps()
        return data


def no_ramp(group: str, data: str) -> str:
    """Why data cannot follow a ramp."""
    if group == "length_ramp":
        return f"data={data} has rows that cannot be cut to a length (windows of a text can); take length_ramp=none"
    why = "has no batches of a fixed number of examples, whose loss is the sum of theirs"
    return f"data={data} {why}; take batch_ramp=none"
