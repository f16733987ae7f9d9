"""Words and numbers that the terminal, the tables and the page share, so that all three say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from attnlab.analysis.comparison import MULTIPLE, CellSummary, Comparison, Difference, LengthCurve
from attnlab.analysis.statistics import Interval

VERDICTS = {"better": "better", "worse": "worse", "same": "no difference that counts", "undecided": "undecided"}
MOST_NAMES = 5
MEASURES = {
    "nats": "loss in nats per token",
    "bits_per_byte": "bits per byte",
    "token_perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "accuracy": "accuracy",
}
SPLITS = {"val": "validation text", "test": "test text", "train": "training text"}


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number; - for NaN, and a zero has no sign."""
    if math.isnan(value):
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


def describe(metric: str) -> str:
    """A metric's name in plain words: test/nats@8x is "loss in nats per token on test text, at 8 times the training length"."""
    found = MULTIPLE.fullmatch(metric)
    base, multiple = (found["prefix"], found["multiple"]) if found else (metric, None)
    split, _, measure = base.rpartition("/")
    sliding = measure.startswith("sliding_")
    words = MEASURES.get(measure.removeprefix("sliding_"), measure.removeprefix("sliding_").replace("_", " "))
    if split:
        words += f" on {SPLITS.get(split, split)}"
    if multiple:
        words += ", at the training length" if multiple == "1" else f", at {multiple} times the training length"
    return words + (", in a sliding window" if sliding else "")


def unit(metric: str) -> str:
    """What a metric measures, for an axis: test/sliding_nats is "loss in nats per token"."""
    measure = metric.partition("@")[0].rpartition("/")[2].removeprefix("sliding_")
    return MEASURES.get(measure, measure.replace("_", " "))


def listing(names: Sequence[str], most: int = 7) -> str:
    """ "a, b and c"; what is beyond `most` is counted."""
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def headline(comparison: Comparison) -> list[str]:
    """What came out, in a few plain sentences, most important first."""
    if comparison.metric is None or not comparison.measured:
        return ["No run has finished with a value to compare yet."]
    sentences = [_best(comparison), *_against_baseline(comparison), *_no_value(comparison)]
    sentences += [*_with_length(comparison), *_of_factors(comparison), *_of_claims(comparison)]
    return [sentence for sentence in sentences if sentence]


def _best(comparison: Comparison) -> str:
    metric, measured = comparison.metric, comparison.measured
    assert metric is not None
    decimals = decimals_for(cell.interval for cell in measured)
    if len(measured) == 1:
        return f"{measured[0].label}: {metric.name} {interval_text(measured[0].interval, decimals)}."
    ranked = [cell for cell in measured if cell.places]
    first = [cell for cell in ranked if cell.places and cell.places[0] == 1]
    if len(first) == 1 and first[0].places == (1, 1):
        return f"{first[0].label} is best: {metric.name} {interval_text(first[0].interval, decimals)}."
    if len(ranked) < 2:
        return ""
    if not any(cell.interval and cell.interval.is_bounded for cell in ranked):
        return f"One seed a cell: on {metric.name} no cell can be told from another."
    if len(first) > MOST_NAMES or len(first) == len(ranked):
        return f"No single best: {len(first)} of {len(ranked)} cells may each hold the first place on {metric.name}."
    return f"No single best: {listing([cell.label for cell in first])} may each hold the first place on {metric.name}."


def _against_baseline(comparison: Comparison) -> list[str]:
    baseline = comparison.baseline
    if baseline is None or baseline.interval is None:
        return []
    found: dict[str, list[tuple[CellSummary, Difference]]] = {}
    for cell in comparison.measured:
        if cell.difference:
            found.setdefault(cell.difference.verdict, []).append((cell, cell.difference))
    decimals = decimals_for(d.interval for pairs in found.values() for _, d in pairs)
    parts = []
    for verdict, pairs in ((word, found[word]) for word in VERDICTS if word in found):
        names = [f"{cell.label} ({number(d.interval.mean, decimals, sign=True)})" for cell, d in pairs]
        many = len(comparison.cells) > 2 * MOST_NAMES
        parts.append(f"{len(names)} {VERDICTS[verdict]}" if many else f"{VERDICTS[verdict]}: {listing(names)}")
    return [f"Against {baseline.label}, {'; '.join(parts)}."] if parts else []


