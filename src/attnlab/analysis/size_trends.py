"""Whether an effect grows or shrinks with the size of a model, from two sizes: what a choice changes at each, and the
difference of these differences, paired by seed.

With e the effect at the smaller size and E that at the larger, E^2 - e^2 = (E - e)(E + e): the effect grows where the
change E - e and the mean (E + e) / 2 have one sign, and shrinks where they have two. Both are judged in one family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnlab.analysis.differences import DECIDED, Judged
from attnlab.analysis.factors import Averaged, Factorial
from attnlab.analysis.formatting import decimals_for, interval_text, mean_text, p_text, spread_text
from attnlab.analysis.reader import Choice, short
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import Column, Contents, Entry, Table

DESCRIBED = 0.95  # the level of an effect at one size, by itself
MOODS = {"grows": "met", "shrinks": "depends", "changes": "depends", "same": "same", "open": "open"}
WORDS = {"same": "no difference that counts"}


@dataclass(frozen=True)
class SizeTrend:
    """The effect of `choice` of `factor` against `reference` at two sizes: `at`, each interval by itself.

    change: of the effect from the smaller to the larger size; mean: of the two effects; both judged in one family.
    """

    factor: str
    reference: Choice
    choice: Choice
    size: str
    sizes: tuple[Choice, Choice]
    at: tuple[Interval, Interval]
    change: Judged
    mean: Judged

    @property
    def word(self) -> str:
        """grows, shrinks, changes (which of them is not sure), same (within the margin) or open."""
        if self.change.verdict == "same":
            return "same"
        if self.change.verdict not in DECIDED:
            return "open"
        if self.mean.contrast.beyond_chance or not self.mean.interval.excludes(0.0):
            return "changes"
        alike = (self.change.interval.mean > 0) == (self.mean.interval.mean > 0)
        return "grows" if alike else "shrinks"

    @property
    def label(self) -> str:
        """ "feed_forward: relu -> glu"."""
        return f"{short(self.factor)}: {self.reference} \u2192 {self.choice}"


def size_trends(factorial: Factorial) -> list[SizeTrend]:
    """The trend of every choice of every factor beside the size; [] where the study names no size, or has none."""
    published = factorial.study.published
    size, factors = published.size if published else "", factorial.factors()
    if size not in factors or len(factorial.study.factors[size]) != 2:
        return []
    [other] = factorial.others(size)
    sizes = factorial.reference(size), other
    moves = [(name, choice) for name in factors if name != size for choice in factorial.others(name)]
    found: dict[tuple[str, Choice, str], Averaged] = {}
    for name, choice in moves:
        found[name, choice, "change"] = factorial.contrast({name: choice, size: other})
        found[name, choice, "mean"] = factorial.contrast({name: choice})
    judged = factorial.judged(found)
    return [
        SizeTrend(name, factorial.reference(name), choice, size, sizes, _at_each(change, mean), change, mean)
        for name, choice in moves
        if (change := judged.get((name, choice, "change"))) and (mean := judged.get((name, choice, "mean")))
    ]


def _at_each(change: Judged, mean: Judged) -> tuple[Interval, Interval]:
    """The effect at the smaller and at the larger size, by the seeds that have both."""

    def at(sign: int) -> Interval:
        halves = {seed: sign * value / 2 for seed, value in change.values.items() if seed in mean.values}
        values = {seed: mean.values[seed] + half for seed, half in halves.items()}
        return replace(mean.contrast, values=values, before=None, regrets=None).interval(DESCRIBED)

    return at(-1), at(1)


def size_table(trends: Sequence[SizeTrend], detail: int = 2) -> Table | None:
    """The effects at both sizes and what becomes of them; None without any. detail: 2 has both ends of intervals, 1
    their half-widths, 0 no p and means alone of the effects."""
    if not trends:
        return None
    decimals = decimals_for(trend.change.interval for trend in trends)
    size, small, large = short(trends[0].size), *trends[0].sizes

    def judged(trend: SizeTrend) -> Contents:
        return Entry(WORDS.get(trend.word, trend.word), mood=MOODS[trend.word], note=trend.change.reason)

    def shown(interval: Interval, detail: int) -> str:
        return (mean_text, spread_text, interval_text)[detail](interval, decimals, True)

    def effect(at: int, value: Choice) -> Column[SizeTrend]:
        return Column(f"at {size} {value}", lambda trend: shown(trend.at[at], detail))

    columns: list[Column[SizeTrend]] = [
        Column("effect", lambda trend: trend.label, "l"),
        effect(0, small),
        effect(1, large),
        Column("change (interval)", lambda trend: shown(trend.change.interval, max(1, detail))),
        *([Column[SizeTrend]("p", lambda trend: p_text(trend.change.p_adjusted))] if detail else []),
        Column("with size", judged, "l"),
    ]
    note = (
        f"at {size} {small}, {large}: what the choice changes at this size, paired by seed, with a 95% interval by "
        "itself; change: the difference of these differences. It grows or shrinks where the signs of the change and of "
        "the mean of both effects are sure (simultaneous intervals, Bonferroni)."
    )
    return Table.of(columns, trends, "Grows or shrinks with size", [note])
