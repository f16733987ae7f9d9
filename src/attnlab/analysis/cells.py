"""The cells of a study: values, intervals, differences to the baseline, ranks, failures and cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from attnlab.analysis.censoring import Bounds, ahead_of, probability_less
from attnlab.analysis.contrasts import count_of
from attnlab.analysis.differences import (
    ALPHA,
    DECIDED,
    Difference,
    Judged,
    Outcomes,
    family_size,
    judge,
    verdict_of,
)
from attnlab.analysis.failures import Failures
from attnlab.analysis.proportions import described, difference_of
from attnlab.analysis.reader import Cell, Metric, Run
from attnlab.analysis.regrets import OF_REGRETS
from attnlab.analysis.statistics import ROUNDING, Interval, probability_better, rows_of, sign_p_rows
from attnlab.training.study_fields import is_finite
from attnlab.training.targets import target_of

# Which cell is surely better than which: of their values by seed, the seeds asked, at a level, with their regrets.
FindAhead = Callable[[list[Mapping[int, float]], list[set[int]], Metric, float, list[float]], np.ndarray]


@dataclass(frozen=True)
class Budget:
    """Means over a cell's finished runs; nan where unknown. `flops` are those of the whole training, active_parameters
    those that a token meets, fewer than `parameters` in a mixture of experts."""

    steps: float
    tokens: float
    seconds: float
    parameters: float
    flops: float
    active_parameters: float = math.nan


@dataclass(frozen=True)
class CellSummary:
    """One cell: its values by seed, its runs' states, and how it stands to the baseline.

    `outcome` is "measured", or why there is no figure: "unavailable", "skipped", "missing", "failed", "diverged",
    "pruned", "not a number"; "censored" where no run reached the target of a cost, of which `costs` has what is known.
    `rank_interval` has the ranks it may hold (best, worst); None where it is not ranked. `n_failed` counts its runs
    that ended without a value, `failures` judges them where any run failed, and `probability_better` is the chance that
    a run of it beats any run of the baseline, failed runs being the worst.
    """

    cell: Cell
    label: str
    is_baseline: bool
    values: dict[int, float]
    interval: Interval | None
    states: dict[str, int]
    outcome: str
    reason: str
    difference: Difference | None
    rank_interval: tuple[int, int] | None
    budget: Budget
    n_failed: int = 0
    failures: Failures | None = None
    probability_better: float = math.nan
    costs: Mapping[int, Bounds] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The runs of which something is known: a value, or the bounds of a cost."""
        return len(self.costs) or len(self.values)

    def is_settled(self, alpha: float) -> bool:
        """Whether more seeds have nothing to decide between it and the baseline."""
        fails = self.failures is not None and self.failures.p_holm <= alpha
        found = self.difference
        return fails or (found is not None and (found.verdict != "undecided" or found.contrast.beyond_chance))


def summarize(outcomes: Outcomes) -> list[CellSummary]:
    """Every cell with its figures: differences and ranks are one family (see `pairs_ahead`)."""
    study, metric = outcomes.study, outcomes.study.metric
    if metric is None:
        return [_summary(outcomes, cell, {}, {}) for cell in study.cells]
    judged, ahead = _judged_pairs(outcomes, metric)
    ranks = rank_intervals([cell.name for cell in study.cells if outcomes.known(cell.name, metric.name)], ahead)
    differences = {cell: Difference.of(found) for cell, found in judged.items()}
    return [_summary(outcomes, cell, differences, ranks if len(ranks) > 1 else {}) for cell in study.cells]


def _judged_pairs(outcomes: Outcomes, metric: Metric) -> tuple[dict[str, Judged], set[tuple[str, str]]]:
    """The differences to the baseline, judged, and the pairs of cells of which the first is surely better, by this look
    or one before."""
    study = outcomes.study
    known: dict[str, Mapping[int, Any]] = {cell.name: outcomes.known(cell.name, metric.name) for cell in study.cells}
    base = study.baseline_cell
    if base and outcomes.unavailable(base.name, metric.name):
        base = None  # as if there were none: said beforehand, whatever the runs give
    able = [c.name for c in study.cells if c.skip is None and not outcomes.unavailable(c.name, metric.name)]
    contrasts = {
        cell: outcomes.against(cell, metric.name, base.name, metric.name, "the baseline")
        for cell in able
        if base and cell != base.name
    }
    judged = judge(contrasts, metric, outcomes.alpha, outcomes.spent)
    ahead = pairs_ahead(
        {cell: of for cell, of in known.items() if of},
        {cell: set(outcomes.of(cell, metric.name)) for cell, of in known.items() if of or cell in able},
        metric,
        base.name if base else None,
        {cell: found.verdict for cell, found in judged.items()},
        family_size(contrasts),
        outcomes.alpha,
        _ahead_by_costs
        if target_of(metric.name)
        else _ahead_by_shares
        if outcomes.is_proportion(metric.name)
        else _ahead,
        outcomes.regrets(metric.name),
        outcomes.is_over,
    )
    if outcomes.before:
        earlier = _judged_pairs(outcomes.before, metric)[1]
        ahead |= {pair for pair in earlier if outcomes.beyond_chance.isdisjoint(pair)}
    return judged, {(better, worse) for better, worse in ahead if (worse, better) not in ahead}


