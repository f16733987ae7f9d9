"""What a reader must know before trusting the figures, in plain sentences, most important first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from attnlab.analysis import statistics
from attnlab.analysis.budgets import budget_warnings
from attnlab.analysis.cells import CellSummary
from attnlab.analysis.differences import Difference
from attnlab.analysis.file_cache import mapping
from attnlab.analysis.formatting import listing, quantity
from attnlab.analysis.proportions import is_proportion, runs_to_decide, says_proportion, smallest_fisher_p
from attnlab.analysis.reader import Metric, Run, Study
from attnlab.training.run_directory import ENDED
from attnlab.training.targets import AXES, Target, target_of

MOST_NAMES = 3
# Of runs that end in two places: the gap over either part's width, and over the values; how many runs there are.
APART, COARSE, FEWEST_APART = 5.0, 0.02, 6


def caveats_of(study: Study, cells: Sequence[CellSummary], unmatched: Sequence[str], alpha: float) -> list[str]:
    """All that holds for a comparison. unmatched: changes of a factor that not every setting has a value for."""
    caveats = [*study.apart, *(f"Cannot be read: {what}." for what in study.unreadable), *_of_looks(study)]
    caveats += _of_runs(study, cells)
    caveats += [
        *_of_failures(cells, alpha),
        *_of_proportion(study),
        *_of_costs(study, cells),
        *_of_seeds(cells, alpha),
        *_of_spread(cells),
        *_of_two_places(study),
    ]
    if any(cell.difference and cell.difference.verdict == "undecided" for cell in cells):
        caveats += power_sentence(cells, study.metric)
    if study.metric is None:
        caveats.append("The study names no primary metric, so nothing is compared.")
    elif len(cells) > 1:
        if study.baseline_cell is None:
            caveats.append("The study names no baseline, so there are no differences to one.")
        elif not study.baseline_named:
            taken = f"{study.label(study.baseline_cell)}, the first cell, stands for it"
            among = " among these" * bool(study.apart)
            caveats.append(f"No baseline is named{among}: {taken}; `--baseline CELL` takes another.")
    if study.metric is not None:
        caveats += _of_pairing(cells, unmatched)
    return caveats + budget_warnings(study, {cell.cell.name: cell.budget for cell in cells})


def _of_pairing(cells: Sequence[CellSummary], unmatched: Sequence[str]) -> list[str]:
    """Cells that have values and can still not be compared by seed."""
    baseline = next((cell for cell in cells if cell.is_baseline), None)
    if baseline is None:
        return []
    if not baseline.n:
        alone = any(cell.n for cell in cells)
        return [f"The baseline, {baseline.label}, has no value, so there are no differences to it."] if alone else []
    apart = [cell.label for cell in cells if cell.n and not cell.difference and not cell.is_baseline]
    caveats = []
    if apart:
        caveats.append(
            f"{_who(apart, 'has', 'have')} no seed in common with the baseline, {baseline.label}, so no difference can "
            "be paired."
        )
    if unmatched:
        caveats.append(
            "Average effects leave out settings of which a cell has no value with a seed in common: "
            f"{listing(unmatched, MOST_NAMES)}."
        )
    return caveats


def _who(labels: Sequence[str], one: str, several: str) -> str:
    return f"{listing(labels, MOST_NAMES)} {one if len(labels) == 1 else several}"


def _of_runs(study: Study, cells: Sequence[CellSummary]) -> list[str]:
    runs = list(study.runs.values())
    if not runs:
        return ["No run is planned or there yet."]
    counts = Counter(run.state for run in runs if run.state != "finished")
    caveats = []
    if counts:
        parts = ", ".join(f"{n} {state}" for state, n in counts.most_common())
        caveats.append(f"Not finished: {sum(counts.values())} of {len(runs)} runs ({parts}).")
    if any(run.state not in ENDED for run in runs):
        caveats.append(
            "Words such as better wait until the planned seeds of both cells are in: to stop as soon as one looks sure "
            f"would find too much.{_way_on(study)}"
        )
    if any(cell.n_failed for cell in cells if cell.n):
        is_share = study.metric is not None and is_proportion(study, study.metric.name)
        average = "share" if is_share else "median" if _target(study) else "mean"
        caveats.append(
            f"Runs that ended without a finite value are lost. The {average} of a cell's other "
            "runs may flatter it: a word is given only where it would stand whatever the lost ones had given"
            f"{'' if is_share else ' (sign test)'}, and where no more are lost than chance explains."
        )
    return caveats + _of_provenance(study)


def _way_on(study: Study) -> str:
    if not study.baseline_named:  # nobody has planned it
        return ""
    rest = f" `attnlab sweep {study.name}` runs the rest"
    return f"{rest}." if study.looks.stages else f"{rest}; where it was given up, study.seeds=N takes N of them."


def _of_looks(study: Study) -> list[str]:
    """That it is compared more than once, and how much of the 5% this look has for that."""
    looks, seeds = study.looks, len(study.seeds)
    caveats = []
    if looks.stages:
        more = "" if looks.after(seeds) is None else f" of at most {looks.stages[-1]}"
        caveats.append(
            f"Seeds come in stages: this is {looks.in_words(seeds)}, with {seeds} seeds{more}. Intervals and words are "
            "of this look and of those before together, each at its own part of the 5%."
        )
    elif looks.looked:
        before = " and then ".join(map(str, looks.looked))
        spent, total = (
            f"{5 * share:.3g}%" for share in (looks.spent(seeds), sum(0.5**k for k in range(len(looks.looked) + 1)))
        )
        caveats.append(
            f"Seeds were added after {before} of them had been compared. Words take {spent} now instead of 5%; over "
            f"all looks each family has a false one in up to {total} of studies (`stop` in study.yaml keeps it at 5%)."
        )
    if looks.given_up:
        caveats.append(
            f"{looks.given_up} seeds were planned, and {seeds} are compared: to stop where the figures look good finds "
            "too much."
        )
    return caveats


def _of_provenance(study: Study) -> list[str]:
    """What runs should have in common and do not, and where even seeds of a cell or attempts at a run differ."""
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
    """What a run should have in common with the others, by its kind: the code and versions of all its attempts,
    precision, compilation and device.

    versions: {digest of attnlab's source: the version that had it first}, kept from run to run.
    """
    precision, device = run.section("precision"), run.section("device")
    attempts = run.record.get("attempts")
    found: dict[str, set[str]] = {}
    for attempt in map(mapping, attempts if isinstance(attempts, list) and attempts else [run.record]):
        git = mapping(attempt.get("git"))
        code = str(git.get("commit") or git.get("version") or "")[:10]
        if git.get("dirty"):  # the digest tells one edit from another
            source = str(git.get("source") or "")[:8]
            code = f"{code} with changes{f' ({source})' if source else ''}"
        if code:  # commits that changed nothing of attnlab's source are one version
            found.setdefault("code version", set()).add(versions.setdefault(str(git.get("source") or code), code))
        for library, version in mapping(attempt.get("versions")).items():
            found.setdefault(f"the version of {library}", set()).add(str(version))
        for module, digest in mapping(attempt.get("sources")).items():
            found.setdefault(f"the source of {module}", set()).add(str(digest)[:8])
    if precision.get("used"):
        found["precision"] = {str(precision["used"])}
    compilation = run.section("compile")
    if "used" in compilation:
        found["compilation"] = {"compiled" if compilation["used"] else "eager"}
    if device.get("name") or device.get("type"):
        found["device"] = {str(device.get("name") or device.get("type"))}
    return found


def _of_failures(cells: Sequence[CellSummary], alpha: float) -> list[str]:
    """Of which cells another share of the runs failed than of the baseline, as far as the counts tell."""
    judged = [(cell.label, cell.failures) for cell in cells if cell.failures and cell.failures.excess]
    if not judged:
        return []
    judged.sort(key=lambda pair: pair[1].p)
    first = judged[0][1]
    parts = [f"{label} {found.failed} of {found.ended} (p {found.p_holm:.2g})" for label, found in judged[:MOST_NAMES]]
    more = f" and {len(judged) - MOST_NAMES} more cells" if len(judged) > MOST_NAMES else ""
    sure = sum(found.p_holm <= alpha for _, found in judged)
    verdict = "which chance alone does not explain" if sure == len(judged) else "which chance alone may explain"
    if 0 < sure < len(judged):
        verdict = f"which chance alone does not explain in {sure} of them"
    return [
        f"Lost runs, against {first.baseline_failed} of {first.baseline_ended} of the baseline: "
        f"{', '.join(parts)}{more}, {verdict} (Fisher's exact test, Holm)."
    ]


def _of_proportion(study: Study) -> list[str]:
    """What is judged as a share of runs, and what has no meaning then; and what claims to be 0 or 1 and is not."""
    name = study.metric.name if study.metric else ""
    if not says_proportion(study, name):
        return []
    if not is_proportion(study, name):
        return [f"{name} is said to be 0 or 1 a run, and some run has another value: it is judged as a mean."]
    factors = _of_factors(study)
    return [
        f"{name} is 0 or 1 a run, so shares of runs are compared (Newcombe's interval, Fisher's exact test; runs not "
        "paired by seed). Effect sizes, sign flips, bootstrap, the p of equivalence and seeds to settle are of means, "
        f"and left out{factors}."
    ]


def _of_factors(study: Study) -> str:
    """What is left out of several factors where no means are compared."""
    several = len([factor for factor in study.factors if factor in study.varying]) > 1
    size = f", and whether effects grow with {study.published.size}" if study.published and study.published.size else ""
    return f", and so are average effects and interactions of the factors{size}" * several


def _target(study: Study) -> Target | None:
    return target_of(study.metric.name) if study.metric else None


def _of_costs(study: Study, cells: Sequence[CellSummary]) -> list[str]:
    """How costs to a target are judged where runs never reached it, and what is left out; that runs end differently."""
    target, every = _target(study), [cost for cell in cells for cost in cell.costs.values()]
    if target is None or not every:
        return []
    factors = _of_factors(study)
    caveats = [
        "Costs to a target are compared by the sign test alone, as medians. Effect sizes, sign flips, bootstrap, the p "
        f"of equivalence and seeds to settle are of means, and left out{factors}."
    ]
    ends = sorted({cost.low for cost in every if math.isfinite(cost.low) and math.isinf(cost.high)})
    never = sum(math.isinf(cost.high) for cost in every)
    if never:
        at = " to ".join(dict.fromkeys(quantity(end) for end in (ends[0], ends[-1]))) if ends else ""
        diverged = sum(math.isinf(cost.low) for cost in every)
        parts = [f"{never - diverged} by their end, at {at} {AXES[target.axis].format(unit=study.unit)}"] * bool(at)
        parts += [f"{diverged} diverged"] * bool(diverged)
        caveats.append(
            f"{never} of {len(every)} runs never reached {target.metric} {target.value:g} ({'; '.join(parts)}). They "
            "are censored, not lost: they cost more than a run that reached it sooner than they ended, and two of "
            "them, or one and a run that reached it later, are not told apart."
        )
    return caveats


def _of_few_runs(differences: Sequence[Difference], alpha: float) -> list[str]:
    """Whether so many runs can show a difference of shares at all."""
    n, comparisons = max(one.contrast.asked for one in differences), differences[0].tests
    smallest = smallest_fisher_p(n, n)
    if smallest * comparisons <= alpha:
        return []
    return [
        f"With {n} run{'s' * (n > 1)} a cell Fisher's exact test cannot give p below {smallest:.3g} whatever the "
        f"data: {comparisons} comparison{'s' * (comparisons > 1)} would need "
        f"{runs_to_decide(comparisons, alpha)} runs a cell to find any difference."
    ]


def _of_seeds(cells: Sequence[CellSummary], alpha: float) -> list[str]:
    found = [cell.difference for cell in cells if cell.difference]
    if not found:
        return []
    if not found[0].contrast.is_mean and not _target_of(found[0]):
        return _of_few_runs(found, alpha)
    n, comparisons = max(one.contrast.asked for one in found), found[0].tests
    if n < 2:
        return ["A comparison with one seed has no interval: how much of its difference is chance cannot be said."]
    smallest = statistics.smallest_sign_flip_p(n)
    if smallest * comparisons <= alpha:
        return []
    if _target_of(found[0]):
        return [
            f"With {n} seeds the sign test cannot give p below {smallest:.3g} whatever the data: {comparisons} "
            f"comparison{'s' * (comparisons > 1)} would need {statistics.seeds_to_decide(comparisons, alpha)} seeds to "
            "find any difference."
        ]
    return [
        f"With {n} seeds the exact sign-flip test cannot give p below {smallest:.3g} whatever the data; "
        f"{comparisons} comparison{'s' * (comparisons > 1)} would need "
        f"{statistics.seeds_to_decide(comparisons, alpha)} seeds to be settled by it alone. "
        "Better and worse rest on t intervals here, which assume that differences between seeds are roughly normal."
    ]


def _target_of(found: Difference) -> Target | None:
    return target_of(found.metric.name)


def _of_spread(cells: Sequence[CellSummary]) -> list[str]:
    """Comparisons whose differences are all the same, so that there is nothing to judge them by."""
    found = [(cell.label, cell.difference) for cell in cells if cell.difference and cell.difference.contrast.is_mean]
    flat = {label: difference for label, difference in found if difference.n > 1 and not difference.has_spread}
    equal = [label for label, found in flat.items() if not any(found.values.values())]
    shifted = [label for label in flat if label not in equal]
    caveats = []
    if equal:
        caveats.append(
            f"{_who(equal, 'has', 'have')} exactly the baseline's value in every seed: the choice changed nothing, or "
            "the metric is too coarse to show it."
        )
    if shifted:
        caveats.append(
            f"{_who(shifted, 'differs', 'differ')} from the baseline by the same amount in every seed: without a "
            "spread there is no t test and no interval."
        )
    return caveats


def _of_two_places(study: Study) -> list[str]:
    """Cells whose runs end in two places, which a mean lies between."""
    metric = study.metric
    if metric is None or target_of(metric.name) or is_proportion(study, metric.name):
        return []
    found = [
        (study.label(cell), two_places(list(study.values(cell.name, metric.name).values()))) for cell in study.cells
    ]
    parted = [f"{label} ({_placed(low)}, {_placed(high)})" for label, (low, high) in found if low]
    if not parted:
        return []
    share = "; a share of runs (task.success_above, where the task has it) is judged without one"
    end = f"Runs of {listing(parted, MOST_NAMES)} end in two places that no spread explains, and a mean is neither"
    return [f"{end}{share * (metric.better == 'higher')}."]


def _placed(values: Sequence[float]) -> str:
    ends = [quantity(values[0]), quantity(values[-1])]
    return f"{len(values)} at {' to '.join(dict.fromkeys(ends))}"


def two_places(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The values below and above their widest gap, where that is APART times as wide as either part, which six normal
    values are in 0.4% of cases, and no step of a coarse metric; ([], []) else, and of less than six."""
    ordered = sorted(values)
    if len(ordered) < FEWEST_APART:
        return [], []
    cut = max(range(1, len(ordered)), key=lambda at: ordered[at] - ordered[at - 1])
    low, high = ordered[:cut], ordered[cut:]
    least = max(APART * max(low[-1] - low[0], high[-1] - high[0]), COARSE * max(map(abs, ordered)))
    return (low, high) if high[0] - low[-1] > least else ([], [])


def _known(cells: Sequence[CellSummary]) -> list[tuple[str, Difference]]:
    """The differences that have all their seeds and a spread to go by, by the cells' labels."""
    found = [(cell.label, cell.difference) for cell in cells if cell.difference]
    return [(label, one) for label, one in found if one.has_spread and not one.contrast.missing]


def power_sentence(cells: Sequence[CellSummary], metric: Metric | None) -> list[str]:
    """What so many seeds can see, and how many would settle what is open; [] where no spread is known."""
    known = _known(cells)
    found = sorted((one.smallest_effect, label, one.n) for label, one in known if math.isfinite(one.smallest_effect))
    if not found or metric is None:
        return []
    seeds = " to ".join(dict.fromkeys(str(end(n for _, _, n in found)) for end in (min, max)))
    (least, first, _), (most, last, _) = found[0], found[-1]
    is_wide = f"{least:.1g}" != f"{most:.1g}"
    below = f"{least:.2g} ({first}) to {most:.2g} ({last})" if is_wide else f"about {most:.2g}"
    tests = known[0][1].tests
    return [
        f"With {seeds} seeds, differences in {metric.name} below {below} will mostly not be seen "
        f"(less than an 80% chance, {tests} comparison{'s' * (tests > 1)}, going by the spread of these few "
        f"seeds){_to_settle(known)}."
    ]


def _to_settle(known: Sequence[tuple[str, Difference]]) -> str:
    """How many seeds would settle the comparisons that are open: by name where they are few, else as a range."""
    wanted = {label: found.seeds_to_settle for label, found in known if found.verdict == "undecided"}
    near = sorted((seeds, label) for label, seeds in wanted.items() if math.isfinite(seeds))
    far = [label for label, seeds in wanted.items() if math.isinf(seeds)]
    text = ""
    if near:
        named = listing([f"{seeds:.0f} seeds would settle {label}" for seeds, label in near])
        many = f"{near[0][0]:.0f} to {near[-1][0]:.0f} seeds would settle the {len(near)} open comparisons"
        text = f"; {named if len(near) <= MOST_NAMES else many}, if the true differences are those measured"
    return text + (f"; not even {statistics.MOST_SEEDS:,} would settle {listing(far, MOST_NAMES)}" if far else "")
