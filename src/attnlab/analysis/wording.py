"""Words and numbers that the terminal, the tables and the page share, so that all three say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from attnlab.analysis.comparison import MULTIPLE, CellSummary, Comparison, LengthCurve
from attnlab.analysis.differences import Difference, Judged
from attnlab.analysis.power import MOST_SEEDS
from attnlab.analysis.statistics import Interval
from attnlab.training.measures import parts_of

VERDICTS = {"better": "better", "worse": "worse", "same": "no difference that counts", "undecided": "undecided"}
LENGTH_WORDS = {
    "same": "holds",
    "better": "improves",
    "worse": "degrades",
    "undecided": "undecided",
    "cannot": "cannot",
    "missing": "no figure",
}
MEASURES = {
    "nats": "loss in nats per {unit}",
    "smoothed_nats": "loss with label smoothing, in nats per {unit}",
    "perplexity": "perplexity per {unit}",
    "token_perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "accuracy": "accuracy (0 to 1)",
    "precision": "precision (0 to 1)",
    "recall": "recall (0 to 1)",
    "f1": "F1 (0 to 1)",
    "macro_f1": "mean F1 of all classes (0 to 1)",
    "exact": "outputs equal to the reference (0 to 1)",
    "exact_match": "exact match (0 to 100)",
    "bleu": "BLEU (0 to 100)",
    "chrf": "chrF (0 to 100)",
}
OF_WINDOWS = {"f1": "F1 of answers (0 to 100)"}  # as SQuAD's evaluation has it
SPLITS = {"val": "validation part", "test": "test part", "train": "training part"}
WORDS = re.compile(r"(?P<low>\d+)(?:-(?P<high>\d+)|\+)")  # of a bucket of source lengths: 6-10, 21+


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number; - for what is none, and a zero has no sign."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text if float(text) else text.lstrip("-+")


def decimals_for(intervals: Iterable[Interval | None]) -> int:
    """So many decimals that a typical half-width keeps two digits; without intervals, that values keep four."""
    known = [interval for interval in intervals if interval is not None]
    halves = sorted((i.high - i.low) / 2 for i in known if i.is_bounded and i.high > i.low)
    if halves:
        return min(6, max(0, 1 - math.floor(math.log10(halves[len(halves) // 2]))))
    largest = max((abs(i.mean) for i in known), default=1.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 3


def p_text(p: float) -> str:
    """A p value: three decimals, or a bound."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def place_text(places: tuple[int, int] | None) -> str:
    """ "2", or "2-4" where its place among the cells cannot be told more exactly."""
    if places is None:
        return "-"
    return str(places[0]) if places[0] == places[1] else f"{places[0]}-{places[1]}"


def describe(metric: str, term: str = "token") -> str:
    """A metric's name in plain words: test/nats@8x is "loss in nats per token on the test part, at 8 times the training length".

    term: what a term of the loss is.
    """
    split, measure, restriction = parts_of(metric)
    words = unit(metric, term)
    if split:
        words += f" on the {SPLITS.get(split, split)}"
    words += _restricted(metric, restriction) if restriction else ""
    return words + (", in a sliding window" if measure.startswith("sliding_") else "")


def _restricted(metric: str, restriction: str) -> str:
    """What follows the @: a multiple of the training length, a bucket of source words, or the name of a class or task."""
    found = MULTIPLE.fullmatch(metric)
    if found:
        times = found["multiple"]
        return ", at the training length" if times == "1" else f", at {times} times the training length"
    bucket = WORDS.fullmatch(restriction)
    if bucket:
        return f", for sources of {bucket['low']} {'to ' + bucket['high'] if bucket['high'] else 'or more'} words"
    return f", for {restriction} alone"


def unit(metric: str, term: str = "token") -> str:
    """What a metric measures, for an axis: test/sliding_nats is "loss in nats per token". term: what a term of the loss is."""
    measure = parts_of(metric)[1].removeprefix("sliding_")
    named = MEASURES | OF_WINDOWS if term == "window" else MEASURES
    return named.get(measure, measure.replace("_", " ")).format(unit=term)


def primary_lengths(comparison: Comparison) -> list[LengthCurve]:
    """The length curves of the primary metric's family, or of the first one there is; the best at the greatest length first."""
    prefixes = [curve.prefix for curve in comparison.lengths]
    own = (comparison.metric.name if comparison.metric else "").partition("@")[0]
    prefix = own if own in prefixes else next(iter(prefixes), None)
    curves = [curve for curve in comparison.lengths if curve.prefix == prefix]
    longest = max((k for curve in curves for k in (*curve.points, *curve.cannot)), default=0.0)
    sign = -1 if comparison.metric and comparison.metric.better == "higher" else 1
    return sorted(curves, key=lambda c: sign * c.points[longest].mean if longest in c.points else math.inf)


def verdict_text(judged: Judged, words: Mapping[str, str] = VERDICTS) -> str:
    """ "better", or "undecided: 3 of 6 runs lost": the word with what is missing."""
    word = words.get(judged.verdict, judged.verdict)
    return f"{word}: {judged.reason}" if judged.reason else word


def interval_text(interval: Interval | None, decimals: int, sign: bool = False) -> str:
    """ "2.216 (2.205 to 2.227)"; without an interval, the value and why: one seed, or differences that are all the same."""
    if interval is None:
        return "-"
    decimals = _enough(interval, decimals)
    mean = number(interval.mean, decimals, sign)
    if not interval.is_bounded:
        return f"{mean} ({interval.unbounded})"
    return f"{mean} ({number(interval.low, decimals, sign)} to {number(interval.high, decimals, sign)})"


def spread_text(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "2.216 +-0.011"; the mean alone where there is no interval."""
    decimals = _enough(interval, decimals)
    half = f" +-{number((interval.high - interval.low) / 2, decimals)}" if interval.is_bounded else ""
    return number(interval.mean, decimals, sign) + half


def _enough(interval: Interval, decimals: int) -> int:
    """So many decimals that an interval that excludes zero is seen to."""
    if not interval.excludes(0.0):
        return decimals
    nearest = min(abs(interval.low), abs(interval.high))
    return max(decimals, min(12, 1 - math.floor(math.log10(nearest))) if float(f"{nearest:.{decimals}f}") == 0 else 0)


def wins_text(difference: Difference) -> str:
    """ "4 of 4": in how many of the seeds that were asked for the cell is better than the baseline."""
    return f"{difference.wins:g} of {difference.contrast.asked}"


def lost_text(cell: CellSummary) -> str:
    """ "3 of 4 runs lost (p 0.143)", the p being Fisher's against the baseline, adjusted; "" where none was lost."""
    if not cell.n_lost:
        return ""
    p = f" (p {p_text(cell.lost.p_holm)})" if cell.lost else ""
    return f"{cell.n_lost} of {sum(cell.states.values())} runs lost{p}"


def seeds_text(seeds: float) -> str:
    """So many seeds; "> 10000" where no number looked at is enough."""
    if math.isnan(seeds):
        return "-"
    return f"{seeds:.0f}" if math.isfinite(seeds) else f"> {MOST_SEEDS}"


def states_text(states: dict[str, int]) -> str:
    """ "3 finished, 1 diverged"."""
    return ", ".join(f"{n} {state}" for state, n in states.items()) or "none"


def outcome_text(cell: CellSummary) -> str:
    """What stands where a value would, for a cell without one."""
    return cell.outcome + (f": {cell.reason}" if cell.reason else "")


def slug(text: str) -> str:
    """Letters, digits and dashes only, for an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