def _summary(
    outcomes: Outcomes, cell: Cell, differences: Mapping[str, Difference], ranks: Mapping[str, tuple[int, int]]
) -> CellSummary:
    study, metric, base = outcomes.study, outcomes.study.metric, outcomes.study.baseline_cell
    runs, values = study.runs_of(cell.name), study.values(cell.name, metric.name) if metric else {}
    n_failed, chance = outcomes.counts[cell.name][0], math.nan
    if base is not None and metric is not None and cell is not base:  # over all runs, not by seed
        chance = _chance(outcomes, metric, cell.name, base.name)
    costs = study.costs(cell.name, metric.name) if metric else {}
    outcome, reason = _outcome(cell, metric.name if metric else "", runs, values, costs)
    return CellSummary(
        cell=cell,
        label=study.label(cell),
        is_baseline=cell is base,
        values=values,
        interval=described(study, cell.name, metric.name) if metric else None,
        states=dict(Counter(run.state for run in runs)),
        outcome=outcome,
        reason=reason,
        difference=differences.get(cell.name),
        rank_interval=ranks.get(cell.name),
        budget=budget_of(runs),
        n_failed=n_failed,
        failures=outcomes.failures.get(cell.name),
        probability_better=chance,
        costs=costs,
    )


def _chance(outcomes: Outcomes, metric: Metric, cell: str, base: str) -> float:
    """That a run of the one beats any run of the other, failed runs being the worst of all."""
    own, theirs = (list(outcomes.known(name, metric.name).values()) for name in (cell, base))
    failed, lost = (outcomes.counts[name][0] for name in (cell, base))
    if not target_of(metric.name):
        return probability_better(own, theirs, metric.better, failed, lost)
    never = Bounds(math.inf, math.inf)
    return probability_less([*own, *[never] * failed], [*theirs, *[never] * lost])


def _outcome(
    cell: Cell, metric: str, runs: Sequence[Run], values: Mapping[int, float], costs: Mapping[int, Bounds]
) -> tuple[str, str]:
    if cell.skip is not None:
        return "skipped", cell.skip
    if values or any(cost.is_reached for cost in costs.values()):
        return "measured", ""
    if costs and (target := target_of(metric)):
        return "censored", f"no run reached {target.metric} {target.value:g}"
    for run in runs:
        if metric in run.unavailable:
            return "unavailable", run.unavailable[metric]
    for state in ("diverged", "failed", "pruned"):
        for run in runs:
            if run.state == state:
                return state, run.error or ""
    if any(metric in run.non_finite for run in runs):
        return "not a number", f"{metric} came out as NaN or infinite"
    finished = any(run.state == "finished" for run in runs)
    return "missing", f"finished, but without {metric or 'a metric'}" if finished else "no run has finished"


def budget_of(runs: Sequence[Run]) -> Budget:
    finished = [run for run in runs if run.state == "finished"]
    steps, tokens, seconds = (_mean([run.status.get(key) for run in finished]) for key in ("step", "tokens", "seconds"))
    counts = [run.section("parameters") for run in finished]
    parameters = _mean([count.get("total") for count in counts])
    active = _mean([count.get("active_total", count.get("total")) for count in counts])
    flops = _mean([run.record.get("flops_per_token") for run in finished]) * tokens
    return Budget(steps, tokens, seconds, parameters, flops, active)


