"""What came out, in a few plain sentences that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.clusters import Clusters
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.differences import DECIDED, Difference, Judged
from attnlab.analysis.formatting import (
    MULTIPLE,
    VERDICTS,
    decimals_for,
    interval_text,
    listing,
    mean_text,
    number,
    spread_text,
    verdict,
)
from attnlab.analysis.lengths import LengthCurve, multiples_of
from attnlab.analysis.reached import best_seen
from attnlab.analysis.reader import JOINT, Choice, short
from attnlab.analysis.table import Entry
from attnlab.training.study_fields import same
from attnlab.training.targets import Target

MOST_NAMES = 5
CHANGES = {
    "same": ("holds", "hold"),
    "better": ("improves", "improve"),
    "worse": ("degrades", "degrade"),
    "undecided": ("is undecided", "are undecided"),
}

WITH_LENGTH = {
    "same": "holds",
    "better": "improves",
    "worse": "degrades",
    "undecided": "undecided",
    "unavailable": "unavailable",
    "missing": "no figure",
}


def headline(comparison: Comparison, with_reasons: bool = True) -> list[str]:
    """The sentences, most important first: about length where the primary metric is at a multiple of the training
    length.

    `with_reasons` adds why cells have no value.
    """
    metric = comparison.metric
    if metric is None:
        return ["No metric is named to compare the runs by."]
    if not comparison.measured:
        return ["No run has finished with a value to compare yet."]
    if comparison.is_all_censored:
        return [*best_sentence(comparison), *_of_claims(comparison)]
    found = MULTIPLE.fullmatch(metric.name)
    about_length = found is not None and float(found["multiple"]) != 1
    lengths, best = _with_length(comparison), [*best_sentence(comparison), *_against_baseline(comparison)]
    sentences = [*lengths, *best] if about_length else [*_of_clusters(comparison), *best, *lengths]
    if with_reasons:
        sentences += reasons(comparison, ("unavailable", "diverged", "failed", "not a number"))
    return [*sentences, *_of_factors(comparison), *_of_claims(comparison)]


def _none_reached(comparison: Comparison, target: Target) -> str:
    near = best_seen(comparison, target)
    known = sum(len(cell.costs) for cell in comparison.cells)
    said = f"None of the {known} runs that ended reached {target.metric} {target.value:g}, so no cost can be compared"
    return f"{said}{near and '; '}{near}."


def reasons(comparison: Comparison, outcomes: Sequence[str]) -> list[str]:
    name = comparison.metric.name if comparison.metric else "value"
    words = {"not a number": "gave no number"}
    found: dict[tuple[str, str], list[str]] = {}
    for cell in comparison.cells:
        if cell.outcome in outcomes:
            found.setdefault((cell.outcome, cell.reason), []).append(cell.label)
    sentences = []
    for (outcome, reason), labels in found.items():
        reason = reason.rstrip(".")
        if outcome == "unavailable":
            sentences.append(f"{listing(labels)}: {name} unavailable{reason and f' ({reason})'}.")
        else:
            sentences.append(f"{listing(labels)} {words.get(outcome, outcome)}{reason and f': {reason}'}.")
    return sentences


def best_sentence(comparison: Comparison) -> list[str]:
    """Which cell is best, or which may be: from the ranks."""
    metric, measured = comparison.metric, comparison.measured
    assert metric is not None
    if comparison.target and comparison.is_all_censored:
        return [_none_reached(comparison, comparison.target)]
    decimals = decimals_for(cell.interval for cell in measured)
    if len(measured) == 1:
        return [f"{measured[0].label}: {metric.name} {interval_text(measured[0].interval, decimals)}."]
    ranked = [cell for cell in measured if cell.rank_interval]
    first = [cell for cell in ranked if cell.rank_interval and cell.rank_interval[0] == 1]
    if len(ranked) < 2:
        return []
    without = [
        cell for cell in comparison.cells if cell.interval is None and cell.outcome not in ("skipped", "unavailable")
    ]
    of = f" of the {len(measured)} cells with a value" if without else ""
    if len(first) == 1 and first[0].rank_interval == (1, 1):
        return [f"{first[0].label} is best{of}: {metric.name} {interval_text(first[0].interval, decimals)}."]
    if comparison.target is None and not any(cell.interval and cell.interval.is_bounded for cell in ranked):
        return [f"One seed a cell: on {metric.name} no cell can be told from another."]
    if len(first) > MOST_NAMES or len(first) == len(ranked) or first[0] is not ranked[0]:
        return [_no_single_best(first, ranked, metric.name)]
    leader, *others = [f"{cell.label} ({mean_text(cell.interval, decimals)})" for cell in first if cell.interval]
    spared = " of the cells that lost no run" if any(cell.n_failed for cell in ranked) and not first[0].n_failed else of
    return [
        f"On {metric.name}, {leader} has the best {comparison.average}{spared}, but these seeds cannot rule out that "
        f"{listing(others)} {_is(others)} as good."
    ]


def _no_single_best(first: Sequence[CellSummary], ranked: Sequence[CellSummary], metric: str) -> str:
    names = listing([cell.label for cell in first])
    if len(first) == len(ranked):
        names = f"all {len(first)} cells" if len(first) > 2 else "both cells"
    elif len(first) > MOST_NAMES:
        names = f"{len(first)} of {len(ranked)} cells"
    return f"No single best: these seeds leave first place on {metric} open to {names}."


def _is(names: Sequence[object]) -> str:
    return "is" if len(names) == 1 else "are"


def _against_baseline(comparison: Comparison) -> list[str]:
    baseline, metric = comparison.baseline, comparison.metric
    if baseline is None or baseline.interval is None or metric is None:
        return []
    found: dict[str, list[tuple[CellSummary, Difference]]] = {}
    for cell in comparison.measured:
        if cell.difference:
            found.setdefault(cell.difference.verdict, []).append((cell, cell.difference))
    decimals = decimals_for(d.interval for pairs in found.values() for _, d in pairs)
    many = len(comparison.cells) > 2 * MOST_NAMES
    parts = []
    for word, pairs in ((word, found[word]) for word in VERDICTS if word in found):
        names = [f"{cell.label} ({_measured(d, decimals)})" for cell, d in pairs]
        parts.append(f"{len(names)} {VERDICTS[word]}" if many else f"{VERDICTS[word]}: {listing(names)}")
    return [f"Against {baseline.label}, on {metric.name}: {'; '.join(parts)}."] if parts else []


def _measured(found: Judged, decimals: int) -> str:
    text = spread_text(found.interval, decimals, sign=True)  # with the interval's own reason, where it has one
    return f"{text}, {found.reason}" if found.reason and found.reason not in text else text


def _with_length(comparison: Comparison) -> list[str]:
    """Which cells hold or improve with length; then which do not, and which cannot be measured there."""
    curves = comparison.primary_lengths
    if not curves:
        return []
    multiples = multiples_of(curves)
    decimals = decimals_for(curve.change.interval for curve in curves if curve.change)
    parts = {word: _changed(curves, word, decimals) for word in CHANGES}
    good = [parts[word] for word in ("same", "better") if parts[word]]
    bad = [parts[word] for word in ("worse", "undecided") if parts[word]]
    stuck = [curve for curve in curves if curve.verdict == "unavailable"]
    if stuck:
        ends = {max(curve.points, default=0.0) for curve in stuck}
        beyond = f"go beyond {ends.pop():g}x" if len(ends) == 1 and 0.0 not in ends else "go that far"
        bad.append(f"{listing([curve.label for curve in stuck])} cannot {beyond}")
    start = f"From {multiples[0]:g}x to {multiples[-1]:g}x the training length"
    if not good:
        return [f"{start}, {'; '.join(bad)}."] if bad else []
    return [f"{start}, {'; '.join(good)}.", *([f"Over the same lengths, {'; '.join(bad)}."] if bad else [])]


def _changed(curves: Sequence[LengthCurve], word: str, decimals: int) -> str:
    """ "none (+0.081 +-0.008) and rotary (+0.373 +-0.115) degrade", the least change first."""
    found = [(curve.label, curve.change) for curve in curves if curve.change and curve.verdict == word]
    found.sort(key=lambda pair: abs(pair[1].interval.mean))
    names = [f"{label} ({_measured(change, decimals)})" for label, change in found]
    return f"{listing(names)} {CHANGES[word][len(names) > 1]}" if names else ""


def _of_clusters(comparison: Comparison) -> list[str]:
    """Which cells are far behind, what they share, and which cells that share it are not behind."""
    clusters = comparison.clusters
    if clusters is None or comparison.metric is None:
        return []
    n, better, worse = len(clusters.worse), _range(clusters.better), _range(clusters.worse)
    behind = f"{n} of {n + len(clusters.better)} cells {_is(clusters.worse)} far behind on {comparison.metric.name}"
    if not clusters.common:
        return [f"{behind}, at {worse} against {better} of the others; no run lies between."]
    common = listing(_choices(comparison, clusters.common))
    every = f"all {n} have" if n > 1 else "it has"
    first = f"{behind}, at {worse} against {better} of the others: {every} {common}."
    spared = [
        cell
        for cell in clusters.better
        if all(same(cell.cell.choices.get(name), choice) for name, choice in clusters.common.items())
    ]
    if not spared:
        return [first, f"Every cell with {common} is among them, and no run lies between."]
    if n > MOST_NAMES:
        return [first, f"{len(spared)} other cells with {common} are not behind; no run lies between."]
    others = f"{len(spared)} others"
    lists = ["; ".join(_rest(comparison, clusters, cells)) for cells in (clusters.worse, spared)]
    return [
        first,
        f"With {common}, behind: {lists[0]}. Not behind: {lists[1] if len(spared) < 3 else others}. No run lies "
        "between.",
    ]


def _range(cells: Sequence[CellSummary]) -> str:
    means = [cell.interval.mean for cell in cells if cell.interval]
    ends = dict.fromkeys(f"{end:.2f}" for end in (min(means), max(means)))
    return " to ".join(ends)


def _choices(comparison: Comparison, choices: Mapping[str, Choice]) -> list[str]:
    return [comparison.study.choice_label(name, choice) for name, choice in choices.items()]


def _rest(comparison: Comparison, clusters: Clusters, cells: Sequence[CellSummary]) -> list[str]:
    """What tells `cells` apart beside the choices that they share, in the plan's order."""
    names = [name for name in comparison.study.varying if name not in clusters.common]
    return [
        JOINT.join(_choices(comparison, {name: cell.cell.choices[name] for name in names if name in cell.cell.choices}))
        for cell in sorted(cells, key=comparison.cells.index)
    ]


