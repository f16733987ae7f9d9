"""What resampling the test sentences said of a study's translations (see `resampling`), and how it is put in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCORES = {"bleu": "BLEU", "chrf": "chrF2"}


@dataclass(frozen=True)
class SentenceDifference:
    """One cell against the baseline's run of the same seed, for one score: {seed: score minus the baseline's} and {seed: p}."""

    label: str
    score: str
    differences: dict[int, float]
    p_values: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean difference over seeds."""
        return sum(self.differences.values()) / len(self.differences)

    def sure(self, alpha: float = 0.05) -> int:
        """In how many seeds p is at most `alpha`."""
        return sum(p <= alpha for p in self.p_values.values())


@dataclass(frozen=True)
class SentenceResult:
    """What resampling the test sentences says: the differences, sacreBLEU's signature of each score, and why runs were left out."""

    differences: list[SentenceDifference]
    signatures: dict[str, str]
    left_out: list[str]


def sentences_of(result: SentenceResult) -> list[str]:
    """What the figures are, and what was left out."""
    sentences = [
        "By sentences: the same weights on resampled test sentences (sacreBLEU's paired bootstrap), one p a seed. It says whether other test "
        "sentences would show the difference; whether other trainings would, the paired differences between seeds say. Trust what holds in both."
    ]
    return [*sentences, *(f"Left out: {reason}." for reason in result.left_out)]


def p_summary(found: SentenceDifference) -> str:
    """ "0.001 to 0.034, at most 0.05 in 3 of 3 seeds"."""
    low, high = min(found.p_values.values()), max(found.p_values.values())
    ends = f"{low:.3f}" if math.isclose(low, high) else f"{low:.3f} to {high:.3f}"
    return f"{ends}, at most 0.05 in {found.sure()} of {len(found.p_values)} seeds"
