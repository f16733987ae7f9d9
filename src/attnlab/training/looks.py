"""At which numbers of seeds a study is compared, and how much of its chance of a false word each such look has.

Seeds in stages: the looks are known beforehand, and each has the share of alpha that its new seeds are of all (the
uniform spending function of Lan & DeMets 1983, Biometrika 70, alpha t). Bonferroni over looks then holds for every test
that there is, of few seeds too. A rule in the manner of O'Brien & Fleming would leave the first look of four seeds
0.01% of 5%, where the t test has three degrees of freedom and would see nothing at all.

Seeds that somebody adds after a look that took all of alpha make another look, at half of what the one before had: over
all looks a false word has a chance of less than twice alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

FEWEST_SEEDS = 2  # of a stage: with one there is no test


@dataclass(frozen=True)
class Looks:
    """The looks of a plan, each as the number of seeds that it has.

    stages: those that are planned, the last with the most seeds there can be; [] where all seeds are run at once.
    looked: those that were over when seeds were added. given_up: how many seeds were planned when fewer were taken
    before they were in; 0 where that was not so.
    """

    stages: list[int] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)
    given_up: int = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Looks:
        """What plan.json has, once it is checked."""
        return cls(**raw)

    def until(self, seeds: int) -> list[int]:
        """The planned looks up to the present one, of so many seeds."""
        return [stage for stage in self.stages if stage <= seeds]

    def spent(self, seeds: int) -> float:
        """The share of alpha of the look at so many seeds."""
        if not self.stages:
            return 0.5 ** len(self.looked)
        return dict(zip(self.stages, shares(self.stages), strict=True))[seeds]

    def after(self, seeds: int) -> int | None:
        """The seeds of the next planned look; None at the last."""
        return next((stage for stage in self.stages if stage > seeds), None)

    def in_words(self, seeds: int) -> str:
        """ "look 2 of 4, at 1.25% of 5%": where seeds come in stages."""
        share = f"{100 * 0.05 * self.spent(seeds):.3g}% of 5%"
        return f"look {len(self.until(seeds))} of {len(self.stages)}, at {share}"


def stages_of(first: int, step: int, at_most: int) -> list[int]:
    """The numbers of seeds at the looks: `first`, then `step` more each, and `at_most` at the last."""
    return [*range(first, at_most, step), at_most]


def shares(stages: Sequence[int]) -> list[float]:
    """The share of alpha of each look: that of its new seeds."""
    return [(after - before) / stages[-1] for before, after in pairwise([0, *stages])]


def check_looks(raw: Mapping[str, Any], seeds: int) -> str:
    """What plan.json must have as looks with so many seeds, where it has something else; else ""."""
    numbers = {name: raw.get(name, []) for name in ("stages", "looked")}
    for name, found in numbers.items():
        if not isinstance(found, list) or not all(isinstance(n, int) and n > 0 for n in found):
            return f"a table in which {name} are numbers of seeds"
    if not raw.keys() <= {*numbers, "given_up"} or not isinstance(raw.get("given_up", 0), int):
        return "a table of stages, looked and given_up"
    stages = numbers["stages"]
    is_fit = not stages or (seeds in stages and stages == sorted(set(stages)))
    return "" if is_fit else f"a table whose stages grow, and have one of {seeds} seeds"