def _of_factors(comparison: Comparison) -> list[str]:
    """The largest average effect and the largest interaction, of those that are sure."""
    sure = [effect for effect in comparison.effects if effect.verdict in DECIDED]
    sentences = []
    if sure and comparison.metric is not None:
        decimals = decimals_for(effect.interval for effect in comparison.effects)
        largest = max(sure, key=lambda effect: abs(effect.interval.mean))
        text = (
            f"The largest average effect is that of {short(largest.factor)}: {largest.reference} to {largest.choice} "
            "changes "
            f"{comparison.metric.name} by {_measured(largest, decimals)}"
        )
        if largest.depends and len(largest.by_setting) > 1:
            shown = " to ".join(f"{number(value, decimals, sign=True)} ({setting})" for setting, value in largest.ends)
            text += f"; it depends on the other settings, from {shown}"
        sentences.append(f"{text}.")
    found = [one for one in comparison.interactions if one.verdict in DECIDED]
    if found:
        first = max(found, key=lambda one: abs(one.interval.mean))
        decimals = decimals_for(one.interval for one in comparison.interactions)
        sentences.append(
            f"The largest interaction is {first.label}: together they change it by {_measured(first, decimals)} "
            "beyond the sum of what each changes alone."
        )
    return sentences


def _of_claims(comparison: Comparison) -> list[str]:
    claims = comparison.claims
    if not claims:
        return []
    counts = {word: sum(claim.verdict == word for claim in claims) for word in ("met", "not met", "open")}
    parts = [f"{n} {word}" for word, n in counts.items() if n]
    return [f"Of {len(claims)} claim{'s' * (len(claims) > 1)} made beforehand: {', '.join(parts)}."]


def length_verdict(curve: LengthCurve) -> Entry:
    """The word for a table; to hold is good."""
    mood = "better" if curve.verdict == "same" else curve.verdict
    return verdict(curve.change, WITH_LENGTH, mood) if curve.change else Entry(WITH_LENGTH[curve.verdict], mood=mood)
