"""Numbers, names and metrics in words, shared by terminal, tables and page, so that all three say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.censoring import in_words
from attnlab.analysis.differences import Difference, Judged
from attnlab.analysis.reader import Study
from attnlab.analysis.statistics import Interval
from attnlab.analysis.table import Entry
from attnlab.training.metrics import SLIDING, parts_of

MULTIPLE = re.compile(r"(?P<prefix>.+)@(?P<multiple>\d+(?:\.\d+)?)x")  # a metric at a multiple of the training length
VERDICTS = {"better": "better", "worse": "worse", "same": "no difference that counts", "undecided": "undecided"}
SPLITS = {"val": "validation part", "test": "test part", "train": "training part"}
MOST_WHOLE = 1e6  # below which numbers have all their digits
BUCKET = re.compile(r"(?P<low>\d+)(?:-(?P<high>\d+)|\+)")  # of a bucket of source lengths: 6-10, 21+


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number, shortened from a million on; - for what is none, and a zero has no sign."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= MOST_WHOLE:
        return in_words(value, sign)
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text if float(text) else text.lstrip("-+")


def decimals_for(intervals: Iterable[Interval | None]) -> int:
    """So many decimals that a typical half-width keeps two digits; without intervals, that values keep four."""
    known = [interval for interval in intervals if interval is not None]
    halves = sorted((i.high - i.low) / 2 for i in known if i.is_bounded and i.high > i.low)
    if halves:
        return min(6, max(0, 1 - math.floor(math.log10(halves[len(halves) // 2]))))
    largest = max((abs(i.position) for i in known if math.isfinite(i.position)), default=1.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 3


def p_text(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def rank_text(ranks: tuple[int, int] | None) -> str:
    """ "2", or "2-4" where its rank among the cells cannot be told more exactly."""
    return "-" if ranks is None else "-".join(map(str, dict.fromkeys(ranks)))


def quantity(value: float) -> str:
    """A count as people read it: 950, 12.3k, 4.56M, 7.8e+15."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1e12:
        return f"{value:.2e}"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"


def listing(names: Sequence[str], most: int = 7) -> str:
    """ "a, b and c"; what is beyond `most` is counted."""
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def describe(metric: str, study: Study) -> str:
    """A metric's name in plain words: test/loss@8x is "loss in nats per token on the test part, at 8 times the training
    length"."""
    split, measure, restriction = parts_of(metric)
    words = unit(metric, study)
    if split:
        words += f" on the {SPLITS.get(split, split)}"
    if found := MULTIPLE.fullmatch(metric):
        times = found["multiple"]
        words += ", at the training length" if times == "1" else f", at {times} times the training length"
    elif bucket := BUCKET.fullmatch(restriction):
        words += f", for sources of {bucket['low']} {'to ' + bucket['high'] if bucket['high'] else 'or more'} tokens"
    elif restriction:  # to a class or task
        words += f", for {restriction} alone"
    return words + (", in a sliding window" if measure.startswith(SLIDING) else "")


def unit(metric: str, study: Study) -> str:
    """What a metric measures, for an axis: test/sliding_loss is "loss in nats per token"."""
    known, measure = study.known_metric(metric), parts_of(metric)[1].removeprefix(SLIDING)
    return (known and known.words.replace("{unit}", study.unit)) or measure.replace("_", " ")


def verdict(judged: Judged, words: Mapping[str, str] = VERDICTS, mood: str | None = None) -> Entry:
    """ "better", or "undecided: 3 of 6 runs lost", in the colour of its mood (by default the verdict)."""
    word, reason = words.get(judged.verdict, judged.verdict), judged.reason
    return Entry(f"{word}:" if reason else word, mood=judged.verdict if mood is None else mood, note=reason)


def interval_text(interval: Interval | None, decimals: int, sign: bool = False) -> str:
    """ "2.216 (2.205 to 2.227)"; without an interval, the value and why there is none."""
    if interval is None:
        return "-"
    decimals = _enough(interval, decimals)
    return f"{mean_text(interval, decimals, sign)} ({ends_text(interval, decimals, sign)})"


def ends_text(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "2.205 to 2.227"; without an interval, or with one to one side alone, what there is of it and why."""
    if not interval.is_bounded:
        return interval.unbounded
    return f"{number(interval.low, decimals, sign)} to {number(interval.high, decimals, sign)}"


def mean_text(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "2.216"; of a share, "3 of 4"."""
    return interval.counted or number(interval.mean, decimals, sign)


def spread_text(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "2.216 +-0.011"; the mean alone where there is no interval; both ends of what is no mean."""
    decimals = _enough(interval, decimals)
    if not is_even(interval):
        return f"{mean_text(interval, decimals, sign)}, {ends_text(interval, decimals, sign)}"
    half = f" +-{number((interval.high - interval.low) / 2, decimals)}" if interval.is_bounded else ""
    return mean_text(interval, decimals, sign) + half


def short_interval(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "2.216 +-0.011"; both ends where they are not equally far from the mean."""
    return (spread_text if is_even(interval) else interval_text)(interval, decimals, sign)


def half_text(interval: Interval, decimals: int, sign: bool = False) -> str:
    """ "0.011", half of an interval; both ends where they are not equally far from the mean."""
    if not interval.is_bounded:
        return ""
    if is_even(interval):
        return number(interval.high - interval.mean, decimals)
    return " to ".join(number(end, decimals, sign) for end in (interval.low, interval.high))


def is_even(interval: Interval) -> bool:
    """Whether it is said as mean and half-width."""
    halves = interval.high - interval.mean, interval.mean - interval.low
    return interval.is_even and (not interval.is_bounded or abs(halves[0] - halves[1]) <= 1e-6 * sum(halves))


def _enough(interval: Interval, decimals: int) -> int:
    """So many decimals that an interval that excludes zero is seen to."""
    if not interval.excludes(0.0):
        return decimals
    nearest = min(abs(interval.low), abs(interval.high))
    return max(decimals, min(12, 1 - math.floor(math.log10(nearest))) if float(f"{nearest:.{decimals}f}") == 0 else 0)


def tests_text(study: Study, tests: int) -> str:
    """ "3 comparisons and 4 looks": what p values and intervals are adjusted for."""
    looks = len(study.looks.stages)
    return (f"{tests} comparisons" if tests > 1 else "one comparison") + (f" and {looks} looks" if looks else "")


def wins_text(difference: Difference) -> str:
    """ "4 of 4": in how many of the seeds that were asked for the cell is better than the baseline."""
    return f"{difference.wins:g} of {difference.contrast.asked}"


def failures_text(cell: CellSummary) -> str:
    """ "3 of 4 runs lost (p 0.143)", the p being Fisher's against the baseline, adjusted; "" where none failed."""
    if not cell.n_failed:
        return ""
    p = f" (p {p_text(cell.failures.p_holm)})" if cell.failures else ""
    return f"{cell.n_failed} of {sum(cell.states.values())} runs lost{p}"