def _no_value(comparison: Comparison) -> list[str]:
    sentences = []
    for outcome, words in {"cannot": "cannot be measured there", "diverged": "diverged", "failed": "failed"}.items():
        cells = [cell for cell in comparison.cells if cell.outcome == outcome]
        if cells:
            sentences.append(f"{listing([c.label for c in cells])} {words}: {cells[0].reason or 'no reason given'}.")
    return sentences


def _with_length(comparison: Comparison) -> list[str]:
    curves = primary_lengths(comparison)
    if not curves:
        return []
    ends = [k for curve in curves for k in (*curve.points, *curve.cannot)]
    groups: dict[str, list[LengthCurve]] = {}
    for curve in curves:
        groups.setdefault(curve.verdict, []).append(curve)
    decimals = decimals_for(curve.change for curve in curves)
    words = {"same": "unchanged", "better": "better", "worse": "worse", "undecided": "undecided", "cannot": "cannot"}
    parts = []
    for verdict, word in words.items():
        names = [
            curve.label + (f" ({number(curve.change.mean, decimals, sign=True)})" if curve.change else "")
            for curve in sorted(groups.get(verdict, []), key=lambda c: abs(c.change.mean) if c.change else 0.0)
        ]
        if names:
            parts.append(f"{word}: {listing(names)}")
    return [f"From {min(ends):g}x to {max(ends):g}x the training length, {'; '.join(parts)}."] if parts else []


def _of_factors(comparison: Comparison) -> list[str]:
    if not comparison.effects or comparison.metric is None:
        return []
    decimals = decimals_for(effect.interval for effect in comparison.effects)
    largest = max(comparison.effects, key=lambda effect: abs(effect.interval.mean))
    ends = [f"{number(value, decimals, sign=True)} ({setting})" for setting, value in (largest.lowest, largest.highest)]
    name = largest.factor.rpartition(".")[2]
    return [
        f"The largest average effect is that of {name}: {largest.reference} to {largest.choice} changes {comparison.metric.name} by "
        f"{number(largest.interval.mean, decimals, sign=True)}; it depends on the other settings, from {' to '.join(ends)}."
    ]


def _of_claims(comparison: Comparison) -> list[str]:
    claims = comparison.claims
    if not claims:
        return []
    counts = {word: sum(claim.verdict == word for claim in claims) for word in ("met", "not met", "open")}
    parts = [f"{n} {word}" for word, n in counts.items() if n]
    return [f"Of {len(claims)} claims made beforehand: {', '.join(parts)}."]


def primary_lengths(comparison: Comparison) -> list[LengthCurve]:
    """The length curves of the primary metric's family, or of the first one there is."""
    prefixes = [curve.prefix for curve in comparison.lengths]
    own = (comparison.metric.name if comparison.metric else "").partition("@")[0]
    prefix = own if own in prefixes else next(iter(prefixes), None)
    return [curve for curve in comparison.lengths if curve.prefix == prefix]


def interval_text(interval: Interval | None, decimals: int, sign: bool = False) -> str:
    """ "2.216 (2.205 to 2.227)"; without an interval, the value and that it is of one seed."""
    if interval is None:
        return "-"
    mean = number(interval.mean, decimals, sign)
    if not interval.is_bounded:
        return f"{mean} (one seed)"
    return f"{mean} ({number(interval.low, decimals, sign)} to {number(interval.high, decimals, sign)})"


def wins_text(difference: Difference) -> str:
    """ "4 of 4": in how many seeds the cell is better than the baseline."""
    return f"{difference.wins:g} of {difference.n}"


def states_text(states: dict[str, int]) -> str:
    """ "3 finished, 1 diverged"."""
    return ", ".join(f"{n} {state}" for state, n in states.items()) or "none"


def outcome_text(cell: CellSummary) -> str:
    """What stands where a value would, for a cell without one."""
    return cell.outcome + (f": {cell.reason}" if cell.reason else "")


def slug(text: str) -> str:
    """Letters, digits and dashes only, for an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
