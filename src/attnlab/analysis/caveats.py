"""What a reader must know before trusting the figures, in plain sentences, most important first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnlab.analysis import statistics
from attnlab.analysis.budget import budget_warnings
from attnlab.analysis.listing import listing
from attnlab.analysis.outcomes import LostRuns
from attnlab.analysis.power import MOST_SEEDS
from attnlab.analysis.reader import Run, Study

if TYPE_CHECKING:
    from attnlab.analysis.comparison import CellSummary, Comparison
    from attnlab.analysis.differences import Difference

MOST_NAMES = 3


def caveats_of(comparison: Comparison, alpha: float) -> list[str]:
    """All that holds for a comparison."""
    study, cells = comparison.study, comparison.cells
    caveats = [*study.apart, *(f"Cannot be read: {what}." for what in study.unreadable), *_of_runs(study, cells)]
    caveats += [*_of_losses(cells, alpha), *_of_seeds(cells, alpha), *_of_spread(cells)]
    if comparison.metric is not None and any(_is_undecided(cell) for cell in cells):
        caveats += power_sentence(comparison)
    if study.metric is None:
        caveats.append("The study names no primary metric, so nothing is compared.")
    elif study.baseline_cell is None and len(cells) > 1:
        caveats.append("The study names no baseline, so there are no differences to one.")
    caveats += _of_pairing(comparison)
    return caveats + budget_warnings(study, {cell.cell.name: cell.budget for cell in cells})


def _of_pairing(comparison: Comparison) -> list[str]:
    """Cells that have values and can still not be compared by seed."""
    baseline = comparison.baseline
    if baseline is None or comparison.metric is None:
        return []
    if not baseline.values:
        alone = any(cell.values for cell in comparison.cells)
        return [f"The baseline, {baseline.label}, has no value, so there are no differences to it."] if alone else []
    apart = [cell.label for cell in comparison.cells if cell.values and not cell.difference and not cell.is_baseline]
    caveats = []
    if apart:
        has = "has" if len(apart) == 1 else "have"
        caveats.append(
            f"{listing(apart, MOST_NAMES)} {has} no seed in common with the baseline, {baseline.label}, so no difference can be paired."
        )
    if comparison.unmatched:
        caveats.append(
            "Average effects leave out settings of which a cell has no value with a seed in common: "
            f"{listing(comparison.unmatched, MOST_NAMES)}."
        )
    return caveats


def _of_runs(study: Study, cells: Sequence[CellSummary]) -> list[str]:
    runs = list(study.runs.values())
    if not runs:
        return ["No run is planned or there yet."]
    counts = Counter(run.state for run in runs if run.state != "finished")
    caveats = []
    if counts:
        parts = ", ".join(f"{n} {state}" for state, n in counts.most_common())
        caveats.append(f"Not finished: {sum(counts.values())} of {len(runs)} runs ({parts}).")
    if any(cell.difference.contrast.pending for cell in cells if cell.difference):
        caveats.append(
            "Words such as better wait for all runs that are planned: to stop as soon as one looks sure would find too much."
        )
    if any(cell.n_lost for cell in cells if cell.values):
        caveats.append(
            "Runs that ended without a finite value are lost. The mean of a cell's other runs may flatter it: a word is given only where "
            "it would stand whatever the lost ones had given (sign test), and where no more are lost than chance explains."
        )
    return caveats + _of_provenance(study)


def _of_provenance(study: Study) -> list[str]:
    """What runs should have in common and do not, and where even the seeds of one cell or the attempts at one run differ."""
    versions: dict[str, str] = {}
    found = {key: _provenance(run, versions) for key, run in sorted(study.runs.items())}
    labels = {cell.name: study.label(cell) for cell in study.cells}
    caveats = []
    for what in dict.fromkeys(what for of_run in found.values() for what in of_run):
        values = {key: of_run[what] for key, of_run in found.items() if what in of_run}
        every = sorted(set().union(*values.values()))
        if len(every) < 2:
            continue
        of_cell: dict[str, set[str]] = {}
        for (cell, _), own in values.items():
            of_cell.setdefault(labels[cell], set()).update(own)
        mixed = [label for label, own in of_cell.items() if len(own) > 1]
        switched = [f"{labels[cell]} seed={seed}" for (cell, seed), own in values.items() if len(own) > 1]
        sentence = f"Runs differ in {what}: {', '.join(every)}"
        if mixed:
            sentence += f"; within one cell in {listing(mixed, MOST_NAMES)}"
        if switched:
            sentence += f"; in the middle of a run in {listing(switched, MOST_NAMES)}"
        caveats.append(f"{sentence}.")
    return caveats


def _provenance(run: Run, versions: dict[str, str]) -> dict[str, set[str]]:
    """What a run should have in common with the others, by its kind: the code and versions of all its attempts, precision and device.

    versions: {digest of attnlab's source: the version that had it first}, kept from run to run.
    """
    precision, device = (_entries(run.record.get(key)) for key in ("precision", "device"))
    attempts = [entry for entry in run.record.get("attempts") or [run.record] if isinstance(entry, Mapping)]
    found: dict[str, set[str]] = {}
    for attempt in attempts:
        git = _entries(attempt.get("git"))
        if code := _code(git):  # commits that changed nothing of attnlab's source are one version
            found.setdefault("code version", set()).add(versions.setdefault(str(git.get("source") or code), code))
        for library, version in _entries(attempt.get("versions")).items():
            found.setdefault(f"the version of {library}", set()).add(str(version))
        for module, digest in _entries(attempt.get("sources")).items():
            found.setdefault(f"the source of {module}", set()).add(str(digest)[:8])
    if precision.get("used"):
        found["precision"] = {str(precision["used"])}
    if device.get("name") or device.get("type"):
        found["device"] = {str(device.get("name") or device.get("type"))}
    return found


def _code(git: Mapping[str, Any]) -> str:
    """A version of attnlab's code: its commit, or its release; where it was edited, the digest that tells one edit from another."""
    known = str(git.get("commit") or git.get("version") or "")[:10]
    if not git.get("dirty"):
        return known
    source = str(git.get("source") or "")[:8]
    return f"{known} with changes{f' ({source})' if source else ''}"


def _entries(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _of_losses(cells: Sequence[CellSummary], alpha: float) -> list[str]:
    """Which cells lose another share of their runs than the baseline, as far as the counts tell."""
    judged = [(cell, cell.lost) for cell in cells if cell.lost and _differ(cell.lost)]
    if not judged:
        return []
    judged.sort(key=lambda pair: pair[1].p)
    first = judged[0][1]
    parts = [
        f"{cell.label} {found.lost} of {found.ended} (p {found.p_holm:.2g})" for cell, found in judged[:MOST_NAMES]
    ]
    more = f" and {len(judged) - MOST_NAMES} more cells" if len(judged) > MOST_NAMES else ""
    sure = sum(found.p_holm <= alpha for _, found in judged)
    verdict = "which chance alone does not explain" if sure == len(judged) else "which chance alone may explain"
    if 0 < sure < len(judged):
        verdict = f"which chance alone does not explain in {sure} of them"
    return [
        f"Lost runs, against {first.baseline_lost} of {first.baseline_ended} of the baseline: {', '.join(parts)}{more}, "
        f"{verdict} (Fisher's exact test, Holm)."
    ]


def _differ(found: LostRuns) -> bool:
    return found.lost * found.baseline_ended != found.baseline_lost * found.ended


def _of_seeds(cells: Sequence[CellSummary], alpha: float) -> list[str]:
    """The plain sentences about too few seeds."""
    found = [cell.difference for cell in cells if cell.difference]
    if not found:
        return []
    n, comparisons = max(one.contrast.asked for one in found), found[0].tests
    if n < 2:
        return ["A comparison with one seed has no interval: how much of its difference is chance cannot be said."]
    if statistics.smallest_sign_flip_p(n) * comparisons <= alpha:
        return []
    need = statistics.seeds_to_decide(comparisons, alpha)
    return [
        f"With {n} seeds the exact sign-flip test cannot give p below {statistics.smallest_sign_flip_p(n):.3g} whatever the data; "
        f"{comparisons} comparison{'s' * (comparisons > 1)} would need {need} seeds to be settled by it alone. "
        "Better and worse rest on t intervals here, which assume that differences between seeds are roughly normal."
    ]


def _of_spread(cells: Sequence[CellSummary]) -> list[str]:
    """Comparisons whose differences are all the same, so that there is nothing to judge them by."""
    flat = [(cell.label, cell.difference) for cell in cells if cell.difference and cell.difference.n > 1]
    flat = [(label, found) for label, found in flat if not found.has_spread]
    equal = [label for label, found in flat if not any(found.values.values())]
    shifted = [label for label, found in flat if any(found.values.values())]
    caveats = []
    if equal:
        have = "has" if len(equal) == 1 else "have"
        caveats.append(
            f"{listing(equal, MOST_NAMES)} {have} exactly the baseline's value in every seed: the choice changed nothing, or the metric is too coarse to show it."
        )
    if shifted:
        differ = "differs" if len(shifted) == 1 else "differ"
        caveats.append(
            f"{listing(shifted, MOST_NAMES)} {differ} from the baseline by the same amount in every seed: without a spread there is no t test and no interval."
        )
    return caveats


def power_sentence(comparison: Comparison) -> list[str]:
    """What so many seeds can see, and how many would settle what is open; [] where no spread is known."""
    known = [
        (cell.difference, cell.label) for cell in comparison.cells if cell.difference and _is_whole(cell.difference)
    ]
    found = sorted((one.smallest_effect, label, one.n) for one, label in known if math.isfinite(one.smallest_effect))
    if not found or comparison.metric is None:
        return []
    sizes = sorted({n for _, _, n in found})
    seeds = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    (least, first, _), (most, last, _) = found[0], found[-1]
    is_wide = f"{least:.1g}" != f"{most:.1g}"
    below = f"{least:.2g} ({first}) to {most:.2g} ({last})" if is_wide else f"about {most:.2g}"
    tests = known[0][0].tests
    sentence = (
        f"With {seeds} seeds, differences in {comparison.metric.name} below {below} will mostly not be seen "
        f"(less than an 80% chance, {tests} comparison{'s' * (tests > 1)}, going by the spread of these few seeds)"
    )
    return [f"{sentence}{_to_settle(comparison)}."]


def _is_whole(found: Difference) -> bool:
    """Whether all seeds are in, with a spread to go by."""
    return found.has_spread and not found.contrast.missing


def _to_settle(comparison: Comparison) -> str:
    """How many seeds would settle the comparisons that are open: by name where they are few, else as a range."""
    wanted = {
        cell.label: cell.difference.seeds_to_settle
        for cell in comparison.cells
        if cell.difference and _is_undecided(cell) and _is_whole(cell.difference)
    }
    near = sorted((seeds, label) for label, seeds in wanted.items() if math.isfinite(seeds))
    far = [label for label, seeds in wanted.items() if math.isinf(seeds)]
    text = ""
    if near:
        named = listing([f"{seeds:.0f} seeds would settle {label}" for seeds, label in near])
        many = f"{near[0][0]:.0f} to {near[-1][0]:.0f} seeds would settle the {len(near)} open comparisons"
        text = f"; {named if len(near) <= MOST_NAMES else many}, if the true differences are those measured"
    return text + (f"; not even {MOST_SEEDS:,} would settle {listing(far, MOST_NAMES)}" if far else "")


def _is_undecided(cell: CellSummary) -> bool:
    return cell.difference is not None and cell.difference.verdict == "undecided"