def _mean(values: Sequence[object]) -> float:
    numbers = [float(value) for value in values if is_finite(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def rank_intervals(names: Sequence[str], ahead: Iterable[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """The ranks that each cell may hold, (best, worst): behind those surely better, before those surely worse."""
    before, behind = Counter(worse for _, worse in ahead), Counter(better for better, _ in ahead)
    return {name: (1 + before[name], len(names) - behind[name]) for name in names}


def pairs_ahead(
    values: Mapping[str, Mapping[int, float]],
    asked: Mapping[str, set[int]],
    metric: Metric,
    baseline: str | None = None,
    verdicts: Mapping[str, str] | None = None,
    size: int = 0,
    alpha: float = ALPHA,
    find_ahead: FindAhead | None = None,
    regrets: Mapping[str, float] | None = None,
    is_over: bool = True,
) -> set[tuple[str, str]]:
    """The pairs of `values` ({cell: {seed: value}}) of which the first is surely better.

    Differences to the baseline and ranks are one family, with a false word in at most a share `alpha` of studies. A
    pair with the baseline is what `verdicts` say of it ({cell: verdict}, `size` tests at alpha / size each). The other
    pairs are tested at what these leave: alpha times the share of the baseline's tests that were decided, over the
    number of pairs. (If m0 of the m differences to the baseline are truly none, a false one is found there with a
    chance of at most alpha m0 / m; and where none is found, the other pairs have at most alpha (m - m0) / m.) Without
    a baseline the pairs have alpha whole. asked: the seeds that were asked of each cell; those without a value count
    against every finding. find_ahead: which cell is surely better than which, by default as `_ahead` finds it.
    regrets: by how much cells may be worse than at their best settings, where they were tuned: a pair is told where it
    would be at those, too. is_over: whether those will have none; else nothing is said of cells that lack some.
    """
    names = list(values)
    ahead = np.zeros((len(names), len(names)), dtype=bool)
    rest = [i for i, name in enumerate(names) if name != baseline]
    others = sum(cell != baseline for cell in asked)
    pairs = others * (others - 1) / 2
    decided = {name: verdict for name, verdict in (verdicts or {}).items() if verdict in DECIDED}
    left = alpha * len(decided) / max(1, size) if baseline is not None else alpha
    if left and pairs:
        tables = [values[names[i]] for i in rest], [asked[names[i]] for i in rest]
        left = left / pairs * (1 if regrets is None else 1 - OF_REGRETS)
        found = (find_ahead or _ahead)(*tables, metric, left, [(regrets or {}).get(names[i], 0.0) for i in rest])
        if not is_over:
            whole = np.array([asked[names[i]] <= values[names[i]].keys() for i in rest], dtype=bool)
            found &= whole[:, None] & whole
        ahead[np.ix_(rest, rest)] = found
    if baseline in names:
        base = names.index(baseline)
        for name, verdict in decided.items():
            first, second = (names.index(name), base) if verdict == "better" else (base, names.index(name))
            ahead[first, second] = True
    return {(names[better], names[worse]) for better, worse in np.argwhere(ahead).tolist()}


def _ahead_by_shares(
    cells: list[Mapping[int, float]], asked: list[set[int]], metric: Metric, share: float, regrets: list[float]
) -> np.ndarray:
    """`_ahead` of values that are 0 or 1, of which no regret is known."""
    ahead = np.zeros((len(cells), len(cells)), dtype=bool)
    if any(regrets):
        return ahead
    for i, j in combinations(range(len(cells)), 2):
        seeds = asked[i] & asked[j]
        counts = [count_of(cells[k], seeds) for k in (i, j)]
        if all(count.n for count in counts):
            verdict = verdict_of(difference_of(counts[0], counts[1], 1 - share), metric)
            ahead[i, j], ahead[j, i] = verdict == "better", verdict == "worse"
    return ahead


def _ahead_by_costs(
    cells: list[Mapping[int, Any]], asked: list[set[int]], metric: Metric, share: float, regrets: list[float]
) -> np.ndarray:
    """`_ahead` of costs to a target, which are known between bounds."""
    return ahead_of(cells, asked, share, regrets)


def _ahead(
    cells: list[Mapping[int, float]], asked: list[set[int]], metric: Metric, share: float, regrets: list[float]
) -> np.ndarray:
    """Which cell is surely better than which, (cells, cells): by the tests of `differences.judge`, at `share`."""
    seeds = sorted(set().union(*asked, *cells))
    sign = 1.0 if metric.better == "lower" else -1.0
    values_RS = np.array([[sign * cell.get(seed, np.nan) for seed in seeds] for cell in cells]).reshape(len(cells), -1)
    asked_RS = np.array([[seed in of or seed in cell for seed in seeds] for of, cell in zip(asked, cells, strict=True)])
    ahead = np.zeros((len(cells), len(cells)), dtype=bool)
    for i, (own_S, asked_S) in enumerate(zip(values_RS, asked_RS.reshape(values_RS.shape), strict=True)):
        scale = np.maximum(np.abs(own_S), np.abs(values_RS))
        differences_RS = np.where(np.abs(own_S - values_RS) <= ROUNDING * scale, 0.0, own_S - values_RS)
        missing_R = (asked_S & asked_RS & ~np.isfinite(differences_RS)).sum(axis=1)
        rows = rows_of(differences_RS)
        low, high = rows.t_bounds(1 - share)
        theirs_R = np.array(regrets)
        by_t = (rows.n > 1) & rows.has_spread & (high + theirs_R < 0) & (low - regrets[i] < -metric.margin)
        at_best_RS = np.where(np.isfinite(theirs_R)[:, None], differences_RS + theirs_R[:, None], np.nan)
        is_less = (at_best_RS < 0).sum(axis=1) > (at_best_RS > 0).sum(axis=1)
        by_sign = is_less & (sign_p_rows(at_best_RS, missing_R) <= share)
        ahead[i] = np.where(missing_R > 0, by_sign, by_t)
    return ahead
