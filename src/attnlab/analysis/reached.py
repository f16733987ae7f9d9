"""Which runs reached the target of a cost, and what stands beside the sign test: the share that did, the ratio of costs
by seed, and tests that do not pair the runs; and what the figures of a metric are that no mean is taken of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from attnlab.analysis.cells import CellSummary
from attnlab.analysis.censoring import CensoredMedian, logrank_p, median_of
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.formatting import decimals_for, interval_text, number, p_text, tests_text
from attnlab.analysis.proportions import Count, Share, fisher_p, share_of
from attnlab.analysis.statistics import bonferroni
from attnlab.analysis.table import Column, Table
from attnlab.training.targets import Target

ENDS = {"at least": 0, "at most": 1}  # of the bounds of a cost


@dataclass(frozen=True)
class Reached:
    """How many runs of a cell reached the target, of those of which it is known, and how it stands to the baseline.

    `ratio` is the median of its cost over the baseline's by seed, with the sign test's interval at the level of the
    difference; the p of the log-rank test, and of Fisher's that the same share reached it, are adjusted (Bonferroni)
    for all comparisons. None and nan where there is nothing to compare.
    """

    label: str
    share: Share
    ratio: CensoredMedian | None
    p_logrank: float
    p_share: float


def reached(comparison: Comparison) -> list[Reached]:
    """Every cell of which something is known, best first; [] where the metric is no cost to a target."""
    if comparison.target is None:
        return []
    return [_reached(cell, comparison.baseline) for cell in comparison.best_first if cell.costs]


def _reached(cell: CellSummary, baseline: CellSummary | None) -> Reached:
    own, count = list(cell.costs.values()), _count(cell)
    if baseline is None or cell.difference is None:
        return Reached(cell.label, share_of(count), None, math.nan, math.nan)
    by_seed = [cost.over(baseline.costs[seed]) for seed, cost in cell.costs.items() if seed in baseline.costs]
    missing, tests = cell.difference.contrast.missing, cell.difference.tests
    ratio = median_of(by_seed, cell.difference.interval.level, missing, cell.difference.reason)
    theirs = _count(baseline)
    p_share = fisher_p(count.successes, count.n, theirs.successes, theirs.n)
    p_logrank = logrank_p(own, list(baseline.costs.values()))
    return Reached(cell.label, share_of(count), ratio, bonferroni(p_logrank, tests), bonferroni(p_share, tests))


def _count(cell: CellSummary) -> Count:
    return Count(sum(cost.is_reached for cost in cell.costs.values()), len(cell.costs))


def reached_table(comparison: Comparison) -> Table | None:
    """The same as a table with its notes; None where the metric is no cost to a target, or no run reached it."""
    found, target = reached(comparison), comparison.target
    if target is None or comparison.is_all_censored or not found:
        return None
    columns = [
        Column[Reached]("cell", lambda row: row.label, "l"),
        Column("reached (share)", lambda row: interval_text(row.share, 2)),
    ]
    if any(row.ratio for row in found):
        decimals = decimals_for(row.ratio for row in found)
        columns += [
            Column("ratio (interval)", lambda row: _ratio(row, decimals)),
            Column("p log-rank", lambda row: p_text(row.p_logrank) if row.ratio else ""),
            Column("p reached", lambda row: p_text(row.p_share) if row.ratio else ""),
        ]
    return Table.of(columns, found, f"Which runs reached {target.metric} {target.value:g}", _notes(found))


def columns_of_costs(comparison: Comparison) -> list[Column[CellSummary]]:
    """The same as columns of an exact table of cells, and what is known of every seed."""
    found = {row.label: row for row in reached(comparison)}
    figures: dict[str, Callable[[Reached], float | None]] = {
        "reached": lambda row: row.share.count.successes,
        "known": lambda row: row.share.count.n,
        "ratio": lambda row: row.ratio.mean if row.ratio else None,
        "ratio_low": lambda row: row.ratio.low if row.ratio else None,
        "ratio_high": lambda row: row.ratio.high if row.ratio else None,
        "p_logrank": lambda row: row.p_logrank,
        "p_reached": lambda row: row.p_share,
    }

    def figure(of: Callable[[Reached], float | None], cell: CellSummary) -> float | None:
        return of(found[cell.label]) if cell.label in found else None

    def bound(seed: int, end: int, cell: CellSummary) -> str:
        return str(cell.costs[seed][end]) if seed in cell.costs else ""

    ends = [(seed, said, end) for seed in comparison.study.seeds for said, end in ENDS.items()]
    return [
        *(Column(name, partial(figure, of)) for name, of in figures.items() if found),
        *(Column(f"seed={seed} {said}", partial(bound, seed, end)) for seed, said, end in ends if found),
    ]


def _ratio(row: Reached, decimals: int) -> str:
    return interval_text(row.ratio, max(2, decimals)) if row.ratio else ""


def _notes(found: Sequence[Reached]) -> list[str]:
    notes = ["reached: of the runs that ended and were not lost, with the exact 95% interval of their share."]
    if any(row.ratio for row in found):
        notes.append(
            "ratio: cost over the baseline's, median over seeds, interval of the sign test. Beside it, not paired: "
            "p of the log-rank test (by the chi-square distribution, so rough for few runs), and of Fisher's exact "
            "test that as many reached it; both adjusted (Bonferroni). No word rests on them."
        )
    return notes


def figure_notes(comparison: Comparison) -> list[str]:
    """What the figures are of a metric that no mean is taken of; [] of any other."""
    if comparison.is_proportion:
        return _proportion_notes(comparison)
    return _cost_notes(comparison, comparison.target) if comparison.target else []


def _adjusted(comparison: Comparison) -> str:
    """What intervals and p of the differences are adjusted for; "" without any."""
    found = [row.difference for row in comparison.measured if row.difference]
    of = tests_text(comparison.study, found[0].tests) if found else ""
    return {"": "", "one comparison": "of one comparison"}.get(of, f"both adjusted (Bonferroni) for {of}")


def _proportion_notes(comparison: Comparison) -> list[str]:
    """What the figures of a metric that is 0 or 1 a run are."""
    notes = ["runs: how many of them have 1, and the exact 95% interval of their share (Clopper-Pearson)."]
    if comparison.baseline and (adjusted := _adjusted(comparison)):
        notes.append(
            f"difference: share of the cell minus that of {comparison.baseline.label}, runs not paired, with "
            f"Newcombe's interval; p: Fisher's exact test; {adjusted}. Better and worse take both."
        )
    return notes


def _cost_notes(comparison: Comparison, target: Target) -> list[str]:
    notes = [
        f"median: over the runs, with the sign test's interval. Costs are read from {target.metric} by straight lines "
        "between validations; > is the last validation of what never reached it.",
    ]
    if any(cost.low < cost.high < math.inf for cell in comparison.cells for cost in cell.costs.values()):
        notes.append("<= marks what the first validation found reached already: it cost at most that.")
    if comparison.baseline and (adjusted := _adjusted(comparison)):
        notes.append(
            f"difference: cell minus {comparison.baseline.label} by seed, their median, and p of the sign test, "
            f"{adjusted}; a seed whose sign is not sure counts against any finding."
        )
    return notes


def best_seen(comparison: Comparison, target: Target) -> str:
    """How near any run came to a target that none reached, in words."""
    curves = comparison.study.curves
    if target.metric not in curves.columns:
        return ""
    is_lower = comparison.study.better(target.metric) == "lower"
    rows = curves.drop_nulls(target.metric).sort(target.metric, descending=not is_lower)
    labels = {cell.cell.name: cell.label for cell in comparison.cells}
    known = [(cell, value) for cell, value in rows.select("cell", target.metric).iter_rows() if cell in labels]
    return f"the best of any run is {number(known[0][1], 4)} ({labels[known[0][0]]})" if known else ""
